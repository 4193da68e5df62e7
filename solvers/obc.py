"""Optimal brain surgery row by row: weights go one after another, the others make up for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, Keep, NofM, SparseRegression
from prunesolve.problems._arrays import Bits, Floats, Indices

from . import _kernels
from ._base import Run, Solver, Status
from ._sparse_rows import Rows
from ._sparse_starts import magnitude, wanda

_STEPS, _SHARE = 32, 8  # removals between two updates of the inverse: 32, or an eighth of the weights left
_ORDERS = ("greedy", "columns")


@dataclass(frozen=True)
class Obc(Solver):
    r"""Remove the weight whose loss is least once the others have made up for it, over and over.

    With B = [H_i]_SS^-1 on the support S of row i, removing p costs  w_p^2 / B_pp  exactly, and the best of the others
    are  w - B_p w_p / B_pp,  B - B_p B_p' / B_pp.

    `order="greedy"` takes each row from its dense weights downwards. `PerRow` and `NofM` end where every quota is met;
    for `Keep` every row goes down to nothing, and the rows' losses are merged: the cheapest next removal of any row
    goes first, until k weights are left. Every removal is valued exactly; the sequence is greedy.

    `order="columns"` goes through the inputs once for all rows together, which takes d times less: of each block of
    inputs the cheapest weights go, and the inputs after them make up for it. Every block keeps its even share. Where
    rows have a Hessian of their own, the mean of all is used.

    An evaluation is one row, or one block of inputs for all rows. Without limits all are done; where a limit comes
    first, the rows that are done keep as many weights as in the better of the cheap selections by magnitude and by
    Wanda, or the start, and the others what they keep there.

    Parameters
    ----------
    order : "greedy" or "columns"
        Weights by their loss, or inputs from first to last.
    block : int
        Inputs in a block of `order="columns"`.

    Reference
    ---------
    E. Frantar, S. P. Singh, D. Alistarh, Optimal brain compression, NeurIPS 2022 (greedy); E. Frantar, D. Alistarh,
    SparseGPT, ICML 2023 (columns). The updates of the inverse are put off and made many at a time (ours).

    Examples
    --------
    >>> problem = SparseRegression([[4.0, 2.0], [2.0, 4.0]], [[6.0], [0.0]], Keep(1), offset=9.0)
    >>> result = Obc().solve(problem)
    >>> result.solution.tolist(), result.objective
    ([True, False], 0.0)
    """

    order: str = "greedy"
    block: int = 128

    name: ClassVar[str] = "obc"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = SparseRegression

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise InvalidProblem(f"order: expected one of {', '.join(_ORDERS)}, got {self.order!r}")
        if self.block < 1:
            raise InvalidProblem(f"block: expected a count >= 1, got {self.block}")

    def _prepare(self, problem: SparseRegression) -> None:
        tiny = SparseRegression(np.eye(2), np.ones((2, 1)), Keep(1))
        with _kernels.telling("sparse regression"):
            Obc()._search(tiny, Run(tiny, seed=0))

    def _search(self, problem: SparseRegression, run: Run) -> Status | None:
        for start in (magnitude(problem), wanda(problem)):
            run.offer(start)
        if run.should_stop():
            return None
        rows = Rows(problem)
        run.prove(problem.least)
        found = self._by_columns(problem, rows, run) if self.order == "columns" else _by_loss(problem, rows, run)
        if found is not None:
            run.offer(found.ravel())
        return None

    def _by_columns(self, problem: SparseRegression, rows: Rows, run: Run) -> Bits | None:
        """(o, d) what stays when inputs go by in order, None where a limit came first."""
        pattern = problem.pattern
        order = np.argsort(rows.group, kind="stable")
        if isinstance(pattern, NofM) and pattern.order is not None:
            order = np.array(pattern.order)
        upper = rows.mean_inverse_factor(order)
        weights = np.ascontiguousarray(rows.dense[:, order])
        kept = np.ones(weights.shape, dtype=bool)
        m = pattern.m if isinstance(pattern, NofM) else 1
        width = -(-self.block // m) * m
        for first in range(0, rows.d, width):
            if run.should_stop():
                return None
            span = slice(first, min(first + width, rows.d))
            self._block(pattern, upper, weights, kept, span)
            run.count()
        found = np.empty_like(kept)
        found[:, order] = kept
        return found

    def _block(self, pattern: Any, upper: Floats, weights: Floats, kept: Bits, span: slice) -> None:
        """Choose in a block of inputs, and let the inputs after each make up for what goes."""
        diagonal = upper.diagonal()
        if not isinstance(pattern, NofM):
            kept[:, span] = _share(pattern, weights.shape, span).best(np.abs(weights[:, span]) / diagonal[span])
        errors = np.zeros((len(weights), span.stop - span.start))
        for j in range(span.start, span.stop):
            if isinstance(pattern, NofM) and j % pattern.m == 0:
                group = slice(j, j + pattern.m)
                share = NofM(pattern.n, pattern.m)
                kept[:, group] = share.best(np.abs(weights[:, group]) / diagonal[group])
            errors[:, j - span.start] = error = weights[:, j] * ~kept[:, j] / diagonal[j]
            weights[:, j : span.stop] -= np.outer(error, upper[j, j : span.stop])
        weights[:, span.stop :] -= errors @ upper[span, span.stop :]


def _share(pattern: Any, shape: tuple[int, int], span: slice) -> Any:
    """The pattern of a block of inputs that is due to it: what is due up to its end, less what was due before."""
    before, after = (int(pattern.k * at / shape[1] + 0.5) for at in (span.start, span.stop))
    return type(pattern)(after - before)


def _by_loss(problem: SparseRegression, rows: Rows, run: Run) -> Bits:
    """(o, d) what stays after the cheapest removals."""
    fallback = rows.by_row(run.best)
    everything = isinstance(problem.pattern, Keep)
    gone, losses = [], []
    for row in range(rows.o):
        room = np.bincount(rows.group) if everything else np.bincount(rows.group) - rows.quota(fallback[row])
        found = None if run.should_stop() else _eliminated(rows, row, room, run)
        if found is None:
            break
        gone.append(found[0])
        losses.append(found[1])
        run.count()
    counts = (rows.d - fallback.sum(axis=1))[: len(gone)]
    if everything and len(gone) == rows.o:
        counts = _merged(np.stack(losses), rows.o * rows.d - problem.pattern.k)
    kept = fallback.copy()
    for row, count in enumerate(counts):
        kept[row] = True
        kept[row, gone[row][:count]] = False
    return kept


def _merged(losses: Floats, count: int) -> Indices:
    """(o,) how many weights go from each row, if each time the row goes whose next removal is cheapest.

    That is the order of the rows' running maxima: what follows a dear removal goes with it.
    """
    dearest = np.maximum.accumulate(losses, axis=1)
    first = np.argsort(dearest, axis=None, kind="stable")[:count]
    return np.bincount(first // losses.shape[1], minlength=len(losses))


def _eliminated(rows: Rows, row: int, room: Indices, run: Run) -> tuple[Indices, Floats] | None:
    """What goes from a row, in order, and what each removal costs; None where the time was over first."""
    kernel = _kernels.load("obc")
    inverse = rows.inverse(row)
    weight = inverse @ rows.cross[row]
    left, room, group = np.arange(rows.d), room.copy(), rows.group
    gone, losses = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    while (steps := min(max(_STEPS, len(left) // _SHARE), int(room.sum()))) and not run.halted:
        alive, panel = np.ones(len(left), dtype=bool), np.empty((steps, len(left)))
        out, loss = np.empty(steps, dtype=np.int64), np.empty(steps)
        diagonal = inverse.diagonal().copy()
        kernel.eliminate(inverse, diagonal, weight, group, room, alive, panel, out, loss)
        gone.append(left[out])
        losses.append(loss)
        stays = np.flatnonzero(alive)
        panel = panel[:, stays]
        inverse = inverse[stays][:, stays]
        inverse -= panel.T @ panel
        left, weight, group = left[stays], weight[stays], group[stays]
    return None if room.any() else (np.concatenate(gone), np.concatenate(losses))
