"""Agglomeration, moves and relocations of points between clusters, from squared distances alone.

With D the squared distances and w the weights, a cluster C has the inertia Q_C / W_C,

    Q_C = sum_(i<j in C) w_i w_j D_ij        W_C = sum_(i in C) w_i        S_iC = sum_(j in C) w_j D_ij

and Q_C changes by w_i S_iC when i comes or goes: every change of labels is valued exactly by sums kept up to date.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

_ROUNDS = 16  # how often a neighbourhood's points are looked at, at most
_EPS, _LIGHT = 2e-15, 1e-12  # rounding of a sum; share of a cluster's weight that counts as none


class Tree(NamedTuple):
    """An agglomeration under way: cluster a is named after one of its points."""

    cost: Any  # (n, n) what merging two clusters adds to the inertia, inf where it may not be
    weight: Any  # (n,)
    size: Any  # (n,) points, 0 for a name no longer in use
    nearest: Any  # (n,) cheapest partner b > a
    least: Any  # (n,) its cost
    label: Any  # (n,) the name of each point's cluster


class Sums(NamedTuple):
    """A clustering and what its moves are valued by."""

    distance: Any  # (n, n)
    weight: Any  # (n,)
    label: Any  # (n,) 0 to c - 1
    size: Any  # (c,)
    mass: Any  # (c,) W
    pairs: Any  # (c,) Q
    reach: Any  # (n, c) S


@njit(cache=True, nogil=True)
def plant(distance, weight, max_size, tree):
    """Every point a cluster of its own."""
    n = weight.size
    for i in range(n):
        tree.label[i], tree.size[i], tree.weight[i] = i, 1, weight[i]
        for j in range(n):
            both = weight[i] + weight[j]
            shared = weight[i] * weight[j] / both if both > 0.0 else 0.0
            tree.cost[i, j] = shared * distance[i, j] if i != j and max_size > 1 else np.inf
    for a in range(n):
        _look(tree, a)


@njit(cache=True, nogil=True)
def agglomerate(tree, max_size, draws, top, merges):
    """At most `merges` merges, each among the `top` cheapest by softmax; returns how many were made.

    `draws` (merges,) uniform in [0, 1); with top = 1 the cheapest is taken. Fewer are made where sizes forbid more.
    """
    few = np.empty(top)
    pairs = np.empty((top, 2), np.int64)
    for step in range(merges):
        found = _cheapest(tree, few, pairs)
        if found == 0:
            return step
        pick = 0 if found == 1 else _drawn(few, found, draws[step])
        _merge(tree, pairs[pick, 0], pairs[pick, 1], max_size)
    return merges


@njit(forceinline=True)
def _look(tree, a):
    """The cheapest partner of a among those after it."""
    least, nearest = np.inf, -1
    row = tree.cost[a]
    for b in range(a + 1, row.size):
        if row[b] < least:
            least, nearest = row[b], b
    tree.least[a], tree.nearest[a] = least, nearest


@njit
def _cheapest(tree, few, pairs):
    """The cheapest pairs, ascending, into `few` and `pairs`; returns how many there are."""
    n, found = tree.size.size, 0
    while found < few.size:
        # the rows' cheapest partners first; a row that was taken offers its next
        a = -1
        for i in range(n):
            if tree.least[i] < np.inf and (a < 0 or tree.least[i] < tree.least[a]):
                a = i
        if a < 0:
            break
        few[found], pairs[found, 0], pairs[found, 1] = tree.least[a], a, tree.nearest[a]
        found += 1
        if found < few.size:
            _next(tree, a)
    for k in range(found):
        a = pairs[k, 0]
        # in ascending order, so the first of a row is its cheapest
        seen = False
        for other in range(k):
            seen |= pairs[other, 0] == a
        if not seen:
            tree.least[a], tree.nearest[a] = few[k], pairs[k, 1]
    return found


@njit
def _next(tree, a):
    """Let row a offer its next dearer partner."""
    floor, last = tree.least[a], tree.nearest[a]
    least, nearest = np.inf, -1
    row = tree.cost[a]
    for b in range(a + 1, row.size):
        if row[b] < least and (row[b] > floor or (row[b] == floor and b > last)):
            least, nearest = row[b], b
    tree.least[a], tree.nearest[a] = least, nearest


@njit
def _drawn(few, found, draw):
    """Softmax over -(c - c_min) / mean(c - c_min) of Ward's distances c = sqrt(2 cost)."""
    first = np.sqrt(2.0 * max(few[0], 0.0))
    mean = 0.0
    for k in range(found):
        mean += (np.sqrt(2.0 * max(few[k], 0.0)) - first) / found
    total = 0.0
    for k in range(found):
        total += np.exp(-(np.sqrt(2.0 * max(few[k], 0.0)) - first) / mean) if mean > 0.0 else 1.0
    left = draw * total
    for k in range(found):
        left -= np.exp(-(np.sqrt(2.0 * max(few[k], 0.0)) - first) / mean) if mean > 0.0 else 1.0
        if left < 0.0:
            return k
    return found - 1


