"""One dense block: its best value at each count of kept units, from above by local search, from below by relaxation.

A block is f(x) = a.x + sum_{i<j} J_ij x_i x_j with M = J/2 + diag(d) positive semidefinite, so that on bits
f(x) = c.x + x'Mx, c = a - d, and for any y with g = c + 2 M y

    f(x) >= g.x - y'My >= (the k smallest g added up) - y'My        for every x of k units, whatever k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .moves import below


class Block(NamedTuple):
    """Couplings and constraints of one block, of n units in p parts."""

    J: Any  # (n, n)
    a: Any  # (n,)
    d: Any  # (n,)
    part: Any  # (n,) int64
    low: Any  # (p,) int64 bounds on the units kept of each part
    high: Any  # (p,) int64
    top: Any  # (n,) largest coupling of each row
    margin: float  # what rounding may add to a bound


class Tree(NamedTuple):
    """Open nodes of one count, unordered."""

    fixed: Any  # (m, n) int8: 1 in, 0 out, -1 free
    y: Any  # (m, n) where the relaxation stood
    bound: Any  # (m,)


# --- from above ----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def greedy(block, X, values):
    """Best selections X (n + 1, n) and their values (n + 1,) on the way from nothing up and from everything down."""
    n = block.a.size
    x, h, count = np.zeros(n, np.bool_), block.a.copy(), np.zeros(block.low.size, np.int64)
    missing = np.maximum(block.low, 0).sum()
    for k in range(n + 1):
        if missing == 0:
            _keep(block, X, values, k, x, h)
        i = _cheapest(block, x, h, count, missing > 0)
        if i < 0:
            break
        missing -= 1 if count[block.part[i]] < block.low[block.part[i]] else 0
        _flip(block, x, h, count, i)
    for i in range(n):
        if not x[i]:
            _flip(block, x, h, count, i)
    surplus = np.maximum(count - block.high, 0).sum()
    for k in range(n, -1, -1):
        if surplus == 0:
            _keep(block, X, values, k, x, h)
        i = _dearest(block, x, h, count, surplus > 0)
        if i < 0:
            break
        surplus -= 1 if count[block.part[i]] > block.high[block.part[i]] else 0
        _flip(block, x, h, count, i)


@njit
def _cheapest(block, x, h, count, wanting):
    """The dropped unit of least field that may come; only of parts that lack units where `wanting`."""
    least, chosen = np.inf, -1
    for i in range(x.size):
        if not x[i] and h[i] < least:
            g = block.part[i]
            if count[g] < (block.low[g] if wanting else block.high[g]):
                least, chosen = h[i], i
    return chosen


@njit
def _dearest(block, x, h, count, crowded):
    """The kept unit of largest field that may go; only of parts that hold too many where `crowded`."""
    most, chosen = -np.inf, -1
    for i in range(x.size):
        if x[i] and h[i] > most:
            g = block.part[i]
            if count[g] > (block.high[g] if crowded else block.low[g]):
                most, chosen = h[i], i
    return chosen


@njit(inline="always")
def _flip(block, x, h, count, i):
    row = block.J[i]
    if x[i]:
        for j in range(h.size):
            h[j] -= row[j]
        count[block.part[i]] -= 1
    else:
        for j in range(h.size):
            h[j] += row[j]
        count[block.part[i]] += 1
    x[i] = not x[i]


@njit
def _keep(block, X, values, k, x, h):
    """Store x where it is the best of its count so far; tells whether it is."""
    value = 0.0
    for i in range(x.size):
        if x[i]:
            value += 0.5 * (block.a[i] + h[i])
    if not value < values[k]:
        return False
    values[k] = value
    X[k] = x
    return True


@njit(cache=True, nogil=True)
def search(block, X, values, k, patience, chance):
    """Tabu search for k units from the best start that k - 1, k and k + 1 offer; tells whether X[k] improved.

    It ends after `patience` swaps without a new best, at the first local optimum where that is 0.
    """
    before = values[k]
    n = block.a.size
    if values[k] < np.inf:
        _walk(block, X, values, k, X[k].copy(), 0, chance)
    for other in (k - 1, k + 1):
        if 0 <= other <= n and values[other] < np.inf:
            x, h, count = _placed(block, X[other])
            i = _cheapest(block, x, h, count, False) if other < k else _dearest(block, x, h, count, False)
            if i >= 0:
                x[i] = not x[i]
                _walk(block, X, values, k, x, 0, chance)
    if patience > 0 and values[k] < np.inf:
        _walk(block, X, values, k, X[k].copy(), patience, chance)
    return values[k] < before - 1e-14 * abs(before)


@njit
def _placed(block, selection):
    """x, its fields and the counts of the parts."""
    x, h, count = selection.copy(), block.a.copy(), np.zeros(block.low.size, np.int64)
    for i in range(x.size):
        if x[i]:
            count[block.part[i]] += 1
            for j in range(x.size):
                h[j] += block.J[i, j]
    return x, h, count


@njit
def _walk(block, X, values, k, start, patience, chance):
    """The best swap that is not tabu, again and again; X[k] keeps the best."""
    x, h, count = _placed(block, start)
    n = x.size
    _keep(block, X, values, k, x, h)
    until = np.zeros(n, np.int64)
    tenure = min(10 + n // 100, (n - k) // 3)
    present, best = 0.0, 0.0
    tiny = block.margin
    stale, step = 0, 0
    while True:
        step += 1
        change, i, j = _best_swap(block, x, h, count, until, step, best - present)
        if i < 0 or (patience == 0 and change >= -tiny):
            break
        _flip(block, x, h, count, i)
        _flip(block, x, h, count, j)
        present += change
        until[i] = step + tenure + below(chance, 1 + tenure // 2)
        until[j] = step + tenure // 2 + below(chance, 1 + tenure // 4)
        stale += 1
        if present < best - tiny:
            best, stale = present, 0
            _keep(block, X, values, k, x, h)
        if stale > patience:
            break


@njit
def _best_swap(block, x, h, count, until, step, aspired):
    """(change, i, j) of the best swap that is not tabu or leads below the best; i = -1 where there is none."""
    best, out, into, least = np.inf, -1, -1, np.inf
    for j in range(x.size):
        if not x[j]:
            least = min(least, h[j])
    for i in range(x.size):
        if not x[i] or least - h[i] - block.top[i] >= best:
            continue
        row, p = block.J[i], block.part[i]
        for j in range(x.size):
            if x[j]:
                continue
            change = h[j] - h[i] - row[j]
            if change >= best or ((until[i] >= step or until[j] >= step) and change >= aspired):
                continue
            q = block.part[j]
            if p == q or (count[p] > block.low[p] and count[q] < block.high[q]):
                best, out, into = change, i, j
    return best, out, into


@njit(cache=True, nogil=True)
def enumerate_all(block, X, values):
    """The exact front, by a Gray code through all 2^n selections."""
    n = block.a.size
    x, h, count = np.zeros(n, np.bool_), block.a.copy(), np.zeros(block.low.size, np.int64)
    k, value, slack = 0, 0.0, 1e4 * block.margin
    for code in range(1, (1 << n) + 1):
        # a running sum decides which to value afresh; its rounding is below the slack
        if value < values[k] + slack and _meets(block, count):
            _value_at(block, k, X, values, x)
        i = 0
        while i < n - 1 and not (code >> i) & 1:
            i += 1
        value += -h[i] if x[i] else h[i]
        k += -1 if x[i] else 1
        _flip(block, x, h, count, i)


@njit(inline="always")
def _meets(block, count):
    broken = 0
    for g in range(count.size):
        broken += count[g] < block.low[g] or count[g] > block.high[g]
    return broken == 0


# --- from below ----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def lower_front(block, y, ridge, lower):
    """Lift `lower` (n + 1,) to the bounds that the gradient at y (n,) proves, for all counts at once.

    Where M is semidefinite only with ridge 11' added, other counts than that of y pay for the difference.
    """
    center = y.sum()
    g = np.empty(y.size)
    least = _constant(block, y, g) - block.margin
    g.sort()
    for k in range(y.size + 1):
        lower[k] = max(lower[k], least - ridge * (k - center) ** 2)
        if k < y.size:
            least += g[k]


@njit
def _constant(block, y, g):
    """-y'My, and g = c + 2 M y computed afresh."""
    total = 0.0
    for i in range(y.size):
        row, product = block.J[i], 2.0 * block.d[i] * y[i]
        for j in range(y.size):
            product += row[j] * y[j]
        g[i] = block.a[i] - block.d[i] + product
        total -= 0.5 * y[i] * product
    return total


