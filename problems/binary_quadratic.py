r"""Minimise a quadratic function of bits under any mix of constraints.

minimise    f(x) = offset + sum_i a_i x_i + sum_{i<j} J_ij x_i x_j
subject to  Cardinality, GroupBounds, Budget        x in {0, 1}^n, x_i = 1 keeps unit i
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import LARGEST, Bits, Floats, bits, csr_arrays, csr_from, floats, number
from ._errors import InvalidProblem, UnsupportedProblem, unknown
from ._feasibility import check_together
from ._npz import content_hash, json_array, read, unpack, write
from .constraints import Budget, Cardinality, Constraint, GroupBounds
from .couplings import AnyCoupling, Blocks, Dense, LowRank, Sparse, coupling, from_pairs


@dataclass(frozen=True, eq=False)
class BinaryQuadratic:
    r"""f(x) = offset + a.x + sum_{i<j} J_ij x_i x_j over x in {0, 1}^n, to be minimised.

    Parameters
    ----------
    linear : (n,) float
        Linear biases a.
    quadratic : (n, n) array, scipy sparse, Blocks, LowRank or None
        Quadratic biases J: symmetric, zero diagonal, each pair counted once. None couples nothing.
    offset : float
        Added to every value.
    constraints : sequence of Cardinality, GroupBounds, Budget
        What a selection must satisfy.
    labels : sequence of n, optional
        Names of the variables: strings, ints or (module path, channel) units.
    diagonal : (n,) float, optional
        A claim used by bounds alone: d is part of `linear` and J/2 + diag(d) is positive semidefinite.
    meta : mapping, optional
        JSON-able facts that travel with the instance, such as its name, native sense and best known value.

    Raises
    ------
    InvalidProblem
        If an array is not finite, ill-shaped or asymmetric, or no selection can meet the constraints.

    Examples
    --------
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], np.ones((3, 3)) - np.eye(3), constraints=[Cardinality(2)])
    >>> problem.value([False, True, True])
    -4.0
    >>> problem.is_feasible([True, True, True])
    False
    """

    linear: Floats
    quadratic: Any = None
    offset: float = 0.0
    constraints: Sequence[Constraint] = ()
    labels: Sequence[Any] | None = None
    diagonal: Floats | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        linear = floats("linear", self.linear, (None,))
        n = len(linear)
        stored = self.quadratic if self.quadratic is not None else _no_coupling(n)
        couplings = coupling(stored)
        if couplings.n != n:
            raise InvalidProblem(f"quadratic: expected ({n}, {n}) to match linear, got ({couplings.n}, {couplings.n})")
        # a list or a foreign matrix is replaced by the checked read-only copy; our own kinds stay as they are
        native = couplings.matrix if isinstance(couplings, (Dense, Sparse)) else couplings
        self._set(linear=linear, quadratic=native, couplings=couplings, offset=number("offset", self.offset))
        self._set(constraints=checked_constraints(self.constraints, n), meta=dict(self.meta))
        if self.labels is not None:
            self._set(labels=checked_labels(self.labels, n))
        if self.diagonal is not None:
            self._set(diagonal=floats("diagonal", self.diagonal, (n,)))
        with np.errstate(over="ignore"):
            total = np.abs(linear).sum() + couplings.magnitude() + abs(self.offset)
        if not total <= LARGEST:
            raise InvalidProblem(
                f"linear, quadratic and offset: expected absolute values that add up to {LARGEST:g} at most, got "
                f"{total:.3g}: searches would leave the float64 range; divide them all by 1e10"
            )
        check_together(self.constraints, n)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    couplings: AnyCoupling = field(init=False, repr=False)

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.linear)

    @cached_property
    def k(self) -> int | None:
        """The exact cardinality, None where none is asked."""
        return next((c.k for c in self.constraints if isinstance(c, Cardinality)), None)

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """The constraints of one kind."""
        return [c for c in self.constraints if isinstance(c, kind)]

    def value(self, x: Any) -> Any:
        """f(x) of one selection (n,) as a float, or of each row of x (m, n)."""
        kept = bits("x", x, self.n).astype(np.float64)
        values = self.offset + kept @ self.linear + 0.5 * (kept * self.couplings.product(kept)).sum(axis=-1)
        return float(values) if kept.ndim == 1 else values

    def fields(self, x: Any) -> Floats:
        """Local fields h = a + J x: what setting x_i to 1 costs, the rest being as in x."""
        kept = bits("x", x, self.n).astype(np.float64)
        return self.linear + self.couplings.product(kept)

    def violation(self, x: Any) -> Any:
        """By how much x (n,), or each row of x (m, n), breaks the constraints, added up."""
        kept = bits("x", x, self.n)
        total = sum((c.violation(kept) for c in self.constraints), start=np.zeros(kept.shape[:-1]))
        return float(total) if kept.ndim == 1 else total

    def is_feasible(self, x: Any) -> Any:
        """Whether every constraint holds within 1e-9 of its scale, for x (n,) or each row of x (m, n)."""
        kept = bits("x", x, self.n)
        holds = np.ones(kept.shape[:-1], dtype=bool)
        for constraint in self.constraints:
            holds = holds & constraint.holds(kept)
        return bool(holds) if kept.ndim == 1 else holds

    @cached_property
    def hash(self) -> str:
        """Content hash of the instance: the first 16 hex digits of a SHA-256 over its arrays."""
        return content_hash(problem_arrays(self))

    def replace(self, **changes: Any) -> BinaryQuadratic:
        """The same problem with some fields changed, checked anew.

        Examples
        --------
        >>> BinaryQuadratic([1.0, 2.0]).replace(constraints=[Cardinality(1)]).k
        1
        """
        names = ("linear", "offset", "constraints", "labels", "diagonal", "meta")
        # the checked couplings go along as they are, so that a new constraint costs no copy of the matrix
        same = {name: getattr(self, name) for name in names} | {"quadratic": self.couplings}
        for name in changes:
            if name not in same:
                raise unknown("field", name, same)
        return BinaryQuadratic(**same | changes)

    def save(self, path: str | Path) -> None:
        """Write the instance as `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "binary-quadratic", problem_arrays(self) | {"meta": json_array("meta", dict(self.meta))})

    @classmethod
    def load(cls, path: str | Path) -> BinaryQuadratic:
        """Read what `save` wrote."""
        return unpack(path, problem_from_arrays, read(path, "binary-quadratic"))

    def to_bqm(self) -> Any:
        """The objective as a dimod BinaryQuadraticModel, variables 0 to n - 1; the constraints stay behind."""
        import dimod

        pieces = [*self.couplings.pairs(), (np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
        pairs = tuple(np.concatenate(part) for part in zip(*pieces, strict=True))
        return dimod.BinaryQuadraticModel.from_numpy_vectors(self.linear, pairs, self.offset, dimod.BINARY)

    @classmethod
    def from_bqm(cls, bqm: Any, constraints: Iterable[Constraint] = ()) -> BinaryQuadratic:
        """The problem of a dimod BQM, binary or spin; variables keep their order and become the labels."""
        binary = bqm.change_vartype("BINARY", inplace=False)
        linear, (row, column, biases), offset, labels = binary.to_numpy_vectors(
            variable_order=list(bqm.variables), return_labels=True
        )
        quadratic = from_pairs(len(linear), row.astype(np.int64), column.astype(np.int64), biases)
        return cls(linear, quadratic, offset=float(offset), constraints=tuple(constraints), labels=list(labels))

    def to_cqm(self) -> Any:
        """Objective and constraints as a dimod ConstrainedQuadraticModel."""
        import dimod

        cqm = dimod.ConstrainedQuadraticModel()
        cqm.set_objective(self.to_bqm())
        for c, constraint in enumerate(self.constraints):
            _add_to_cqm(cqm, constraint, f"c{c}")
        return cqm

    def to_qubo(self, penalty: float) -> BinaryQuadratic:
        """An unconstrained problem with penalty (sum x - k)^2 for the cardinality and each exact group.

        Raises
        ------
        UnsupportedProblem
            If a constraint is an inequality: a penalty would need slack bits. Use a solver that keeps the constraint.
        """
        linear = self.linear.copy()
        matrix = self.couplings.dense().copy()
        offset = self.offset
        penalty = number("penalty", penalty)
        for members, count in _equalities(self.constraints, self.n):
            outer = 2.0 * penalty * np.outer(members, members)
            np.fill_diagonal(outer, 0.0)
            matrix += outer
            linear += penalty * (1 - 2 * count) * members
            offset += penalty * count**2
        return BinaryQuadratic(linear, matrix, offset=offset, labels=self.labels, meta=self.meta)


def _no_coupling(n: int) -> AnyCoupling:
    # rank 0: the only storage that needs neither n x n zeros nor scipy
    return LowRank(np.zeros((n, 0)))


def checked_constraints(constraints: Any, n: int) -> tuple[Constraint, ...]:
    """The constraints as a tuple, each checked against n variables; refuses other kinds and two cardinalities."""
    checked = (constraints,) if isinstance(constraints, Constraint) else tuple(constraints)
    for constraint in checked:
        if not isinstance(constraint, (Cardinality, GroupBounds, Budget)):
            raise InvalidProblem(
                f"constraints: expected Cardinality, GroupBounds or Budget, got {type(constraint).__name__}"
            )
        constraint.check(n)
    if len({c.k for c in checked if isinstance(c, Cardinality)}) > 1:
        raise InvalidProblem("constraints: two cardinalities contradict each other; give one")
    return checked


def checked_labels(labels: Sequence[Any], n: int) -> tuple[Any, ...]:
    """The labels as a tuple of n distinct hashable values that JSON brings back."""
    checked = tuple(_label(label) for label in labels)
    if len(checked) != n:
        raise InvalidProblem(f"labels: expected one for each of n = {n} variables, got {len(checked)}")
    try:
        distinct = len(set(checked))
    except TypeError as error:
        raise InvalidProblem(f"labels: expected strings, ints or tuples of them ({error})") from None
    if distinct != n:
        raise InvalidProblem("labels: expected distinct labels, got a repeated one")
    return checked


def _label(label: Any) -> Any:
    """A label as JSON brings it back: plain numbers, lists as tuples; a Unit stays one."""
    if isinstance(label, np.generic):
        return label.item()
    if isinstance(label, list) or type(label) is tuple:
        return tuple(_label(part) for part in label)
    return label


def problem_arrays(problem: BinaryQuadratic) -> dict[str, np.ndarray[Any, Any]]:
    """Everything that defines the instance, as plain arrays; `meta` is not part of it."""
    couplings = problem.couplings
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "linear": problem.linear,
        "offset": np.array(problem.offset),
        "coupling": np.array(type(couplings).__name__),
    }
    arrays |= {f"quadratic.{name}": array for name, array in couplings.arrays().items()}
    if problem.labels is not None:
        arrays["labels"] = json_array("labels", list(problem.labels))
    if problem.diagonal is not None:
        arrays["diagonal"] = problem.diagonal
    for c, constraint in enumerate(problem.constraints):
        arrays |= {f"constraint{c}.{name}": array for name, array in constraint_arrays(constraint).items()}
    return arrays


def constraint_arrays(constraint: Constraint) -> dict[str, np.ndarray[Any, Any]]:
    """Everything that defines a constraint, as plain arrays."""
    arrays: dict[str, np.ndarray[Any, Any]] = {"kind": np.array(type(constraint).__name__)}
    if isinstance(constraint, Cardinality):
        return arrays | {"k": np.array(constraint.k)}
    if isinstance(constraint, GroupBounds):
        return arrays | {"group": constraint.group, "low": constraint.low, "high": constraint.high}
    if not isinstance(constraint, Budget):
        raise UnsupportedProblem(f"cannot store a {type(constraint).__name__}")
    arrays |= {"cost": constraint.cost, "limit": np.array(constraint.limit)}
    if constraint.pair is not None:
        arrays |= csr_arrays(constraint.pair)
    return arrays


def problem_from_arrays(arrays: Mapping[str, Any]) -> BinaryQuadratic:
    """The instance whose plain arrays, and meta as text, are given."""
    labels = json.loads(str(arrays["labels"])) if "labels" in arrays else None
    return BinaryQuadratic(
        arrays["linear"],
        _coupling_from(arrays),
        offset=float(arrays["offset"]),
        constraints=constraints_from(arrays),
        labels=labels,
        diagonal=arrays.get("diagonal"),
        meta=json.loads(str(arrays["meta"])),
    )


def constraints_from(arrays: Mapping[str, Any]) -> list[Constraint]:
    """The constraints whose plain arrays are stored as `constraint0.*`, `constraint1.*`, ..."""
    constraints: list[Constraint] = []
    while f"constraint{len(constraints)}.kind" in arrays:
        head = f"constraint{len(constraints)}."
        constraints.append(_constraint({k[len(head) :]: v for k, v in arrays.items() if k.startswith(head)}))
    return constraints


def _coupling_from(arrays: Mapping[str, Any]) -> Any:
    kind = str(arrays["coupling"])
    if kind == "Dense":
        return arrays["quadratic.matrix"]
    if kind == "LowRank":
        return LowRank(arrays["quadratic.F"], sign=arrays["quadratic.sign"].item())
    if kind == "Blocks":
        flat, sizes = arrays["quadratic.blocks"], arrays["quadratic.sizes"]
        ends = np.cumsum(sizes**2).astype(np.int64)
        return Blocks([flat[end - s * s : end].reshape(s, s) for s, end in zip(sizes, ends, strict=True)])
    if kind == "Sparse":
        return csr_from(arrays, "quadratic.", len(arrays["linear"]))
    raise InvalidProblem(f"coupling: expected Dense, Sparse, Blocks or LowRank, got {kind!r}; the file is damaged")


def _constraint(arrays: Mapping[str, Any]) -> Constraint:
    kind = str(arrays["kind"])
    if kind == "Cardinality":
        return Cardinality(arrays["k"].item())
    if kind == "GroupBounds":
        return GroupBounds(arrays["group"], arrays["low"], arrays["high"])
    if kind == "Budget":
        pair = csr_from(arrays, "", len(arrays["cost"])) if "data" in arrays else None
        return Budget(arrays["cost"], float(arrays["limit"]), pair)
    raise InvalidProblem(f"constraint: expected Cardinality, GroupBounds or Budget, got {kind!r}; the file is damaged")


def _equalities(constraints: Iterable[Constraint], n: int) -> Iterable[tuple[Floats, int]]:
    """(members (n,), count) of every constraint that is an equality; refuses the others."""
    for constraint in constraints:
        if isinstance(constraint, Cardinality):
            yield np.ones(n), constraint.k
        elif isinstance(constraint, GroupBounds) and np.array_equal(constraint.low, constraint.high):
            for g, count in enumerate(constraint.low):
                yield (constraint.group == g).astype(np.float64), int(count)
        else:
            raise UnsupportedProblem(
                f"to_qubo: {type(constraint).__name__} is an inequality, a penalty would need slack bits; "
                "use a solver that keeps it, such as 'swap-annealing', or to_cqm()"
            )


def _add_to_cqm(cqm: Any, constraint: Constraint, label: str) -> None:
    import dimod

    def linear(weights: Bits | Floats) -> Any:
        terms = {int(i): float(weights[i]) for i in np.flatnonzero(weights)}
        return dimod.BinaryQuadraticModel(terms, {}, 0.0, dimod.BINARY)

    if isinstance(constraint, Cardinality):
        everything = dimod.BinaryQuadraticModel(dict.fromkeys(cqm.variables, 1.0), {}, 0.0, dimod.BINARY)
        cqm.add_constraint(everything, "==", rhs=constraint.k, label=label)
    elif isinstance(constraint, GroupBounds):
        for g, (low, high) in enumerate(zip(constraint.low, constraint.high, strict=True)):
            if low <= 0 and high >= constraint.sizes[g]:
                continue
            members = linear(constraint.group == g)
            if low == high:
                cqm.add_constraint(members, "==", rhs=int(low), label=f"{label}_g{g}")
                continue
            cqm.add_constraint(members, ">=", rhs=int(low), label=f"{label}_g{g}_low")
            cqm.add_constraint(members, "<=", rhs=int(high), label=f"{label}_g{g}_high")
    elif isinstance(constraint, Budget):
        spent = linear(constraint.cost)
        if constraint.pair is not None:
            entries = constraint.pair.tocoo()
            for i, j, q in zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist(), strict=True):
                if i < j:
                    spent.add_quadratic(i, j, q)
        cqm.add_constraint(spent, "<=", rhs=constraint.limit, label=label)
