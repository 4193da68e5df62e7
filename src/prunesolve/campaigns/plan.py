"""What a campaign solves: instances, solvers, seeds and limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunesolve.problems.readers import SUFFIXES, instances_in

from .sources import FileSource, Source

_GRACE = 60.0  # seconds beyond twice the time limit until a solver that ignores it is killed


@dataclass(frozen=True)
class Limits:
    """What a job may spend.

    Parameters
    ----------
    time_limit, evaluation_limit : float, int or None
        Told to the solver.
    bound : bool
        Whether a lower bound is asked for.
    memory_limit : float or None
        Bytes of resident memory at which a job's process is killed.
    kill_after : float or None
        Seconds after which it is killed; by default twice the time limit and a minute.
    """

    time_limit: float | None = None
    evaluation_limit: int | None = None
    bound: bool = False
    memory_limit: float | None = None
    kill_after: float | None = None

    @property
    def patience(self) -> float:
        """Seconds after which a job is killed, inf for never."""
        if self.kill_after is not None:
            return self.kill_after
        return math.inf if self.time_limit is None else 2 * self.time_limit + _GRACE


@dataclass(frozen=True)
class Contestant:
    """A solver with its options, under the label that rows call it."""

    label: str
    name: str
    options: Mapping[str, Any]
    repr: str


@dataclass(frozen=True)
class Network:
    """A problem to be made of a network before anything is solved: measured once, encoded for a budget."""

    name: str
    model: str
    data: str
    formulation: str
    options: Mapping[str, Any]
    budget: str
    amount: int | float
    layers: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Campaign:
    """Instances, solvers, seeds and repeats, every one with every other.

    Parameters
    ----------
    name : str
        By default the file's stem.
    path : path
        The campaign file; paths in it are relative to its folder.
    text : str
        What it says.
    sources : tuple of Source
        Files that may hold several instances stand for all of them; `instances` unfolds them.
    networks : tuple of Network
        What has to be measured and encoded first.
    solvers : tuple of Contestant
    seeds : tuple of int
    repeats : int
        Runs with each seed.
    limits : Limits
    """

    name: str
    path: Path
    text: str
    sources: tuple[Source, ...]
    networks: tuple[Network, ...]
    solvers: tuple[Contestant, ...]
    seeds: tuple[int, ...]
    repeats: int
    limits: Limits

    @property
    def per_instance(self) -> int:
        """Jobs on each instance."""
        return len(self.solvers) * len(self.seeds) * self.repeats

    def runs(self) -> Iterator[tuple[Contestant, int, int]]:
        """(solver, seed, repeat) of every job on an instance."""
        return itertools.product(self.solvers, self.seeds, range(self.repeats))


def unfolded(source: Source) -> Iterator[Source]:
    """The instances of a source: a text file may hold several."""
    count = 1
    if isinstance(source, FileSource) and source.index is None and Path(source.path).suffix.lower() not in SUFFIXES:
        count = instances_in(source.path, format=source.format)
    if count == 1 or not isinstance(source, FileSource):
        yield source
        return
    for k in range(1, count + 1):
        yield replace(source, name=f"{source.name}:{k}", index=k)