@njit
def _merge(tree, a, b, max_size):
    """Cluster b into a < b, by the Lance-Williams rule of Ward's method."""
    n = tree.size.size
    cost, between = tree.cost, tree.cost[a, b]
    wa, wb = tree.weight[a], tree.weight[b]
    size = tree.size[a] + tree.size[b]
    for i in range(n):
        if tree.label[i] == b:
            tree.label[i] = a
    tree.size[a], tree.size[b], tree.weight[a] = size, 0, wa + wb
    for k in range(n):
        if k == a or tree.size[k] == 0:
            cost[b, k] = cost[k, b] = np.inf
            continue
        new = np.inf
        if size + tree.size[k] <= max_size:
            wk, every = tree.weight[k], wa + wb + tree.weight[k]
            new = 0.0
            if every > 0.0:
                new = ((wa + wk) * cost[a, k] + (wb + wk) * cost[b, k] - wk * between) / every
        cost[a, k] = cost[k, a] = new
        cost[b, k] = cost[k, b] = np.inf
        if k < a and tree.nearest[k] != a and tree.nearest[k] != b and new < tree.least[k]:
            tree.least[k], tree.nearest[k] = new, a
    cost[a, b] = cost[b, a] = np.inf
    tree.least[b], tree.nearest[b] = np.inf, -1
    for k in range(b):
        if k == a or (tree.size[k] > 0 and (tree.nearest[k] == a or tree.nearest[k] == b)):
            _look(tree, k)


@njit(cache=True, nogil=True)
def count(sums):
    """Every sum from the labels."""
    n = sums.label.size
    sums.size[:] = 0
    sums.mass[:] = 0.0
    sums.pairs[:] = 0.0
    sums.reach[:] = 0.0
    for i in range(n):
        c = sums.label[i]
        sums.size[c] += 1
        sums.mass[c] += sums.weight[i]
        for j in range(n):
            sums.reach[i, sums.label[j]] += sums.weight[j] * sums.distance[i, j]
    for i in range(n):
        c = sums.label[i]
        sums.pairs[c] += 0.5 * sums.weight[i] * sums.reach[i, c]


@njit(forceinline=True)
def _inertia(pairs, mass):
    return pairs / mass if mass > 0.0 else 0.0


@njit(forceinline=True)
def _rest(pairs, mass, pairs_before, mass_before):
    """The inertia of what is left, with what rounding may have taken from it: heavy points leave light ones behind."""
    if mass <= _LIGHT * mass_before:
        return 0.0
    return (max(pairs, 0.0) + _EPS * pairs_before) / mass


@njit(forceinline=True)
def _leaving(sums, i):
    """What the inertia of its cluster loses when i goes."""
    c, w = sums.label[i], sums.weight[i]
    pairs, mass = sums.pairs[c], sums.mass[c]
    return _inertia(pairs, mass) - _rest(pairs - w * sums.reach[i, c], mass - w, pairs, mass)


@njit(forceinline=True)
def _move(sums, i, to):
    """Point i into cluster `to`; both clusters are summed anew, as differences of large sums would not do."""
    n, w, came = sums.label.size, sums.weight[i], sums.label[i]
    sums.size[came] -= 1
    sums.size[to] += 1
    sums.label[i] = to
    for c in (came, to):
        sums.pairs[c] = 0.0
        sums.mass[c] = 0.0
    for j in range(n):
        far = w * sums.distance[i, j]
        sums.reach[j, came] -= far
        sums.reach[j, to] += far
        c = sums.label[j]
        if c in (came, to):
            sums.mass[c] += sums.weight[j]
            sums.pairs[c] += 0.5 * sums.weight[j] * sums.reach[j, c]


