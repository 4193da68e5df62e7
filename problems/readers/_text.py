"""A text as a stream of numbers that still knows on which line each of them stood."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems._errors import InvalidProblem


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
        # stripped, because numpy makes a number out of blanks alone
        content = self.content.strip()
        try:
            values = np.fromstring(content, sep=" ") if content else np.zeros(0)
        # numpy before 2.3 warns where later ones raise
        except (ValueError, DeprecationWarning):
            raise self._not_a_number() from None
        # numpy also reads "1-2" as two numbers; the count gives that away
        if len(values) != np.count_nonzero(self._begins) or not np.isfinite(values).all():
            raise self._not_a_number()
        return values

    @property
    def _begins(self) -> Bits:
        """Whether a token begins at each byte."""
        # every byte up to the blank: what else is down there, numpy does not read as a number anyway
        blank = np.frombuffer(self.content, dtype=np.uint8) <= ord(" ")
        return ~blank & np.concatenate([[True], blank[:-1]])

    @cached_property
    def _starts(self) -> Indices:
        """Where each token begins."""
        return np.flatnonzero(self._begins)

    @property
    def lines(self) -> Indices:
        """The line, from 1, of each token."""
        breaks = np.flatnonzero(np.frombuffer(self.content, dtype=np.uint8) == ord("\n"))
        return np.searchsorted(breaks, self._starts) + 1

    def _not_a_number(self) -> InvalidProblem:
        for line, tokens in enumerate(self.content.split(b"\n"), 1):
            for token in tokens.split():
                if not _is_finite(token):
                    shown = token[:30].decode(errors="replace")
                    return InvalidProblem(f"{self.path}: line {line}: expected a finite number, got {shown!r}")
        return InvalidProblem(f"{self.path}: expected numbers separated by blanks")

    def line(self, at: int) -> int:
        """The line, from 1, of number `at`; of the last one for -1."""
        return self.content.count(b"\n", 0, int(self._starts[at])) + 1 if len(self._starts) else 1

    def refuse(self, at: int, reason: str) -> InvalidProblem:
        """An error that names the line of number `at`."""
        return InvalidProblem(f"{self.path}: line {self.line(at)}: {reason}")

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
            raise InvalidProblem(
                f"{self.text.path}: expected {what} ({count} numbers), got {self.left} before the end of the file at "
                f"line {self.text.line(-1)}; is it cut short?"
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


def _is_finite(token: bytes) -> bool:
    """Whether a token is a finite number as numpy writes one; Python alone also takes 1_000."""
    try:
        return b"_" not in token and bool(np.isfinite(float(token)))
    except ValueError:
        return False
