"""TT-cross on the surrogate: what tntorch asks for is what is found, repaired to feasibility.

Its traps, and what is done about them: it asks for a thousand points to validate with (2 here), takes a minimum of
exactly 0 for none (the surrogate is shifted), squeezes values through an arctangent in single precision (rescaled, in
double precision, and its own minimum is not used), knows no constraints (a penalty while it searches, a repair
afterwards), draws from numpy's and torch's global generators (lent to it), warns and prints (to nowhere).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Floats

from ._base import Run
from ._count_state import ProbabilityTensor
from ._modes import Modes

_SWEEPS = 4
_BITS = 48  # of a word
_SAMPLES = 64  # feasible points that tell the scale of the surrogate
_REPAIRS = 8  # samples near an infeasible candidate, of which the best by the surrogate is taken
_MOVES, _GREED = 1.0, 0.1  # of a repair
_PENALTY = 1.0  # for each unit of violation, in standard deviations of the surrogate


class _Stopped(Exception):
    """Ends a cross when the run should stop."""


def candidates(modes: Modes, run: Run, start: Any, rank: int, most: int) -> Any:
    """(p, n) at most `most` feasible points; those first whose surrogate value was lowest before the repair."""
    asked = _Asked(modes, run, start)
    with _lent_globals(run), contextlib.suppress(_Stopped):
        import tntorch

        tntorch.minimum(
            tensors=asked.codes(),
            function=asked,
            rmax=max(2, rank),
            max_iter=_SWEEPS,
            val_size=2,
            eps=0.0,
            suppress_warnings=True,
        )
    return asked.feasible(most)


class _Asked:
    """The penalised surrogate as tntorch sees it, and a record of what was asked."""

    def __init__(self, modes: Modes, run: Run, start: Any) -> None:
        self.modes, self.run = modes, run
        uniform = ProbabilityTensor.product(modes.states, np.zeros((modes.states.modes, modes.size)))
        guesses = modes.guesses(modes.points(uniform.sample(_SAMPLES, run.rng)))
        self.unit = float(guesses.std()) or 1.0
        self.start = float(modes.guesses(start[None])[0])
        # as many levels as a float64 spells without rounding
        each = int(_BITS / np.log2(max(2, modes.size)))
        self._words = [range(i, min(i + each, modes.states.modes)) for i in range(0, modes.states.modes, each)]
        self.levels: list[Any] = []
        self.values: list[Floats] = []

    def codes(self) -> list[Any]:
        """Tensors of rank 2 whose entry is the number that the levels of some modes spell.

        A tensor for each mode, as tntorch's own grid has it, costs time that grows with the cube of the modes.
        """
        import tntorch
        import torch

        tensors, sizes = [], self.modes.states.sizes
        for some in self._words:
            cores = torch.zeros(len(sizes), 2, self.modes.size, 2)
            cores[:, 0, :, 0] = cores[:, 1, :, 1] = 1.0
            for place, mode in enumerate(some):
                cores[mode, 0, :, 1] = torch.arange(self.modes.size) * float(self.modes.size) ** place
            parts = [core[:, :size] for core, size in zip(cores, sizes, strict=True)]
            tensors.append(tntorch.Tensor([parts[0][:1], *parts[1:-1], parts[-1][:, :, 1:]]))
        return tensors

    def _spelt(self, words: Any) -> Any:
        """(p, m) levels that numbers (p,), one array a word, spell."""
        levels = np.zeros((len(words[0]), self.modes.states.modes), dtype=np.int16)
        for some, word in zip(self._words, words, strict=True):
            left = np.rint(word.detach().cpu().numpy()).astype(np.int64)
            for mode in some:
                left, levels[:, mode] = np.divmod(left, self.modes.size)
        return levels

    def __call__(self, *words: Any) -> Any:
        """(p,) values of the points that the words spell."""
        if self.run.should_stop():
            raise _Stopped
        levels = self._spelt(words)
        points = self.modes.points(levels)
        excess = self.modes.box.space.violation(points)
        values = (self.modes.guesses(points) - self.start) / self.unit + _PENALTY * excess
        self.levels.append(levels)
        self.values.append(values)
        # shifted by 1, so that the best value so far is never the 0 that stands for none
        return words[0].new_tensor(values - 1.0)

    def feasible(self, most: int) -> Any:
        """(p, n) the lowest points asked for, repaired."""
        if not self.levels:
            return self.modes.base[None][:0]
        levels, first = np.unique(np.concatenate(self.levels), axis=0, return_index=True)
        order = np.argsort(np.concatenate(self.values)[first], kind="stable")
        found: dict[bytes, Any] = {}
        for row in levels[order]:
            if len(found) >= most or self.run.should_stop():
                break
            point = self._repaired(row)
            found.setdefault(point.tobytes(), point)
        return np.array([*found.values()]).reshape(-1, self.modes.box.n)

    def _repaired(self, levels: Any) -> Any:
        """(n,) the point itself where it is feasible, else the best of a few feasible ones next to it."""
        point = self.modes.points(levels[None])[0]
        if self.modes.box.is_feasible(point):
            return point
        near = self.modes.peaked(levels, self.modes.guessed_changes(point), _MOVES, _GREED)
        points = self.modes.points(near.sample(_REPAIRS, self.run.rng))
        return points[int(np.argmin(self.modes.guesses(points)))]


@contextlib.contextmanager
def _lent_globals(run: Run) -> Iterator[None]:
    """What tntorch shares with everybody: generators seeded by the run, double precision; given back as they were."""
    import torch

    before, precision = np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002  (tntorch draws from it)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(run.seed)
            np.random.seed(run.rng.integers(2**32))  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        torch.set_default_dtype(precision)
