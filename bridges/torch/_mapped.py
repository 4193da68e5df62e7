"""Arrays of an `.npz` that are read from the disk only where they are looked at."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems import InvalidProblem
from prunesolve.problems._npz import DAMAGED, FORMAT, damaged, whole_file

# a zip entry's local header: 30 bytes, of which the last four are the lengths of the name and of the extra field
_LOCAL_HEADER = 30


def write_plain(path: str | Path, kind: str, arrays: dict[str, Any]) -> None:
    """As `_npz.write`, never compressed, so that `read_mapped` can map it."""
    with whole_file(path) as file:
        np.savez(file, format=np.array(FORMAT), kind=np.array(kind), **arrays)


def read_mapped(path: str | Path, kind: str) -> dict[str, Any]:
    """The arrays of a file that `write_plain` made; changes to them stay in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidProblem
        If the file is truncated, foreign, holds pickles or another kind.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            arrays = {entry.filename.removesuffix(".npy"): _entry(path, file, entry) for entry in archive.infolist()}
        found, held = str(arrays.pop("format")), str(arrays.pop("kind"))
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise damaged(path, error) from None
    if found != FORMAT or held != kind:
        raise InvalidProblem(f"{path}: expected a file of kind {kind!r} and format {FORMAT!r}, got {held!r}, {found!r}")
    return arrays


def _entry(path: str | Path, file: Any, entry: zipfile.ZipInfo) -> Any:
    """One array; mapped where it holds anything."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    file.seek(entry.header_offset + _LOCAL_HEADER + skipped)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds pickles")
    size = int(np.prod(shape)) * dtype.itemsize
    if file.tell() + size > entry.header_offset + _LOCAL_HEADER + skipped + entry.file_size:
        raise ValueError(f"{entry.filename} is cut short")
    if not shape or not size:
        data = np.frombuffer(file.read(size), dtype=dtype)
        return data.reshape(shape).copy()
    # "c": copy on write, so that torch takes it without a warning and the file stays as it is
    return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")
