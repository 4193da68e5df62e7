r"""MPS files of binary programs, with the sections CPLEX, Gurobi and HiGHS added for quadratic terms.

    QUADOBJ, QSECTION     one triangle of Q, the objective gains x'Qx / 2
    QMATRIX               all of Q, symmetric, the objective gains x'Qx / 2
    QCMATRIX row          all of Q, symmetric, the row gains x'Qx

so that J_ij = Q_ij in QUADOBJ and q_ij = 2 Q_ij in QCMATRIX. The right-hand side of the objective row is minus the
constant. Fields are parted by blanks (free MPS); fixed MPS reads as well where no name holds a blank. Integers between
MARKER lines that no bound names are bits, as CPLEX and HiGHS have them.

Reference: IBM ILOG CPLEX file formats, MPS file format: industry standard; Gurobi reference manual, MPS format.
"""

from __future__ import annotations

import io
import math
import re
from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
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

_TRIANGLES, _MATRICES = ("QUADOBJ", "QSECTION"), ("QMATRIX", "QCMATRIX")
_FOREIGN = (
    "SOS",
    "SOS1",
    "SOS2",
    "SETS",
    "INDICATORS",
    "GENCONS",
    "PWLOBJ",
    "LAZYCONS",
    "USERCUTS",
    "CSECTION",
    "PWLNAM",
)
_OBJECTIVE = "obj"


def read(text: Text) -> BinaryQuadratic:
    """The problem in the file, to be minimised; its columns become the labels.

    Raises
    ------
    InvalidProblem
        If the file is broken, or no selection meets a row.
    UnsupportedProblem
        If a column is no bit, or a row is none that Cardinality, GroupBounds or Budget says.
    """
    try:
        return _Model(text).problem()
    except (InvalidProblem, UnsupportedProblem) as error:
        raise type(error)(f"{text.path}: {error}") from None


def write(problem: BinaryQuadratic, path: str | Path) -> None:
    """Free MPS: columns x0, x1, ..., objective in QUADOBJ, bilinear budgets in QCMATRIX; whole or not at all."""
    rows = list(rows_of(problem.constraints, problem.n))
    name = re.sub(r"\s+", "_", str(problem.meta.get("name") or Path(path).stem))
    with whole_file(path) as file:
        _put(file, f"NAME {name}", "ROWS", f" N {_OBJECTIVE}", *(f" {_kind(row)} {row.label}" for row in rows))
        _put(file, "COLUMNS", *_columns(problem.linear, rows))
        _put(file, "RHS", *_right_sides(problem.offset, rows))
        ranged = [row for row in rows if math.isfinite(row.low) and math.isfinite(row.high) and row.low < row.high]
        if ranged:
            _put(file, "RANGES", *(f"    rng {row.label} {row.high - row.low!r}" for row in ranged))
        _put(file, "BOUNDS", *(f" BV bnd x{i}" for i in range(problem.n)))
        _put_pairs(file, problem, rows)
        _put(file, "ENDATA")


def _put(file: IO[bytes], *lines: str) -> None:
    file.write("".join(f"{line}\n" for line in lines).encode())


def _kind(row: Row) -> str:
    if row.low == row.high:
        return "E"
    return "L" if math.isfinite(row.high) else "G"


def _columns(linear: Floats, rows: list[Row]) -> Iterator[str]:
    """Every column with its place in the objective, which also names columns that are nowhere else."""
    nothing: list[Any] = [np.zeros(0, np.int64)]
    members = np.concatenate([row.members for row in rows] or nothing)
    row_of = np.repeat(np.arange(len(rows)), [len(row.members) for row in rows])
    costs = np.concatenate([row.cost for row in rows] or nothing)
    order = np.argsort(members, kind="stable")
    ends = np.searchsorted(members[order], np.arange(len(linear) + 1))
    for i, (bias, (start, end)) in enumerate(zip(linear.tolist(), pairwise(ends), strict=True)):
        yield f"    x{i} {_OBJECTIVE} {bias!r}"
        for at in order[start:end]:
            yield f"    x{i} {rows[row_of[at]].label} {float(costs[at])!r}"


