"""Jobs on the workers of a Dask scheduler; each Dask worker thread has a process of its own that it may kill.

The content of an instance is a task of its own, on which the jobs on it depend: it travels to a worker once, and is
made again where the worker that had it is lost.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesolve.problems import InvalidProblem

from .jobs import Job
from .processes import Worker
from .records import DIED

if TYPE_CHECKING:
    from distributed import Client, Future

LOCAL = "local"  # in place of an address: a cluster of this machine's processes
_AHEAD = 2  # jobs in flight for each thread of the cluster, so that none waits for the next
_PATIENCE = 10.0  # seconds to wait for the scheduler to answer


class DaskWorkers:
    """Jobs on a Dask cluster.

    Parameters
    ----------
    address : str
        Of the scheduler, such as tcp://10.0.0.1:8786, or "local" for a LocalCluster.
    count : int or None
        Workers of the LocalCluster.
    """

    def __init__(self, address: str, count: int | None = None) -> None:
        self._client, self._cluster = _connected(address, count)
        self._jobs: dict[str, tuple[Job, Future]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._contents: dict[str, Future] = {}

    @property
    def free(self) -> int:
        """How many more jobs may be submitted."""
        threads = sum(self._client.nthreads().values())
        return max(0, _AHEAD * threads - len(self._jobs))

    @property
    def running(self) -> int:
        """How many jobs are in flight."""
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Send a job; the content of its instance goes along where it has not been sent."""
        # a key of its own each time: a job is submitted again only where its answer was lost
        future = self._client.submit(solved, job.told(), self._content(job), pure=False, retries=0)
        self._jobs[str(future.key)] = (job, future)
        future.add_done_callback(lambda ended: self._ended.put(str(ended.key)))

    def finished(self, seconds: float) -> list[tuple[Job, dict[str, Any]]]:
        """The jobs that have ended, with what they brought; waits for the first of them, but not for long."""
        found = []
        wait = seconds
        while True:
            try:
                key = self._ended.get(timeout=wait) if wait else self._ended.get_nowait()
            except queue.Empty:
                break
            job, future = self._jobs.pop(key)
            found.append((job, self._outcome(future)))
            wait = 0.0
        self._forget()
        return found

    def heard(self) -> list[str]:
        """Nothing: what workers elsewhere print stays there."""
        return []

    def close(self) -> None:
        """Give up what is in flight and leave the cluster, or end our own."""
        self._client.cancel([future for _, future in self._jobs.values()], force=True)
        self._jobs.clear()
        self._contents.clear()
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _content(self, job: Job) -> Any:
        if job.digest not in self._contents:
            try:
                content = job.source.content()
            except InvalidProblem:
                # the worker says in the job's row what is wrong with the file
                content = None
            if content is None:
                return None
            with warnings.catch_warnings():
                # large contents are sent once and on purpose
                warnings.filterwarnings("ignore", message="Sending large graph")
                self._contents[job.digest] = self._client.submit(_content, content, key=f"instance-{job.digest}")
        return self._contents[job.digest]

    def _forget(self) -> None:
        """Let go of instances that no job in flight is on; the last one sent may have jobs to come."""
        needed = {job.digest for job, _ in self._jobs.values()} | set(list(self._contents)[-1:])
        self._contents = {digest: future for digest, future in self._contents.items() if digest in needed}

    def _outcome(self, future: Future) -> dict[str, Any]:
        if future.status == "finished":
            outcome: dict[str, Any] = future.result()
            return outcome
        error = future.exception() if future.status == "error" else None
        reason = f"the cluster lost the job: {type(error).__name__ if error else future.status}"
        return {"row": {"status": DIED, "reason": f"{reason}: {error}" if error else reason}, "told": None}


def _connected(address: str, count: int | None) -> tuple[Client, Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InvalidProblem("--scheduler: needs Dask; install it with pip install 'prunesolve[cluster]'") from None
    if address == LOCAL:
        cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)
        return Client(cluster), cluster
    try:
        return Client(address, timeout=_PATIENCE), None
    except (OSError, ValueError, TimeoutError) as error:
        raise InvalidProblem(
            f"--scheduler: no Dask scheduler answers at {address} ({' '.join(str(error).split())})"
        ) from None


# --- on the cluster's workers ---

_THREAD = threading.local()


def _content(content: bytes) -> bytes:
    """An instance's file, as a task whose result stays on the workers that have needed it."""
    return content


def solved(told: Mapping[str, Any], content: bytes | None) -> dict[str, Any]:
    """The outcome of a job on the process of this thread."""
    from distributed import Reschedule

    worker: Worker | None = getattr(_THREAD, "worker", None)
    if worker is None:
        _THREAD.worker = worker = Worker()
        _THREAD.folder = tempfile.TemporaryDirectory(prefix="prunesolve-")
    job = dict(told)
    if content is not None:
        job["content"] = str(_on_disk(Path(_THREAD.folder.name), job, content))
    worker.begin(job)
    while True:
        outcome = worker.wait(1.0)
        if outcome is not None:
            return outcome
        if _leaving():
            worker.close()
            raise Reschedule


def _on_disk(folder: Path, job: Mapping[str, Any], content: bytes) -> Path:
    """The content as a file, whose suffix says what it is; those of earlier instances go."""
    path = folder / f"{job['digest']}{Path(job['source']['path']).suffix}"
    if not path.exists():
        for earlier in folder.iterdir():
            earlier.unlink()
        path.write_bytes(content)
    return path


def _leaving() -> bool:
    """Whether this Dask worker was told to end."""
    from distributed import get_worker
    from distributed.core import Status

    return get_worker().status not in (Status.running, Status.paused)
