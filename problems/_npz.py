"""Files of our own: `.npz` with a format key, no pickle, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ._errors import InvalidProblem

FORMAT = "prunesolve/1"


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` only when the block ends well; a failure leaves nothing behind."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # mkstemp makes the file private; give it the mode an ordinary open would
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write(path: str | Path, kind: str, arrays: Mapping[str, Any]) -> None:
    """Store arrays under the format key and the kind of thing they are."""
    with whole_file(path) as file:
        np.savez_compressed(file, format=np.array(FORMAT), kind=np.array(kind), **arrays)


def kind_of(path: str | Path) -> str | None:
    """What an `.npz` of ours holds, None where the file is not ours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "format" in file and "kind" in file and str(file["format"]) == FORMAT:
                return str(file["kind"])
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError):
        return None
    return None


def read(path: str | Path, kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a file that `write` made.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidProblem
        If the file is truncated, foreign, holds pickles or another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InvalidProblem(
            f"{path}: expected an .npz of format {FORMAT!r}, got a truncated or foreign file or one with pickles "
            f"({error})"
        ) from None
    found, held = str(arrays.pop("format", "none")), str(arrays.pop("kind", "none"))
    if found != FORMAT:
        raise InvalidProblem(f"{path}: expected format {FORMAT!r}, got {found!r}; write it with `.save`")
    if held != kind:
        raise InvalidProblem(f"{path}: expected a file of kind {kind!r}, got {held!r}")
    return arrays
