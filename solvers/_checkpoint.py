"""The state of an evolutionary search as data: an `.npz` without pickles, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems import InvalidProblem, LevelChoice, MultiObjective
from prunesolve.problems._npz import FORMAT, json_array, read, unpack, whole_file

_KIND = "nsga2-checkpoint"


class Checkpoint:
    """A file that a search writes itself into and goes on from.

    Parameters
    ----------
    path : str or Path
        The file; it need not exist.
    problem : MultiObjective
        The instance that the search is about.
    options : mapping
        JSON-able options of the search; a file of other ones is refused.
    """

    def __init__(self, path: str | Path, problem: MultiObjective, options: Mapping[str, Any]) -> None:
        self.path = Path(path)
        # numpy numbers are options too
        told = json.loads(json.dumps(dict(options), default=float))
        self._about = {"instance": _instance(problem), "options": told}

    def check(self) -> None:
        """Refuse a file that is damaged, or of another instance or other options; none is fine."""
        if self.path.exists():
            self.load()

    def load(self) -> dict[str, Any]:
        """{"arrays": {name: array}, "facts": JSON-able facts} as `save` took them.

        Raises
        ------
        InvalidProblem
            If the file is no checkpoint, or one of another instance or of other options.
        """
        arrays = read(self.path, _KIND)
        told = unpack(self.path, lambda found: json.loads(str(found.pop("told"))), arrays)
        for what, mine in self._about.items():
            if told.get(what) != mine:
                raise InvalidProblem(
                    f"{self.path}: expected a checkpoint of this {what} ({mine}), got one of {told.get(what)}; "
                    "name another file or remove this one"
                )
        return {"arrays": arrays, "facts": told["facts"]}

    def save(self, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write arrays and facts."""
        told = json_array("told", self._about | {"facts": dict(facts)})
        # not `_npz.write`: to deflate packed bits every generation takes longer than the generation
        with whole_file(self.path) as file:
            np.savez(file, format=np.array(FORMAT), kind=np.array(_KIND), told=told, **arrays)


def _instance(problem: MultiObjective) -> str:
    """Hash of the instance and of what a search takes from it beside the objectives."""
    digest = hashlib.sha256(problem.hash.encode())
    for part in (problem.space, problem.starts, problem.groups, problem.activity):
        digest.update(_content(part))
    return digest.hexdigest()[:16]


def _content(value: Any) -> bytes:
    """What tells values apart: spaces, constraints and arrays by what they hold."""
    if isinstance(value, LevelChoice):
        return value.hash.encode()
    if is_dataclass(value):
        held = [getattr(value, field.name) for field in fields(value)]
        return type(value).__name__.encode() + _content(held)
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(_content, value)) + b"]"
    if hasattr(value, "indptr"):
        return _content([value.indptr, value.indices, value.data])
    return str(value.shape).encode() + value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