def _right_sides(offset: float, rows: list[Row]) -> Iterator[str]:
    if offset:
        yield f"    rhs {_OBJECTIVE} {-offset!r}"
    for row in rows:
        yield f"    rhs {row.label} {float(row.high if math.isfinite(row.high) else row.low)!r}"


def _put_pairs(file: IO[bytes], problem: BinaryQuadratic, rows: list[Row]) -> None:
    for piece, (i, j, biases) in enumerate(pairs_of(problem.couplings)):
        entries = zip(i.tolist(), j.tolist(), biases.tolist(), strict=True)
        _put(file, *["QUADOBJ"] * (not piece), *(f"    x{a} x{b} {bias!r}" for a, b, bias in entries))
    for row in rows:
        if len(row.pairs[2]):
            _put(file, f"QCMATRIX {row.label}")
            entries = zip(*(part.tolist() for part in row.pairs), strict=True)
            _put(file, *(f"    x{a} x{b} {q / 2!r}\n    x{b} x{a} {q / 2!r}" for a, b, q in entries))


class _Terms:
    """Entries (i, j, q) of one quadratic section, as they come; `section` says what they mean."""

    def __init__(self, section: str) -> None:
        self.section = section
        self._i, self._j, self._q = array("q"), array("q"), array("d")

    def add(self, i: int, j: int, q: float) -> None:
        self._i.append(i)
        self._j.append(j)
        self._q.append(q)

    def pairs(self, n: int) -> Pairs:
        """(i, j, q) that count as q x_i x_j, i = j included."""
        i, j = (np.frombuffer(part, dtype=np.int64) if part else np.zeros(0, np.int64) for part in (self._i, self._j))
        q = np.frombuffer(self._q, dtype=np.float64) if self._q else np.zeros(0)
        if self.section in _TRIANGLES:
            self._once(np.minimum(i, j) * n + np.maximum(i, j), "one of (i, j) and (j, i)")
            return i, j, np.where(i == j, q / 2, q)
        self._once(i * n + j, "every entry once")
        order, turned = np.argsort(i * n + j), np.argsort(j * n + i)
        if not (np.array_equal(i[order], j[turned]) and np.array_equal(q[order], q[turned])):
            raise InvalidProblem(f"{self.section}: expected a symmetric matrix, each pair as (i, j) and as (j, i)")
        scale = 0.5 if self.section == "QMATRIX" else 1.0
        kept = i <= j
        return i[kept], j[kept], np.where(i == j, scale * q, 2 * scale * q)[kept]

    def _once(self, places: Indices, wanted: str) -> None:
        if len(np.unique(places)) < len(places):
            raise InvalidProblem(f"{self.section}: expected {wanted}, got one twice")


