"""Arrays that are checked once and never change again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import InvalidProblem

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]
Indices = NDArray[np.int64]


def floats(name: str, values: Any, shape: tuple[int | None, ...]) -> Floats:
    """A read-only float64 copy of `values`, finite and of `shape` (None = any length).

    Raises
    ------
    InvalidProblem
        If the values are no numbers, not finite or of another shape.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{name}: expected numbers, got {type(values).__name__} ({error})") from None
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise InvalidProblem(f"{name}: expected shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidProblem(f"{name}: {array[at]} at {at}; every entry must be finite. Remove or replace it")
    array.setflags(write=False)
    return array


def integers(name: str, values: Any, shape: tuple[int | None, ...]) -> Indices:
    """A read-only int64 copy of `values`; refuses numbers that are not whole."""
    whole = floats(name, values, shape)
    if not np.array_equal(whole, np.round(whole)):
        raise InvalidProblem(f"{name}: expected whole numbers, got {whole[whole != np.round(whole)][0]}")
    array = whole.astype(np.int64)
    array.setflags(write=False)
    return array


def bits(name: str, values: Any, n: int) -> Bits:
    """A bool copy of `values` (n,) or (m, n); refuses anything but 0 and 1."""
    array = np.array(values)
    if array.ndim == 0 or array.shape[-1] != n or array.ndim > 2:
        raise InvalidProblem(f"{name}: expected shape ({n},), got {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise InvalidProblem(f"{name}: expected zeros and ones, got other values; levels must be rounded first")
    return array.astype(np.bool_)
