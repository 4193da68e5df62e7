r"""Several objectives at once: the error of a network against what it costs.

minimise    (f_1(x), ..., f_m(x))        over selections, levels, or both

The answer is a front: the points that no other beats in every objective. What is better of two fronts is told by the
hypervolume, the volume that a front dominates up to a reference point.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import Floats, Indices, floats, integers
from ._errors import InvalidProblem
from ._npz import json_array, read, unpack, write
from .binary_quadratic import (
    BinaryQuadratic,
    checked_labels,
    constraint_arrays,
    problem_arrays,
    problem_from_arrays,
)
from .black_box import BlackBox, LevelTuples, Selections
from .constraints import Constraint
from .level_choice import LevelChoice

_SPACES = (Selections, LevelTuples, LevelChoice)


@dataclass(frozen=True, eq=False)
class Product:
    """Points that are made of one point of each space, one after another: the units of some layers, levels of others.

    Parameters
    ----------
    spaces : sequence of Selections, LevelTuples, LevelChoice
        The parts. A point is a row of int64: bits as 0 and 1, levels as they are.

    Examples
    --------
    >>> both = Product([Selections(2), LevelTuples([[1, 2, 3]], budget=3, exact=False)])
    >>> both.is_feasible([1, 0, 2]), [part.tolist() for part in both.split([1, 0, 2])]
    (True, [[True, False], [2]])
    """

    spaces: Sequence[Any]

    def __post_init__(self) -> None:
        spaces = tuple(self.spaces)
        if not spaces or not all(isinstance(space, _SPACES) for space in spaces):
            raise InvalidProblem("Product.spaces: expected one or more of Selections, LevelTuples, LevelChoice")
        object.__setattr__(self, "spaces", spaces)

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> Indices:
        """(spaces + 1,) where each space's coordinates start."""
        return np.concatenate([[0], np.cumsum([space.n for space in self.spaces])]).astype(np.int64)

    def checked(self, name: str, x: Any) -> Indices:
        """An int copy of one point (n,) or of rows (m, n); refuses anything else."""
        array = np.array(x)
        if array.ndim not in (1, 2) or array.shape[-1] != self.n:
            raise InvalidProblem(f"{name}: expected shape ({self.n},), got {array.shape}")
        rows = integers(name, array, (None,) * array.ndim).copy()
        for space, part in zip(self.spaces, np.split(rows, self.starts[1:-1], axis=-1), strict=True):
            space.checked(name, part)
        return rows

    def split(self, x: Any) -> list[Any]:
        """The part of each space of one point (n,) or of rows (m, n), as the space takes it."""
        parts = np.split(self.checked("x", x), self.starts[1:-1], axis=-1)
        return [space.checked("x", part) for space, part in zip(self.spaces, parts, strict=True)]

    def violation(self, x: Any) -> Any:
        """By how much the parts break their spaces' constraints, added up."""
        total = np.sum(
            [np.asarray(s.violation(p)) for s, p in zip(self.spaces, self.split(x), strict=True)], axis=0, dtype=float
        )
        return float(total) if total.ndim == 0 else total

    def is_feasible(self, x: Any) -> Any:
        """Whether every part may be answered in its space."""
        holds = np.all([np.asarray(s.is_feasible(p)) for s, p in zip(self.spaces, self.split(x), strict=True)], axis=0)
        return bool(holds) if holds.ndim == 0 else holds


