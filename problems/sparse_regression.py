r"""Keep single weights of a layer, in a pattern, and refit the others: sparse least squares for every output at once.

minimise    offset + sum_i min_{w_i = 0 off its support} w_i' H_i w_i - 2 w_i' c_i        H_i = gram + U_i U_i'

over the supports that the pattern allows; row i is an output of the layer, its d entries are the inputs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import SYMMETRY, Bits, Floats, Indices, bits, floats, integers, number, whole
from ._errors import InvalidProblem
from ._npz import content_hash, json_array, read, unpack, write
from .binary_quadratic import checked_labels
from .constraints import Cardinality, Constraint, GroupBounds

# what one input adds to those before it, as a share of its own square; below that it counts as their combination
INDEPENDENT = 1e-10
_OUTSIDE = 1e-6  # share of a column of cross that may lie outside what gram spans: single precision leaves as much
_LARGEST = 1e150  # squares of what comes must stay within the float64 range


@dataclass(frozen=True)
class Keep:
    """k weights stay, wherever in the layer they are.

    Parameters
    ----------
    k : int
        Number of weights kept.

    Examples
    --------
    >>> Keep(2).best(np.array([[3.0, 1.0], [0.5, 2.0]])).tolist()
    [[True, False], [False, True]]
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _count("Keep.k", self.k))

    def check(self, o: int, d: int) -> None:
        """Refuse a layer of too few weights."""
        if self.k > o * d:
            raise InvalidProblem(f"Keep: k = {self.k} of o x d = {o} x {d} weights; the largest k is {o * d}")

    @property
    def words(self) -> str:
        """What it asks, in a few words."""
        return f"any {self.k} weights"

    def kept(self, o: int, d: int) -> int:
        """Weights kept in all."""
        return self.k

    def constraints(self, o: int, d: int) -> tuple[Constraint, ...]:
        """The same over the o d weights in row-major order."""
        return (Cardinality(self.k),)

    def best(self, scores: Floats) -> Bits:
        """(o, d) the weights of the largest scores (o, d) that the pattern allows."""
        return _largest(scores.reshape(1, -1), self.k).reshape(scores.shape)