@njit(cache=True, nogil=True)
def lower_sweep(block, k, y, reach, lower, upper, steps):
    """Lift `lower` at the counts up to `reach` from k, each relaxation going on from the y (n,) of the last one."""
    n = y.size
    free = np.full(n, -1, np.int8)
    for way in (1, -1):
        z = y.copy()
        for other in range(k + way, k + way * (reach + 1), way):
            if not 0 < other < n or not _spread(free, other, z):
                break
            lower[other] = max(lower[other], relax(block, free, other, z, upper[other], steps))


@njit(cache=True, nogil=True)
def relax(block, fixed, k, y, cutoff, most):
    """Minimise c.y + y'My over 0 <= y <= 1, sum y = k, `fixed` held, by pairwise steps of second order.

    Returns the bound and leaves y there; at most `most` steps, fewer once the bound reaches the cutoff or cannot.

    Reference: the working set is that of Fan, Chen & Lin, JMLR 6 (2005).
    """
    g = np.empty(y.size)
    constant = _constant(block, y, g)
    bound = constant + _least(g, fixed, k)
    for step in range(1, most + 1):
        i, j, change = _pair(block, fixed, y, g)
        if i < 0 or change <= 0.0:
            break
        y[i] = min(1.0, y[i] + change)
        y[j] = max(0.0, y[j] - change)
        row_i, row_j = block.J[i], block.J[j]
        for u in range(y.size):
            g[u] += change * (row_i[u] - row_j[u])
        g[i] += 2.0 * change * block.d[i]
        g[j] -= 2.0 * change * block.d[j]
        if step & 15 == 0:
            c = block.a - block.d
            value = 0.5 * ((c + g) * y).sum()
            bound = value - (g * y).sum() + _least(g, fixed, k)
            hopeless = value < cutoff and value - bound < 0.05 * (cutoff - bound)
            if bound >= cutoff + block.margin or hopeless or value - bound < block.margin:
                break
    bound = _constant(block, y, g) + _least(g, fixed, k) - block.margin
    return bound if bound == bound else -np.inf


