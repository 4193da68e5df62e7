"""One job: one solver on one instance with one seed, named by what decides its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from prunesolve import __version__

from .plan import Contestant, Limits
from .records import COLUMNS
from .sources import Source


@dataclass(frozen=True)
class Job:
    """What a worker is asked to do.

    Parameters
    ----------
    source : Source
        The instance.
    digest : str
        Of the instance; two jobs with the same digest are on the same problem.
    contestant : Contestant
        The solver.
    seed, repeat : int
    limits : Limits
    """

    source: Source
    digest: str
    contestant: Contestant
    seed: int
    repeat: int
    limits: Limits

    @cached_property
    def id(self) -> str:
        """16 hex digits of everything that decides the answer; how long one waits for it is none of that."""
        decides = [
            self.digest,
            self.contestant.repr,
            self.seed,
            self.repeat,
            self.limits.time_limit,
            self.limits.evaluation_limit,
            self.limits.bound,
            __version__,
        ]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def told(self) -> dict[str, Any]:
        """What a worker must know, as JSON takes it."""
        return {
            "job": self.id,
            "digest": self.digest,
            "source": self.source.told(),
            "name": self.contestant.name,
            "options": dict(self.contestant.options),
            "seed": self.seed,
            "time_limit": self.limits.time_limit,
            "evaluation_limit": self.limits.evaluation_limit,
            "bound": self.limits.bound,
            "memory_limit": self.limits.memory_limit,
            "patience": self.limits.patience if self.limits.patience < float("inf") else None,
        }

    def row(self, brought: Mapping[str, Any]) -> dict[str, Any]:
        """The row of the finished job; `brought` is what the worker says of it."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {
            "job": self.id,
            "instance": self.source.name,
            "solver": self.contestant.label,
            "solver_repr": self.contestant.repr,
            "seed": self.seed,
            "repeat": self.repeat,
            "feasible": False,
            "time_limit": self.limits.time_limit,
            "evaluation_limit": self.limits.evaluation_limit,
            "memory_limit_mib": None if self.limits.memory_limit is None else self.limits.memory_limit / 2**20,
            "version": __version__,
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        row |= {column: value for column, value in brought.items() if column in COLUMNS}
        if row["best_known"] is None:
            row["best_known"] = self.source.best_known
        return row
