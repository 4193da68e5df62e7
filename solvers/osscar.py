"""Backward elimination of input groups at exact costs, then swaps of several and of two groups, all refitted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count, product
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, SubsetRegression
from prunesolve.problems._arrays import Bits

from ._base import Run, Solver, Status
from ._group_counts import GroupCounts
from ._tableau import Tableau

_TIE = 1e-10  # share of what all groups explain that a change must gain to be worth making
_WORK = 2e10  # additions and multiplications that an enumeration may take: some seconds
_PIVOTS = 256  # after which a tableau is made anew, without the rounding they left
_WHITENED = 1024  # inputs up to which the bound takes eigenvalues
_ROUNDING = 1e-9  # of the scale of the values, by which a bound is lowered


@dataclass(frozen=True)
class Osscar(Solver):
    r"""Take out the group that is missed least, the others refitted, until k are left; then swap.

    With P = H_SS^-1 and W = P B_S on the kept inputs S, taking group g out costs tr(W_g' P_gg^-1 W_g), and putting g
    in gains tr(R_g' Q_gg^-1 R_g), R = B - H_:S W, Q = H - H_:S P H_S:. Both are exact. In turn:

    - elimination: `batch` groups of least cost go between two updates of the inverse;
    - swaps of several: of the kept groups the `swap` share that costs least goes, as many that gain most come; kept
      where the objective falls, else half as many, down to two;
    - swaps of two (ours): taking u out and putting v in, valued by what v gains without u, for all v at once; the best
      is made where it pays, until no swap of two groups does;
    - kicks (ours): some kept groups give way to random ones and the swaps of two are repeated; the better answer stays.
      Without limits there are `kicks` of them, else as many as fit.

    Where there are few selections all are valued, and the status is OPTIMAL. More kept groups never fit worse, so that
    without a Cardinality as many stay as GroupBounds allow, and keeping all is a bound. It is raised by the most that a
    group costs which must go, or, with mu the least eigenvalue of H whitened by its blocks, by mu tr(W_g H_gg W_g')
    summed over the groups where that is least.

    An evaluation is one update of the inverse, one kept group whose swaps are looked at, or one selection enumerated.

    Memory: some tables of (inputs)^2 numbers, every group counted as the widest.

    Parameters
    ----------
    batch : int
        Groups that go at a time in the elimination.
    swap : float
        Share of the kept groups that the first swap of several moves; 0 leaves that out.
    kicks : int
        Kicks where no limit is given.
    enumerate_up_to : int
        Selections up to which all are valued.

    References
    ----------
    Meng, Behdin, Wang, Mazumder et al., OSSCAR, 2024: elimination and swaps of several. Swaps of two: exchange in best
    subset regression, A. Miller, Subset Selection in Regression, 1990, here for groups.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> gram = [[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]
    >>> problem = SubsetRegression(gram, [[1.9], [1.9], [1.0]], [0, 1, 2], Cardinality(2), offset=4.8)
    >>> result = Osscar().solve(problem)
    >>> result.solution.tolist(), round(result.objective, 12), str(result.status)
    ([True, False, True], 0.19, 'OPTIMAL')
    """

    batch: int = 1
    swap: float = 0.1
    kicks: int = 4
    enumerate_up_to: int = 2000

    name: ClassVar[str] = "osscar"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = SubsetRegression

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InvalidProblem(f"batch: expected a count >= 1, got {self.batch}")
        if not 0.0 <= self.swap <= 1.0:
            raise InvalidProblem(f"swap: expected a share from 0 to 1, got {self.swap}")
        if self.kicks < 0 or self.enumerate_up_to < 0:
            raise InvalidProblem(f"kicks, enumerate_up_to: expected >= 0, got {self.kicks} and {self.enumerate_up_to}")

    def refuse(self, problem: Any) -> str | None:
        """Sets of several GroupBounds may not overlap, unless all selections are looked at anyway."""
        reason = super().refuse(problem)
        if reason is None and GroupCounts.of_problem(problem) is None and not self._enumerates(problem):
            return (
                f"{self.name} takes GroupBounds whose groups do not overlap; where they do, only up to "
                f"{self.enumerate_up_to} selections"
            )
        return reason

    def _prepare(self, problem: SubsetRegression) -> None:
        Tableau(SubsetRegression([[1.0]], [[1.0]], [0])).pivot([0])

    def _search(self, problem: SubsetRegression, run: Run) -> Status | None:
        counts = GroupCounts.of_problem(problem)
        if counts is None:
            return _enumerated(problem, None, run)
        search = _Search(problem, run, counts)
        run.prove(search.bound())
        best = self._descended(search)
        if self._enumerates(problem):
            return _enumerated(problem, counts.k, run)
        limited = run.time_limit is not None or run.evaluation_limit is not None
        for _ in count() if limited else range(self.kicks):
            if run.should_stop():
                break
            found = search.settled(search.kicked(best))
            if found.explained > best.explained + search.tie:
                best = found
                search.offer(best)
        return None

    def _descended(self, search: _Search) -> Tableau:
        """What swaps make of the start and of an elimination, the better of the two."""
        found = [] if search.run.start is None else [Tableau(search.problem, search.run.start)]
        found.append(search.eliminated(self.batch))
        search.offer(found[-1])
        for place, tableau in enumerate(found):
            found[place] = search.settled(search.exchanged(tableau, self.swap))
            search.offer(found[place])
        return max(found, key=lambda tableau: tableau.explained)

    def _enumerates(self, problem: SubsetRegression) -> bool:
        counts = GroupCounts.of_problem(problem)
        if counts is None:
            # a count as long as the numbers stay printable
            many, inputs = 1 << min(problem.n, 60), len(problem.block)
            many = many if problem.k is None else min(many, math.comb(problem.n, problem.k))
        else:
            many, inputs = math.comb(problem.n, counts.k), len(problem.block) * counts.k // max(1, problem.n)
        return many <= self.enumerate_up_to and many * inputs**3 <= _WORK


class _Search:
    """One problem, its counts and the moves on its tableaux."""

    def __init__(self, problem: SubsetRegression, run: Run, counts: GroupCounts) -> None:
        self.problem, self.run, self.counts = problem, run, counts
        self.whole = Tableau(problem)
        self.tie = _TIE * self.whole.explained

    def offer(self, tableau: Tableau) -> None:
        """Put its groups forward."""
        self.run.offer(tableau.kept)

    def bound(self) -> float:
        """What no selection of k groups is below."""
        least, gone = self.problem.least, self.problem.n - self.counts.k
        slack = _ROUNDING * (abs(self.problem.offset) + abs(self.problem.offset - least))
        if gone == 0 or not self.whole.regular:
            return least - slack
        # the groups that go cost together what the dearest of them does alone, or more
        dearest = float(np.sort(-self.whole.changes())[gone - 1])
        return least + max(dearest, self.whole.apart(gone) if len(self.whole.gram) <= _WHITENED else 0.0) - slack

    def eliminated(self, batch: int) -> Tableau:
        """K groups, after the least missed ones went one batch after another; all at once where the run must stop."""
        tableau = self.whole.copy()
        while (left := int(tableau.kept.sum()) - self.counts.k) > 0:
            hurried = self.run.should_stop()
            self.pivoted(tableau, self._least_missed(tableau, left if hurried else min(batch, left)))
        return tableau

    def exchanged(self, tableau: Tableau, share: float) -> Tableau:
        """Swaps of several groups, fewer each time that one does not pay."""
        many = round(share * self.counts.k)
        while many > 1 and not self.run.should_stop():
            trial = tableau.copy()
            self.pivoted(trial, self._least_missed(trial, many, self.counts.k - many))
            self.pivoted(trial, self._most_gaining(trial))
            if trial.explained > tableau.explained + self.tie:
                tableau = trial
            else:
                many //= 2
        return tableau

    def settled(self, tableau: Tableau) -> Tableau:
        """Swaps of two groups until none pays; the tableau is changed."""
        quiet = 0
        while quiet < self.counts.k < tableau.n:
            for group in np.flatnonzero(tableau.kept)[np.argsort(-tableau.changes()[tableau.kept], kind="stable")]:
                if self.run.should_stop():
                    return tableau
                self.run.count()
                quiet = 0 if self._swapped(tableau, int(group)) else quiet + 1
                if quiet == self.counts.k:
                    break
        return tableau

    def kicked(self, tableau: Tableau) -> Tableau:
        """A copy in which random groups have changed places."""
        trial, rng = tableau.copy(), self.run.rng
        most = min(self.counts.k, trial.n - self.counts.k)
        if most == 0:
            self.run.count()
            return trial
        many = 1 + int(rng.integers(min(most, max(2, self.counts.k // 8))))
        self.pivoted(trial, rng.choice(np.flatnonzero(trial.kept), many, replace=False))
        self.pivoted(trial, self.counts.entering(trial.kept, rng.permutation(np.flatnonzero(~trial.kept))))
        return trial

    def pivoted(self, tableau: Tableau, groups: Any) -> None:
        """Move groups to the other side, and count it where the limit leaves room."""
        if len(groups):
            tableau.pivot(groups)
            self.run.count(min(1, int(min(1.0, self.run.evaluations_left))))
        if tableau.pivots > _PIVOTS:
            tableau.refresh(tableau.kept)

    def _swapped(self, tableau: Tableau, group: int) -> bool:
        """Whether the best swap of a kept group pays; then it is made."""
        if not tableau.kept[group]:
            return False
        gains = tableau.swaps([group])[0]
        gains[~self.counts.exchanges(tableau.kept, group)] = -math.inf
        place = int(np.argmax(gains))
        if not gains[place] > self.tie:
            return False
        comes = int(np.flatnonzero(~tableau.kept)[place])
        self.pivoted(tableau, [group])
        self.pivoted(tableau, [comes])
        return True

    def _least_missed(self, tableau: Tableau, many: int, k: int | None = None) -> list[int]:
        """Kept groups of least cost, as many of those as may go."""
        order = np.flatnonzero(tableau.kept)[np.argsort(-tableau.changes()[tableau.kept], kind="stable")]
        counts = self.counts if k is None else self.counts.fewer(k)
        return counts.leaving(tableau.kept, order, many)

    def _most_gaining(self, tableau: Tableau) -> list[int]:
        """Groups of most gain that make k with those that are kept."""
        out = np.flatnonzero(~tableau.kept)
        return self.counts.entering(tableau.kept, out[np.argsort(-tableau.changes()[out], kind="stable")])


def _enumerated(problem: SubsetRegression, k: int | None, run: Run) -> Status | None:
    """Value every selection that meets the constraints; of k groups, where that is all that is of interest."""
    for x in _selections(problem.n, problem.k if k is None else k):
        if not problem.is_feasible(x):
            continue
        if run.should_stop():
            return None
        run.count()
        if problem.value(x) < run.objective:
            run.offer(x)
    if not run.feasible:
        return Status.INFEASIBLE
    run.prove(run.objective)
    return Status.OPTIMAL


def _selections(n: int, k: int | None) -> Iterator[Bits]:
    if k is None:
        yield from (np.array(x, dtype=bool) for x in product((True, False), repeat=n))
        return
    for kept in combinations(range(n), k):
        x = np.zeros(n, dtype=bool)
        x[list(kept)] = True
        yield x
