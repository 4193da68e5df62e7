r"""Quadratic knapsack instances of Billionnet and Soutif.

maximise  sum_i p_i x_i + sum_{i<j} p_ij x_i x_j   subject to  sum_i w_i x_i <= c

    name
    n
    p_1 ... p_n
    p_12 ... p_1n         the upper triangle, row by row
    ...
                          a blank line
    0                     the knapsack is "<="
    c
    w_1 ... w_n           comments may follow

Reference: A. Billionnet and E. Soutif, Using a mixed integer programming tool for solving the 0-1 quadratic knapsack
problem, INFORMS Journal on Computing 16 (2004).
"""

from __future__ import annotations

import re

import numpy as np

from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem
from prunesolve.problems.binary_quadratic import BinaryQuadratic
from prunesolve.problems.constraints import Budget

from ._text import Text

# comments at the end begin with a letter; `nan` and `inf` are broken numbers
_COMMENT = re.compile(rb"^[ \t]*(?!nan\b|inf)[A-Za-z]", re.MULTILINE | re.IGNORECASE)


def read(text: Text) -> BinaryQuadratic:
    """The instance, to be minimised: a = -p, J = -P, Budget(w, c)."""
    name, body = _name_and_numbers(text)
    numbers = body.numbers()
    n = numbers.whole("n, the number of items", low=1)
    profit = numbers.take(n, f"the {n} linear profits")
    pairs = numbers.take(n * (n - 1) // 2, f"the upper triangle of {n} x {n} profits")
    if numbers.whole("the kind of constraint (0 is <=, 1 is =)", high=1) == 1:
        raise UnsupportedProblem(f"{text.path}: the knapsack is an equality (kind 1); only <= (kind 0) is a Budget")
    capacity = float(numbers.take(1, "the capacity")[0])
    weight = numbers.take(n, f"the {n} weights")
    numbers.end()
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n, 1)] = pairs
    try:
        return BinaryQuadratic(
            -profit,
            -(matrix + matrix.T),
            constraints=[Budget(weight, capacity)],
            meta=text.facts("qkp", "maximise") | {"name": name},
        )
    except InvalidProblem as error:
        raise InvalidProblem(f"{text.path}: {error}") from None


def _name_and_numbers(text: Text) -> tuple[str, Text]:
    """The name in the first line, and the text without it and without the comments at the end."""
    content = text.content
    start = len(content) - len(content.lstrip())
    end = content.find(b"\n", start)
    name = content[start : None if end < 0 else end].strip().decode(errors="replace")
    if end < 0:
        raise InvalidProblem(f"{text.path}: expected n and the profits after the name {name[:30]!r}, got nothing")
    # blanks for what is cut out, so that messages count lines from the top of the file
    body = b"\n" * content.count(b"\n", 0, end) + content[end:]
    comment = _COMMENT.search(body)
    return name, Text(text.path, body[: comment.start()] if comment else body)
