"""How a campaign goes, on stderr: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from .running import Tally, Watcher

_EVERY = 30.0  # seconds between two lines of a log


@contextmanager
def shown_progress() -> Iterator[Watcher]:
    """A watcher that shows progress as long as the block lasts."""
    if not sys.stderr.isatty():
        log = _Log()
        yield log
        log.last()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}")
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Live(progress)


def told(tally: Tally) -> str:
    """A tally in a line.

    Examples
    --------
    >>> from prunesolve.campaigns.running import Tally
    >>> told(Tally(total=10, done=4, failed=1, running=2, seconds=2.0))
    'running 2, failed 1, 2.0 a second, 3 s left'
    """
    rest = (
        "" if not tally.done else f", {tally.rate:.2g} a second" if tally.rate < 1 else f", {tally.rate:.1f} a second"
    )
    left = f", {_span(tally.left / tally.rate)} left" if tally.rate and tally.left else ""
    return f"running {tally.running}, failed {tally.failed}{rest}{left}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Live:
    """A bar on a terminal; sentences scroll above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("looking for what is left", total=None, rest="")

    def update(self, tally: Tally) -> None:
        done = tally.earlier + tally.done
        counted = f"done {done:,} of {tally.total:,}"
        self._progress.update(self._task, description=counted, completed=done, total=tally.total, rest=told(tally))

    def say(self, sentence: str) -> None:
        self._progress.console.print(sentence, markup=False, highlight=False)


class _Log:
    """Lines of a log file."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _EVERY
        self._tally: Tally | None = None
        self._written = True

    def update(self, tally: Tally) -> None:
        self._tally, self._written = tally, False
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            self.last()

    def last(self) -> None:
        if self._tally is not None and not self._written:
            self.say(f"done {self._tally.earlier + self._tally.done:,} of {self._tally.total:,}, {told(self._tally)}")
            self._written = True

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201
