r"""A regression on a changing set of input groups: what each group, or each swap of two, would change.

With S the inputs that are in and A those that are out, the symmetric sweep tableau is

    T = [ -P   F ]      P = H_SS^-1,  F = P H_SA,  Q = H_AA - H_AS P H_SA
        [  F'  Q ]      V_S = W = P B_S,  V_A = B_A - H_AS W

A block pivot on a group (or several that are all in or all out) moves it to the other side:

    K = T_uu^-1        explained += tr(V_u' K V_u)        T -= T_:u K T_u:        V -= T_:u K V_u

so that taking group u out costs tr(W_u' P_uu^-1 W_u) and putting v in gains tr(V_v' Q_vv^-1 V_v), exactly. Taking u
out first changes what v gains by Q'_vv = Q_vv - T_vu K T_uv and V'_v = V_v - T_vu K V_u: all swaps follow from T and
V V' alone. Costs and gains as in Meng et al., OSSCAR, 2024 (with half of them for half the objective); sweep: J. H.
Goodnight, A tutorial on the SWEEP operator, Am. Stat. 33 (1979); the swaps are ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesolve.problems import SubsetRegression
from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems.subset_regression import scaled_to_one, solved

# of an input's length, what the inputs before it leave unexplained: below it the gram is taken to be near singular
_NEAR = 1e-6
# then added to a gram whose inputs are scaled to one length; the values that are offered do not see it
_JITTER = 1e-10


class Tableau:
    """The groups of a `SubsetRegression`, those of `kept` in.

    Attributes
    ----------
    kept : (n,) bool
        Which groups are in.
    regular : bool
        Whether the gram is far enough from singular that figures hold to some nine digits.
    pivots : int
        How many since the tableau was made anew.
    explained : float
        tr(B_S' H_SS^-1 B_S) of the kept inputs beyond those that always stay.

    Examples
    --------
    >>> problem = SubsetRegression(np.diag([1.0, 4.0]), [[3.0], [4.0]], [0, 1])
    >>> tableau = Tableau(problem)
    >>> tableau.explained, tableau.changes().tolist()
    (13.0, [-9.0, -4.0])
    >>> tableau.pivot([1])
    >>> tableau.explained, tableau.kept.tolist(), tableau.swaps([0]).tolist()
    (9.0, [True, False], [[-5.0]])
    """

    def __init__(self, problem: SubsetRegression, kept: Bits | None = None) -> None:
        self.gram, self.cross, self.width, self.regular = _laid_out(problem)
        self.n = problem.n
        self.refresh(np.ones(self.n, dtype=bool) if kept is None else kept)

    def refresh(self, kept: Bits) -> None:
        """Begin anew with these groups in, without the rounding that pivots leave."""
        self.kept, self.pivots = kept.copy(), 0
        inside = np.repeat(kept, self.width)
        out = ~inside
        inverse = _inverse(self.gram[np.ix_(inside, inside)])
        between = inverse @ self.gram[np.ix_(inside, out)]
        weights = inverse @ self.cross[inside]
        self.table, self.values = np.empty_like(self.gram), np.empty_like(self.cross)
        self.table[np.ix_(inside, inside)] = -inverse
        self.table[np.ix_(inside, out)] = between
        self.table[np.ix_(out, inside)] = between.T
        self.table[np.ix_(out, out)] = self.gram[np.ix_(out, out)] - self.gram[np.ix_(out, inside)] @ between
        self.values[inside] = weights
        self.values[out] = self.cross[out] - self.gram[np.ix_(out, inside)] @ weights
        self.explained = float(np.vdot(self.cross[inside], weights))

    def copy(self) -> Tableau:
        """A tableau that can be pivoted apart from this one; the problem's arrays are shared."""
        twin = object.__new__(Tableau)
        twin.__dict__ = self.__dict__ | {
            "kept": self.kept.copy(),
            "table": self.table.copy(),
            "values": self.values.copy(),
        }
        return twin

    def pivot(self, groups: Any) -> None:
        """Take these groups out where they are in, or put them in where they are out: all the one or all the other."""
        groups = np.atleast_1d(groups)
        out = bool(self.kept[groups[0]])
        which = (groups[:, None] * self.width + np.arange(self.width)).ravel()
        column, value = self.table[:, which].copy(), self.values[which].copy()
        inverse = np.linalg.inv(column[which])
        moved = column @ inverse
        self.explained += float(np.vdot(value, inverse @ value))
        _subtract(self.table, moved, column)
        self.values -= moved @ value
        sign = -1.0 if out else 1.0
        self.table[:, which] = sign * moved
        self.table[which] = sign * moved.T
        self.table[np.ix_(which, which)] = -inverse
        self.values[which] = sign * (inverse @ value)
        self.kept[groups] = not out
        self.pivots += 1

    def changes(self) -> Floats:
        """(n,) what moving each group to the other side adds to `explained`: its cost, negative, or its gain."""
        slices = self.values.reshape(self.n, self.width, self.values.shape[1])
        return _forms(self._own(np.arange(self.n)), slices @ slices.transpose(0, 2, 1))

    def swaps(self, kept: Any) -> Floats:
        """(len(kept), groups out) what taking a kept group out and putting one in adds to `explained`."""
        width, out = self.width, np.flatnonzero(~self.kept)
        outside = np.repeat(~self.kept, width)
        residuals = self.values.reshape(self.n, width, self.values.shape[1])[out]
        own, moments = self._own(out), residuals @ residuals.transpose(0, 2, 1)
        found = np.empty((len(kept), len(out)))
        for row, group in enumerate(kept):
            which = slice(group * width, (group + 1) * width)
            weights, inverse = self.values[which], np.linalg.inv(self.table[which, which])
            across = self.table[outside, which]
            moved = (across @ inverse).reshape(len(out), width, width)
            met = (self.values[outside] @ weights.T).reshape(len(out), width, width)
            turned = moved.transpose(0, 2, 1)
            crossed = _times(met, turned)
            lost = weights @ weights.T
            after = moments - crossed - crossed.transpose(0, 2, 1) + _times(moved @ lost, turned)
            left = own - _times(moved, across.reshape(len(out), width, width).transpose(0, 2, 1))
            found[row] = _forms(left, after) + float(np.sum(inverse * lost))
        return found

    def apart(self, many: int) -> float:
        """What `many` groups at least explain together beyond the others, all groups being in.

        H - mu blockdiag(H_gg) is positive semidefinite for the least eigenvalue mu of H whitened by its blocks, so that
        without the groups U at least mu sum_{g in U} tr(W_g' H_gg W_g) is lost.
        """
        blocks = self.gram.reshape(self.n, self.width, self.n, self.width)[range(self.n), :, range(self.n), :]
        slices = self.values.reshape(self.n, self.width, self.values.shape[1])
        inverse = np.linalg.inv(np.linalg.cholesky(blocks))
        rows = inverse @ self.gram.reshape(self.n, self.width, -1)
        whitened = inverse @ rows.reshape(len(self.gram), -1).T.reshape(self.n, self.width, -1)
        mu = float(np.linalg.eigvalsh(whitened.reshape(self.gram.shape))[0])
        alone = np.einsum("gio,gij,gjo->g", slices, blocks, slices, optimize=True)
        return max(0.0, mu) * float(np.sort(alone)[:many].sum())

    def _own(self, groups: Indices) -> Floats:
        """(len(groups), width, width) the blocks on the diagonal."""
        four = self.table.reshape(self.n, self.width, self.n, self.width)
        return four[groups, :, groups, :]


def _laid_out(problem: SubsetRegression) -> tuple[Floats, Floats, int, bool]:
    """(H, B, inputs a group, whether H is regular): groups in a row, each as wide as the widest, inputs of one length.

    Inputs that always stay are taken into account and out of the way, narrower groups filled up with inputs that say
    nothing, and targets turned so that there are no more of them than inputs.
    """
    always = problem.block < 0
    gram, cross = problem.gram[np.ix_(~always, ~always)], problem.cross[~always]
    if always.any():
        across = problem.gram[np.ix_(always, ~always)]
        read = solved(problem.gram[np.ix_(always, always)], np.hstack([across, problem.cross[always]]))
        gram = gram - across.T @ read[:, : len(gram)]
        cross = cross - across.T @ read[:, len(gram) :]
    scale, scaled = scaled_to_one(gram)
    regular = _is_regular(scaled)
    if not regular:
        scaled[np.diag_indices(len(scaled))] += _JITTER
    turned = cross * scale[:, None]
    if turned.shape[1] > len(turned):
        turned = np.asarray(np.linalg.qr(turned.T, mode="r")).T
    block = problem.block[~always]
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=problem.n)
    width = int(sizes.max(initial=1))
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(block), dtype=np.int64)
    place[order] = block[order] * width + np.arange(len(block)) - starts
    whole, targets = np.eye(problem.n * width), np.zeros((problem.n * width, turned.shape[1]))
    whole[np.ix_(place, place)] = scaled
    targets[place] = turned
    return whole, targets, width, regular


