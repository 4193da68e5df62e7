"""A text as a stream of numbers that still knows on which line each of them stood."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Floats, Indices
from prunesolve.problems._errors import InvalidProblem

_BLANK = np.isin(np.arange(256), (9, 10, 11, 12, 13, 32))


class Text:
    """The content of a text file.

    Parameters
    ----------
    path : path
        Named in messages.
    content : bytes
        What it holds.
    """

    def __init__(self, path: str | Path, content: bytes) -> None:
        self.path = path
        self.content = content

    @classmethod
    def load(cls, path: str | Path) -> Text:
        """The text of a file; a missing, empty or binary one is refused."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InvalidProblem(f"{path}: {(error.strerror or str(error)).lower()}; give an instance file") from None
        if not content.strip():
            raise InvalidProblem(f"{path}: the file is empty; expected an instance")
        if b"\0" in content:
            raise InvalidProblem(f"{path}: expected text, got a binary file")
        return cls(path, content)

    @cached_property
    def values(self) -> Floats:
        """Every number of the text, separated by blanks and line breaks."""
        if not len(self._starts):
            return np.zeros(0)
        try:
            # stripped, because numpy makes a number out of trailing blanks alone
            values = np.fromstring(self.content.strip(), sep=" ")
        # numpy before 2.3 warns where later ones raise
        except (ValueError, DeprecationWarning):
            values = np.zeros(0)
        # numpy also reads "1-2" as two numbers; the count gives that away
        if len(values) != len(self._starts) or not np.isfinite(values).all():
            raise self._not_a_number()
        return values

    @cached_property
    def _starts(self) -> Indices:
        """Where each token begins."""
        blank = _BLANK[np.frombuffer(self.content, dtype=np.uint8)]
        return np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))

    @cached_property
    def lines(self) -> Indices:
        """The line, from 1, of each token."""
        breaks = np.flatnonzero(np.frombuffer(self.content, dtype=np.uint8) == ord("\n"))
        return np.searchsorted(breaks, self._starts) + 1

    def _not_a_number(self) -> InvalidProblem:
        for at, token in enumerate(self.content.split()):
            try:
                finite = b"_" not in token and bool(np.isfinite(float(token)))
            except ValueError:
                finite = False
            if not finite:
                return self.refuse(at, f"expected a finite number, got {token[:30].decode(errors='replace')!r}")
        return InvalidProblem(f"{self.path}: expected numbers separated by blanks")

    def refuse(self, at: int, reason: str) -> InvalidProblem:
        """An error that names the line of number `at`."""
        return InvalidProblem(f"{self.path}: line {self.lines[at]}: {reason}")

    def numbers(self) -> Numbers:
        """The numbers, to be taken from the first on."""
        return Numbers(self)

    def facts(self, kind: str, sense: str, **more: Any) -> dict[str, Any]:
        """What `BinaryQuadratic.meta` says of the instance."""
        return {"name": Path(self.path).stem, "format": kind, "sense": sense} | more


class Numbers:
    """A text's numbers, taken one after the other; `at` is the next one's place."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.at = 0

    @property
    def left(self) -> int:
        """How many numbers are not taken yet."""
        return len(self.text.values) - self.at

    def take(self, count: int, what: str) -> Floats:
        """The next `count` numbers, which are `what`."""
        if count > self.left:
            last = self.text.lines[-1] if len(self.text.lines) else 1
            raise InvalidProblem(
                f"{self.text.path}: expected {what} ({count} numbers), got {self.left} before the end of the file at "
                f"line {last}; is it cut short?"
            )
        self.at += count
        return self.text.values[self.at - count : self.at]

    def whole(self, what: str, low: int = 0, high: int = 2**31) -> int:
        """The next number, a whole one from `low` to `high`."""
        value = self.take(1, what)[0]
        if value != np.round(value) or not low <= value <= high:
            raise self.text.refuse(self.at - 1, f"expected {what}, whole and from {low} to {high}, got {value:.17g}")
        return int(value)

    def triples(self, count: int, n: int, what: str, base: int) -> tuple[Indices, Indices, Floats]:
        """`count` times `i j value` with i, j from `base` to n - 1 + base, as zero-based i, j and the values."""
        first = self.at
        rows = self.take(3 * count, what).reshape(count, 3)
        i, j = rows[:, 0] - base, rows[:, 1] - base
        outside = (i != np.round(i)) | (j != np.round(j)) | (np.minimum(i, j) < 0) | (np.maximum(i, j) >= n)
        if outside.any():
            row = int(np.argmax(outside))
            got = f"{rows[row, 0]:.17g} and {rows[row, 1]:.17g}"
            raise self.text.refuse(first + 3 * row, f"expected two indices from {base} to {n - 1 + base}, got {got}")
        return i.astype(np.int64), j.astype(np.int64), rows[:, 2]

    def end(self) -> None:
        """Refuse numbers that nothing asked for."""
        if self.left:
            raise self.text.refuse(self.at, f"expected the end of the file, got {self.left} more numbers")
