"""Searches side by side, each on a thread with a seed and an incumbent of its own; the best answer is kept.

Kernels run without the interpreter's lock, so that t of them take t cores. Quality per second of the clock grows,
quality per second of processor time does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Integral
from typing import Any

from prunesolve.problems import InvalidProblem

from ._base import Run, Status, _Held

_WAKE = 0.05  # seconds; an improvement wakes the caller at once, this is for systems whose waits Ctrl-C does not end

Search = Callable[[Run], Status | None]


def check_threads(threads: Any) -> None:
    """Refuse what is no number of threads."""
    if not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1:
        raise InvalidProblem(f"threads: expected a whole number >= 1, got {threads!r}")


def side_by_side(run: Run, searches: Sequence[Search]) -> Status | None:
    """Run every search on a thread of its own; one alone runs on the caller's, in the caller's run.

    What is left of an evaluation limit is shared evenly, the time limit and the stop are common. The best solution
    stays, of equals that of the first search: seed and number of threads determine it, unless time or the caller ends
    the run. Callbacks are called from the caller's thread alone. `details["threads"]` tells what each search did.

    Parameters
    ----------
    run : Run
        The caller's.
    searches : sequence of callables
        Each gets the run of its thread. The first thread has the caller's seed.

    Returns
    -------
    Status or None
        OPTIMAL or INFEASIBLE where a search proved it.
    """
    shares = _shares(run, len(searches))
    if len(shares) == 1:
        return searches[0](run)
    news = threading.Event()
    seeds = [run.seed, *run.rng.integers(2**31, size=len(shares) - 1).tolist()]
    threads = [_ThreadRun(run, seed, share, news) for seed, share in zip(seeds, shares, strict=True)]
    counted = run.evaluations
    try:
        told = _told(run, threads, searches, news, counted)
    finally:
        _fetch(run, threads, counted)
        run.details["threads"] = [
            {"seed": one.seed, "evaluations": one.evaluations, "objective": one.objective if one.feasible else None}
            for one in threads
        ]
    return next((status for status in told if status in (Status.OPTIMAL, Status.INFEASIBLE)), None)


class _ThreadRun(Run):
    """The run of one thread: nothing of it reaches the outer run until the caller's thread fetches it."""

    def __init__(self, outer: Run, seed: int, evaluation_limit: int | None, news: threading.Event) -> None:
        super().__init__(
            outer._problem, seed=seed, time_limit=outer.time_limit, evaluation_limit=evaluation_limit, outer=outer
        )
        self.start = outer.start
        self._news = news

    def count(self, k: int = 1) -> None:
        """Add k evaluations to this thread's."""
        self.evaluations += int(k)

    def should_stop(self) -> bool:
        """Whether this thread's share is used up, the time is over or the caller asked to stop."""
        return self.evaluations_left <= 0 or self.halted

    def _take(self, held: _Held, bound: float | None) -> None:
        self._keep(held, bound)
        self._news.set()


def _told(
    run: Run, threads: Sequence[_ThreadRun], searches: Sequence[Search], news: threading.Event, counted: int
) -> list[Status | None]:
    """What the searches told; improvements are passed on while the caller's thread waits for them."""
    futures: list[Future[Status | None]] = []
    with ThreadPoolExecutor(len(threads), thread_name_prefix="prunesolve") as pool:
        try:
            for one, search in zip(threads, searches, strict=False):
                futures.append(pool.submit(search, one))
                futures[-1].add_done_callback(lambda _: news.set())
            while not _over(futures):
                news.wait(_WAKE)
                news.clear()
                _fetch(run, threads, counted)
        finally:
            for one in threads:
                one.stopped = True
    return [future.result() for future in futures]


def _over(futures: Sequence[Future[Status | None]]) -> bool:
    """Whether all searches have ended, or one of them by an error."""
    ended = [future for future in futures if future.done()]
    return len(ended) == len(futures) or any(future.exception() is not None for future in ended)


def _fetch(run: Run, threads: Sequence[_ThreadRun], counted: int) -> None:
    """Put what the threads have in hand forward in the caller's run."""
    fresh = counted + sum(one.evaluations for one in threads) - run.evaluations
    if fresh:
        run.count(fresh)
    for index, one in enumerate(threads):
        run._take(one._held._replace(thread=index), one.bound)


def _shares(run: Run, threads: int) -> list[int | None]:
    """Evaluations of each thread; a thread without any is left out."""
    if run.evaluation_limit is None:
        return [None] * threads
    left = int(run.evaluations_left)
    threads = max(1, min(threads, left))
    return [left // threads + (index < left % threads) for index in range(threads)]
