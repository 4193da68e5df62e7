"""Files of our own: `.npz` with a format key, no pickle, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from ._errors import InvalidProblem

FORMAT = "prunesolve/1"
COMPRESS_UP_TO = 16 * 2**20

# what numpy raises for a file that is cut short, no archive at all, a bare .npy (TypeError), a zip of a kind that
# Python does not read (RuntimeError) or one that holds pickles
DAMAGED = (ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)

T = TypeVar("T")


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


@contextmanager
def whole_folder(path: str | Path, replaces: Iterable[str] = ()) -> Iterator[Path]:
    """A folder to write into, whose files appear in `path` only when the block ends well.

    Other files in `path` stay, but for the names in `replaces`, which go where the block did not write them.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise InvalidProblem(f"{path}: expected a folder to write into, got a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, or inside it where it exists: its parent may not be ours to write
    home = target if target.exists() else target.parent
    with tempfile.TemporaryDirectory(dir=home, prefix=f".{target.name}.") as temporary:
        yield Path(temporary)
        written = sorted(Path(temporary).iterdir())
        target.mkdir(exist_ok=True)
        for stale in set(replaces) - {file.name for file in written}:
            (target / stale).unlink(missing_ok=True)
        for file in written:
            os.replace(file, target / file.name)


def write(path: str | Path, kind: str, arrays: Mapping[str, Any]) -> None:
    """Store arrays under the format key and the kind of thing they are."""
    # deflating an n = 4096 matrix of full-precision floats takes seconds and gains 5 %
    save = np.savez if sum(np.asarray(a).nbytes for a in arrays.values()) > COMPRESS_UP_TO else np.savez_compressed
    with whole_file(path) as file:
        save(file, format=np.array(FORMAT), kind=np.array(kind), **arrays)


def json_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    """A JSON-able value as the text array that is stored for it; numpy numbers and arrays become plain ones."""

    def plain(part: Any) -> Any:
        if isinstance(part, (np.generic, np.ndarray)):
            return part.tolist()
        raise TypeError(f"{type(part).__name__} is none")

    try:
        return np.array(json.dumps(value, default=plain))
    except TypeError as error:
        raise InvalidProblem(f"{name}: expected something JSON can hold ({error})") from None


def unpack(path: str | Path, build: Callable[[dict[str, Any]], T], arrays: dict[str, Any]) -> T:
    """What `build` makes of the arrays of a file; a missing or ill-shaped one says so."""
    try:
        return build(arrays)
    except InvalidProblem as error:
        raise InvalidProblem(f"{path}: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidProblem(f"{path}: an array is missing or damaged ({type(error).__name__}: {error})") from None


def kind_of(path: str | Path) -> str | None:
    """What an `.npz` of ours holds, None where the file is not ours."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            if "format" in file and "kind" in file and str(file["format"]) == FORMAT:
                return str(file["kind"])
    except FileNotFoundError:
        raise
    except DAMAGED:
        return None
    return None


def damaged(path: str | Path, error: BaseException) -> InvalidProblem:
    """What is said of a file that is none of ours or not whole."""
    return InvalidProblem(
        f"{path}: expected an .npz of format {FORMAT!r}, got a truncated or foreign file or one with pickles ({error})"
    )


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
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise damaged(path, error) from None
    found, held = str(arrays.pop("format", "none")), str(arrays.pop("kind", "none"))
    if found != FORMAT:
        raise InvalidProblem(f"{path}: expected format {FORMAT!r}, got {found!r}; write it with `.save`")
    if held != kind:
        raise InvalidProblem(f"{path}: expected a file of kind {kind!r}, got {held!r}")
    return arrays


def content_hash(arrays: Mapping[str, Any]) -> str:
    """The first 16 hex digits of a SHA-256 over the arrays, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        # viewed as bytes where they lie: an n = 4096 matrix is 128 MiB
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