@njit
def _pair(block, fixed, y, g):
    """(i, j, step): move `step` from y_j to y_i."""
    least, i = np.inf, -1
    for u in range(y.size):
        if fixed[u] < 0 and y[u] < 1.0 and g[u] < least:
            least, i = g[u], u
    if i < 0:
        return -1, -1, 0.0
    best, j, step = 0.0, -1, 0.0
    row, own = block.J[i], block.d[i]
    for u in range(y.size):
        slope = g[u] - least
        if fixed[u] >= 0 or y[u] <= 0.0 or slope <= 0.0:
            continue
        curvature = 2.0 * (own + block.d[u] - row[u])
        length = min(1.0 - y[i], y[u])
        if curvature > 0.0:
            length = min(length, slope / curvature)
        gain = length * (slope - 0.5 * curvature * length)
        if gain > best:
            best, j, step = gain, u, length
    return i, j, step


@njit
def _least(g, fixed, k):
    """The minimum of g.s over selections s of k units that hold `fixed`."""
    total, missing, free = 0.0, k, 0
    ranked = np.empty(g.size)
    for u in range(g.size):
        if fixed[u] == 1:
            total += g[u]
            missing -= 1
        elif fixed[u] < 0:
            ranked[free] = g[u]
            free += 1
    if 0 < missing < free:
        ranked[:free] = np.partition(ranked[:free], missing)
    return total + ranked[:missing].sum()


# --- both meet -----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def grow(block, k, tree, count, X, values, cutoff, slack, most, steps):
    """Open at most `most` nodes of the tree for k units, the least bound first.

    Returns (open nodes, nodes opened). Nodes that reach min(cutoff, values[k] - slack) are dropped; better
    selections go to X[k].
    """
    opened = 0
    while count > 0 and opened < most and count + 1 < tree.bound.size:
        target = min(cutoff, values[k] - slack)
        at = np.argmin(tree.bound[:count])
        if tree.bound[at] >= target:
            count = 0
            break
        opened += 1
        fixed, y = tree.fixed[at].copy(), tree.y[at].copy()
        count -= 1
        tree.fixed[at], tree.y[at], tree.bound[at] = tree.fixed[count], tree.y[count], tree.bound[count]
        unit = _branching_unit(block, fixed, y)
        for side in (1, 0):
            child, z = fixed.copy(), y.copy()
            child[unit] = side
            count = push(block, k, tree, count, X, values, child, z, cutoff, slack, steps)
    return count, opened


