r"""QPLIB text of binary programs.

    min or max  x'Q0 x / 2 + b0.x + q0   subject to  l_c <= x'Qc x / 2 + bc.x <= u_c

A file gives each pair once, and what it gives is the coefficient of x_i x_j before the division by two: an entry is
2 J_ij for i != j. The library's web page has Q lower triangular for that, and only so do its solutions have the
objective values published with them; the appendix of the paper mirrors the triangle, which would double the pairs.

Reference: F. Furini and others, QPLIB: a library of quadratic programming instances, Mathematical Programming
Computation 11 (2019); qplib.zib.de/doc.html.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from prunesolve.problems._arrays import Floats, Indices
from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem
from prunesolve.problems._npz import whole_file
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.couplings import from_pairs

from ._rows import Pairs, Row, constraints_of, pairs_of, rows_of
from ._text import Text

_INFINITY = 1e308  # the library's own files say 1.79769313486232E+308, which a float rounds to infinity
_MOST = 10**7  # variables or constraints, past which a mistyped count would ask for more memory than a machine has


def read(text: Text) -> BinaryQuadratic:
    """The problem in the file, to be minimised; names, where it gives them, become the labels.

    Raises
    ------
    InvalidProblem
        If the file is broken, or no selection meets a constraint.
    UnsupportedProblem
        If a variable is no bit, or a constraint is none that Cardinality, GroupBounds or Budget says.
    """
    lines = _Lines(text)
    try:
        return _problem(lines, text)
    except (InvalidProblem, UnsupportedProblem) as error:
        raise type(error)(f"{text.path}: {error}") from None


def write(problem: BinaryQuadratic, path: str | Path) -> None:
    """QPLIB text of type QBN, QBL or QBQ, with L for Q where nothing is coupled; variables by number, no names."""
    rows = list(rows_of(problem.constraints, problem.n))
    pairs = sum(len(biases) for _, _, biases in pairs_of(problem.couplings))
    bilinear = sum(len(row.pairs[2]) for row in rows)
    kind = ("Q" if pairs else "L") + "B" + ("Q" if bilinear else "L" if rows else "N")
    name = re.sub(r"[\s#!%]+", "_", str(problem.meta.get("name") or Path(path).stem))
    with whole_file(path) as file:
        _put(file, [f"{name} # problem name", f"{kind} # problem type", "minimize # objective sense"])
        _put(file, [f"{problem.n} # number of variables"] + [f"{len(rows)} # number of constraints"] * bool(rows))
        if pairs:
            _put(file, [f"{pairs} # number of quadratic terms in objective"])
            for i, j, biases in pairs_of(problem.couplings):
                entries = zip(i.tolist(), j.tolist(), biases.tolist(), strict=True)
                _put(file, (f"{b + 1} {a + 1} {2 * bias!r}" for a, b, bias in entries))
        _put(file, _sparse("linear coefficient in objective", 0.0, problem.linear))
        _put(file, [f"{problem.offset!r} # objective constant"])
        _put_rows(file, rows, bilinear)
        _put(file, _sparse("starting value of variables", 0.0, np.zeros(0)))
        if rows:
            _put(file, _sparse("starting value of multipliers of constraints", 0.0, np.zeros(0)))
        _put(file, _sparse("starting value of multipliers of bounds", 0.0, np.zeros(0)))
        _put(file, [f"0 # number of names of {kind}" for kind in ("variables", "constraints")])


def _put(file: IO[bytes], lines: Iterable[str]) -> None:
    file.write("".join(f"{line}\n" for line in lines).encode())


def _sparse(what: str, default: float, values: Floats) -> Iterator[str]:
    """A vector as its default and what differs from it."""
    differ = np.flatnonzero(values != default)
    yield f"{default!r} # default {what}"
    yield f"{len(differ)} # number of others"
    for i in differ.tolist():
        yield f"{i + 1} {float(values[i])!r}"


def _put_rows(file: IO[bytes], rows: list[Row], bilinear: int) -> None:
    """Quadratic and linear terms of the constraints, what counts as infinity, and both sides."""
    if bilinear:
        _put(file, [f"{bilinear} # number of quadratic terms in constraints"])
        for c, row in enumerate(rows, 1):
            entries = zip(*(part.tolist() for part in row.pairs), strict=True)
            _put(file, (f"{c} {j + 1} {i + 1} {2 * q!r}" for i, j, q in entries))
    if rows:
        _put(file, [f"{sum(len(row.members) for row in rows)} # number of linear terms in constraints"])
        for c, row in enumerate(rows, 1):
            entries = zip(row.members.tolist(), row.cost.tolist(), strict=True)
            _put(file, (f"{c} {i + 1} {cost!r}" for i, cost in entries))
    _put(file, [f"{_INFINITY!r} # infinity"])
    for side, default in (("low", -_INFINITY), ("high", _INFINITY)) if rows else ():
        values = np.array([getattr(row, side) for row in rows])
        _put(file, _sparse(f"{side} side of constraints", default, np.clip(values, -_INFINITY, _INFINITY)))


class _Lines:
    """The lines that hold something, one after the other; what a line holds beyond what is asked is a comment."""

    def __init__(self, text: Text) -> None:
        self._lines = enumerate(io.BytesIO(text.content), 1)
        self._number = 0
        self._last = text.content.count(b"\n") + 1

    def fields(self, count: int, what: str) -> list[str]:
        """The first `count` fields of the next line, which is `what`."""
        for number, line in self._lines:
            self._number = number
            fields = line.decode(errors="replace").split(maxsplit=count)
            if fields and fields[0][0] not in "!%#":
                if len(fields) < count or any(field.startswith("#") for field in fields[:count]):
                    raise self.refuse(f"expected {what}, got {' '.join(fields)[:40]!r}")
                return fields[:count]
        raise InvalidProblem(f"expected {what}, got the end of the file at line {self._number}; is it cut short?")

    def refuse(self, reason: str) -> InvalidProblem:
        """An error that names the line read last."""
        return InvalidProblem(f"line {self._number}: {reason}")

    def number(self, what: str, finite: bool = True) -> float:
        """The next line's number."""
        return self._real(self.fields(1, what)[0], finite)

    def whole(self, what: str, high: int = 2**53) -> int:
        """The next line's number, a whole one from 0 to `high`."""
        return self._index(self.fields(1, what)[0], 0, high)

    def entries(self, what: str, *sizes: int, finite: bool = True) -> tuple[list[Indices], Floats]:
        """A count, then that many lines of indices from 1, one below each of `sizes`, and a value; indices from 0."""
        count = self.whole(f"the number of {what}")
        if count > self._last - self._number:
            left = self._last - self._number
            raise self.refuse(f"expected {count} {what}, got {left} lines before the end of the file; is it cut short?")
        places, values = np.zeros((len(sizes), count), dtype=np.int64), np.zeros(count)
        for at in range(count):
            *found, value = self.fields(len(sizes) + 1, f"an entry of the {what}")
            places[:, at] = [self._index(text, 1, size) - 1 for text, size in zip(found, sizes, strict=True)]
            values[at] = self._real(value, finite)
        return list(places), values

    def vector(self, what: str, size: int, finite: bool = True) -> Floats:
        """A default, then how many differ from it, and these."""
        values = np.full(size, self.number(f"the default {what}", finite))
        (places,), others = self.entries(f"others than the default {what}", size, finite=finite)
        values[places] = others
        return values

    def names(self, what: str, size: int) -> dict[int, str]:
        """How many have a name, and these by index from 0."""
        found = (self.fields(2, f"a name of {what}") for _ in range(self.whole(f"the number of names of {what}", size)))
        return {self._index(place, 1, size) - 1: name for place, name in found}

    def _index(self, token: str, low: int, high: int) -> int:
        if not token.isdecimal() or not low <= int(token) <= high:
            raise self.refuse(f"expected a whole number from {low} to {high}, got {token[:30]!r}")
        return int(token)

    def _real(self, token: str, finite: bool) -> float:
        try:
            value = math.nan if "_" in token else float(token.upper().replace("D", "E"))
        except ValueError:
            value = math.nan
        if math.isnan(value) or (finite and math.isinf(value)):
            raise self.refuse(f"expected a finite number, got {token[:30]!r}")
        return value


