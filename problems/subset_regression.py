r"""Keep some of a layer's input groups and refit the layer on them.

minimise    f(x) = offset + min over W of  tr(W H W') - 2 tr(W B)        W (o, d), columns of dropped groups zero
                 = offset - tr(B_S' H_SS^-1 B_S)                         S = the inputs of kept groups

over x in {0, 1}^n under Cardinality and GroupBounds, x_g = 1 keeps group g. With H = E x x' + ridge I,
B = E x y' + ridge W_0' and offset = E||y||^2 + ridge ||W_0||^2 that is E||y - W x||^2 + ridge ||W - W_0||^2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import LARGEST, SYMMETRY, Bits, Floats, Indices, bits, floats, integers, number
from ._errors import InvalidProblem
from ._feasibility import check_together
from ._npz import content_hash, json_array, read, unpack, write
from .binary_quadratic import checked_constraints, checked_labels, constraint_arrays, constraints_from
from .constraints import Cardinality, GroupBounds

# eigenvalues below this share of the largest, inputs scaled to one length, count as zero
RANK = 1e-10
# of the cross moments, what may lie where the gram is zero: moments of the same samples leave rounding there
_OUTSIDE = 1e-6


@dataclass(frozen=True, eq=False)
class SubsetRegression:
    r"""f(x) = offset - tr(B_S' H_SS^-1 B_S): the error of a layer that is refitted on its kept input groups.

    More kept inputs never fit worse, so `least`, the value of keeping all, is below every other.

    Parameters
    ----------
    gram : (d, d) float
        H, second moments of the inputs with any ridge: symmetric, positive semidefinite.
    cross : (d, o) float
        B, moments of inputs and targets; within the range of H, else f has no minimum.
    block : (d,) int
        Group of each input, 0 to n - 1, none empty; -1 for an input that always stays.
    constraints : sequence of Cardinality, GroupBounds
        What a selection of the n groups must satisfy.
    offset : float
        Added to every value.
    labels : sequence of n, optional
        Names of the groups: strings, ints or (module path, channel) units.
    meta : mapping, optional
        JSON-able facts.

    Raises
    ------
    InvalidProblem
        If an array is not finite, ill-shaped or asymmetric, the gram is indefinite, or no selection can meet the
        constraints.

    References
    ----------
    Meng, Behdin, Wang, Mazumder et al., OSSCAR: one-shot structured pruning in vision and language models with
    combinatorial optimization, 2024; best subset selection with groups of inputs.

    Examples
    --------
    >>> problem = SubsetRegression(np.diag([1.0, 4.0]), [[3.0], [4.0]], [0, 1], Cardinality(1), offset=13.0)
    >>> problem.value([True, False]), problem.value([False, True]), problem.least
    (4.0, 9.0, 0.0)
    >>> problem.weights([True, False]).tolist()
    [[3.0, 0.0]]
    """

    gram: Any
    cross: Any
    block: Any
    constraints: Any = ()
    offset: float = 0.0
    labels: Sequence[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gram = _gram(self.gram)
        cross = floats("cross", self.cross, (len(gram), None))
        block = integers("block", self.block, (len(gram),))
        n = _groups(block)
        constraints = checked_constraints(self.constraints, n)
        for constraint in constraints:
            if not isinstance(constraint, (Cardinality, GroupBounds)):
                raise InvalidProblem(
                    f"constraints: expected Cardinality or GroupBounds, got {type(constraint).__name__}; a budget of "
                    "several layers belongs to a LevelChoice of their keep counts"
                )
        check_together(constraints, n)
        found = {"gram": gram, "cross": cross, "block": block, "constraints": constraints, "meta": dict(self.meta)}
        if self.labels is not None:
            found["labels"] = checked_labels(self.labels, n)
        for name, value in (found | {"offset": number("offset", self.offset)}).items():
            object.__setattr__(self, name, value)
        _check_definite(gram, cross)

    @property
    def n(self) -> int:
        """Number of input groups."""
        return int(self.block.max(initial=-1)) + 1

    @cached_property
    def k(self) -> int | None:
        """The exact cardinality, None where none is asked."""
        return next((c.k for c in self.constraints if isinstance(c, Cardinality)), None)

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """The constraints of one kind."""
        return [c for c in self.constraints if isinstance(c, kind)]

    def checked(self, name: str, x: Any) -> Bits:
        """A bool copy of one selection (n,) or of rows (m, n); refuses anything else."""
        return bits(name, x, self.n)

    def value(self, x: Any) -> Any:
        """f(x) of one selection (n,) as a float, or of each row of x (m, n)."""
        kept = self.checked("x", x)
        values = np.array([self.offset - self._fit(row)[1] for row in np.atleast_2d(kept)])
        return float(values[0]) if kept.ndim == 1 else values

    def weights(self, x: Any) -> Floats:
        """(o, d) the weights that attain f(x) of one selection (n,), zero for dropped groups; see `solved`."""
        kept = self.checked("x", x)
        if kept.ndim != 1:
            raise InvalidProblem(f"x: expected one selection ({self.n},), got shape {kept.shape}")
        found = np.zeros(self.cross.shape[::-1])
        support = self.support(kept)
        found[:, support] = self._fit(kept)[0].T
        return found

    def support(self, x: Bits) -> Indices:
        """Inputs that stay with the groups kept in x (n,)."""
        # the last entry is what block -1 looks up
        return np.flatnonzero(np.append(x, True)[self.block])

    @cached_property
    def least(self) -> float:
        """The value with every group kept: a lower bound on all values."""
        return float(self.value(np.ones(self.n, dtype=bool)))

    def violation(self, x: Any) -> Any:
        """By how much x (n,), or each row of x (m, n), breaks the constraints, added up."""
        kept = self.checked("x", x)
        total = sum((c.violation(kept) for c in self.constraints), start=np.zeros(kept.shape[:-1]))
        return float(total) if kept.ndim == 1 else total

    def is_feasible(self, x: Any) -> Any:
        """Whether every constraint holds, for x (n,) or each row of x (m, n)."""
        holds = np.asarray(self.violation(x)) == 0.0
        return bool(holds) if holds.ndim == 0 else holds

    @cached_property
    def hash(self) -> str:
        """Content hash: the first 16 hex digits of a SHA-256 over the arrays."""
        return content_hash(_arrays(self))

    def replace(self, **changes: Any) -> SubsetRegression:
        """The same problem with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write the instance as `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "subset-regression", _arrays(self) | {"meta": json_array("meta", dict(self.meta))})

    @classmethod
    def load(cls, path: str | Path) -> SubsetRegression:
        """Read what `save` wrote."""
        return unpack(path, _from_arrays, read(path, "subset-regression"))

    def _fit(self, x: Bits) -> tuple[Floats, float]:
        """(weights (inputs kept, o), how much they explain)."""
        support = self.support(x)
        cross = self.cross[support]
        weights = solved(self.gram[np.ix_(support, support)], cross)
        return weights, float(np.vdot(cross, weights))


def solved(gram: Floats, cross: Floats) -> Floats:
    """H^-1 B of a positive semidefinite H; of a singular one the pseudo-inverse of H, inputs scaled to one length.

    Examples
    --------
    >>> solved(np.array([[2.0, 2.0], [2.0, 2.0]]), np.array([[4.0], [4.0]])).round(12).tolist()
    [[1.0], [1.0]]
    """
    if not gram.size:
        return np.zeros_like(cross)
    scale, scaled = scaled_to_one(gram)
    rhs = cross * scale[:, None]
    try:
        certain = float(np.linalg.cholesky(scaled).diagonal().min()) ** 2 > RANK * len(gram)
    except np.linalg.LinAlgError:
        certain = False
    if certain:
        # numpy has no triangular solve: two with the factor would cost twice as much as one with the matrix
        found: Floats = scale[:, None] * np.linalg.solve(scaled, rhs)
        return found
    values, vectors = np.linalg.eigh(scaled)
    inverse = np.where(values > RANK * values[-1], 1.0 / np.where(values > 0.0, values, 1.0), 0.0)
    return scale[:, None] * (vectors @ (inverse[:, None] * (vectors.T @ rhs)))


def scaled_to_one(gram: Floats) -> tuple[Floats, Floats]:
    """(scale (d,), H with a diagonal of ones); an input that is never anything but zero gets the scale 0."""
    diagonal = gram.diagonal()
    dead = diagonal <= 0.0
    scale = np.where(dead, 0.0, 1.0 / np.sqrt(np.where(dead, 1.0, diagonal)))
    scaled: Floats = gram * scale[:, None] * scale
    scaled[np.diag_indices(len(scaled))] = 1.0
    return scale, scaled


def _gram(values: Any) -> Floats:
    gram = floats("gram", values, (None, None))
    if gram.shape[0] != gram.shape[1]:
        raise InvalidProblem(f"gram: expected a square matrix, got shape {gram.shape}")
    largest = float(np.abs(gram).max(initial=0.0))
    if not largest * max(1, len(gram)) <= LARGEST:
        raise InvalidProblem(f"gram: expected entries that add up to {LARGEST:g} at most, got {largest:.3g}; divide it")
    skew = float(np.abs(gram - gram.T).max(initial=0.0))
    if skew > SYMMETRY * largest:
        raise InvalidProblem(f"gram: not symmetric, entries differ by up to {skew:.3g}; (H + H.T) / 2 is")
    if skew:
        gram = (gram + gram.T) / 2.0
        gram.setflags(write=False)
    return gram


def _groups(block: Indices) -> int:
    """How many groups there are, each of them with an input."""
    if block.size and block.min() < -1:
        raise InvalidProblem(f"block: expected groups from 0, or -1 for what always stays, got {block.min()}")
    n = int(block.max(initial=-1)) + 1
    empty = np.flatnonzero(np.bincount(block[block >= 0], minlength=n) == 0)
    if len(empty):
        raise InvalidProblem(f"block: group {empty[0]} has no input; number the groups 0 to n - 1 without gaps")
    return n


def _check_definite(gram: Floats, cross: Floats) -> None:
    """Refuse an indefinite gram, and moments that a singular one leaves unbounded."""
    dead = gram.diagonal() <= 0.0
    if dead.any() and np.abs(gram[dead]).max() > 0.0:
        smallest = float(np.linalg.eigvalsh(gram)[0])
        raise InvalidProblem(
            f"gram: expected a positive semidefinite matrix, its smallest eigenvalue is {smallest:.6g}; add a ridge"
        )
    scale, scaled = scaled_to_one(gram)
    try:
        np.linalg.cholesky(scaled)
        outside = cross[dead]
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(scaled)
        if values[0] < -RANK * values[-1]:
            smallest = float(np.linalg.eigvalsh(gram)[0])
            raise InvalidProblem(
                f"gram: expected a positive semidefinite matrix, its smallest eigenvalue is {smallest:.6g}; second "
                f"moments have none below zero, and a ridge of {-smallest:.3g} lifts those of rounding"
            ) from None
        null = vectors[:, values <= RANK * values[-1]]
        outside = np.concatenate([cross[dead].ravel(), (null.T @ (cross * scale[:, None])).ravel()])
        cross = cross * scale[:, None]
    if np.abs(outside).max(initial=0.0) > _OUTSIDE * np.abs(cross).max(initial=0.0):
        raise InvalidProblem(
            "cross: expected moments within the range of the gram, got some where it is zero, so that no weights are "
            "best; take both moments from the same samples, or add a ridge to the gram"
        )


def _arrays(problem: SubsetRegression) -> dict[str, Any]:
    arrays: dict[str, Any] = {"gram": problem.gram, "cross": problem.cross, "block": problem.block}
    arrays["offset"] = np.array(problem.offset)
    if problem.labels is not None:
        arrays["labels"] = json_array("labels", list(problem.labels))
    for c, constraint in enumerate(problem.constraints):
        arrays |= {f"constraint{c}.{name}": array for name, array in constraint_arrays(constraint).items()}
    return arrays


def _from_arrays(arrays: dict[str, Any]) -> SubsetRegression:
    return SubsetRegression(
        arrays["gram"],
        arrays["cross"],
        arrays["block"],
        constraints=constraints_from(arrays),
        offset=arrays["offset"],
        labels=json.loads(str(arrays["labels"])) if "labels" in arrays else None,
        meta=json.loads(str(arrays["meta"])),
    )
