"""How a search calls a black box: every distinct point counted once, failures pinned to the point that caused them.

An evaluation is one point on all batches. A look at some of the batches costs its share, and whoever looks again pays
for what is new alone. What other runs found out about the same black box saves time here but is counted all the same,
so that a run repeats whatever ran before it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prunesolve.problems import BlackBox, InvalidProblem
from prunesolve.problems._arrays import Bits, Floats

from ._base import Run

_SLICE = 0.2  # seconds of evaluation between two looks at the clock
_TOLD = 20  # failures that the details list

_log = logging.getLogger("prunesolve")


class EvaluationFailed(RuntimeError):
    """The black box raised, or gave another shape, for the second time in a run; names the point."""


class Evaluations:
    """The black box as one run sees it.

    Parameters
    ----------
    box : BlackBox
        What is evaluated.
    run : Run
        Counts, limits and takes what is found; its start is evaluated at once.
    """

    def __init__(self, box: BlackBox, run: Run) -> None:
        self.box, self.run = box, run
        self._account = run.account
        self._seconds_each = 0.0
        if run.start is not None:
            self.values(run.start)

    @property
    def stages(self) -> list[int]:
        """1, 2, 4, ... batches and all of them: the looks of a successive halving."""
        batches = len(self.box.shares)
        return [*(2**i for i in range(batches.bit_length()) if 2**i < batches), batches]

    @property
    def left(self) -> float:
        """Evaluations left, inf without a limit."""
        return self.run.evaluations_left - (self._account.spent - self._account.counted)

    def values(self, x: Any) -> Floats:
        """(m,) f of each row of x (m, n), offered to the run; inf for what has no value or was not evaluated."""
        rows = np.atleast_2d(self.box.checked(x))
        values = self.partial(rows, len(self.box.shares))
        for row, value in zip(rows, values, strict=True):
            if value < self.run.objective or not self.run.feasible:
                self._offer(row, value)
        return values

    def partial(self, x: Any, first: int) -> Floats:
        """(m,) weighted mean of the first batches for each row of x (m, n); inf where `values` gives inf."""
        rows = np.atleast_2d(self.box.checked(x))
        values = np.full(len(rows), math.inf)
        batches = range(first)
        for some in self._slices(len(rows)):
            if self.run.should_stop():
                break
            some = [
                i for i in some if self.box.key(rows[i]) not in self._account.failed and self._pay(rows[i], batches)
            ]
            values[some] = self._tried(rows[some], batches)
        return values

    def known(self, x: Any) -> Bits:
        """(m,) whether asking again for each row of x (m, n) tells nothing new: all batches done, or no value."""
        keys = [self.box.key(row) for row in np.atleast_2d(self.box.checked(x))]
        paid, failed, whole = self._account.paid, self._account.failed, len(self.box.shares)
        return np.array([key in failed or len(paid.get(key, ())) == whole for key in keys], dtype=bool)

    def _offer(self, row: Any, value: float) -> None:
        if math.isfinite(value) and self.box.is_feasible(row):
            self.run.offer(row)

    def _slices(self, rows: int) -> Iterator[list[int]]:
        """Row numbers in slices short enough to look at the clock in between."""
        start = 0
        while start < rows:
            # without a deadline the size still stays bounded: a caller may stop the run from a callback
            size = max(1, min(256, int(_SLICE / self._seconds_each))) if self._seconds_each else 1
            yield list(range(start, min(rows, start + size)))
            start += size

    def _pay(self, row: Any, batches: Sequence[int]) -> bool:
        """Count what is new of a row; False where the evaluation limit does not allow it."""
        key, account = self.box.key(row), self._account
        had = account.paid.get(key, set())
        new = set(batches) - had
        cost = float(self.box.shares[list(new)].sum())
        # the shares of the batches add up to 1 with rounding
        if cost > self.left + 1e-9:
            return False
        if new:
            account.paid[key] = had | new
            account.spent += cost
            whole = math.ceil(account.spent - 1e-9)
            self.run.count(whole - account.counted)
            account.counted = whole
        return True

    def _tried(self, rows: Any, batches: Sequence[int]) -> Floats:
        """(m,) values; a call that fails is repeated row by row, to find whose fault it was."""
        if not len(rows):
            return np.zeros(0)
        began = time.perf_counter()
        try:
            values = self.box.partial(rows, batches)
        except Exception as error:
            values = self._one_by_one(rows, batches, error)
        self._seconds_each = (time.perf_counter() - began) / len(rows)
        for row, value in zip(rows, values, strict=True):
            if math.isnan(value):
                self._tell(row, "no value (NaN)")
        return np.where(np.isnan(values), math.inf, values)

    def _one_by_one(self, rows: Any, batches: Sequence[int], error: Exception) -> Floats:
        values = np.full(len(rows), math.inf)
        before = self._account.errors
        for i, row in enumerate(rows):
            try:
                values[i] = self.box.partial(row[None], batches)[0]
            except Exception as failure:
                self._raised(row, failure)
        if self._account.errors == before:
            # it fails for the rows together and for none alone
            self._raised(rows[0], error)
        return values

    def _raised(self, row: Any, error: Exception) -> None:
        """Bear one failure; the second ends the search."""
        self._account.errors += 1
        self._account.failed.add(self.box.key(row))
        said = str(error) if isinstance(error, InvalidProblem) else f"{type(error).__name__}: {error}"
        self._tell(row, said)
        if self._account.errors > 1:
            raise EvaluationFailed(f"the evaluation failed a second time, for {_named(row)}: {said}") from error

    def _tell(self, row: Any, said: str) -> None:
        key = self.box.key(row)
        failures = self.run.outermost.details.setdefault("failures", [])
        point = np.flatnonzero(row) if row.dtype == np.bool_ else row
        entry = {"kept" if row.dtype == np.bool_ else "levels": point.tolist(), "error": said}
        if len(failures) < _TOLD and entry not in failures:
            failures.append(entry)
            _log.warning("evaluation of %s: %s", _named(row), said)
        self._account.failed.add(key)


def _named(row: Any) -> str:
    """A point in words short enough for a line."""
    if row.dtype != np.bool_:
        return f"levels {row.tolist()}"
    kept = np.flatnonzero(row).tolist()
    shown = ", ".join(map(str, kept[:12])) + (", ..." if len(kept) > 12 else "")
    return f"the selection that keeps {len(kept)} of {len(row)} ({shown})"
