r"""Units taken away one after another, each time the least missed one, the layers that read them refitted.

With H = C + r I, C the moments of a consumer's inputs, the weights W that are best on the inputs left lose, in
||(W - W_0) X||^2 + r ||W - W_0||^2, when the inputs g go too,

    tr(W_g [(H^-1)_gg]^-1 W_g')        then        W -= W_g [(H^-1)_gg]^-1 (H^-1)_g:
                                                   H^-1 -= (H^-1)_:g [(H^-1)_gg]^-1 (H^-1)_g:

so no step solves for weights anew. Only the rows and columns of one group's inputs are ever needed. Meng et al.,
OSSCAR, 2024, with half of that for half the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from prunesolve.problems._arrays import Bits, Floats, Indices

# rounds in which a group's units go: wider groups lose several at a time
_ROUNDS = 256


class Reader(Protocol):
    """One layer that reads a group's units, as the elimination sees it."""

    def costs(self) -> Floats:
        """(units left,) what each would cost."""

    def remove(self, going: Indices) -> None:
        """Let these go, by their position among the units left."""


class Refitted:
    """A reader whose weights are refitted after every removal.

    Parameters
    ----------
    inverse : (units x inputs, units x inputs)
        The rows and columns of H^-1 that belong to the group, unit by unit.
    weights : (outputs, units x inputs)
        What the dense layer multiplies them with.
    inputs : int
        Inputs a unit: channels x taps.

    Examples
    --------
    >>> twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.1]]) + 1e-6 * np.eye(3)
    >>> reader = Refitted(np.linalg.inv(twins), np.ones((1, 3)), 1)
    >>> reader.costs().round(3)
    array([0. , 0. , 0.1])
    """

    def __init__(self, inverse: Floats, weights: Floats, inputs: int) -> None:
        self.inverse, self.weights, self.inputs = inverse, weights, inputs

    def costs(self) -> Floats:
        """(units left,) the increase of the error, the others refitted."""
        each = np.arange(len(self.inverse)).reshape(-1, self.inputs)
        own = self.inverse[each[:, :, None], each[:, None, :]]
        slices = self.weights.T.reshape(len(each), self.inputs, -1)
        lost: Floats = np.trace(np.linalg.solve(own, slices @ slices.transpose(0, 2, 1)), axis1=1, axis2=2)
        return lost

    def remove(self, going: Indices) -> None:
        """Take units away and refit the others."""
        gone = np.zeros(len(self.inverse) // self.inputs, dtype=bool)
        gone[going] = True
        rows = np.repeat(gone, self.inputs)
        across = self.inverse[np.ix_(rows, ~rows)]
        moved = np.linalg.solve(self.inverse[np.ix_(rows, rows)], across)
        self.weights = self.weights[:, ~rows] - self.weights[:, rows] @ moved
        self.inverse = self.inverse[np.ix_(~rows, ~rows)]
        self.inverse -= across.T @ moved


class Subtracted:
    """A reader too wide to be refitted: what goes is missing, and its products with what went before.

    Parameters
    ----------
    gram : (units, units)
        Of the units' contributions to the outputs.
    """

    def __init__(self, gram: Floats) -> None:
        self.gram, self.owed = gram, np.zeros(len(gram))

    def costs(self) -> Floats:
        """(units left,) the increase of the error."""
        return np.diag(self.gram) + 2.0 * self.owed

    def remove(self, going: Indices) -> None:
        """Take units away."""
        left = np.delete(np.arange(len(self.gram)), going)
        self.owed = self.owed[left] + self.gram[np.ix_(left, going)].sum(1)
        self.gram = self.gram[np.ix_(left, left)]


def eliminated(readers: Sequence[Reader], size: int, counts: Sequence[int]) -> Bits:
    """(len(counts), size) which units stay at each of the ascending counts, the smaller sets inside the larger.

    Parameters
    ----------
    readers : sequence of Reader
        The layers that read the units; their costs are added. Used up.
    size : int
        Number of units.
    counts : sequence of int
        0 takes no search.
    """
    keep = np.zeros((len(counts), size), dtype=bool)
    left: Any = np.arange(size)
    for row in reversed(range(len(counts))):
        while len(left) > max(1, counts[row]):
            costs = sum((reader.costs() for reader in readers), start=np.zeros(len(left)))
            many = min(len(left) - max(1, counts[row]), -(-size // _ROUNDS))
            going = np.argsort(costs, kind="stable")[:many]
            for reader in readers:
                reader.remove(going)
            left = np.delete(left, going)
        keep[row, left if counts[row] else []] = True
    return keep
