"""Runs a campaign: what is not in its journal is solved, and what is solved goes into the journal at once."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunesolve.problems import InvalidProblem, UnsupportedProblem

from .encoding import encoded
from .environment import describe
from .jobs import Job
from .journal import Journal
from .plan import Campaign, unfolded
from .records import DIED, WITHOUT_RESULT
from .sources import Source

_TICK = 0.25  # seconds between two looks at the display
_FULL_WAIT = 5.0  # seconds until a disk that was full is tried again


class Workers(Protocol):
    """Where jobs run."""

    @property
    def free(self) -> int:
        """How many more jobs may be submitted."""
        ...

    @property
    def running(self) -> int:
        """How many jobs are in flight."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job."""
        ...

    def finished(self, seconds: float) -> list[tuple[Job, dict[str, Any]]]:
        """What has ended since, waiting up to `seconds` for the first."""
        ...

    def heard(self) -> list[str]:
        """What the user should know of what workers said since."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


class Watcher(Protocol):
    """Who is told how a campaign goes."""

    def update(self, tally: Tally) -> None:
        """Told now and then."""
        ...

    def say(self, sentence: str) -> None:
        """Told of each failure, and of what else one should know."""
        ...


@dataclass
class Tally:
    """How far a campaign is.

    Attributes
    ----------
    total : int
        Jobs, as far as files have been looked into.
    earlier, done, failed, running : int
        Done in earlier sessions, in this one, without a result of all these, and in flight.
    seconds : float
        Since this session began.
    """

    total: int
    earlier: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """Jobs that are not done."""
        return max(0, self.total - self.earlier - self.done)

    @property
    def rate(self) -> float:
        """Jobs a second in this session."""
        return self.done / self.seconds if self.seconds else 0.0


def run_campaign(
    campaign: Campaign,
    folder: str | Path,
    workers: Callable[[Path], Workers],
    watcher: Watcher,
    *,
    retry: bool = False,
) -> Tally:
    """Solve every job of a campaign that is not in the folder's journal yet.

    Parameters
    ----------
    campaign : Campaign
        What to solve.
    folder : path
        Where results go; a folder of an earlier session is gone on with.
    workers : callable
        Given the folder, starts what the jobs run on.
    watcher : Watcher
        Told of progress and failures.
    retry : bool
        Whether jobs that brought no result are run again.

    Returns
    -------
    Tally

    Raises
    ------
    InvalidProblem
        If the folder is another's, or a network cannot be measured.
    KeyboardInterrupt
        After Ctrl-C or a termination signal; everything that had ended is on disk.
    """
    folder = Path(folder)
    with Journal(folder, watcher.say) as journal, _told_to_end():
        describe(campaign, folder)
        networks = encoded(campaign, folder, watcher.say)
        try:
            session = _Session(campaign, (*campaign.sources, *networks), journal, watcher, retry)
            if session.something_left():
                running = workers(folder)
                try:
                    session.run(running)
                finally:
                    running.close()
            return session.tally
        finally:
            _compact(journal, watcher)


class _Session:
    """One session: jobs in the order of the file, and what is known of each instance on the way."""

    def __init__(
        self, campaign: Campaign, sources: Sequence[Source], journal: Journal, watcher: Watcher, retry: bool
    ) -> None:
        self.campaign, self.sources, self.journal, self.watcher = campaign, sources, journal, watcher
        again = WITHOUT_RESULT if retry else ()
        self.over = {job for job, status in journal.statuses.items() if status not in again}
        self.tally = Tally(len(sources) * campaign.per_instance)
        self.lost_once: set[str] = set()
        self.began = time.monotonic()
        self.jobs = self.pending()

    def something_left(self) -> bool:
        """Whether there is a job to run; nothing is started where there is none."""
        first = next(self.jobs, None)
        if first is None:
            return False
        self.jobs = itertools.chain([first], self.jobs)
        return True

    def run(self, workers: Workers) -> None:
        """Keep the workers busy until every job has ended."""
        while True:
            self.fill(workers)
            if not workers.running:
                return
            self.tally.running = workers.running
            self.note(workers.finished(_TICK), workers)
            for sentence in workers.heard():
                self.watcher.say(sentence)

    def fill(self, workers: Workers) -> None:
        for job in itertools.islice(self.jobs, workers.free):
            workers.submit(job)

    def note(self, ended: list[tuple[Job, dict[str, Any]]], workers: Workers) -> None:
        """Put what has ended into the journal; a job whose worker was lost is tried once more."""
        outcomes = []
        for job, outcome in ended:
            if outcome["row"]["status"] == DIED and job.id not in self.lost_once:
                self.lost_once.add(job.id)
                self.watcher.say(f"{_named(job)}: {outcome['row']['reason']}; it is tried once more")
                workers.submit(job)
            else:
                outcomes.append((job.row(outcome["row"]), outcome["told"]))
        # workers go on while the disk writes
        self.fill(workers)
        if outcomes:
            self.write(outcomes)
            for row, _ in outcomes:
                self.count(row)
        self.tick()

    def write(self, outcomes: list[tuple[dict[str, Any], dict[str, Any] | None]]) -> None:
        """Put rows on disk; where it is full wait until there is room, for nothing of a night should be lost."""
        told = False
        while True:
            try:
                self.journal.add(outcomes)
                return
            except OSError as error:
                if not told:
                    self.watcher.say(
                        f"{self.journal.folder}: cannot be written ({error.strerror}); {len(outcomes)} results wait "
                        "in memory and nothing new begins; make room, or stop with Ctrl-C and lose them"
                    )
                told = True
                time.sleep(_FULL_WAIT)

    def count(self, row: dict[str, Any]) -> None:
        self.tally.done += 1
        if row["status"] in WITHOUT_RESULT:
            self.tally.failed += 1
            self.watcher.say(
                f"{row['instance']}, {row['solver']}, seed {row['seed']}: {row['status']}: {row['reason']}"
            )

    def tick(self) -> None:
        self.tally.seconds = time.monotonic() - self.began
        self.watcher.update(self.tally)

    def pending(self) -> Iterator[Job]:
        """The jobs that are not over, one instance after another, each file read when its turn comes."""
        seen: dict[str, str] = {}
        for source in self.sources:
            for instance, digest in self.instances(source):
                same = seen.setdefault(digest, instance.name)
                if same != instance.name:
                    self.watcher.say(f"{instance.name}: the same instance as {same}, solved once")
                    self.tally.total -= self.campaign.per_instance
                    continue
                for contestant, seed, repeat in self.campaign.runs():
                    job = Job(instance, digest, contestant, seed, repeat, self.campaign.limits)
                    if job.id in self.over:
                        self.journal.supersede(job.row({}))
                        self.tally.earlier += 1
                        self.tally.failed += self.journal.statuses[job.id] in WITHOUT_RESULT
                    else:
                        yield job

    def instances(self, source: Source) -> Iterator[tuple[Source, str]]:
        """The instances of a source and their digests; one that cannot be read fails in its jobs, not here."""
        try:
            found = list(unfolded(source))
            content = source.content()
        except (InvalidProblem, UnsupportedProblem, OSError):
            yield source, source.unread
            return
        self.tally.total += (len(found) - 1) * self.campaign.per_instance
        for instance in found:
            yield instance, instance.digest(content)


def _named(job: Job) -> str:
    return f"{job.source.name}, {job.contestant.label}, seed {job.seed}"


def _compact(journal: Journal, watcher: Watcher) -> None:
    """Write the table; the journal is the truth, so that a disk without room for a table loses nothing."""
    try:
        journal.compact()
    except OSError as error:
        watcher.say(
            f"{journal.folder}: no room for the Parquet table ({error.strerror}); run the campaign again for it"
        )


@contextmanager
def _told_to_end() -> Iterator[None]:
    """A termination signal, which schedulers send before they kill, ends a campaign as Ctrl-C does."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
