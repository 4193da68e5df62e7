"""What keeping each unit adds to the objective at one selection: alone, and through the kept ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from prunesolve.problems import BinaryQuadratic, Dense, LowRank, SubsetRegression
from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems.couplings import AnyCoupling

RELATIVE = 1e-9  # of the terms that are added: what rounding leaves

Selected = BinaryQuadratic | SubsetRegression


class Terms(Protocol):
    """What keeping each unit adds to f at one selection: linear + couplings."""

    @property
    def linear(self) -> Floats:
        """(n,) its part that does not depend on the others."""

    @property
    def couplings(self) -> Floats:
        """(n,) its part through the kept ones."""

    def partners(self, i: int) -> Floats:
        """(n,) what each kept unit contributes to the couplings of i."""

    def swaps(self, out: Indices, into: Indices) -> Floats:
        """(out, into) change of f when a kept unit goes and a dropped one comes."""


def terms_of(problem: Selected, kept: Bits) -> Terms:
    """The terms of a problem at a selection (n,) bool."""
    return _Quadratic(problem, kept) if isinstance(problem, BinaryQuadratic) else _Regression(problem, kept)


@dataclass(frozen=True)
class _Quadratic:
    problem: BinaryQuadratic
    kept: Bits

    @property
    def linear(self) -> Floats:
        return self.problem.linear

    @cached_property
    def couplings(self) -> Floats:
        return self.problem.couplings.product(self.kept.astype(np.float64))

    def partners(self, i: int) -> Floats:
        return self.problem.couplings.row(i) * self.kept

    def swaps(self, out: Indices, into: Indices) -> Floats:
        fields = self.linear + self.couplings
        return fields[into] - fields[out][:, None] - _between(self.problem.couplings, out, into)


def _between(couplings: AnyCoupling, out: Indices, into: Indices) -> Floats:
    """(out, into) the couplings of two sets without a common unit."""
    if isinstance(couplings, Dense):
        return couplings.matrix[np.ix_(out, into)]
    if isinstance(couplings, LowRank):
        # one product for all rows: row by row, factors of full rank would be read once a unit
        return couplings.sign * (couplings.F[out] @ couplings.F[into].T)
    return np.array([couplings.row(int(i))[into] for i in out]).reshape(len(out), len(into))


class _Regression:
    """Exact costs of removal and insertion; linear is what a group adds when no other is kept."""

    def __init__(self, problem: SubsetRegression, kept: Bits) -> None:
        from prunesolve.solvers._tableau import Tableau

        self._tableau = Tableau(problem, kept)
        changes = self._tableau.changes()
        self.linear: Floats = -Tableau(problem, np.zeros_like(kept)).changes()
        self.couplings: Floats = np.where(kept, changes, -changes) - self.linear

    def partners(self, i: int) -> Floats:
        """None: a refit has no parts by pairs."""
        return np.zeros_like(self.linear)

    def swaps(self, out: Indices, into: Indices) -> Floats:
        # the tableau's columns are the dropped groups in order, as `into` is
        return -self._tableau.swaps(out)
