"""Instance files of other people, each format in one file, and the detection of which is which.

Formats by suffix: `.npz` (our own), `.bqm`, `.cqm` and `.lp` (through dimod), `.mps` and `.qplib`. Formats by content:
`beasley`, `mdplib`, `qkp` and `coo` text.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem, unknown
from prunesolve.problems._npz import kind_of
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.clustering import Clustering
from prunesolve.problems.level_choice import LevelChoice
from prunesolve.problems.multi_objective import MultiObjective
from prunesolve.problems.partial_transport import PartialTransport
from prunesolve.problems.sparse_regression import SparseRegression
from prunesolve.problems.subset_regression import SubsetRegression

from . import beasley, coo, mdplib, mps, qkp, qplib
from ._text import Text

TEXT = ("beasley", "mdplib", "qkp", "coo")
SUFFIXES = {".npz": "npz", ".bqm": "bqm", ".cqm": "cqm", ".lp": "lp", ".mps": "mps", ".qplib": "qplib"}
FORMATS = ("auto", *TEXT, *SUFFIXES.values())

_KINDS: dict[str | None, Any] = {
    "clustering": Clustering,
    "level-choice": LevelChoice,
    "multi-objective": MultiObjective,
    "partial-transport": PartialTransport,
    "sparse-regression": SparseRegression,
    "subset-regression": SubsetRegression,
}

_READERS: dict[str, Any] = {"mdplib": mdplib, "qkp": qkp, "coo": coo, "mps": mps, "qplib": qplib}
_WRITERS: dict[str, Any] = {".coo": coo, ".mps": mps, ".qplib": qplib}

# how many numbers the first line of each all-number format holds
_FIRST_LINE = {1: "beasley", 2: "mdplib", 3: "coo"}


def read(path: str | Path, *, format: str = "auto", index: int | None = None) -> Any:
    """The instance in a file, to be minimised.

    `meta` says `name`, `format` and the `sense` ("minimise" or "maximise") of the file; see `native_objective`.

    Parameters
    ----------
    path : path
        The file.
    format : str
        "auto" goes by suffix, then by content; or one of "beasley", "mdplib", "qkp", "coo", "npz", "bqm", "cqm", "lp",
        "mps", "qplib".
    index : int, optional
        Which instance, counted from 1, of a file that holds several.

    Returns
    -------
    BinaryQuadratic, or what else an `.npz` holds: Clustering, LevelChoice, MultiObjective, PartialTransport, ...
        With the sign turned where the file maximises.

    Raises
    ------
    InvalidProblem
        If the file is missing, broken or cannot be told from another format.
    UnsupportedProblem
        If it holds something no constraint of ours says.
    """
    kind = _checked_format(path, format)
    if index is not None and index < 1:
        raise InvalidProblem(f"{path}: instances are counted from 1, got {index}")
    if index not in (None, 1) and kind in SUFFIXES.values():
        raise InvalidProblem(f"{path}: holds 1 instance, got index {index}")
    if not Path(path).is_file():
        raise InvalidProblem(f"{path}: no such file; give an instance file")
    if kind == "npz":
        problem = _KINDS.get(kind_of(path), BinaryQuadratic).load(path)
        # what the file was converted from is told by the file; a file that tells nothing is our own
        told = {"name": Path(path).stem, "format": "npz", "sense": "minimise"}
        return problem.replace(meta=told | dict(problem.meta))
    if kind in ("bqm", "cqm", "lp"):
        from . import dimod_files

        return dimod_files.read(path, kind)
    return _read_text(Text.load(path), kind, index)


def instances_in(path: str | Path, *, format: str = "auto") -> int:
    """How many instances a file holds; only OR-Library files hold more than one."""
    kind = _checked_format(path, format)
    if kind in SUFFIXES.values():
        return 1
    text = Text.load(path)
    return beasley.count(text) if kind == "beasley" or (kind == "auto" and _detect(text) == "beasley") else 1


def split_index(name: str) -> tuple[str, int | None]:
    """`FILE:k` as the file and k; the index is None where none is given.

    Examples
    --------
    >>> split_index("bqp50.txt:3")
    ('bqp50.txt', 3)
    >>> split_index("instance.npz")
    ('instance.npz', None)
    """
    path, colon, digits = name.rpartition(":")
    if not colon or not path or not digits.isdecimal() or Path(name).exists():
        return name, None
    if int(digits) < 1:
        raise InvalidProblem(f"{name}: instances are counted from 1")
    return path, int(digits)


def native_objective(problem: Any, objective: float) -> float:
    """The objective in the sense of the file the problem came from.

    Examples
    --------
    >>> native_objective(BinaryQuadratic([-5.0], meta={"sense": "maximise"}), -5.0)
    5.0
    """
    return 0.0 - objective if problem.meta.get("sense") == "maximise" else objective


def write(problem: Any, path: str | Path) -> None:
    """Write a problem, to be minimised, as the suffix says: .npz, .bqm, .cqm, .lp, .mps, .qplib or .coo.

    Whole or not at all. Only .npz keeps everything. Labels go into .bqm and .cqm too; the others number the variables.

    Raises
    ------
    InvalidProblem
        If the suffix is none of these.
    UnsupportedProblem
        If the format cannot hold the problem's constraints or offset.
    """
    suffix = Path(path).suffix
    if suffix == ".npz":
        problem.save(path)
    elif not isinstance(problem, BinaryQuadratic):
        raise UnsupportedProblem(f"{path}: only .npz holds a {type(problem).__name__}, got {suffix or 'no suffix'}")
    elif suffix in _WRITERS:
        _WRITERS[suffix].write(problem, path)
    elif suffix in SUFFIXES:
        from . import dimod_files

        dimod_files.write(problem, path, SUFFIXES[suffix])
    else:
        raise unknown("suffix of an instance file", suffix, [*SUFFIXES, ".coo"])


def _checked_format(path: str | Path, format: str) -> str:
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return SUFFIXES.get(Path(path).suffix.lower(), "auto") if format == "auto" else format


def _read_text(text: Text, kind: str, index: int | None) -> BinaryQuadratic:
    if kind == "auto":
        kind = _detect(text)
    if kind == "beasley":
        return beasley.read(text, index)
    if index not in (None, 1):
        raise InvalidProblem(f"{text.path}: a {kind} file holds 1 instance, got index {index}")
    return _READERS[kind].read(text)


def _detect(text: Text) -> str:
    """The one text format whose layout the file has.

    Raises
    ------
    InvalidProblem
        If several fit, or none; the message names the candidates.
    """
    if coo.has_header(text):
        return "coo"
    first = _first_line(text)
    if not all(_is_number(token) for token in first):
        return "qkp"
    likely = [("beasley", beasley), ("mdplib", mdplib)] + [("coo", coo)] * (len(first) == 3)
    fitting = [name for name, reader in likely if reader.fits(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InvalidProblem(f"{text.path}: in doubt between {' and '.join(fitting)}; name the format")
    raise _none_fits(text, len(first))


def _none_fits(text: Text, first_line: int) -> InvalidProblem:
    """Why no all-number format takes the file: the complaint of the one its first line looks like."""
    likely = _FIRST_LINE.get(first_line)
    if likely is not None:
        try:
            _read_text(text, likely, 1)
        except (InvalidProblem, UnsupportedProblem) as error:
            return InvalidProblem(f"{error} (read as {likely}; if it is not, name the format: {', '.join(TEXT)})")
    return InvalidProblem(f"{text.path}: in doubt; its layout is none of {', '.join(TEXT)}. Name the format")


def _first_line(text: Text) -> list[bytes]:
    """The tokens of the first line that is neither blank nor a comment."""
    lines = (line.split() for line in io.BytesIO(text.content))
    return next((tokens for tokens in lines if tokens and not tokens[0].startswith(b"#")), [])


def _is_number(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
