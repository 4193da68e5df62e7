"""Instances by the names that the command line and campaigns give them: a file, its k-th instance, or library:NAME."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from prunesolve.problems import InvalidProblem

LIBRARY = "library:"


def read_instance(name: str, file_format: str = "auto") -> Any:
    """The problem in FILE[:k], or library:NAME from the instance library.

    Raises
    ------
    InvalidProblem
        If there is no such file or instance, or the file is none.

    Examples
    --------
    >>> read_instance("library:resnet20-layer1.0-reconstruction-keep50").n
    16
    """
    if name.startswith(LIBRARY):
        from prunesolve.problems import library

        if file_format != "auto":
            raise InvalidProblem(f"--format: {name} is no file, leave the format out")
        return library.load(name.removeprefix(LIBRARY))
    from prunesolve.problems.readers import read, split_index

    path, index = split_index(name)
    return read(existing_instance(path), format=file_format, index=index)


def existing_instance(path: str) -> Path:
    """The path, if a file is there; where none is, the library may have an instance that is called so, or nearly."""
    if not Path(path).exists():
        from prunesolve.problems import library

        wanted = Path(path).name.removesuffix(".npz")
        for close in difflib.get_close_matches(wanted, library.names(), n=1, cutoff=0.9):
            raise InvalidProblem(f"{path}: no such file; did you mean {LIBRARY}{close}?")
    return existing(path)


def existing(path: str | Path) -> Path:
    """The path, if a file is there."""
    found = Path(path)
    if found.is_dir():
        raise InvalidProblem(f"{found}: expected a file, got a folder")
    if not found.exists():
        beside = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
        close = difflib.get_close_matches(found.name, beside, n=1)
        raise InvalidProblem(
            f"{found}: no such file" + (f"; did you mean {found.with_name(close[0])}?" if close else "")
        )
    return found


def keeping(problem: Any, keep: int | float | None) -> Any:
    """The problem with its cardinality replaced."""
    if keep is None:
        return problem
    from prunesolve.formulations.budgets import units_to_keep
    from prunesolve.problems import BinaryQuadratic, Cardinality, SubsetRegression

    if not isinstance(problem, (BinaryQuadratic, SubsetRegression)):
        kind = type(problem).__name__
        raise InvalidProblem(f"--keep: a {kind} has no count to replace; give the budget to `encode` instead")

    others = [c for c in problem.constraints if not isinstance(c, Cardinality)]
    return problem.replace(constraints=[*others, Cardinality(units_to_keep(keep, problem.n))])