@dataclass(frozen=True)
class PerRow:
    """k weights stay in every row.

    Parameters
    ----------
    k : int
        Number of weights kept in each row.

    Examples
    --------
    >>> PerRow(1).best(np.array([[3.0, 1.0], [0.5, 0.2]])).tolist()
    [[True, False], [True, False]]
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _count("PerRow.k", self.k))

    def check(self, o: int, d: int) -> None:
        """Refuse rows of too few weights."""
        if self.k > d:
            raise InvalidProblem(f"PerRow: k = {self.k} of d = {d} weights in a row; the largest k is {d}")

    @property
    def words(self) -> str:
        """What it asks, in a few words."""
        return f"{self.k} in each row"

    def kept(self, o: int, d: int) -> int:
        """Weights kept in all."""
        return o * self.k

    def constraints(self, o: int, d: int) -> tuple[Constraint, ...]:
        """The same over the o d weights in row-major order."""
        quota = np.full(o, self.k)
        return (GroupBounds(np.repeat(np.arange(o), d), quota, quota),)

    def best(self, scores: Floats) -> Bits:
        """(o, d) the weights of the largest scores (o, d) that the pattern allows."""
        return _largest(scores, self.k)


@dataclass(frozen=True)
class NofM:
    """Of every m inputs that follow one another, n stay in each row; 2:4 is what graphics cards run fast.

    Parameters
    ----------
    n, m : int
        Kept, and of how many; 0 <= n <= m.
    order : (d,) int, optional
        The order in which inputs are taken m at a time; as they come by default. A convolution's weights, unfolded as
        (channel, tap), run along the channels of each tap with `np.arange(d).reshape(channels, taps).T.ravel()`.

    Examples
    --------
    >>> NofM(1, 2).best(np.array([[3.0, 1.0, 0.5, 2.0]])).tolist()
    [[True, False, False, True]]
    >>> NofM(1, 2, order=(0, 2, 1, 3)).best(np.array([[3.0, 1.0, 0.5, 2.0]])).tolist()
    [[True, False, False, True]]
    """

    n: int
    m: int
    order: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("NofM.n", self.n))
        object.__setattr__(self, "m", _count("NofM.m", self.m))
        if self.m < 1 or self.n > self.m:
            raise InvalidProblem(f"NofM: expected 0 <= n <= m and m >= 1, got {self.n} of {self.m}")
        if self.order is not None:
            order = integers("NofM.order", self.order, (None,))
            if not np.array_equal(np.sort(order), np.arange(len(order))):
                raise InvalidProblem(
                    f"NofM.order: expected every input from 0 to {len(order) - 1} once, got another list of numbers"
                )
            # a tuple, so that equal patterns compare equal
            object.__setattr__(self, "order", tuple(order.tolist()))

    def check(self, o: int, d: int) -> None:
        """Refuse inputs that do not fall into groups of m."""
        if d % self.m:
            raise InvalidProblem(
                f"NofM: d = {d} inputs do not part into groups of m = {self.m}, {d % self.m} would be left over; keep "
                "this layer dense or choose an m that divides d"
            )
        if self.order is not None and len(self.order) != d:
            raise InvalidProblem(f"NofM.order: expected the order of d = {d} inputs, got one of {len(self.order)}")

    @property
    def words(self) -> str:
        """What it asks, in a few words."""
        return f"{self.n} of every {self.m}" + ("" if self.order is None else " in an order given")

    def kept(self, o: int, d: int) -> int:
        """Weights kept in all."""
        return o * (d // self.m) * self.n

    def group(self, d: int) -> Indices:
        """(d,) which group of m inputs each input is in."""
        group = np.empty(d, dtype=np.int64)
        group[np.arange(d) if self.order is None else np.array(self.order)] = np.arange(d) // self.m
        return group

    def constraints(self, o: int, d: int) -> tuple[Constraint, ...]:
        """The same over the o d weights in row-major order."""
        groups = d // self.m
        quota = np.full(o * groups, self.n)
        return (GroupBounds((np.arange(o)[:, None] * groups + self.group(d)).ravel(), quota, quota),)

    def best(self, scores: Floats) -> Bits:
        """(o, d) the weights of the largest scores (o, d) that the pattern allows."""
        order = np.arange(scores.shape[1]) if self.order is None else np.array(self.order)
        kept = np.empty(scores.shape, dtype=bool)
        kept[:, order] = _largest(scores[:, order].reshape(-1, self.m), self.n).reshape(scores.shape)
        return kept


Pattern = Keep | PerRow | NofM


@dataclass(frozen=True, eq=False)
class SparseRegression:
    r"""Choose which weights of a linear map stay, and refit them by least squares.

    f(x) = offset + sum_i min_{w off x_i is 0} w' H_i w - 2 w' c_i,        H_i = gram + U_i U_i'

    With gram = E[a a'] over calibration inputs a, cross = gram W^' and offset = tr(W^ gram W^'), f is the squared
    error of the layer's output, E||W^ a - W a||^2, after an exact refit of the weights that stay. A ridge, cross terms
    between pruned and dense inputs and the loss's own curvature (`row_factors`) enter the same way.

    Parameters
    ----------
    gram : (d, d) float
        Symmetric and positive semidefinite, any ridge included.
    cross : (d, o) float
        c_i is column i; it lies in what H_i spans, as gram @ W' does.
    pattern : Keep, PerRow or NofM
        Which supports are allowed.
    row_factors : (o, d, r) float, optional
        U_i, what row i has beside gram.
    offset : float
        Added to every value.
    start_weights : (o, d) float, optional
        The dense weights, by which magnitude and Wanda judge; by default those that minimise f without a pattern.
    labels : sequence of o d, optional
        Names of the weights in row-major order.
    meta : mapping, optional
        JSON-able facts.

    Raises
    ------
    InvalidProblem
        If an array makes no sense, they do not fit one another or no support meets the pattern; says which and why.

    Examples
    --------
    >>> problem = SparseRegression(np.array([[4.0, 2.0], [2.0, 4.0]]), np.array([[6.0], [0.0]]), Keep(1), offset=9.0)
    >>> problem.value([True, False]), problem.value([False, True]), problem.weights([True, False]).tolist()
    (0.0, 9.0, [[1.5, 0.0]])
    """

    gram: Any
    cross: Any
    pattern: Any
    row_factors: Any = None
    offset: float = 0.0
    start_weights: Any = None
    labels: Sequence[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gram = _symmetric(floats("gram", self.gram, (None, None)))
        object.__setattr__(self, "gram", gram)
        object.__setattr__(self, "cross", floats("cross", self.cross, (len(gram), None)))
        o, d = self.shape
        if not isinstance(self.pattern, Pattern):
            raise InvalidProblem(f"pattern: expected Keep(k), PerRow(k) or NofM(n, m), got {self.pattern!r}")
        self.pattern.check(o, d)
        if self.row_factors is not None:
            object.__setattr__(self, "row_factors", floats("row_factors", self.row_factors, (o, d, None)))
        if self.start_weights is not None:
            object.__setattr__(self, "start_weights", floats("start_weights", self.start_weights, (o, d)))
        object.__setattr__(self, "offset", number("offset", self.offset))
        for name in ("gram", "cross", "row_factors"):
            _check_size(name, getattr(self, name))
        _check_definite(gram)
        self._check_range()
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels, self.n))
        object.__setattr__(self, "meta", dict(self.meta))

    @classmethod
    def from_gradients(
        cls, weights: Any, gradients: Any, pattern: Pattern, ridge: float = 0.0, **fields: Any
    ) -> SparseRegression:
        r"""The quadratic model of a loss in one block of weights, from per-sample gradients: CHITA's regression.

        f = min_w (w - w^)' (G' G / m + ridge I) (w - w^),    twice the loss's second-order change where its gradient
        is 0 and its curvature the empirical Fisher matrix

        In CHITA's words y = G w^, 1/2 ||y - G b||^2 + n lambda ||b - w^||^2 is m/2 of this with ridge = 2 n lambda / m.
        One row of p weights; gram is written out, so a block holds a few thousand of them.

        Parameters
        ----------
        weights : (p,) float
            w^, the dense weights.
        gradients : (m, p) float
            G, a sample's or a small batch's gradient in each row.
        pattern : Keep, PerRow or NofM
            Which weights may stay.
        ridge : float
            Zero or more; how much is charged for leaving w^.
        **fields
            `labels` and `meta`.

        References
        ----------
        R. Benbaki et al., Fast as CHITA: neural network pruning with combinatorial optimization, ICML 2023.

        Examples
        --------
        >>> SparseRegression.from_gradients([2.0, 1.0], [[1.0, 0.0], [0.0, 3.0]], Keep(1)).value([True, False])
        4.5
        """
        w = floats("weights", weights, (None,))
        g = floats("gradients", gradients, (None, len(w)))
        ridge = number("ridge", ridge)
        if ridge < 0.0 or not len(g):
            raise InvalidProblem(f"from_gradients: expected gradients and ridge >= 0, got {len(g)} rows and {ridge:g}")
        for name, array in (("weights", w), ("gradients", g)):
            _check_size(name, array)
        gram = g.T @ g / len(g) + ridge * np.eye(len(w))
        cross = gram @ w
        return cls(gram, cross[:, None], pattern, offset=float(w @ cross), start_weights=w[None], **fields)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, d), rows and inputs."""
        return self.cross.shape[1], self.cross.shape[0]

    @property
    def n(self) -> int:
        """Number of weights, o d."""
        return int(self.cross.size)

    @property
    def k(self) -> int:
        """Number of weights that stay in all."""
        return int(self.pattern.kept(*self.shape))

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The pattern as a Cardinality or GroupBounds over the o d weights in row-major order."""
        return self.pattern.constraints(*self.shape)

    def checked(self, name: str, x: Any) -> Bits:
        """A bool copy of a selection (o d,); refuses anything else."""
        found = bits(name, x, self.n)
        if found.ndim != 1:
            raise InvalidProblem(f"{name}: expected shape ({self.n},), got {found.shape}")
        return found

    def hessian(self, row: int) -> Floats:
        """(d, d) H_i of one row."""
        if self.row_factors is None:
            return np.asarray(self.gram)
        return np.asarray(self.gram + self.row_factors[row] @ self.row_factors[row].T)

    @cached_property
    def diagonals(self) -> Floats:
        """(o, d) the diagonal of each row's H_i."""
        own = 0.0 if self.row_factors is None else np.einsum("odr,odr->od", self.row_factors, self.row_factors)
        return np.broadcast_to(self.gram.diagonal() + own, self.shape)

    def value(self, x: Any) -> float:
        """F(x), with the weights that x keeps refitted."""
        return self.error(self.weights(x))

    def weights(self, x: Any) -> Floats:
        """(o, d) the least-squares weights on the support x (o d,), zero elsewhere."""
        kept = self.checked("x", x).reshape(self.shape)
        fitted = np.zeros(self.shape)
        for support, rows in self._supports(kept):
            hessian = self.gram[np.ix_(support, support)]
            if self.row_factors is not None:
                own = self.row_factors[rows[0], support]
                hessian = hessian + own @ own.T
            fitted[np.ix_(rows, support)] = least_squares(hessian, self.cross[np.ix_(support, rows)]).T
        return fitted

    def error(self, weights: Any) -> float:
        """The value of any weights (o, d): offset + sum_i w_i' H_i w_i - 2 w_i' c_i."""
        w = floats("weights", weights, self.shape)
        total = np.einsum("od,od->", w @ self.gram - 2.0 * self.cross.T, w)
        if self.row_factors is not None:
            total += np.square(np.einsum("od,odr->or", w, self.row_factors)).sum()
        return self.offset + float(total)

    @cached_property
    def dense_weights(self) -> Floats:
        """(o, d) the weights of the least value, where all stay."""
        rank = 0 if self.row_factors is None else self.row_factors.shape[2]
        if self.row_factors is None or 2 * rank > self.shape[1] or _null_space(unit_diagonal(self.gram)[1]).shape[1]:
            return self.weights(np.ones(self.n, dtype=bool))
        # Woodbury's identity around one inverse B of gram for all rows: w = v - B U (I + U' B U)^-1 U' v, v = B c
        o, d = self.shape
        v = least_squares(self.gram, self.cross).T[:, :, None]
        reach = least_squares(self.gram, self.row_factors.transpose(1, 0, 2).reshape(d, o * rank))
        reach = reach.reshape(d, o, rank).transpose(1, 0, 2)
        across = self.row_factors.transpose(0, 2, 1)
        inner = np.linalg.solve(np.eye(rank) + across @ reach, across @ v)
        return np.asarray((v - reach @ inner)[:, :, 0])

    @cached_property
    def least(self) -> float:
        """The value where all weights stay; no selection has a smaller one."""
        return self.error(self.dense_weights)

    def violation(self, x: Any) -> float:
        """How many weights too many or too few there are, summed over what the pattern counts."""
        kept = self.checked("x", x)
        return float(sum(constraint.violation(kept) for constraint in self.constraints))

    def is_feasible(self, x: Any) -> bool:
        """Whether x (o d,) is of the pattern."""
        return self.violation(x) == 0.0

    @cached_property
    def hash(self) -> str:
        """Content hash: the first 16 hex digits of a SHA-256 over the arrays."""
        return content_hash(_arrays(self))

    def replace(self, **changes: Any) -> SparseRegression:
        """The same problem with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write the instance as `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "sparse-regression", _arrays(self) | {"meta": json_array("meta", dict(self.meta))})

    @classmethod
    def load(cls, path: str | Path) -> SparseRegression:
        """Read what `save` wrote."""
        return unpack(path, _from_arrays, read(path, "sparse-regression"))

    def _supports(self, kept: Bits) -> Iterator[tuple[Indices, Indices]]:
        """Each support (s,) and the rows that share it; rows with a Hessian of their own come alone."""
        rows: dict[Any, list[int]] = {}
        for i, row in enumerate(kept):
            rows.setdefault(i if self.row_factors is not None else row.tobytes(), []).append(i)
        for sharing in rows.values():
            support = np.flatnonzero(kept[sharing[0]])
            if len(support):
                yield support, np.array(sharing)

    def _check_range(self) -> None:
        """Refuse a cross that gram does not span: the value would have no lower end."""
        scale, scaled = unit_diagonal(self.gram)
        null = _null_space(scaled)
        if not null.shape[1]:
            return
        columns = self.cross / scale[:, None]
        for i, column in enumerate(columns.T):
            left = null.T @ column
            if self.row_factors is not None:
                own = null.T @ (self.row_factors[i] / scale[:, None])
                left = left - own @ np.linalg.lstsq(own, left, rcond=None)[0]
            if np.linalg.norm(left) > _OUTSIDE * np.linalg.norm(column):
                raise InvalidProblem(
                    f"cross: column {i} lies outside what gram spans, so the value has no lower end; expected "
                    "cross = gram @ W' or sums over the same samples. Otherwise add a ridge to gram"
                )


def unit_diagonal(gram: Floats) -> tuple[Floats, Floats]:
    """(d,) s = sqrt(diagonal), 1 where that is 0, and gram / (s s'), whose diagonal is 1 or 0."""
    scale = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    scale[scale == 0.0] = 1.0
    return scale, gram / scale[:, None] / scale


def least_squares(gram: Floats, cross: Floats) -> Floats:
    """(s, q) W of the least tr(W' gram W) - 2 tr(W' cross): by Cholesky, by eigenvectors where gram is singular."""
    from scipy.linalg import lapack

    scale, scaled = unit_diagonal(gram)
    sides = cross / scale[:, None]
    factor, info = lapack.dpotrf(scaled, lower=1)
    if info == 0 and factor.diagonal().min() ** 2 > INDEPENDENT:
        found, _ = lapack.dpotrs(factor, sides, lower=1)
    else:
        values, vectors = np.linalg.eigh(scaled)
        spans = values > INDEPENDENT * max(values[-1], 0.0)
        found = vectors[:, spans] / values[spans] @ (vectors[:, spans].T @ sides)
    return np.asarray(found / scale[:, None])


def _null_space(scaled: Floats) -> Floats:
    """(d, q) orthonormal basis of what a matrix of unit diagonal does not span."""
    from scipy.linalg import lapack

    factor, info = lapack.dpotrf(scaled, lower=1)
    if info == 0 and factor.diagonal().min(initial=1.0) ** 2 > INDEPENDENT:
        return np.zeros((len(scaled), 0))
    values, vectors = np.linalg.eigh(scaled)
    return np.asarray(vectors[:, values <= INDEPENDENT * max(values[-1], 0.0)])


def _largest(scores: Floats, k: int) -> Bits:
    """The k largest of each row."""
    kept = np.zeros(scores.shape, dtype=bool)
    if k > 0:
        at = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        np.put_along_axis(kept, at, values=True, axis=1)
    return kept


def _count(name: str, value: Any) -> int:
    count = whole(name, value)
    if count < 0:
        raise InvalidProblem(f"{name}: expected a whole number >= 0, got {count}")
    return count


def _symmetric(gram: Floats) -> Floats:
    if gram.shape[0] != gram.shape[1]:
        raise InvalidProblem(f"gram: expected a square matrix, got shape {gram.shape}")
    if np.abs(gram - gram.T).max(initial=0.0) > SYMMETRY * np.abs(gram).max(initial=0.0):
        raise InvalidProblem("gram: not symmetric; (gram + gram.T) / 2 is")
    halves = gram / 2.0 + gram.T / 2.0
    halves.setflags(write=False)
    return halves


def _check_size(name: str, array: Any) -> None:
    if array is not None and np.abs(array).max(initial=0.0) > _LARGEST:
        raise InvalidProblem(
            f"{name}: expected entries up to {_LARGEST:g}, got {np.abs(array).max():.3g}: their squares would leave "
            "the float64 range; divide gram, cross and offset by it"
        )


def _check_definite(gram: Floats) -> None:
    """Refuse a matrix with a negative eigenvalue beyond rounding."""
    from scipy.linalg import lapack

    least = gram.diagonal().min(initial=0.0)
    if least < 0.0:
        raise InvalidProblem(f"gram: expected a positive semidefinite matrix, got {least:g} on its diagonal")
    _, scaled = unit_diagonal(gram)
    _, info = lapack.dpotrf(scaled + SYMMETRY * np.eye(len(gram)), lower=1)
    if info != 0:
        least = float(np.linalg.eigvalsh(gram)[0])
        raise InvalidProblem(
            f"gram: expected a positive semidefinite matrix, got the eigenvalue {least:.3g}; sum the samples in double "
            f"precision or add a ridge of {2.0 * abs(least):.3g} to the diagonal"
        )


_KINDS: dict[str, type[Any]] = {"keep": Keep, "per-row": PerRow, "n-of-m": NofM}


def _arrays(problem: SparseRegression) -> dict[str, Any]:
    pattern = problem.pattern
    optional = {"row_factors": problem.row_factors, "start_weights": problem.start_weights}
    arrays = {name: array for name, array in optional.items() if array is not None}
    if problem.labels is not None:
        arrays["labels"] = json_array("labels", list(problem.labels))
    arrays["pattern"] = np.array(next(name for name, kind in _KINDS.items() if type(pattern) is kind))
    arrays["counts"] = np.array([pattern.n, pattern.m] if isinstance(pattern, NofM) else [pattern.k])
    if isinstance(pattern, NofM) and pattern.order is not None:
        arrays["order"] = np.array(pattern.order)
    return arrays | {"gram": problem.gram, "cross": problem.cross, "offset": np.array(problem.offset)}


def _from_arrays(arrays: dict[str, Any]) -> SparseRegression:
    order = {"order": arrays["order"]} if "order" in arrays else {}
    return SparseRegression(
        arrays["gram"],
        arrays["cross"],
        _KINDS[str(arrays["pattern"])](*arrays["counts"], **order),
        row_factors=arrays.get("row_factors"),
        offset=float(arrays["offset"]),
        start_weights=arrays.get("start_weights"),
        labels=json.loads(str(arrays["labels"])) if "labels" in arrays else None,
        meta=json.loads(str(arrays["meta"])),
    )