def _problem(lines: _Lines, text: Text) -> BinaryQuadratic:
    """The parts in the order of the file; which of them there are goes by the three letters of its type."""
    lines.fields(1, "the problem's name")
    kind = _type(lines)
    objective, variables, constraints = kind[0], kind[1], kind[2]
    sense = lines.fields(1, "minimize or maximize")[0].lower()
    if sense not in ("minimize", "maximize"):
        raise lines.refuse(f"expected minimize or maximize, got {sense!r}")
    n = lines.whole("the number of variables", _MOST)
    m = lines.whole("the number of constraints", _MOST) if constraints not in "NB" else 0
    i, j, q = _quadratic(*lines.entries("quadratic terms in the objective", n, n)) if objective != "L" else _nothing()
    linear, offset = lines.vector("linear coefficient", n), lines.number("the objective's constant")
    rows = _rows(lines, n, m, constraints)
    labels = _check_bits(lines, n, m, variables, rows)
    sign, off = (-1.0 if sense == "maximize" else 1.0), i != j
    return BinaryQuadratic(
        sign * (linear + np.bincount(i[~off], weights=q[~off], minlength=n)),
        from_pairs(n, i[off], j[off], sign * q[off]),
        offset=sign * offset,
        constraints=constraints_of(rows, n),
        labels=labels,
        meta=text.facts("qplib", "maximise" if sign < 0 else "minimise"),
    )


