"""The couplings as the kernels see them: storages and the questions asked of them, answered at compile time by type.

    entry(c, i, j)              J_ij
    field(c, a, f, x, i)        h_i = a_i + sum_j J_ij x_j
    shift(c, f, i, s)           bring the fields up to date after x_i changed by s = +1 or -1
    exchange(c, f, i, j)        the same after x_i went and x_j came
    rebuild(c, a, f, x)         the fields from scratch
    reach(c, top)               top_i >= max_j J_ij, what a swap of i can gain beyond the two fields
    row(c, i, scratch, fresh)   J_ij for j from origin(c, i) on; `scratch` holds it where it is not stored as a row
    tidy(c, i, scratch)         clear what `row` left there
    touched(c, i, part, list)   list the parts, of the consecutive ones `part` cuts the units into, that row i touches

`f` holds the fields h (n,), except for `Factored`, where it holds z = F'x (r,) and a field costs O(r) on demand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload


class Dense(NamedTuple):
    """J as one (n, n) array."""

    matrix: Any


class Csr(NamedTuple):
    """J as compressed rows, indices sorted within each."""

    indptr: Any
    indices: Any
    data: Any


class Blocks(NamedTuple):
    """J block-diagonal: block b covers `size[b]` variables from `start[b]`; its rows begin at `data[offset[b]]`."""

    data: Any
    start: Any
    size: Any
    offset: Any
    block_of: Any


class LowRank(NamedTuple):
    """J = sign F F' off the diagonal, fields kept: for searches that look at every field at every step."""

    factor: Any
    square: Any
    sign: float


class Factored(NamedTuple):
    """J = sign F F' off the diagonal, z = F'x kept: for searches that look at two fields at a time."""

    factor: Any
    square: Any
    sign: float


def entry(c, i, j):
    """J_ij."""


def field(c, a, f, x, i):
    """h_i."""


def shift(c, f, i, s):
    """Fields after x_i changed by s; returns the numbers touched."""


def exchange(c, f, i, j):
    """Fields after x_i went and x_j came; returns the numbers touched."""


def rebuild(c, a, f, x):
    """Fields from scratch."""


def reach(c, top):
    """Upper bounds on the entries of each row."""


def row(c, i, scratch, fresh):
    """J_ij for j from origin(c, i) on; not `fresh` where scratch holds it already."""


def origin(c, i):
    """Where the row begins."""


def tidy(c, i, scratch):
    """Clear what `row` wrote."""


def touched(c, i, part, listed):
    """List the parts that the row touches; returns their number."""


# --- dense ---------------------------------------------------------------------------------------------------------


def _dense_entry(c, i, j):
    return c.matrix[i, j]


def _kept_field(c, a, f, x, i):
    return f[i]


def _dense_shift(c, f, i, s):
    row = c.matrix[i]
    for j in range(row.size):
        f[j] += s * row[j]
    return row.size


def _row_by_row(c, a, f, x):
    # not f[:] = a, whose message on unequal shapes takes numba four seconds to compile
    for i in range(a.size):
        f[i] = a[i]
    for i in range(x.size):
        if x[i]:
            shift(c, f, i, 1.0)


def _dense_reach(c, top):
    for i in range(top.size):
        row = c.matrix[i]
        most = 0.0
        for j in range(row.size):
            most = max(most, row[j])
        top[i] = most


def _dense_exchange(c, f, i, j):
    leaver, entrant = c.matrix[i], c.matrix[j]
    for t in range(leaver.size):
        f[t] = f[t] - leaver[t] + entrant[t]
    return 2 * leaver.size


def _two_shifts(c, f, i, j):
    return shift(c, f, i, -1.0) + shift(c, f, j, 1.0)


def _dense_row(c, i, scratch, fresh):
    return c.matrix[i]


def _at_zero(c, i):
    return 0


def _nothing_to_tidy(c, i, scratch):
    pass


def _all_touched(c, i, part, listed):
    count = part[-1] + 1
    for q in range(count):
        listed[q] = q
    return count


# --- sparse --------------------------------------------------------------------------------------------------------