class _Model:
    """What an MPS file says, line by line.

    Parameters
    ----------
    text : Text
        The file.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._maximised = False
        self._objective: str | None = None
        self._kinds: dict[str, str] = {}
        self._linear: dict[str, dict[int, float]] = {}
        self._place: dict[str, int] = {}
        self._whole: set[int] = set()
        self._right: dict[str, float] = {}
        self._ranges: dict[str, float] = {}
        self._bounds: dict[int, tuple[float, float]] = {}
        self._terms: dict[str, _Terms] = {}
        self._in_marker = False
        self._read()

    def _read(self) -> None:
        take: Callable[[list[str]], None] = self._before_sections
        lines = io.TextIOWrapper(io.BytesIO(self._text.content), encoding="utf-8", errors="replace")
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields or line.startswith("*"):
                continue
            try:
                if line[0].isspace():
                    take(fields)
                elif fields[0].upper() == "ENDATA":
                    return
                else:
                    take = self._section(fields)
            except (InvalidProblem, UnsupportedProblem) as error:
                raise type(error)(f"line {number}: {error}") from None
        raise InvalidProblem("expected ENDATA at the end of an MPS file, found none; is it cut short?")

    def _section(self, fields: list[str]) -> Callable[[list[str]], None]:
        """Who takes the lines of the section that begins here."""
        section = fields[0].upper()
        if section == "OBJSENSE" and len(fields) > 1:
            self._take_sense(fields[1:])
        if section in (*_TRIANGLES, *_MATRICES):
            return self._quadratic(section, fields[1:])
        takes = {
            "NAME": self._before_sections,
            "OBJSENSE": self._take_sense,
            "ROWS": self._take_row,
            "COLUMNS": self._take_column,
            "RHS": lambda found: self._take_sides(found, self._right),
            "RANGES": lambda found: self._take_sides(found, self._ranges),
            "BOUNDS": self._take_bound,
        }
        if section in _FOREIGN:
            raise UnsupportedProblem(f"section {section}: only rows, bits and quadratic terms can be kept")
        if section not in takes:
            known = ", ".join([*takes, *_TRIANGLES, *_MATRICES])
            raise InvalidProblem(f"expected a section of an MPS file, one of {known}, got {section[:30]!r}")
        return takes[section]

    def _before_sections(self, fields: list[str]) -> None:
        raise InvalidProblem(f"expected a section such as ROWS, got {' '.join(fields)[:40]!r}")

    def _take_sense(self, fields: list[str]) -> None:
        if fields[0].upper() not in ("MIN", "MINIMIZE", "MAX", "MAXIMIZE"):
            raise InvalidProblem(f"OBJSENSE: expected MIN or MAX, got {fields[0]!r}")
        self._maximised = fields[0].upper().startswith("MAX")

    def _take_row(self, fields: list[str]) -> None:
        kind, name = fields[0].upper(), fields[-1]
        if len(fields) != 2 or kind not in ("N", "E", "L", "G"):
            raise InvalidProblem(f"ROWS: expected N, E, L or G and a name without blanks, got {' '.join(fields)!r}")
        if name in self._kinds:
            raise InvalidProblem(f"ROWS: {name} is named twice")
        if kind == "N" and self._objective is None:
            self._objective = name
        self._kinds[name], self._linear[name] = kind, {}

    def _take_column(self, fields: list[str]) -> None:
        if len(fields) == 3 and fields[1].strip("'\"").upper() == "MARKER":
            self._in_marker = fields[2].strip("'\"").upper() == "INTORG"
            return
        if len(fields) % 2 == 0:
            raise InvalidProblem(f"COLUMNS: expected a column, then rows and values, got {' '.join(fields)!r}")
        i = self._place.setdefault(fields[0], len(self._place))
        if self._in_marker:
            self._whole.add(i)
        for row, value in zip(fields[1::2], fields[2::2], strict=True):
            if i in self._linear[self._row(row)]:
                raise InvalidProblem(f"COLUMNS: {fields[0]} is given twice in row {row}")
            self._linear[row][i] = _number(value)

    def _take_sides(self, fields: list[str], into: dict[str, float]) -> None:
        """Rows and values, after a name of the whole vector or without one."""
        for row, value in zip(fields[len(fields) % 2 :: 2], fields[len(fields) % 2 + 1 :: 2], strict=True):
            into[self._row(row)] = _number(value)

    def _take_bound(self, fields: list[str]) -> None:
        kind, rest = fields[0].upper(), fields[1:]
        valued = kind in ("UP", "LO", "FX", "UI", "LI")
        if kind not in ("BV", "MI", "PL", "FR", "SC") and not valued:
            raise InvalidProblem(f"BOUNDS: expected BV, UP, LO, FX, UI, LI, MI, PL or FR, got {kind}")
        if not 1 + valued <= len(rest) <= 3:
            raise InvalidProblem(
                f"BOUNDS: expected {kind}, a column{' and a value' * valued}, got {' '.join(fields)!r}"
            )
        named = rest[-2] if valued or len(rest) == 3 else rest[-1] if rest[-1] in self._place else rest[0]
        i = self._column(named)
        if kind == "SC":
            raise UnsupportedProblem(f"BOUNDS: {named} is semi-continuous; only bits can be kept")
        if kind in ("BV", "UI", "LI"):
            self._whole.add(i)
        value = _number(rest[-1], finite=False) if valued else 0.0
        low, high = self._bounds.get(i, (0.0, math.inf))
        self._bounds[i] = {
            "BV": (0.0, 1.0),
            "FX": (value, value),
            "MI": (-math.inf, high),
            "PL": (low, math.inf),
            "FR": (-math.inf, math.inf),
        }.get(kind, (low, value) if kind in ("UP", "UI") else (value, high))

    def _quadratic(self, section: str, names: list[str]) -> Callable[[list[str]], None]:
        row = self._row(names[0]) if names else self._objective
        if section == "QSECTION" and row != self._objective:
            raise UnsupportedProblem(f"QSECTION {row}: quadratic rows are read from QCMATRIX only")
        if row is None or (row == self._objective) == (section == "QCMATRIX") or row in self._terms:
            raise InvalidProblem(f"{section} {' '.join(names)}: expected QUADOBJ or QMATRIX once, QCMATRIX once a row")
        terms = self._terms[row] = _Terms(section)

        def take(fields: list[str]) -> None:
            if len(fields) != 3:
                raise InvalidProblem(f"{section}: expected two columns and a value, got {' '.join(fields)!r}")
            terms.add(self._column(fields[0]), self._column(fields[1]), _number(fields[2]))

        return take

    def _row(self, name: str) -> str:
        if name not in self._kinds:
            raise InvalidProblem(f"row {name} is not in ROWS")
        return name

    def _column(self, name: str) -> int:
        if name not in self._place:
            raise InvalidProblem(f"column {name} is not in COLUMNS")
        return self._place[name]

    def problem(self) -> BinaryQuadratic:
        """Objective, constraints and labels, the sign turned where the file maximises."""
        if self._objective is None:
            raise InvalidProblem("ROWS: expected a row N, the objective, got none")
        names, sign = list(self._place), -1.0 if self._maximised else 1.0
        linear, (i, j, q) = np.zeros(len(names)), self._pairs(self._objective)
        for member, bias in self._linear[self._objective].items():
            linear[member] = bias
        linear += np.bincount(i[i == j], weights=q[i == j], minlength=len(names))
        off = i != j
        return BinaryQuadratic(
            sign * linear,
            from_pairs(len(names), i[off], j[off], sign * q[off]),
            offset=-sign * self._right.get(self._objective, 0.0),
            constraints=constraints_of([*self._rows(), *self._fixed(names)], len(names)),
            labels=names,
            meta=self._text.facts("mps", "maximise" if self._maximised else "minimise"),
        )

    def _pairs(self, row: str) -> Pairs:
        return self._terms.get(row, _Terms("QUADOBJ")).pairs(len(self._place))

    def _rows(self) -> Iterator[Row]:
        for name, kind in self._kinds.items():
            if kind != "N":
                yield Row.of(name, self._linear[name], self._pairs(name), *self._sides(name, kind))

    def _sides(self, name: str, kind: str) -> tuple[float, float]:
        """Low and high of a row; a range goes up from G, down from L, and from E whither its sign says."""
        right, span = self._right.get(name, 0.0), self._ranges.get(name)
        if span is None:
            return (-math.inf if kind == "L" else right), (math.inf if kind == "G" else right)
        down = kind == "L" or (kind == "E" and span < 0)
        return (right - abs(span), right) if down else (right, right + abs(span))

    def _fixed(self, names: list[str]) -> Iterator[Row]:
        """A row for each bit whose bounds fix it; refuses columns that are no bits."""
        for i, name in enumerate(names):
            low, high = self._bounds.get(i, (0.0, 1.0) if i in self._whole else (0.0, math.inf))
            if i not in self._whole or low not in (0.0, 1.0) or high not in (0.0, 1.0):
                kind = "integer" if i in self._whole else "continuous"
                raise UnsupportedProblem(f"expected bits, but {name} is {kind} from {low:g} to {high:g}")
            if (low, high) != (0.0, 1.0):
                nothing = np.zeros(0, np.int64)
                yield Row.of(f"bounds of {name}", {i: 1.0}, (nothing, nothing, np.zeros(0)), low, high)


def _number(token: str, finite: bool = True) -> float:
    """A number as Fortran or C writes it."""
    try:
        value = math.nan if "_" in token else float(token.upper().replace("D", "E"))
    except ValueError:
        value = math.nan
    if math.isnan(value) or (finite and math.isinf(value)):
        raise InvalidProblem(f"expected a finite number, got {token[:30]!r}")
    return value
