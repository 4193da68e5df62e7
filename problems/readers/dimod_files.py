r"""dimod's files, `.bqm` and `.cqm`, and `.lp` files as dimod reads them.

Spins become bits. A constraint becomes what it says:

    sum over all x_i = k                                  Cardinality(k)
    low <= sum over some x_i <= high                      GroupBounds, disjoint ones together in one
    sum c_i x_i + sum q_ij x_i x_j <= limit, c, q >= 0    Budget

Anything else is refused by its name.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Floats, Indices
from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem
from prunesolve.problems._npz import whole_file
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.constraints import TOLERANCE, Budget, Cardinality, Constraint, GroupBounds
from prunesolve.problems.couplings import from_pairs

# dimod reads a file without one of these words, whatever it holds, as an empty model
_LP_START = re.compile(rb"\s*(?:\\[^\n]*\s*)*(min|max|subject\s+to|such\s+that|st\b|s\.t\.)\w*", re.IGNORECASE)


def read(path: str | Path, kind: str) -> BinaryQuadratic:
    """The problem in a "bqm", "cqm" or "lp" file."""
    model, sense = _load(path, kind)
    try:
        problem = BinaryQuadratic.from_bqm(model) if kind == "bqm" else from_cqm(model)
        if kind == "lp" and problem.n == 0:
            raise InvalidProblem("expected an objective and constraints as an .lp file has them, found no variable")
        labels = None if list(problem.labels or ()) == list(range(problem.n)) else problem.labels
        meta = {"name": Path(path).stem, "format": kind, "sense": sense}
        return problem.replace(labels=labels, meta=meta)
    except (InvalidProblem, UnsupportedProblem) as error:
        raise type(error)(f"{path}: {error}") from None


def write(problem: BinaryQuadratic, path: str | Path, kind: str) -> None:
    """Write the problem as "bqm", "cqm" or "lp"; an .lp names its variables x0, x1, ...

    Raises
    ------
    UnsupportedProblem
        If the problem has constraints and the file is to be a .bqm.
    """
    if kind == "bqm" and problem.constraints:
        kinds = ", ".join(sorted({type(c).__name__ for c in problem.constraints}))
        raise UnsupportedProblem(f"{path}: a .bqm holds no constraints, the problem has {kinds}; write .cqm or .npz")
    model = problem.to_bqm() if kind == "bqm" else problem.to_cqm()
    if kind == "lp":
        import dimod

        model.relabel_variables({i: f"x{i}" for i in range(problem.n)})
        with whole_file(path) as file:
            file.write(dimod.lp.dumps(model).encode())
        return
    if problem.labels is not None:
        # a Unit is written as the plain tuple it is
        names = [tuple(name) if isinstance(name, tuple) else name for name in problem.labels]
        model.relabel_variables(dict(enumerate(names)))
    with whole_file(path) as file, model.to_file() as stored:
        shutil.copyfileobj(stored, file)


def from_cqm(cqm: Any) -> BinaryQuadratic:
    """The problem of a dimod ConstrainedQuadraticModel over bits and spins; its variables become the labels.

    Raises
    ------
    UnsupportedProblem
        If a variable is an integer or real, or a constraint is none that Cardinality, GroupBounds or Budget says.
    """
    wide = [v for v in cqm.variables if cqm.vartype(v).name not in ("BINARY", "SPIN")]
    if wide:
        shown = ", ".join(f"{v!r} is {cqm.vartype(v).name.lower()}" for v in wide[:3])
        raise UnsupportedProblem(f"expected bits or spins, but {shown}; {len(wide)} such variables in all")
    cqm = cqm.spin_to_binary()
    names = _in_order(list(cqm.variables))
    place = {name: i for i, name in enumerate(names)}
    linear, i, j, biases = _terms(cqm.objective, place)
    return BinaryQuadratic(
        linear,
        from_pairs(len(names), i, j, biases),
        offset=float(cqm.objective.offset),
        constraints=_constraints(cqm, place),
        labels=names,
    )


def _load(path: str | Path, kind: str) -> tuple[Any, str]:
    """The model in a file, and the sense in which its objective was written."""
    import dimod

    content = Path(path).read_bytes()
    start = _LP_START.match(content)
    if kind == "lp" and start is None:
        raise InvalidProblem(f"{path}: expected an LP file that starts with Minimize, Maximize or Subject To")
    readers = {
        "bqm": dimod.BinaryQuadraticModel.from_file,
        "cqm": dimod.ConstrainedQuadraticModel.from_file,
        "lp": dimod.lp.loads,
    }
    try:
        model = readers[kind](content)
    # a broken file surfaces as whatever its first broken part trips over in there
    except Exception as error:
        raise InvalidProblem(f"{path}: expected a .{kind} file, got a broken or foreign one ({error})") from None
    maximised = kind == "lp" and start is not None and start.group(1).lower() == b"max"
    return model, "maximise" if maximised else "minimise"


def _in_order(names: list[Any]) -> list[Any]:
    """The variables in their order, but x0, x1, ... by number: an .lp lists them as its terms come."""
    numbered = [f"x{i}" for i in range(len(names))]
    return numbered if set(names) == set(numbered) else names


def _terms(model: Any, place: Mapping[Any, int]) -> tuple[Floats, Indices, Indices, Floats]:
    """Linear biases (n,) and pairs i, j, bias of a dimod objective or left-hand side."""
    linear = np.zeros(len(place))
    for name, bias in model.iter_linear():
        linear[place[name]] = bias
    pairs = [(place[u], place[v], bias) for u, v, bias in model.iter_quadratic() if bias]
    i, j = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    return linear, i, j, np.array([bias for _, _, bias in pairs], dtype=np.float64)


@dataclass(frozen=True)
class _Row:
    """sum c_i x_i + sum q_ij x_i x_j (<= | == | >=) limit, as a file has it."""

    label: Any
    cost: Floats
    pairs: tuple[Indices, Indices, Floats]
    sense: str
    limit: float

    @property
    def uniform(self) -> float | None:
        """The one coefficient all its variables have, None where they differ or are multiplied."""
        members = self.cost[self.cost != 0]
        same = len(members) and not len(self.pairs[2]) and (members == members[0]).all()
        return float(members[0]) if same else None

    def refuse(self, reason: str) -> UnsupportedProblem:
        return UnsupportedProblem(
            f"constraint {self.label!r}: {reason}; only counts (equal coefficients) and budgets (<=, no coefficient "
            "below 0) can be kept"
        )


def _rows(cqm: Any, place: Mapping[Any, int]) -> Iterator[_Row]:
    for label, constraint in cqm.constraints.items():
        left = constraint.lhs
        cost, i, j, biases = _terms(left, place)
        row = _Row(label, cost, (i, j, biases), constraint.sense.value, float(constraint.rhs - left.offset))
        if left.is_soft():
            raise row.refuse("it is soft, with a penalty for breaking it")
        if cost.any() or len(biases):
            yield row
        elif not _constant_holds(row):
            raise InvalidProblem(f"constraint {label!r}: no variable in it, and 0 {row.sense} {row.limit:g} is false")


def _constant_holds(row: _Row) -> bool:
    return {"<=": row.limit >= 0, ">=": row.limit <= 0, "==": row.limit == 0}[row.sense]


def _constraints(cqm: Any, place: Mapping[Any, int]) -> list[Constraint]:
    """Every constraint of the model, counts over the same variables and over disjoint ones brought together."""
    counts: dict[bytes, tuple[int, int]] = {}
    budgets: list[Constraint] = []
    for row in _rows(cqm, place):
        if row.uniform is None:
            budgets.append(_budget(row))
            continue
        low, high = _count(row)
        key = (row.cost != 0).tobytes()
        before = counts.get(key, (0, len(place)))
        counts[key] = max(low, before[0]), min(high, before[1])
    return [*_counted(counts, len(place)), *budgets]


def _count(row: _Row) -> tuple[int, int]:
    """The least and the most of its variables that a row of equal coefficients allows."""
    coefficient = row.uniform
    assert coefficient is not None
    limit, size = row.limit / coefficient, int((row.cost != 0).sum())
    sense = row.sense if coefficient > 0 else {"<=": ">=", ">=": "<=", "==": "=="}[row.sense]
    low = int(np.ceil(limit - TOLERANCE)) if sense != "<=" else 0
    high = int(np.floor(limit + TOLERANCE)) if sense != ">=" else size
    if low > high or low > size or high < 0:
        raise InvalidProblem(f"constraint {row.label!r}: no count of its {size} variables can be {sense} {limit:g}")
    return max(low, 0), min(high, size)


def _budget(row: _Row) -> Budget:
    if row.sense == "==":
        raise row.refuse("an equality with unequal coefficients")
    sign = 1.0 if row.sense == "<=" else -1.0
    cost, (i, j, biases) = sign * row.cost, row.pairs
    if (cost < 0).any() or (sign * biases < 0).any():
        raise row.refuse("a lower limit" if row.sense == ">=" else "a negative coefficient")
    pair = None
    if len(biases):
        from scipy import sparse

        upper = sparse.coo_array((sign * biases, (i, j)), shape=(len(cost), len(cost)))
        pair = upper + upper.T
    return Budget(cost, sign * row.limit, pair)


def _counted(counts: Mapping[bytes, tuple[int, int]], n: int) -> Iterator[Constraint]:
    """A Cardinality where all n variables are counted exactly; the other counts packed into few GroupBounds."""
    packs: list[list[tuple[Any, int, int]]] = []
    for key, (low, high) in counts.items():
        members = np.frombuffer(key, dtype=bool)
        if members.all() and low == high:
            yield Cardinality(low)
            continue
        pack = next((p for p in packs if not any((members & other).any() for other, _, _ in p)), None)
        if pack is None:
            packs.append(pack := [])
        pack.append((members, low, high))
    for pack in packs:
        group = np.full(n, -1)
        for g, (members, _, _) in enumerate(pack):
            group[members] = g
        yield GroupBounds(group, np.array([low for _, low, _ in pack]), np.array([high for _, _, high in pack]))