@njit(cache=True, nogil=True)
def move(sums, max_size, first, quiet, least, most):
    """Move single points where that pays, from point `first` on, at most `most` looked at.

    `quiet` points in a row were looked at in vain; returns (next point, how many now are).
    """
    n, clusters = sums.reach.shape
    i = first
    for _ in range(most):
        if quiet >= n:
            break
        if sums.size[sums.label[i]] > 1:
            saved = _leaving(sums, i)
            best, to, w = saved - least, -1, sums.weight[i]
            for c in range(clusters):
                if c != sums.label[i] and sums.size[c] < max_size:
                    new = _inertia(sums.pairs[c] + w * sums.reach[i, c], sums.mass[c] + w)
                    added = new - _inertia(sums.pairs[c], sums.mass[c])
                    if added < best:
                        best, to = added, c
            if to >= 0:
                _move(sums, i, to)
                quiet = 0
        quiet += 1
        i = i + 1 if i + 1 < n else 0
    return i, quiet


@njit(cache=True, nogil=True)
def dissolve(sums, gone, max_size):
    """Move every point of cluster `gone` to where it adds least; there must be room."""
    n, clusters = sums.reach.shape
    for i in range(n):
        if sums.label[i] == gone:
            best, to, w = np.inf, -1, sums.weight[i]
            for c in range(clusters):
                if c != gone and 0 < sums.size[c] < max_size:
                    new = _inertia(sums.pairs[c] + w * sums.reach[i, c], sums.mass[c] + w)
                    added = new - _inertia(sums.pairs[c], sums.mass[c])
                    if added < best:
                        best, to = added, c
            _move(sums, i, to)


@njit(cache=True, nogil=True)
def swap(sums, first, rows, least):
    """Exchange points of two clusters where that pays, points `first` to `first + rows` with all later ones."""
    n, made = sums.label.size, 0
    for i in range(first, min(n, first + rows)):
        for j in range(i + 1, n):
            a, b = sums.label[i], sums.label[j]
            if a == b:
                continue
            wi, wj, far = sums.weight[i], sums.weight[j], sums.distance[i, j]
            # i leaves a and j comes, whose reach of a held w_i D_ij; and the other way round
            one = sums.pairs[a] - wi * sums.reach[i, a] + wj * (sums.reach[j, a] - wi * far)
            two = sums.pairs[b] - wj * sums.reach[j, b] + wi * (sums.reach[i, b] - wj * far)
            new = _rest(one, sums.mass[a] - wi + wj, sums.pairs[a], sums.mass[a] + wj)
            new += _rest(two, sums.mass[b] - wj + wi, sums.pairs[b], sums.mass[b] + wi)
            old = _inertia(sums.pairs[a], sums.mass[a]) + _inertia(sums.pairs[b], sums.mass[b])
            if new < old - least:
                _move(sums, i, b)
                _move(sums, j, a)
                made += 1
    return made


@njit(cache=True, nogil=True)
def relocate(sums, max_size, least):
    """Merge the two clusters that cost least and set free the point that saves most; returns whether that paid."""
    n, clusters = sums.reach.shape
    # cross (c, c): sum over i in a, j in b of w_i w_j D_ij
    cross = np.zeros((clusters, clusters))
    for i in range(n):
        a, w = sums.label[i], sums.weight[i]
        for b in range(clusters):
            cross[a, b] += w * sums.reach[i, b]
    # the most that a single point of each cluster saves by leaving; the best two clusters and one more
    saved, point = np.zeros(clusters), np.full(clusters, -1)
    for i in range(n):
        c = sums.label[i]
        if sums.size[c] > 1:
            gain = _leaving(sums, i)
            if point[c] < 0 or gain > saved[c]:
                saved[c], point[c] = gain, i
    order = np.argsort(-saved)
    best, into, gone, free = -least, -1, -1, -1
    for a in range(clusters):
        for b in range(a + 1, clusters):
            if sums.size[a] + sums.size[b] > max_size:
                continue
            alone = _inertia(sums.pairs[a], sums.mass[a]) + _inertia(sums.pairs[b], sums.mass[b])
            added = _inertia(sums.pairs[a] + sums.pairs[b] + cross[a, b], sums.mass[a] + sums.mass[b]) - alone
            if added - saved[order[0]] >= best:
                continue
            for k in range(min(3, clusters)):
                c = order[k]
                if c != a and c != b:
                    if point[c] >= 0 and added - saved[c] < best:
                        best, into, gone, free = added - saved[c], a, b, point[c]
                    break
    if free < 0:
        return False
    for i in range(n):
        if sums.label[i] == gone:
            _move(sums, i, into)
    _move(sums, free, gone)
    return True


