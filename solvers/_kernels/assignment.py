"""Shortest augmenting paths on a dense cost, through short lists of each row's cheapest columns.

Prices r of the rows and v of the columns keep r_i + v_j <= c_ij, with equality on matched pairs, v <= 0 and v = 0 on
free columns. They only rise and fall, respectively, so that a list stays good for ever: columns that are not on it
cost row i at least `beyond[i]` after their prices. A search reads a whole row only where it gets that far.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .extremes import _lesser

CHUNK = 16  # columns whose least is taken together
SHORT = 16  # columns on a list at first
LONG = 64  # and at most; a row read whole gets a list twice as long
BLOCK = 64  # columns that one loop of a search without lists goes over
FEW = 400  # columns up to which lists do not pay
SAMPLE = 8  # rows gone through for each column before they are judged otherwise
READING = 6  # what lists cost a row that is read whole all the same, in reads


class Matching(NamedTuple):
    """The matching, its prices, the lists, and what a search marks."""

    cost: Any  # (n, m)
    near: Any  # (n, p) int32 columns on the list of each row
    length: Any  # (n, p) what they cost
    width: Any  # (n,) int32 how many they are
    reads: Any  # (n,) int32 how often the row was read whole
    beyond: Any  # (n,) least c_ij - v_j of all others, or less
    least: Any  # (n,) least c_ij - v_j, or less
    r: Any  # (n,) prices of rows
    v: Any  # (m,) prices of columns
    column_of: Any  # (n,) int32 the match of each row, -1 for none
    row_of: Any  # (m,) int32
    dist: Any  # (m,) length of the shortest path so far
    before: Any  # (m,) int32 the row it comes from
    settled: Any  # (m,) int32 columns in the order of their distance
    reached: Any  # (m,) int32 columns that a row read whole reaches
    ends: Any  # (m,) int32 free columns at equal distance
    root: Any  # (m,) int32 the free row that leads to each
    heap: Any  # (2n + m,) int32 roots i, columns n + j, rows to be read whole n + m + i; so do equals go first
    place: Any  # (2n + m,) int32 where in the heap each is, -1 for nowhere
    key: Any  # (2n + m,)
    chunk: Any  # (chunks,) least of each
    kept: Any  # (p,) scratch
    open: Any  # (m,) scratch
    tally: Any  # (4,) int64 paths searched, columns looked at, rows gone through on paths along lists, and read whole


def begin(cost: Any) -> Matching:
    """Nothing matched, no lists."""
    n, m = cost.shape
    p, items = min(LONG, m), 2 * n + m
    return Matching(
        cost=cost,
        near=np.empty((n, p), np.int32),
        length=np.empty((n, p)),
        width=np.full(n, min(SHORT, m), np.int32),
        reads=np.zeros(n, np.int32),
        beyond=np.full(n, -np.inf),
        least=np.full(n, -np.inf),
        r=np.full(n, -np.inf),
        v=np.zeros(m),
        column_of=np.full(n, -1, np.int32),
        row_of=np.full(m, -1, np.int32),
        dist=np.empty(m),
        before=np.empty(m, np.int32),
        settled=np.empty(m, np.int32),
        reached=np.empty(m, np.int32),
        ends=np.empty(m, np.int32),
        root=np.empty(m, np.int32),
        heap=np.empty(items, np.int32),
        place=np.full(items, -1, np.int32),
        key=np.empty(items),
        chunk=np.empty(-(-m // CHUNK)),
        kept=np.empty(p),
        open=np.empty(m),
        tally=np.zeros(4, np.int64),
    )


# --- lists ---------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def list_rows(s, first, last):
    """List the cheapest columns of rows first .. last - 1."""
    for i in range(first, last):
        _list(s.cost[i], s.v, i, s.near, s.length, s.width, s.beyond, s.least, s.chunk)


@njit
def _list(row, v, i, near, length, width, beyond, least, chunk):
    """The columns of least c_ij - v_j in ascending order; of equals those that follow a place that differs by row."""
    p, m, chunks = width[i], v.size, chunk.size
    columns, costs = near[i], length[i]
    # the p-th least of the chunks' minima is no less than the p-th least of the row
    held, worst = 0, np.inf
    for b in range(chunks):
        low = np.inf
        for j in range(b * CHUNK, min(m, b * CHUNK + CHUNK)):
            low = _lesser(row[j] - v[j], low)
        chunk[b] = low
        if held < p or low < worst:
            held = _insert(costs, columns, held, p, low, b)
            worst = costs[p - 1] if held == p else np.inf
    held = 0
    for turn in range(chunks):
        b = (i * chunks // near.shape[0] + turn) % chunks
        if chunk[b] <= worst:
            for j in range(b * CHUNK, min(m, b * CHUNK + CHUNK)):
                d = row[j] - v[j]
                if d < worst or (held < p and d <= worst):
                    held = _insert(costs, columns, held, p, d, j)
                    worst = costs[p - 1] if held == p else worst
    least[i] = costs[0]
    beyond[i] = worst if p < m else np.inf
    for a in range(p):
        costs[a] = row[columns[a]]


@njit
def _insert(costs, columns, held, p, d, j):
    at = min(held, p - 1)
    while at > 0 and costs[at - 1] > d:
        costs[at], columns[at] = costs[at - 1], columns[at - 1]
        at -= 1
    costs[at], columns[at] = d, j
    return min(held + 1, p)


@njit(cache=True, nogil=True)
def column_minima(cost, first, last, least):
    """Lower `least` (m,) to the minima over rows first .. last - 1."""
    for i in range(first, last):
        row = cost[i]
        for j in range(least.size):
            least[j] = _lesser(row[j], least[j])


# --- rows at a fixed price of staying alone ------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def reduce_rows(s, rows, count, t):
    """Each of rows[:count] takes its cheapest column and raises its price to the second best; how many are left over.

    Augmenting row reduction of Jonker and Volgenant. A row that no column costs less than t stays alone at price t.
    """
    done, left, limit = 0, 0, 8 * count
    while done < count:
        i = rows[done]
        done, limit = done + 1, limit - 1
        best, second, j, other = _two_best(s, i)
        if s.beyond[i] < best and s.beyond[i] < t:
            _list(s.cost[i], s.v, i, s.near, s.length, s.width, s.beyond, s.least, s.chunk)
            best, second, j, other = _two_best(s, i)
        if best >= t:
            s.r[i] = t
            continue
        price = min(second, s.beyond[i], t)
        if price == np.inf:
            price = best
        if price > best:
            s.v[j] -= price - best
        elif s.row_of[j] >= 0 and second == best:
            j = other
        old = s.row_of[j]
        s.r[i], s.column_of[i], s.row_of[j] = price, j, i
        if old >= 0:
            s.column_of[old] = -1
            if price > best and limit > 0:
                done -= 1
                rows[done] = old
            else:
                rows[left] = old
                left += 1
    return left


@njit
def _two_best(s, i):
    """(least, second least, their columns) of c_ij - v_j on the list of row i."""
    best, second, j, other = np.inf, np.inf, -1, -1
    for a in range(s.width[i]):
        d = s.length[i, a] - s.v[s.near[i, a]]
        if d < best:
            best, second, j, other = d, best, s.near[i, a], j
        elif d < second:
            second, other = d, s.near[i, a]
    return best, second, j, other


@njit(cache=True, nogil=True)
def insert_rows(s, rows, first, last, t, work, most):
    """Match rows[first:last] in turn, each along its shortest path to a free column or to a row that may stay alone.

    Ends after about `work` columns or `most` paths; the first row that is still to be matched.
    """
    work += s.tally[1]
    last = min(last, first + most)
    while first < last and s.tally[1] < work:
        if _lists_pay(s):
            _search(s, rows[first], t, 1, True)
        else:
            _scan(s, rows[first], t)
        first += 1
    return first


@njit
def _lists_pay(s):
    """Whether paths along lists have taken less time than reading every row whole would have."""
    m, gone, read = s.v.size, s.tally[2], s.tally[3]
    return m > FEW and (gone < SAMPLE * m or READING * m * read < (m - FEW) * gone)


# --- one more pair at a time ---------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def climb(s, t, pairs, k, levels, work, most):
    """Augment along shortest paths from any free row to any free column, up to k pairs: (t, pairs) reached.

    levels[j] is what the pair number j adds to the cost. Ends after about `work` columns or `most` paths.
    """
    work += s.tally[1]
    most += s.tally[0]
    while pairs < k and s.tally[1] < work and s.tally[0] < most:
        rise, grown = _search(s, -1, t, k - pairs, False)
        t += rise
        levels[pairs : pairs + grown] = t
        pairs += grown
    return t, pairs


@njit
def _search(s, source, t, most, single):
    """One search by Dijkstra: from row `source`, which may also leave a row alone at price t, or from all free rows.

    In the second case all paths of the least length that do not meet are used, up to `most`. (its length, paths)
    """
    n, m = s.cost.shape
    s.tally[0] += 1
    s.dist[:] = np.inf
    best, end, ends, alone, count, size = np.inf, -1, 0, -1, 0, 0
    for i in range(n):
        if i == source or (not single and s.column_of[i] < 0):
            s.r[i] = s.least[i] if single else t
            size = _push(s.heap, s.place, s.key, size, i, max(0.0, s.least[i] - s.r[i]))
            if single:
                best, alone = t - s.r[i], i
    while size > 0:
        item = s.heap[0]
        key = s.key[item]
        if key > best or (key == best and (single or item >= n + m)):
            break
        size = _pop(s.heap, s.place, s.key, size)
        whole = item >= n + m
        i, base = item - n - m if whole else item, 0.0
        if n <= item < n + m:
            s.settled[count] = item - n
            count += 1
            i, base = s.row_of[item - n], key
            if single and key + (t - s.r[i]) <= best:
                best, end = key + (t - s.r[i]), -1
                alone = i
        elif whole and s.column_of[i] >= 0:
            base = s.dist[s.column_of[i]]
        off = base - s.r[i]
        found = _read_whole(s, i, off, best) if whole else s.width[i]
        low = np.inf
        for a in range(found):
            j = s.reached[a] if whole else s.near[i, a]
            d = (s.cost[i, j] if whole else s.length[i, a]) - s.v[j]
            low = min(low, d)
            d = max(base, off + d)
            if d < s.dist[j] and d <= best:
                if s.row_of[j] >= 0:
                    s.dist[j], s.before[j] = d, i
                    size = _push(s.heap, s.place, s.key, size, n + j, d)
                elif d < best or not single:
                    s.dist[j], s.before[j] = d, i
                    ends = 0 if d < best else ends
                    s.ends[ends] = j
                    ends += 1
                    best, end = d, j
        s.tally[1] += found
        if whole:
            # the first, second, fourth, ... time: a list that is read past again and again is not worth renewing
            s.reads[i] += 1
            if s.reads[i] & (s.reads[i] - 1) == 0:
                s.width[i] = min(2 * s.width[i], s.near.shape[1])
                _list(s.cost[i], s.v, i, s.near, s.length, s.width, s.beyond, s.least, s.chunk)
        else:
            reach = max(base, off + s.beyond[i])
            if reach <= best and reach < np.inf:
                size = _push(s.heap, s.place, s.key, size, n + m + i, reach)
            if item < n:
                s.least[i] = min(low, s.beyond[i])
    for a in range(size):
        s.place[s.heap[a]] = -1
    s.tally[2] += count
    _reprice(s, s.dist, count, best)
    if not single:
        return best, _augment_all(s, ends, most, t + best)
    s.r[source] += best
    _conclude(s, source, end, alone)
    return best, 1


@njit
def _scan(s, source, t):
    """The search from one row without lists: every row is read whole, the next column found by looking at all."""
    m, dist, reached_at, v = s.v.size, s.dist, s.key, s.open
    s.tally[0] += 1
    dist[:], v[:] = np.inf, s.v
    i, base, count, end, alone = source, 0.0, 0, -1, source
    s.r[source] = s.least[source]
    best = t - s.r[source]
    while True:
        s.tally[1] += m
        low, block = _read(s.cost[i], v, dist, s.before, i, base, base - s.r[i])
        if low >= best:
            break
        j = -1
        for other in range(block, min(m, block + BLOCK)):
            # of equals a free one, if there is one in the block
            if dist[other] == low and (j < 0 or s.row_of[other] < 0):
                j = other
        if s.row_of[j] < 0:
            best, end = low, j
            break
        # no row can reach it again
        dist[j], v[j], reached_at[j] = np.inf, -np.inf, low
        s.settled[count] = j
        count += 1
        i, base = s.row_of[j], low
        if low + (t - s.r[i]) <= best:
            best, alone = low + (t - s.r[i]), i
    _reprice(s, reached_at, count, best)
    s.r[source] += best
    _conclude(s, source, end, alone)


@njit
def _read(row, v, dist, before, i, base, off):
    """Shorten paths by row i: (least distance of an open column, start of its block)."""
    for j in range(v.size):
        d = max(off + (row[j] - v[j]), base)
        if d < dist[j]:
            dist[j] = d
            before[j] = i
    low, block = np.inf, 0
    for start in range(0, v.size, BLOCK):
        least = np.inf
        for j in range(start, min(v.size, start + BLOCK)):
            least = _lesser(dist[j], least)
        if least < low:
            low, block = least, start
    return low, block


@njit
def _reprice(s, dist, count, best):
    """Prices after a search that settled `count` columns and ended at distance `best`."""
    for a in range(count):
        j = s.settled[a]
        if dist[j] < best:
            s.v[j] -= best - dist[j]
            s.r[s.row_of[j]] += best - dist[j]


@njit
def _conclude(s, source, end, alone):
    """Match along the path from the source to a free column, or to a row that then stays alone."""
    if end < 0 and alone != source:
        end = s.column_of[alone]
        s.column_of[alone] = -1
    if end >= 0:
        _augment(s, end)


@njit
def _read_whole(s, i, off, best):
    """The columns off the list of row i that it reaches by a shorter path go to `reached`; how many they are.

    Renews what is known of those beyond the list.
    """
    row, v, dist, near = s.cost[i], s.v, s.dist, s.near[i]
    m, width = v.size, s.width[i]
    # so that no column of the list counts
    for a in range(width):
        s.kept[a] = v[near[a]]
        v[near[a]] = -np.inf
    found, low = 0, np.inf
    for start in range(0, m, CHUNK):
        stop, hits = min(m, start + CHUNK), 0
        for j in range(start, stop):
            d = row[j] - v[j]
            low = _lesser(d, low)
            hits += (off + d < dist[j]) & (off + d <= best)
        if hits > 0:
            for j in range(start, stop):
                d = off + (row[j] - v[j])
                if d < dist[j] and d <= best:
                    s.reached[found] = j
                    found += 1
    for a in range(width):
        v[near[a]] = s.kept[a]
    s.beyond[i] = low
    s.tally[1] += m
    s.tally[3] += 1
    return found


@njit
def _augment(s, j):
    """Match along the path that ends in column j."""
    while j >= 0:
        i = s.before[j]
        after = s.column_of[i]
        s.column_of[i], s.row_of[j] = j, i
        j = after


@njit
def _augment_all(s, ends, most, t):
    """Match along one path from each root that leads to an end, up to `most`; trees do not meet. How many."""
    for a in range(ends):
        i, j = -1, s.ends[a]
        while j >= 0:
            i = s.before[j]
            j = s.column_of[i]
        s.root[a] = i
    grown = 0
    for a in range(ends):
        i = s.root[a]
        if grown < most and s.column_of[i] < 0:
            s.r[i] = t
            _augment(s, s.ends[a])
            grown += 1
    return grown


# --- a heap of items by key, of equals the lower item first ---------------------------------------------------------


@njit
def _push(heap, place, keys, size, item, key):
    """Put an item in or bring it forward; the new size."""
    at = place[item]
    if at < 0:
        at = size
        size += 1
    keys[item] = key
    while at > 0:
        above = heap[(at - 1) >> 1]
        if keys[above] < key or (keys[above] == key and above < item):
            break
        heap[at], place[above] = above, at
        at = (at - 1) >> 1
    heap[at], place[item] = item, at
    return size


@njit
def _pop(heap, place, keys, size):
    """Take the first item out; the new size."""
    place[heap[0]] = -1
    size -= 1
    if size == 0:
        return 0
    item, at = heap[size], 0
    key = keys[item]
    while 2 * at + 1 < size:
        down = 2 * at + 1
        other = heap[down]
        if down + 1 < size:
            beside = heap[down + 1]
            if keys[beside] < keys[other] or (keys[beside] == keys[other] and beside < other):
                down, other = down + 1, beside
        if keys[other] > key or (keys[other] == key and other > item):
            break
        heap[at], place[other] = other, at
        at = down
    heap[at], place[item] = item, at
    return size
