r"""OR-Library's unconstrained binary quadratic programs ("bqp" files).

maximise  sum_i sum_j q_ij x_i x_j, so that an off-diagonal entry, given once, counts twice:

    K                     number of instances
    n m                   for each: variables, entries
    i j q_ij              m lines, 1 <= i, j <= n, one of (i, j) and (j, i)

Reference: J. E. Beasley, OR-Library, Journal of the Operational Research Society 41 (1990); Heuristic algorithms for
the unconstrained binary quadratic programming problem (1998).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunesolve.problems._errors import InvalidProblem
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.couplings import from_pairs

from ._text import Numbers, Text


def count(text: Text) -> int:
    """How many instances the file says it holds."""
    return text.numbers().whole("the number of instances", low=1)


def fits(text: Text) -> bool:
    """Whether the counts in the file add up to exactly its numbers."""
    try:
        numbers = text.numbers()
        for _ in _sizes(numbers):
            pass
        numbers.end()
    except InvalidProblem:
        return False
    return True


def read(text: Text, index: int | None = None) -> BinaryQuadratic:
    """Instance `index`, counted from 1, of the file; a file with several must be told which."""
    instances = count(text)
    if index is None and instances > 1:
        raise InvalidProblem(
            f"{text.path}: holds {instances} instances; say which, {text.path}:1 to {text.path}:{instances}"
        )
    wanted = index or 1
    if wanted > instances:
        raise InvalidProblem(f"{text.path}: expected an instance from 1 to {instances}, got {wanted}")
    numbers = text.numbers()
    for at, n, m in _sizes(numbers, wanted):
        if at == wanted:
            problem = _instance(numbers, n, m)
    if wanted == instances:
        numbers.end()
    meta = text.facts("beasley", "maximise", index=wanted, instances=instances)
    if instances > 1:
        meta["name"] += f":{wanted}"
    return problem.replace(meta=meta)


def _sizes(numbers: Numbers, wanted: int = 0) -> Iterator[tuple[int, int, int]]:
    """(k, n, m) of the instances up to `wanted`, the numbers standing at its entries; passes over the others."""
    instances = numbers.whole("the number of instances", low=1)
    for k in range(1, (wanted or instances) + 1):
        n = numbers.whole(f"the number of variables of instance {k}", low=1)
        m = numbers.whole(f"the number of entries of instance {k}", high=n * (n + 1) // 2)
        yield k, n, m
        if k != wanted:
            numbers.take(3 * m, f"the {m} entries of instance {k}")


def _instance(numbers: Numbers, n: int, m: int) -> BinaryQuadratic:
    first = numbers.at
    i, j, q = numbers.triples(m, n, f"{m} entries i j q", base=1)
    place = np.minimum(i, j) * n + np.maximum(i, j)
    repeated = np.ones(m, dtype=bool)
    repeated[np.unique(place, return_index=True)[1]] = False
    if repeated.any():
        at = int(np.argmax(repeated))
        raise numbers.text.refuse(
            first + 3 * at, f"entry {i[at] + 1} {j[at] + 1} is given twice; give one of i j and j i"
        )
    linear = np.bincount(i[i == j], weights=q[i == j], minlength=n).astype(np.float64)
    off = i != j
    return BinaryQuadratic(-linear, from_pairs(n, i[off], j[off], -2.0 * q[off]))
