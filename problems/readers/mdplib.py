r"""Maximum-diversity instances of MDPLIB: keep m of n elements that lie far apart.

maximise  sum_{i<j} d_ij x_i x_j   subject to  sum_i x_i = m

    n m
    i j d_ij              every pair once, indices from 0 (or, in some collections, from 1)

or, after `n m`, the full symmetric matrix of distances, row by row.

Reference: R. Marti, A. Duarte, M. Gallego and others, MDPLIB, Optsicom project.
"""

from __future__ import annotations

import numpy as np

from prunesolve.problems._arrays import Floats
from prunesolve.problems._errors import InvalidProblem
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.constraints import Cardinality

from ._text import Numbers, Text


def fits(text: Text) -> bool:
    """Whether the file has `n m` with m <= n and then as many numbers as one of the layouts takes."""
    try:
        n, _, numbers = _head(text)
    except InvalidProblem:
        return False
    return numbers.left in _lengths(n)


def read(text: Text) -> BinaryQuadratic:
    """The instance, to be minimised: J = -d with Cardinality(m)."""
    n, m, numbers = _head(text)
    pairs, matrix = _lengths(n)
    if numbers.left not in (pairs, matrix):
        raise InvalidProblem(
            f"{text.path}: n = {n} takes {pairs} numbers after 'n m' (i j d for each pair) or {matrix} (a full "
            f"matrix), got {numbers.left}"
        )
    # n = 3 is the one size where both layouts are equally long: nine numbers
    distance = _from_matrix(numbers, n) if numbers.left != pairs else _from_triples(numbers, n)
    return BinaryQuadratic(np.zeros(n), -distance, constraints=[Cardinality(m)], meta=text.facts("mdplib", "maximise"))


def _head(text: Text) -> tuple[int, int, Numbers]:
    numbers = text.numbers()
    n = numbers.whole("n, the number of elements", low=1)
    return n, numbers.whole("m, the number to keep", high=n), numbers


def _lengths(n: int) -> tuple[int, int]:
    """How many numbers follow `n m`: all pairs with their indices, or the full matrix."""
    return 3 * n * (n - 1) // 2, n * n


def _from_triples(numbers: Numbers, n: int) -> Floats:
    pairs = n * (n - 1) // 2
    first = numbers.at
    indices = numbers.text.values[first:].reshape(pairs, 3)[:, :2]
    base = int(pairs > 0 and indices.min() == 1 and indices.max() == n)
    i, j, d = numbers.triples(pairs, n, f"{pairs} lines i j d", base)
    seen = np.bincount(np.minimum(i, j) * n + np.maximum(i, j), minlength=n * n)
    wrong = (seen[np.minimum(i, j) * n + np.maximum(i, j)] > 1) | (i == j)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise numbers.text.refuse(first + 3 * at, f"expected every pair once, got {i[at] + base} {j[at] + base} again")
    distance = np.zeros((n, n))
    distance[i, j] = distance[j, i] = d
    return distance


def _from_matrix(numbers: Numbers, n: int) -> Floats:
    first = numbers.at
    distance = numbers.take(n * n, "the distances").reshape(n, n)
    wrong = (distance != distance.T) | ((distance != 0) & np.eye(n, dtype=bool))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise numbers.text.refuse(
            first + at, f"expected a symmetric matrix with zero diagonal, got {distance.flat[at]:g} at {divmod(at, n)}"
        )
    return distance