def _csr_entry(c, i, j):
    first, last = c.indptr[i], c.indptr[i + 1]
    while first < last:
        middle = (first + last) >> 1
        if c.indices[middle] < j:
            first = middle + 1
        else:
            last = middle
    if first < c.indptr[i + 1] and c.indices[first] == j:
        return c.data[first]
    return 0.0


def _csr_shift(c, f, i, s):
    for at in range(c.indptr[i], c.indptr[i + 1]):
        f[c.indices[at]] += s * c.data[at]
    return c.indptr[i + 1] - c.indptr[i]


def _csr_reach(c, top):
    for i in range(top.size):
        most = 0.0
        for at in range(c.indptr[i], c.indptr[i + 1]):
            most = max(most, c.data[at])
        top[i] = most


def _csr_row(c, i, scratch, fresh):
    if fresh:
        for at in range(c.indptr[i], c.indptr[i + 1]):
            scratch[c.indices[at]] = c.data[at]
    return scratch


def _csr_tidy(c, i, scratch):
    for at in range(c.indptr[i], c.indptr[i + 1]):
        scratch[c.indices[at]] = 0.0


def _csr_touched(c, i, part, listed):
    count = 0
    for at in range(c.indptr[i], c.indptr[i + 1]):
        q = part[c.indices[at]]
        if count == 0 or listed[count - 1] != q:
            listed[count] = q
            count += 1
    return count


# --- block-diagonal ------------------------------------------------------------------------------------------------


def _blocks_entry(c, i, j):
    b = c.block_of[i]
    if c.block_of[j] != b:
        return 0.0
    return c.data[c.offset[b] + (i - c.start[b]) * c.size[b] + j - c.start[b]]


def _blocks_shift(c, f, i, s):
    b = c.block_of[i]
    first, size = c.start[b], c.size[b]
    row = c.data[c.offset[b] + (i - first) * size :][:size]
    span = f[first : first + size]
    for j in range(size):
        span[j] += s * row[j]
    return size


def _blocks_reach(c, top):
    for i in range(top.size):
        b = c.block_of[i]
        row = c.data[c.offset[b] + (i - c.start[b]) * c.size[b] :][: c.size[b]]
        most = 0.0
        for j in range(row.size):
            most = max(most, row[j])
        top[i] = most


def _blocks_exchange(c, f, i, j):
    b = c.block_of[i]
    if c.block_of[j] != b:
        return shift(c, f, i, -1.0) + shift(c, f, j, 1.0)
    first, size = c.start[b], c.size[b]
    leaver = c.data[c.offset[b] + (i - first) * size :][:size]
    entrant = c.data[c.offset[b] + (j - first) * size :][:size]
    span = f[first : first + size]
    for t in range(size):
        span[t] = span[t] - leaver[t] + entrant[t]
    return 2 * size


def _blocks_row(c, i, scratch, fresh):
    b = c.block_of[i]
    return c.data[c.offset[b] + (i - c.start[b]) * c.size[b] :][: c.size[b]]


def _blocks_origin(c, i):
    return c.start[c.block_of[i]]


def _blocks_touched(c, i, part, listed):
    b = c.block_of[i]
    first = part[c.start[b]]
    count = part[c.start[b] + c.size[b] - 1] - first + 1
    for q in range(count):
        listed[q] = first + q
    return count


# --- low rank ------------------------------------------------------------------------------------------------------


def _lowrank_entry(c, i, j):
    if i == j:
        return 0.0
    total = 0.0
    for k in range(c.factor.shape[1]):
        total += c.factor[i, k] * c.factor[j, k]
    return c.sign * total


def _lowrank_shift(c, f, i, s):
    own = f[i]
    for j in range(f.size):
        total = 0.0
        for k in range(c.factor.shape[1]):
            total += c.factor[i, k] * c.factor[j, k]
        f[j] += s * c.sign * total
    f[i] = own
    return c.factor.size


def _lowrank_rebuild(c, a, f, x):
    z = np.zeros(c.factor.shape[1])
    for i in range(x.size):
        if x[i]:
            for k in range(z.size):
                z[k] += c.factor[i, k]
    for i in range(x.size):
        total = -c.square[i] if x[i] else 0.0
        for k in range(z.size):
            total += c.factor[i, k] * z[k]
        f[i] = a[i] + c.sign * total


