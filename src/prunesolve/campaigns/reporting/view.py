"""What the sections of the page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunesolve.campaigns import comparison
from prunesolve.campaigns.comparison import TIE, TINY, Anytime, Best, Floats, Pair, Row, Summary, grouped
from prunesolve.campaigns.records import Records
from prunesolve.problems import InvalidProblem

from .files import Tables
from .names import natural

TARGETS = {"1 %": 1e-2, "0.1 %": 1e-3, "best": TIE}
PROFILED = {"within 0.1 % of the best known": 1e-3, "within 0.0001 % of the best known": 1e-6}


@dataclass(frozen=True)
class View:
    """The rows and what several sections ask of them, each computed once; `unread` are jobs whose trace is damaged."""

    records: Records
    rows: Sequence[Row]
    tables: Tables
    unread: list[str]

    @cached_property
    def solvers(self) -> list[str]:
        """Names, in natural order."""
        return sorted({row["solver"] for row in self.rows}, key=natural)

    @cached_property
    def styles(self) -> dict[str, int]:
        """The place of each solver in the palette."""
        return {solver: i for i, solver in enumerate(self.solvers)}

    @cached_property
    def instances(self) -> dict[str, list[Row]]:
        """The rows of each instance, in natural order."""
        return dict(sorted(grouped(self.rows, "instance").items(), key=lambda item: natural(item[0])))

    @cached_property
    def known(self) -> dict[str, Best]:
        """The best known of each instance."""
        return comparison.best_known(self.rows)

    @cached_property
    def gaps(self) -> Floats:
        """Of each row, to the best known of its instance."""
        return comparison.gaps(self.rows, self.known)

    @cached_property
    def places(self) -> dict[str, Floats]:
        """Where the rows of each solver are."""
        of = np.array([self.styles[row["solver"]] for row in self.rows])
        return {solver: np.flatnonzero(of == style) for solver, style in self.styles.items()}

    @cached_property
    def own_places(self) -> dict[str, dict[str, list[int]]]:
        """{instance: {solver: where its rows are}}."""
        found: dict[str, dict[str, list[int]]] = {}
        for r, row in enumerate(self.rows):
            found.setdefault(row["instance"], {}).setdefault(row["solver"], []).append(r)
        return found

    @cached_property
    def medians(self) -> dict[str, dict[str, float]]:
        """{instance: {solver: median gap of its runs}}."""
        return comparison.median_gaps(self.rows, self.known)

    @cached_property
    def summaries(self) -> list[Summary]:
        """Best first."""
        place = {solver: i for i, solver in enumerate(self.standings)}
        return sorted(comparison.summaries(self.rows, self.known), key=lambda of: place.get(of.solver, 0))

    @cached_property
    def pairs(self) -> list[Pair]:
        """Of solvers, in alphabetical order."""
        return comparison.pairwise(self.rows, self.known)

    @cached_property
    def standings(self) -> dict[str, float]:
        """Wins minus losses of each solver as a share, the best first."""
        return comparison.standings(self.pairs)

    @cached_property
    def anytime(self) -> Anytime | None:
        """The runs over time; None where none with a feasible result says how long it took."""
        targets = sorted({*TARGETS.values(), *PROFILED.values()})
        return comparison.anytime(self.rows, self._trace, self.known, targets)

    def _trace(self, row: Row) -> Any:
        try:
            told = self.records.told(row["job"])
        except InvalidProblem:
            self.unread.append(row["job"])
            return None
        return None if told is None else told.get("trace")

    @property
    def any_solved(self) -> bool:
        """Whether any run brought a feasible result."""
        return bool(np.isfinite(self.gaps).any())

    @cached_property
    def absolute(self) -> list[str]:
        """Instances whose gaps are differences, as their best known is 0."""
        return [instance for instance in self.instances if self._near_zero(instance)]

    def _near_zero(self, instance: str) -> bool:
        return instance in self.known and abs(self.known[instance].value) <= TINY