def _type(lines: _Lines) -> str:
    kind = lines.fields(1, "the problem type, such as QBL")[0].upper()
    if not re.fullmatch("[LDCQ][CBMIG][NBLDCQ]", kind):
        raise lines.refuse(f"expected a problem type of three letters, such as QBL, got {kind[:30]!r}")
    if kind[1] == "C":
        raise UnsupportedProblem(f"expected bits, but all variables of a {kind} are continuous")
    return kind


def _nothing() -> Pairs:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


def _quadratic(places: list[Indices], values: Floats) -> Pairs:
    """(i, j, q) that count as q x_i x_j."""
    i, j = places
    keys = np.minimum(i, j) * (int(max(i.max(), j.max())) + 1 if len(values) else 1) + np.maximum(i, j)
    if len(np.unique(keys)) < len(values):
        raise InvalidProblem("quadratic terms: expected each pair once, got one twice")
    return i, j, values / 2


def _rows(lines: _Lines, n: int, m: int, kind: str) -> list[Row]:
    """The constraints; what counts as infinity follows even where there are none."""
    if not m:
        lines.number("what counts as infinity", finite=False)
        return []
    quadratic: list[Pairs] = [_nothing()] * m
    if kind in "DCQ":
        (c, i, j), values = lines.entries("quadratic terms in the constraints", m, n, n)
        order = np.argsort(c, kind="stable")
        parts = np.split(order, np.searchsorted(c[order], np.arange(1, m)))
        quadratic = [_quadratic([i[part], j[part]], values[part]) for part in parts]
    (c, i), costs = lines.entries("linear terms in the constraints", m, n)
    linear: list[dict[int, float]] = [{} for _ in range(m)]
    for row, member, cost in zip(c.tolist(), i.tolist(), costs.tolist(), strict=True):
        if member in linear[row]:
            raise InvalidProblem(f"constraint {row + 1}: variable {member + 1} is given twice")
        linear[row][member] = cost
    infinity = lines.number("what counts as infinity", finite=False)
    low, high = (lines.vector(f"{side} side of a constraint", m, finite=False) for side in ("low", "high"))
    low[low <= -infinity], high[high >= infinity] = -math.inf, math.inf
    return [Row.of(row + 1, linear[row], quadratic[row], low[row], high[row]) for row in range(m)]


def _check_bits(lines: _Lines, n: int, m: int, kind: str, rows: list[Row]) -> list[Any] | None:
    """What follows the constraints: refuses variables that are no bits, adds a row for each that its bounds fix."""
    if kind != "B":
        low, high = (lines.vector(f"{side} bound", n, finite=False) for side in ("lower", "upper"))
        types = lines.vector("type of a variable", n) if kind in "MG" else np.ones(n)
        for i in np.flatnonzero((types == 0) | ~np.isin(low, (0, 1)) | ~np.isin(high, (0, 1))):
            word = "integer" if types[i] else "continuous"
            raise UnsupportedProblem(f"expected bits, but variable {i + 1} is {word} from {low[i]:g} to {high[i]:g}")
        fixed = np.flatnonzero((low == 1) | (high == 0)).tolist()
        rows.extend(Row.of(f"bounds of variable {i + 1}", {i: 1.0}, _nothing(), low[i], high[i]) for i in fixed)
    lines.vector("starting value of a variable", n)
    if m:
        lines.vector("starting multiplier of a constraint", m)
    lines.vector("starting multiplier of a bound", n)
    named = lines.names("variables", n)
    return [named.get(i, f"x{i + 1}") for i in range(n)] if named else None
