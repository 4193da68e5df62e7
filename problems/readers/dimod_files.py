r"""dimod's files, `.bqm` and `.cqm`, and `.lp` files as dimod reads them.

Spins become bits; a constraint becomes a row, and a row what `_rows` makes of it.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Floats, Indices
from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem
from prunesolve.problems._npz import whole_file
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.couplings import from_pairs

from ._rows import Row, constraints_of

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
        constraints=constraints_of(_rows(cqm, place), len(names)),
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


def _rows(cqm: Any, place: Mapping[Any, int]) -> Iterator[Row]:
    """The constraints of the model as rows, in their order."""
    for label, constraint in cqm.constraints.items():
        left = constraint.lhs
        linear, i, j, biases = _terms(left, place)
        limit, sense = float(constraint.rhs - left.offset), constraint.sense.value
        low, high = (-math.inf if sense == "<=" else limit), (math.inf if sense == ">=" else limit)
        costs = {int(member): float(linear[member]) for member in np.flatnonzero(linear)}
        row = Row.of(label, costs, (i, j, biases), low, high)
        if left.is_soft():
            raise row.refuse("it is soft, with a penalty for breaking it")
        yield row