@njit(cache=True, nogil=True)
def push(block, k, tree, count, X, values, fixed, y, cutoff, slack, steps):
    """Bound a node; keep it open unless it is done with. Returns the number of open nodes."""
    if not _spread(fixed, k, y):
        return count
    target = min(cutoff, values[k] - slack)
    bound = relax(block, fixed, k, y, target, steps)
    if bound >= target:
        return count
    _round(block, k, X, values, fixed, y)
    target = min(cutoff, values[k] - slack)
    _fix(block, k, fixed, y, bound, target)
    missing, free = k, 0
    for u in range(y.size):
        missing -= fixed[u] == 1
        free += fixed[u] < 0
    if missing < 0 or missing > free:
        return count
    if missing == 0 or missing == free:
        for u in range(y.size):
            if fixed[u] < 0:
                fixed[u] = 1 if missing else 0
        _settle(block, k, X, values, fixed)
        return count
    tree.fixed[count], tree.y[count], tree.bound[count] = fixed, y, bound
    return count + 1


@njit
def _spread(fixed, k, y):
    """Make y agree with `fixed` and add up to k; tells whether that is possible."""
    total, room, free = 0.0, 0.0, 0
    low, high = 0, 0
    for u in range(y.size):
        if fixed[u] >= 0:
            y[u] = fixed[u]
            low += fixed[u]
            high += fixed[u]
        else:
            high += 1
        total += y[u]
    if not low <= k <= high:
        return False
    surplus = total - k
    for u in range(y.size):
        if fixed[u] < 0:
            room += y[u] if surplus > 0 else 1.0 - y[u]
            free += 1
    if room > 0.0:
        share = min(1.0, abs(surplus) / room)
        for u in range(y.size):
            if fixed[u] < 0:
                y[u] -= share * (y[u] if surplus > 0 else y[u] - 1.0)
    return True


@njit
def _fix(block, k, fixed, y, bound, target):
    """Fix the free units whose change of side lifts the bound to the target."""
    g = np.empty(y.size)
    _constant(block, y, g)
    missing, free = k, 0
    ranked = np.empty(y.size)
    for u in range(y.size):
        if fixed[u] == 1:
            missing -= 1
        elif fixed[u] < 0:
            ranked[free] = g[u]
            free += 1
    if not 0 < missing < free:
        return
    ranked = np.sort(ranked[:free])
    last, first = ranked[missing - 1], ranked[missing]
    for u in range(y.size):
        if fixed[u] < 0:
            inside = g[u] <= last
            if bound + (first - g[u] if inside else g[u] - last) - block.margin > target:
                fixed[u] = 1 if inside else 0


@njit
def _round(block, k, X, values, fixed, y):
    """Value the selection nearest to y."""
    order = np.argsort(-(y + 2.0 * (fixed == 1) - 2.0 * (fixed == 0)))
    x = np.zeros(y.size, np.bool_)
    for r in range(k):
        x[order[r]] = True
    _value_at(block, k, X, values, x)


@njit
def _settle(block, k, X, values, fixed):
    _value_at(block, k, X, values, fixed == 1)


@njit
def _value_at(block, k, X, values, selection):
    x, h, count = _placed(block, selection)
    if _meets(block, count):
        _keep(block, X, values, k, x, h)


@njit
def _branching_unit(block, fixed, y):
    """The free unit that contributes most to what the relaxation loses, d_i y_i (1 - y_i)."""
    most, chosen = -1.0, -1
    for u in range(y.size):
        if fixed[u] < 0:
            lost = block.d[u] * y[u] * (1.0 - y[u])
            if lost > most or chosen < 0:
                most, chosen = lost, u
    return chosen


# --- joined --------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def join(before, front, after):
    """after[s + k] = min over k of before[s] + front[k]; both tables (K + 1,)."""
    after[:] = np.inf
    for k in range(front.size):
        value = front[k]
        if value < np.inf:
            for s in range(before.size - k):
                after[s + k] = min(after[s + k], before[s] + value)


@njit(cache=True, nogil=True)
def around(before, after, rest):
    """rest[k] = min over s of before[s] + after[K - s - k]: the least that all other blocks come to."""
    last = before.size - 1
    for k in range(rest.size):
        least = np.inf
        for s in range(max(0, last - k) + 1 if k <= last else 0):
            least = min(least, before[s] + after[last - s - k])
        rest[k] = least
