"""Arrays that are checked once and never change again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import InvalidProblem

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]
Indices = NDArray[np.int64]

# relative difference that still counts as rounding between J and its transpose
SYMMETRY = 1e-9

# what numbers may add up to: searches sum a thousand changes, and that must stay within the float64 range (1.8e308)
LARGEST = 1e304


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
    # minus zero becomes zero, so that equal arrays have equal bytes and equal hashes
    array += 0.0
    array.setflags(write=False)
    return array


def number(name: str, value: Any) -> float:
    """One finite float; refuses anything else."""
    return float(floats(name, value, ()))


def integers(name: str, values: Any, shape: tuple[int | None, ...]) -> Indices:
    """A read-only int64 copy of `values`; refuses numbers that are not whole or that a float cannot hold exactly."""
    whole = floats(name, values, shape)
    if not np.array_equal(whole, np.round(whole)):
        raise InvalidProblem(f"{name}: expected whole numbers, got {whole[whole != np.round(whole)][0]}")
    if whole.size and np.abs(whole).max() > 2**53:
        raise InvalidProblem(f"{name}: expected whole numbers up to 2^53, got {whole.flat[np.abs(whole).argmax()]:g}")
    array = whole.astype(np.int64)
    array.setflags(write=False)
    return array


def whole(name: str, value: Any) -> int:
    """One whole number as an int; refuses anything else, bools included."""
    if isinstance(value, (bool, np.bool_)):
        raise InvalidProblem(f"{name}: expected a whole number, got {value!r}")
    return int(integers(name, value, ()))


def symmetric_sparse(name: str, matrix: Any, n: int | None = None, remedy: str = "") -> Any:
    """A read-only scipy CSR copy (n, n) with zero diagonal, entries summed and sorted.

    Raises
    ------
    InvalidProblem
        If the matrix is damaged, of another shape, not finite, not symmetric or has a diagonal (`remedy` says why not).
    """
    from scipy import sparse

    try:
        csr = sparse.csr_array(matrix, dtype=np.float64, copy=True)
        csr.check_format(full_check=True)
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{name}: expected a sparse matrix, got a damaged one ({error})") from None
    csr.sum_duplicates()
    csr.eliminate_zeros()
    csr.sort_indices()
    if csr.shape != (wanted := (csr.shape[0] if n is None else n,) * 2):
        raise InvalidProblem(f"{name}: expected shape {wanted}, got {csr.shape}")
    if not np.isfinite(csr.data).all():
        raise InvalidProblem(f"{name}: an entry is NaN or infinite; every entry must be finite")
    if csr.diagonal().any():
        raise InvalidProblem(f"{name}: the diagonal must be zero; {remedy}")
    with np.errstate(over="ignore"):
        skew = csr.nnz and abs(csr - csr.T).max() > SYMMETRY * abs(csr).max()
    if skew:
        raise InvalidProblem(f"{name}: not symmetric; an upper triangle Q becomes Q + Q.T")
    if csr.nnz and (csr != csr.T).nnz:
        # halves first: the sum of two entries may be past the float64 range
        csr = sparse.csr_array(csr / 2 + csr.T / 2)
    for part in (csr.data, csr.indices, csr.indptr):
        part.setflags(write=False)
    return csr


def table(name: str, values: Any) -> tuple[Any, float, float]:
    """A read-only view of a matrix, its least and its largest entry; copied only where it is no float array in C order.

    float32 stays float32: the large tables that come here are not to be doubled.

    Raises
    ------
    InvalidProblem
        If the values are no numbers, not finite or no matrix.
    """
    single = isinstance(values, np.ndarray) and values.dtype == np.float32
    try:
        array = np.ascontiguousarray(values, dtype=np.float32 if single else np.float64).view()
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{name}: expected numbers, got {type(values).__name__} ({error})") from None
    if np.ndim(values) != 2:
        raise InvalidProblem(f"{name}: expected shape (any, any), got {np.shape(values)}")
    if not array.size:
        return array, 0.0, 0.0
    least, most = float(array.min()), float(array.max())
    # a NaN comes through both, without the table of bits that isfinite makes
    if not np.isfinite([least, most]).all():
        floats(name, array, array.shape)
    array.setflags(write=False)
    return array, least, most


def plan(name: str, values: Any, shape: tuple[int, int]) -> Any:
    """A read-only scipy CSR copy of a matrix, sparse or dense, of that shape; entries summed and sorted, no zeros.

    Raises
    ------
    InvalidProblem
        If the matrix is damaged, of another shape or not finite.
    """
    from scipy import sparse

    try:
        csr = sparse.csr_array(values, dtype=np.float64, copy=True)
        csr.check_format(full_check=True)
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{name}: expected a plan, a sparse or dense matrix, got none ({error})") from None
    if csr.shape != shape:
        raise InvalidProblem(f"{name}: expected a plan of shape {shape}, got {csr.shape}")
    csr.sum_duplicates()
    if not np.isfinite(csr.data).all():
        raise InvalidProblem(f"{name}: an entry is NaN or infinite; every entry must be finite")
    csr.eliminate_zeros()
    for part in (csr.data, csr.indices, csr.indptr):
        part.setflags(write=False)
    return csr


def csr_arrays(csr: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The three arrays of a CSR matrix; int64 throughout, since scipy picks the index width by itself."""
    return {"indptr": csr.indptr.astype(np.int64), "indices": csr.indices.astype(np.int64), "data": csr.data}


def csr_from(arrays: Mapping[str, Any], head: str, n: int) -> Any:
    """The CSR matrix whose arrays are stored under names that start with `head`."""
    from scipy import sparse

    parts = (arrays[head + "data"], arrays[head + "indices"], arrays[head + "indptr"])
    try:
        return sparse.csr_array(parts, shape=(n, n))
    except ValueError as error:
        raise InvalidProblem(f"{head or 'pair'}: the stored sparse matrix is damaged ({error})") from None


def bits(name: str, values: Any, n: int) -> Bits:
    """A bool copy of `values` (n,) or (m, n); refuses anything but 0 and 1."""
    array = np.array(values)
    if array.ndim == 0 or array.shape[-1] != n or array.ndim > 2:
        raise InvalidProblem(f"{name}: expected shape ({n},), got {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise InvalidProblem(f"{name}: expected zeros and ones, got other values; levels must be rounded first")
    return array.astype(np.bool_)


def levels(name: str, values: Any, sizes: Indices) -> Indices:
    """An int64 copy of one choice of levels (L,) or of rows (m, L), each from 0 to below its size; refuses others."""
    array = np.array(values)
    if array.ndim not in (1, 2) or array.shape[-1] != len(sizes):
        raise InvalidProblem(f"{name}: expected levels of shape ({len(sizes)},), got {array.shape}")
    chosen = integers(name, array, (None,) * array.ndim).copy()
    if chosen.size and ((chosen < 0) | (chosen >= sizes)).any():
        raise InvalidProblem(f"{name}: expected levels from 0 to {(sizes - 1).tolist()}, got others")
    return chosen