@dataclass(frozen=True, eq=False)
class MultiObjective:
    r"""Minimise m objectives over a space; the answer is the front of what no other point dominates.

    y dominates z where y_j <= z_j for all objectives j and y != z

    Parameters
    ----------
    space : Selections, LevelTuples, LevelChoice or Product
        What may be asked.
    evaluate : callable
        `evaluate(X)` gives the objectives (rows, m) of the rows of X (rows, n). The same row must always get the same
        values. NaN says that a row has none.
    objectives : sequence of m str
        Names of the objectives.
    reference : (m,) float, optional
        Reference point of the hypervolume; what lies beyond it adds nothing. None lets the run take one from the first
        points it evaluates.
    limits : (m,) float, optional
        The most that each objective may be, infinity for none.
    starts : (p, n), optional
        Points that a search begins with.
    groups : (n,) int, optional
        The block, a layer say, of each coordinate.
    activity : (samples, n) float, optional
        Activations of the units, for searches that look at them.
    parts : sequence of m BinaryQuadratic, optional
        The objectives in closed form, see `over`.
    labels : sequence of n, optional
        Names of the coordinates.
    meta : mapping, optional
        JSON-able facts.

    Raises
    ------
    InvalidProblem
        If the parts do not fit one another.

    Examples
    --------
    >>> import numpy as np
    >>> error, size = np.array([3.0, 1.0, 2.0]), np.ones(3)
    >>> problem = MultiObjective(Selections(3), lambda X: np.stack([(1 - X) @ error, X @ size], 1), ["error", "size"])
    >>> problem.values([True, False, True])
    array([1., 2.])
    """

    space: Any
    evaluate: Callable[..., Any]
    objectives: Sequence[str]
    reference: Floats | None = None
    limits: Floats | None = None
    starts: Any = ()
    groups: Indices | None = None
    activity: Floats | None = None
    parts: Sequence[BinaryQuadratic] | None = None
    labels: Sequence[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[bytes, Floats] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.space, (*_SPACES, Product)):
            raise InvalidProblem(
                f"space: expected Selections, LevelTuples, LevelChoice or Product, got {type(self.space).__name__}"
            )
        if not callable(self.evaluate):
            raise InvalidProblem(f"evaluate: expected a callable, got {type(self.evaluate).__name__}")
        names = tuple(self.objectives)
        if len(names) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
            raise InvalidProblem(f"objectives: expected two or more distinct names, got {self.objectives!r}")
        object.__setattr__(self, "objectives", names)
        m, n = len(names), self.n
        if self.reference is not None:
            object.__setattr__(self, "reference", floats("reference", self.reference, (m,)))
        if self.limits is not None:
            object.__setattr__(self, "limits", _checked_limits(self.limits, m))
        object.__setattr__(self, "starts", _checked_starts(self.space, self.starts))
        if self.groups is not None:
            object.__setattr__(self, "groups", integers("groups", self.groups, (n,)))
        if self.activity is not None:
            object.__setattr__(self, "activity", floats("activity", self.activity, (None, n)))
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels, n))
        object.__setattr__(self, "meta", dict(self.meta))

    @classmethod
    def over(cls, parts: Sequence[BinaryQuadratic], objectives: Sequence[str], **more: Any) -> MultiObjective:
        """The objectives of several quadratics over the same units, within the constraints of all of them.

        Examples
        --------
        >>> error, size = BinaryQuadratic([-3.0, -1.0], offset=4.0), BinaryQuadratic([1.0, 1.0])
        >>> MultiObjective.over([error, size], ["error", "size"]).values([True, False])
        array([1., 1.])
        """
        parts = tuple(parts)
        if len({part.n for part in parts}) != 1 or len(parts) != len(tuple(objectives)):
            raise InvalidProblem("parts: expected one BinaryQuadratic for each objective, all over the same units")
        constraints: list[Constraint] = [c for part in parts for c in part.constraints]
        more = {"labels": parts[0].labels} | more
        return cls(Selections(parts[0].n, constraints), _Quadratics(parts), objectives, parts=parts, **more)

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return int(self.space.n)

    @property
    def m(self) -> int:
        """Number of objectives."""
        return len(self.objectives)

    @property
    def k(self) -> int | None:
        """The exact cardinality of selections, None where none is asked."""
        return self.space.k if isinstance(self.space, Selections) else None

    @property
    def constraints(self) -> Sequence[Constraint]:
        """The constraints of selections."""
        return self.space.constraints if isinstance(self.space, Selections) else ()

    def values(self, x: Any) -> Floats:
        """The objectives of one point, (m,), or of rows (p, m); what was evaluated before is remembered."""
        asked = self.checked(x)
        rows = np.atleast_2d(asked)
        keys = [self.key(row) for row in rows]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            for key, value in zip(new, self._evaluated(rows[list(new.values())]), strict=True):
                self._known[key] = value
        found = np.array([self._known[key] for key in keys]).reshape(len(rows), self.m)
        return found[0] if asked.ndim == 1 else found

    def _evaluated(self, rows: Any) -> Floats:
        # a copy, so that an evaluation which writes into its argument spoils nobody's rows
        values = np.asarray(self.evaluate(rows.copy()), dtype=np.float64)
        if values.shape != (len(rows), self.m):
            raise InvalidProblem(
                f"evaluate: expected {len(rows)} rows of {self.m} objectives ({', '.join(self.objectives)}), "
                f"got shape {values.shape}"
            )
        return values

    key = staticmethod(BlackBox.key)

    def points(self, keys: Sequence[bytes]) -> Any:
        """The points (p, n) that are remembered by these keys."""
        stored = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
        if isinstance(self.space, Selections):
            return np.unpackbits(stored, axis=1, count=self.n).astype(np.bool_)
        return stored.copy().view(np.int64).reshape(len(keys), self.n)

    def checked(self, x: Any, name: str = "x") -> Any:
        """A copy of one point (n,) or of rows (p, n); refuses anything else."""
        return self.space.checked(name, x)

    def violation(self, x: Any) -> Any:
        """By how much x (n,), or each row of x (p, n), breaks the constraints of the space."""
        return self.space.violation(x)

    def is_feasible(self, x: Any) -> Any:
        """Whether x (n,), or each row of x (p, n), lies in the space; the limits are not looked at."""
        return self.space.is_feasible(x)

    def excess(self, values: Any) -> Floats:
        """(p,) by how much the objectives (p, m) exceed the limits, added up."""
        given = np.atleast_2d(values)
        if self.limits is None:
            return np.zeros(len(given))
        over = np.maximum(0.0, given - self.limits)
        return np.asarray(over.sum(axis=1))

    @cached_property
    def hash(self) -> str:
        """Hash of what the instance is: objectives and space, and the parts, or the meta that names a function."""
        digest = hashlib.sha256(json.dumps([list(self.objectives), self.n]).encode())
        for space in self.space.spaces if isinstance(self.space, Product) else (self.space,):
            digest.update(_told(space))
        for array in (self.reference, self.limits):
            digest.update(b"-" if array is None else array.tobytes())
        for part in self.parts or ():
            digest.update(part.hash.encode())
        if self.parts is None:
            digest.update(str(json_array("meta", dict(self.meta))).encode())
        return digest.hexdigest()[:16]

    def replace(self, **changes: Any) -> MultiObjective:
        """The same problem with some fields changed; what was evaluated is forgotten."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write an instance made by `over` as `.npz` (format `prunesolve/1`, no pickle), whole or not at all.

        Raises
        ------
        InvalidProblem
            If the objectives are functions, which no file holds.
        """
        if self.parts is None:
            raise InvalidProblem("save: only objectives in closed form can be saved, see MultiObjective.over")
        arrays = {f"part{i}.{name}": a for i, p in enumerate(self.parts) for name, a in problem_arrays(p).items()}
        for name in ("reference", "limits", "groups", "activity"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        told = {"objectives": list(self.objectives), "meta": dict(self.meta)}
        labels = {} if self.labels is None else {"labels": json_array("labels", list(self.labels))}
        arrays |= labels | {"starts": np.asarray(self.starts), "told": json_array("meta", told)}
        write(path, "multi-objective", arrays)

    @classmethod
    def load(cls, path: str | Path) -> MultiObjective:
        """Read what `save` wrote."""
        return unpack(path, _from_arrays, read(path, "multi-objective"))


class _Quadratics:
    """evaluate(X) of objectives in closed form; a class, so that a problem can be sent to another process."""

    def __init__(self, parts: Sequence[BinaryQuadratic]) -> None:
        self.parts = parts

    def __call__(self, x: Any) -> Floats:
        # row by row: a matrix product rounds by the number of rows, and ties would fall by how a run slices its calls
        return np.array([[part.value(row) for part in self.parts] for row in x]).reshape(-1, len(self.parts))


@dataclass(frozen=True, eq=False)
class Composite:
    r"""Divide and conquer: a problem for each sub-network, and the whole network that their answers are joined in.

    Parameters
    ----------
    parts : sequence of MultiObjective
        The sub-networks' problems; the first objective is the error, the second the cost.
    joint : MultiObjective
        The whole network's, over the coordinates of all parts one after another; objectives as in the parts.
    dense : (n,)
        The point where nothing is pruned.

    Raises
    ------
    InvalidProblem
        If the parts do not add up to the whole.

    Examples
    --------
    >>> error, size = BinaryQuadratic([-3.0, -1.0], offset=4.0), BinaryQuadratic([1.0, 1.0])
    >>> half = MultiObjective.over([error, size], ["error", "size"])
    >>> whole = MultiObjective.over([BinaryQuadratic([-3.0, -1.0] * 2), BinaryQuadratic([1.0] * 4)], ["error", "size"])
    >>> Composite([half, half], whole, [True] * 4).starts
    array([0, 2, 4])
    """

    parts: Sequence[MultiObjective]
    joint: MultiObjective
    dense: Any

    def __post_init__(self) -> None:
        parts = tuple(self.parts)
        if not parts or not all(isinstance(part, MultiObjective) for part in (*parts, self.joint)):
            raise InvalidProblem("Composite: expected MultiObjective problems for the parts and for the whole")
        object.__setattr__(self, "parts", parts)
        if self.joint.n != self.starts[-1]:
            raise InvalidProblem(f"joint: expected the parts' {self.starts[-1]} coordinates, got {self.joint.n}")
        if any(part.m != 2 for part in (*parts, self.joint)):
            raise InvalidProblem("Composite: expected two objectives, an error and a cost, in the parts and the whole")
        dense = self.joint.checked(self.dense, "dense")
        dense.setflags(write=False)
        object.__setattr__(self, "dense", dense)

    @property
    def n(self) -> int:
        """Number of coordinates of the whole."""
        return self.joint.n

    @property
    def k(self) -> int | None:
        """The exact cardinality of the whole, None where none is asked."""
        return self.joint.k

    def violation(self, x: Any) -> Any:
        """As the whole's."""
        return self.joint.violation(x)

    def is_feasible(self, x: Any) -> Any:
        """As the whole's."""
        return self.joint.is_feasible(x)

    @cached_property
    def starts(self) -> Indices:
        """(parts + 1,) where each part's coordinates start."""
        return np.concatenate([[0], np.cumsum([part.n for part in self.parts])]).astype(np.int64)

    def placed(self, part: int, x: Any) -> Any:
        """Rows (p, n) of the whole that are dense but for one part, which is each row of x (p, n_part)."""
        rows = np.atleast_2d(self.parts[part].checked(x))
        whole = np.repeat(np.asarray(self.dense)[None], len(rows), axis=0)
        whole[:, self.starts[part] : self.starts[part + 1]] = rows
        return whole


def _checked_limits(limits: Any, m: int) -> Floats:
    array = np.array(limits, dtype=np.float64)
    if array.shape != (m,) or np.isnan(array).any() or (array == -np.inf).any():
        raise InvalidProblem(f"limits: expected {m} numbers, infinity for none, got {limits!r}")
    array.setflags(write=False)
    return array


def _checked_starts(space: Any, starts: Any) -> Any:
    rows = np.array(starts)
    if not rows.size:
        rows = np.zeros((0, space.n), dtype=bool if isinstance(space, Selections) else np.int64)
    if rows.ndim != 2:
        raise InvalidProblem(f"starts: expected rows ({space.n},), got shape {rows.shape}")
    rows = space.checked("starts", rows)
    feasible = np.asarray(space.is_feasible(rows))
    if not feasible.all():
        at = int(np.argmin(feasible))
        raise InvalidProblem(f"starts: row {at} breaks the constraints by {space.violation(rows[at])}; leave it out")
    rows.setflags(write=False)
    return rows


def _told(space: Any) -> bytes:
    """What makes a space, as bytes."""
    name = type(space).__name__
    if isinstance(space, LevelChoice):
        return f"{name} {space.hash}".encode()
    if isinstance(space, LevelTuples):
        return f"{name} {[c.tolist() for c in space.cost]} {space.budget} {space.exact}".encode()
    told = [sorted(constraint_arrays(c).items()) for c in space.constraints]
    return b" ".join(
        [f"{name} {space.n}".encode(), *(key.encode() + array.tobytes() for c in told for key, array in c)]
    )


def _from_arrays(arrays: dict[str, Any]) -> MultiObjective:
    told = json.loads(str(arrays["told"]))
    parts = []
    for i in range(len(told["objectives"])):
        head = f"part{i}."
        own = {name.removeprefix(head): a for name, a in arrays.items() if name.startswith(head)}
        parts.append(problem_from_arrays(own | {"meta": np.array("{}")}))
    more: dict[str, Any] = {
        name: arrays[name] for name in ("reference", "limits", "groups", "activity", "starts") if name in arrays
    }
    if "labels" in arrays:
        more["labels"] = json.loads(str(arrays["labels"]))
    return MultiObjective.over(parts, told["objectives"], meta=told["meta"], **more)
