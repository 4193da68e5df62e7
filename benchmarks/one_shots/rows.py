"""Rows on disk: one JSON line each, appended and flushed to the disk as they come, never computed twice.

A row is known by its part, case, method, share, seed, data and the code it ran: a hash of the syntax trees of what can
change its figures, docstrings left out, with the versions of the packages. A call that failed leaves a row that says
why, and is tried again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROWS = HERE.parent / "out" / "one_shot.jsonl"
ROOMS = ("bridges", "formulations", "problems", "solvers", "src")
PACKAGES = ("torch", "torch-pruning", "numpy")
KEY = ("part", "case", "method", "share", "seed", "calibration", "images", "code")
Row = dict[str, Any]


def read(path: Path = ROWS) -> list[Row]:
    """All rows; of the same key, code aside, the last one that did not fail."""
    if not path.exists():
        return []
    kept: dict[Any, Row] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        key = tuple(row.get(name) for name in KEY if name != "code")
        if key not in kept or "failed" not in row or "failed" in kept[key]:
            kept.pop(key, None)
            kept[key] = row
    return list(kept.values())


def append(row: Row, path: Path = ROWS) -> None:
    """One line, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def compute(jobs: Iterable[tuple[Row, Callable[[], Row]]], path: Path = ROWS, any_code: bool = False) -> Iterator[Row]:
    """Run the jobs (key, what computes the rest) that are not on disk, append their rows and yield them.

    `any_code` takes a row of other code for done.
    """
    told = [name for name in KEY if not (any_code and name == "code")]
    for key, job in jobs:
        done = any("failed" not in row and all(row.get(n) == key.get(n) for n in told) for row in read(path))
        if done:
            continue
        try:
            found = job()
        # whatever one method raises, the others are to run
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        row = key | found | {"threads": torch.get_num_threads(), "command": " ".join(sys.argv[1:])}
        row |= {"machine": platform.machine(), "at": int(time.time())}
        append(row, path)
        yield row


@cache
def code(kind: str) -> str:
    """Twelve digits that change when the code or a package that makes the figures changes.

    kind "ours" reads the whole library, "peers" what the peers share with us: calibration images and recalibration.
    """
    root = HERE.parents[1]
    files = [HERE / "cases.py", HERE / "peers.py", root / "bridges/torch/batchnorm.py"]
    if kind == "ours":
        files = [HERE / "cases.py", *(f for room in ROOMS for f in sorted((root / room).rglob("*.py")))]
    digest = hashlib.sha256(repr([(name, version(name)) for name in PACKAGES]).encode())
    for file in files:
        digest.update(_syntax(file).encode())
    return digest.hexdigest()[:12]


def _syntax(file: Path) -> str:
    """The syntax tree without docstrings, comments and layout."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