@njit(cache=True, nogil=True)
def renew(sums, max_size, draws, top, least):
    """Cluster a neighbourhood anew, once for each row of draws, and keep what is better; returns how often it was.

    `draws` (tries, 2 + points): which cluster, how many points its neighbourhood holds at least, the merges' choices.
    """
    n, clusters = sums.reach.shape
    most = draws.shape[1] - 2
    near, members, part = np.empty(clusters), np.empty(most, np.int64), np.empty(clusters, np.int64)
    kept = 0
    for t in range(draws.shape[0]):
        wanted = 4 + int(draws[t, 1] * (most - 3))
        points, parts = _neighbourhood(sums, int(draws[t, 0] * clusters), wanted, near, members, part)
        if parts < 2 or points == parts:
            continue
        distance, weight = np.empty((points, points)), np.empty(points)
        for p in range(points):
            weight[p] = sums.weight[members[p]]
            for q in range(points):
                distance[p, q] = sums.distance[members[p], members[q]]
        label = _clustered(distance, weight, parts, max_size, draws[t, 2:], top)
        if label.size == 0:
            continue
        size, reach = np.zeros(parts, np.int64), np.zeros((points, parts))
        new = Sums(distance, weight, label, size, np.zeros(parts), np.zeros(parts), reach)
        count(new)
        move(new, max_size, 0, 0, least, _ROUNDS * points)
        before, after = 0.0, 0.0
        for c in range(parts):
            before += _inertia(sums.pairs[part[c]], sums.mass[part[c]])
            after += _inertia(new.pairs[c], new.mass[c])
        if after < before - least:
            kept += 1
            for p in range(points):
                to = part[label[p]]
                if to != sums.label[members[p]]:
                    _move(sums, members[p], to)
    return kept


@njit
def _neighbourhood(sums, a, wanted, near, members, part):
    """Cluster a and those cheapest to merge with it, until `wanted` points are together or no more fit."""
    n, clusters = sums.reach.shape
    near[:] = 0.0
    for i in range(n):
        if sums.label[i] == a:
            for c in range(clusters):
                near[c] += sums.weight[i] * sums.reach[i, c]
    alone = _inertia(sums.pairs[a], sums.mass[a])
    for c in range(clusters):
        both = _inertia(sums.pairs[a] + sums.pairs[c] + near[c], sums.mass[a] + sums.mass[c])
        near[c] = both - alone - _inertia(sums.pairs[c], sums.mass[c])
    near[a] = -np.inf
    points, parts = 0, 0
    while points < wanted and parts < clusters:
        c = np.argmin(near)
        near[c] = np.inf
        if points + sums.size[c] > members.size:
            break
        part[parts] = c
        parts += 1
        points += sums.size[c]
    at = 0
    for i in range(n):
        for k in range(parts):
            if sums.label[i] == part[k]:
                members[at] = i
                at += 1
    return points, parts


@njit
def _clustered(distance, weight, clusters, max_size, draws, top):
    """Labels of an agglomeration of few points into `clusters`, none where sizes forbid it."""
    n = weight.size
    size, nearest, name = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    tree = Tree(np.empty((n, n)), np.empty(n), size, nearest, np.empty(n), name)
    plant(distance, weight, max_size, tree)
    if agglomerate(tree, max_size, draws, top, n - clusters) < n - clusters:
        return np.empty(0, np.int64)
    number, label, found = np.full(n, -1), np.empty(n, np.int64), 0
    for i in range(n):
        if number[name[i]] < 0:
            number[name[i]] = found
            found += 1
        label[i] = number[name[i]]
    return label
