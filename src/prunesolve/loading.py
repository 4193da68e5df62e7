"""Files that prunesolve wrote, and instances in other people's formats, read back by their suffix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesolve.problems import (
    BinaryQuadratic,
    Clustering,
    InvalidProblem,
    LevelChoice,
    MultiObjective,
    PartialTransport,
    SparseRegression,
    Statistics,
    SubsetRegression,
)
from prunesolve.problems._npz import FORMAT
from prunesolve.solvers import Result

from .results import Report

if TYPE_CHECKING:
    from prunesolve.bridges.torch.masks import Masks


def load(path: str | Path, *, index: int | None = None) -> Any:
    """Read back what prunesolve wrote, by its suffix.

    `.npz` holds a problem or statistics, `.json` a result, report or widths, `.safetensors` masks or weights, `.pt2` a
    program. Every other file is read as an instance in one of the formats of `prunesolve.problems.readers`.

    Parameters
    ----------
    path : path
        The file.
    index : int, optional
        Which instance, counted from 1, of an instance file that holds several.

    Returns
    -------
    a problem, Statistics, Result, Report, Masks, dict or torch.nn.Module
        What the file holds; a dict for widths and for weights (a state dict), a module for a program.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidProblem
        If it is truncated or of no format we know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    read = _READERS.get(path.suffix.lower())
    if read is not None:
        if index not in (None, 1):
            raise InvalidProblem(f"{path}: holds one thing, got index {index}; leave the index out")
        return read(path)
    from prunesolve.problems import readers

    return readers.read(path, index=index)


def _load_json(path: Path) -> Result | Report | dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        told = json.loads(text)
        kind = told.get("kind") if isinstance(told, dict) and told.pop("format", None) == FORMAT else None
        if kind == "report":
            return Report({name: value for name, value in told.items() if name != "kind"})
        return told if kind == "widths" else Result.from_json(text)
    except (InvalidProblem, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidProblem(f"{path}: expected a result, report or widths that prunesolve wrote ({error})") from None


def _load_safetensors(path: Path) -> Masks | dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    from prunesolve.bridges.torch.masks import load_masks

    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("kind") != "model":
                return load_masks(path)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidProblem(f"{path}: expected masks or weights that prunesolve wrote ({error})") from None


def _load_program(path: Path) -> Any:
    import torch

    try:
        return torch.export.load(path).module()
    except Exception as error:  # torch names no type for a file it cannot read
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidProblem(f"{path}: expected a program that torch.export wrote ({reason})") from None


def _load_npz(path: Path) -> Any:
    from prunesolve.problems._npz import kind_of

    kinds: dict[str | None, Any] = {
        "binary-quadratic": BinaryQuadratic,
        "clustering": Clustering,
        "level-choice": LevelChoice,
        "multi-objective": MultiObjective,
        "partial-transport": PartialTransport,
        "sparse-regression": SparseRegression,
        "statistics": Statistics,
        "subset-regression": SubsetRegression,
    }
    kind = kind_of(path)
    if kind not in kinds:
        raise InvalidProblem(
            f"{path}: expected a problem or statistics that prunesolve wrote, got "
            + ("a truncated or foreign file" if kind is None else f"a file of kind {kind!r}")
        )
    return kinds[kind].load(path)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": _load_npz,
    ".json": _load_json,
    ".safetensors": _load_safetensors,
    ".pt2": _load_program,
}
