r"""Coordinate lists: dimod's COO text and plain `i j value` lines, indices from 0.

minimise  sum_i a_i x_i + sum_{i<j} J_ij x_i x_j,  where `i i value` adds to a_i and `i j value` to J_ij

A first line `# vartype=SPIN` says that the variables are s = 2x - 1 in {-1, 1}; without one they are bits. Other lines
that start with # are comments, repeated entries add up, and n is one more than the largest index.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from prunesolve.problems._arrays import Floats, Indices
from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem
from prunesolve.problems._npz import whole_file
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.couplings import from_pairs

from ._text import Text

_VARTYPE = re.compile(rb"^[ \t]*#.*?vartype[:=][ \t]*([-_.a-zA-Z0-9]+)", re.MULTILINE)
_COMMENT = re.compile(rb"^[ \t]*#.*$", re.MULTILINE)

# variables; past this, one mistyped index would ask for more memory than a machine has
_MOST = 10**7


def has_header(text: Text) -> bool:
    """Whether a comment names the vartype, as only COO files do."""
    return b"#" in text.content and _VARTYPE.search(text.content) is not None


def fits(text: Text) -> bool:
    """Whether every line holds two indices and a value."""
    try:
        _triples(text)
    except InvalidProblem:
        return False
    return True


def read(text: Text) -> BinaryQuadratic:
    """The instance; spins become bits."""
    vartype = _vartype(text)
    n, i, j, values = _triples(text)
    own, off = i == j, i != j
    linear: Floats = np.bincount(i[own], weights=values[own], minlength=n).astype(np.float64)
    i, j, biases, offset = i[off], j[off], values[off], 0.0
    if vartype == "SPIN":
        linear, biases, offset = _to_bits(linear, i, j, biases)
    meta = text.facts("coo", "minimise", vartype=vartype)
    return BinaryQuadratic(linear, from_pairs(n, i, j, biases), offset=offset, meta=meta)


def write(problem: BinaryQuadratic, path: str | Path) -> None:
    """COO text with a vartype header, read by dimod as well; names of variables are left out.

    Raises
    ------
    UnsupportedProblem
        If the problem has constraints or an offset, which the format cannot hold.
    """
    if problem.constraints:
        kinds = ", ".join(sorted({type(c).__name__ for c in problem.constraints}))
        raise UnsupportedProblem(f"{path}: COO text holds no constraints, the problem has {kinds}; write .cqm or .npz")
    if problem.offset:
        raise UnsupportedProblem(f"{path}: COO text holds no offset, the problem has {problem.offset:g}; write .bqm")
    with whole_file(path) as file:
        file.write(b"# vartype=BINARY\n")
        last = problem.n - 1
        for own, bias in enumerate(problem.linear.tolist()):
            # the last variable is named even where its bias is 0: the largest index says n
            if bias or own == last:
                file.write(f"{own} {own} {_positional(bias)}\n".encode())
        for i, j, biases in problem.couplings.pairs():
            entries = zip(i.tolist(), j.tolist(), biases.tolist(), strict=True)
            file.write("".join(f"{a} {b} {_positional(bias)}\n" for a, b, bias in entries).encode())


def _positional(value: float) -> str:
    """The shortest digits that read back as the same number; dimod's reader skips lines with an exponent."""
    short = repr(value)
    return short if "e" not in short else np.format_float_positional(value, trim="0")


def _vartype(text: Text) -> str:
    named = {found.decode(errors="replace").upper() for found in _VARTYPE.findall(text.content)} or {"BINARY"}
    if len(named) > 1 or not named <= {"BINARY", "SPIN"}:
        raise InvalidProblem(f"{text.path}: expected vartype BINARY or SPIN, got {' and '.join(sorted(named))}")
    return named.pop()


def _triples(text: Text) -> tuple[int, Indices, Indices, Floats]:
    if b"#" in text.content:
        text = Text(text.path, _COMMENT.sub(b"", text.content))
    if not len(text.values):
        raise InvalidProblem(f"{text.path}: expected lines 'i j value', got none")
    on_line = np.bincount(text.lines)
    wrong = (on_line != 3) & (on_line != 0)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidProblem(f"{text.path}: line {at}: expected 'i j value', got {on_line[at]} numbers")
    i, j, values = text.numbers().triples(len(text.values) // 3, _MOST, "entries i j value", base=0)
    return int(max(i.max(), j.max())) + 1, i, j, values


def _to_bits(h: Floats, i: Indices, j: Indices, coupling: Floats) -> tuple[Floats, Floats, float]:
    """Linear (n,), pair biases and offset over x of sum h_i s_i + sum J_ij s_i s_j with s = 2x - 1."""
    met = np.bincount(i, weights=coupling, minlength=len(h)) + np.bincount(j, weights=coupling, minlength=len(h))
    return 2.0 * h - 2.0 * met, 4.0 * coupling, float(coupling.sum() - h.sum())