def _is_regular(scaled: Floats) -> bool:
    try:
        return float(np.linalg.cholesky(scaled).diagonal().min()) ** 2 > _NEAR
    except np.linalg.LinAlgError:
        return False


def _inverse(gram: Floats) -> Floats:
    """Of a positive definite matrix, for a third of what numpy's general inverse takes."""
    from scipy.linalg.lapack import dpotrf, dpotri

    if not gram.size:
        return gram
    factor, fault = dpotrf(gram, lower=True)
    found, unsolved = dpotri(factor, lower=True)
    if fault or unsolved:
        # rounding below what the ridge lifts: the general inverse has an answer where Cholesky has none
        return np.asarray(np.linalg.inv(gram), dtype=np.float64)
    # the upper triangle of the factor is zero, and dpotri leaves it alone
    whole: Floats = found + found.T
    whole[np.diag_indices(len(whole))] /= 2.0
    return whole


def _subtract(table: Floats, a: Floats, b: Floats) -> None:
    """Take a @ b.T from the table in place: the product by itself would be another table to write and to read."""
    from scipy.linalg.blas import dgemm

    dgemm(-1.0, b, a, 1.0, table.T, trans_b=True, overwrite_c=True)


def _times(a: Floats, b: Floats) -> Floats:
    """A @ b of stacks of matrices."""
    product: Floats = a * b if a.shape[-1] == 1 else a @ b
    return product


def _forms(blocks: Floats, moments: Floats) -> Floats:
    """tr(block^-1 moments) of stacks of matrices."""
    if blocks.shape[-1] == 1:
        quotient: Floats = moments[:, 0, 0] / blocks[:, 0, 0]
        return quotient
    form: Floats = np.trace(np.linalg.solve(blocks, moments), axis1=1, axis2=2)
    return form