def _lowrank_row(c, i, scratch, fresh):
    if fresh:
        for j in range(scratch.size):
            total = 0.0
            for k in range(c.factor.shape[1]):
                total += c.factor[i, k] * c.factor[j, k]
            scratch[j] = c.sign * total
        scratch[i] = 0.0
    return scratch


def _lowrank_reach(c, top):
    longest = np.sqrt(np.max(c.square))
    for i in range(top.size):
        top[i] = longest * np.sqrt(c.square[i]) * (1.0 + 1e-12)


def _factored_field(c, a, f, x, i):
    total = 0.0
    for k in range(f.size):
        total += c.factor[i, k] * f[k]
    if x[i]:
        total -= c.square[i]
    return a[i] + c.sign * total


def _factored_shift(c, f, i, s):
    for k in range(f.size):
        f[k] += s * c.factor[i, k]
    return f.size


def _factored_rebuild(c, a, f, x):
    f[:] = 0.0
    for i in range(x.size):
        if x[i]:
            shift(c, f, i, 1.0)


_entry = {
    Dense: _dense_entry,
    Csr: _csr_entry,
    Blocks: _blocks_entry,
    LowRank: _lowrank_entry,
    Factored: _lowrank_entry,
}
_field = {Dense: _kept_field, Csr: _kept_field, Blocks: _kept_field, LowRank: _kept_field, Factored: _factored_field}
_shift = {
    Dense: _dense_shift,
    Csr: _csr_shift,
    Blocks: _blocks_shift,
    LowRank: _lowrank_shift,
    Factored: _factored_shift,
}
_exchange = {
    Dense: _dense_exchange,
    Csr: _two_shifts,
    Blocks: _blocks_exchange,
    LowRank: _two_shifts,
    Factored: _two_shifts,
}
_row = {Dense: _dense_row, Csr: _csr_row, Blocks: _blocks_row, LowRank: _lowrank_row}
_origin = {Dense: _at_zero, Csr: _at_zero, Blocks: _blocks_origin, LowRank: _at_zero}
_tidy = {Dense: _nothing_to_tidy, Csr: _csr_tidy, Blocks: _nothing_to_tidy, LowRank: _nothing_to_tidy}
_touched = {Dense: _all_touched, Csr: _csr_touched, Blocks: _blocks_touched, LowRank: _all_touched}
_rebuild = {
    Dense: _row_by_row,
    Csr: _row_by_row,
    Blocks: _row_by_row,
    LowRank: _lowrank_rebuild,
    Factored: _factored_rebuild,
}
_reach = {
    Dense: _dense_reach,
    Csr: _csr_reach,
    Blocks: _blocks_reach,
    LowRank: _lowrank_reach,
    Factored: _lowrank_reach,
}

# dot products may be summed in any order; everything else keeps IEEE order, so that storages agree bit for bit
_DOTS: Any = {"fastmath": {"reassoc", "contract"}}


@overload(entry, jit_options=_DOTS)
def _overload_entry(c, i, j):
    return _entry[c.instance_class]


@overload(field, jit_options=_DOTS)
def _overload_field(c, a, f, x, i):
    return _field[c.instance_class]


@overload(shift, jit_options=_DOTS)
def _overload_shift(c, f, i, s):
    return _shift[c.instance_class]


@overload(exchange, jit_options=_DOTS)
def _overload_exchange(c, f, i, j):
    return _exchange[c.instance_class]


@overload(row, jit_options=_DOTS)
def _overload_row(c, i, scratch, fresh):
    return _row[c.instance_class]


@overload(origin)
def _overload_origin(c, i):
    return _origin[c.instance_class]


@overload(tidy)
def _overload_tidy(c, i, scratch):
    return _tidy[c.instance_class]


@overload(touched)
def _overload_touched(c, i, part, listed):
    return _touched[c.instance_class]


@overload(rebuild, jit_options=_DOTS)
def _overload_rebuild(c, a, f, x):
    return _rebuild[c.instance_class]


@overload(reach)
def _overload_reach(c, top):
    return _reach[c.instance_class]
