"""Worker processes on this machine: each can be watched and killed alone, which pools of the library cannot."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .jobs import Job
from .records import DIED, OUT_OF_MEMORY, TIMED_OUT

_COMPILING = "compiling "  # how solvers begin to say so
_LOOK = 0.05  # seconds between two looks at memory and clock
_PINNED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class Worker:
    """One process of `prunesolve.campaigns.worker`, started when it is first needed and again after it was killed.

    Parameters
    ----------
    log : path or None
        Where what it prints is appended; None for this process's stderr.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self.digest: str | None = None  # of the instance it has in memory
        self._process: subprocess.Popen[bytes] | None = None
        self._job: Mapping[str, Any] | None = None
        self._began = 0.0
        self._peak = 0.0
        self._heard = b""

    @property
    def idle(self) -> bool:
        """Whether it may be given a job."""
        return self._job is None

    def begin(self, told: Mapping[str, Any]) -> None:
        """Hand over a job, as `Job.told` says it."""
        if self._process is None or self._process.poll() is not None or self._full(told["memory_limit"]):
            self._start()
        self._job, self._began, self._peak, self._heard = told, time.monotonic(), 0.0, b""
        self.digest = told["digest"]
        # one that died while it was idle breaks the pipe; the next look finds that out
        with contextlib.suppress(BrokenPipeError):
            self._pipes[0].write(json.dumps(told).encode() + b"\n")
            self._pipes[0].flush()

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """The outcome of the job in hand, None where it is not finished after `seconds`."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno(), selectors.EVENT_READ)
            while True:
                left = until - time.monotonic()
                ready = selector.select(max(0.0, min(left, _LOOK)))
                found = self.read() if ready else self.look()
                if found is not None or left <= 0:
                    return found

    def fileno(self) -> int:
        """The pipe to listen to."""
        return self._pipes[1].fileno()

    def read(self) -> dict[str, Any] | None:
        """What it has to say, once it is said to the end; a process that has gone brought nothing."""
        part = os.read(self.fileno(), 1 << 20)
        self._heard += part
        if not part:
            return self._gone()
        if not self._heard.endswith(b"\n"):
            return None
        found: dict[str, Any] = json.loads(self._heard)
        found["row"]["peak_mib"] = max(self._peak, found["row"]["peak_mib"])
        self._job = None
        return found

    def look(self) -> dict[str, Any] | None:
        """Kill it where it has had its time or its memory, and say so."""
        process, job = self._running
        self._peak = max(self._peak, _resident_mib(process.pid))
        seconds, patience, limit = time.monotonic() - self._began, job["patience"], job["memory_limit"]
        if limit is not None and self._peak > limit / 2**20:
            return self._killed(OUT_OF_MEMORY, f"{self._peak:.0f} MiB resident, above the limit of {limit / 2**20:.0f}")
        if patience is not None and seconds > patience:
            return self._killed(TIMED_OUT, f"no answer after {seconds:.1f} s; the job was killed")
        return None

    def close(self) -> None:
        """End the process, in the middle of a job or not."""
        if self._process is not None:
            # with what the solver may have started; the process leads a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in self._pipes:
                # what was not read any more need not be
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = self._job = self.digest = None

    def _start(self) -> None:
        self.close()
        with contextlib.ExitStack() as opened:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prunesolve.campaigns.worker", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if self._log is None else opened.enter_context(open(self._log, "ab")),
                # one thread each, so that answers and times do not hang on how many workers there are
                env=os.environ | dict.fromkeys(_PINNED, "1"),
                # Ctrl-C is for the parent, which ends its workers
                start_new_session=True,
            )

    def _full(self, limit: float | None) -> bool:
        """Whether earlier jobs left so much in memory that the next would answer for it."""
        return limit is not None and self._process is not None and _resident_mib(self._process.pid) > limit / 2**21

    @property
    def _running(self) -> tuple[subprocess.Popen[bytes], Mapping[str, Any]]:
        if self._process is None or self._job is None:
            raise RuntimeError("this worker has no job")
        return self._process, self._job

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """To the process, and from it."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("this worker has no process")
        return process.stdin, process.stdout

    def _gone(self) -> dict[str, Any]:
        # a solver may have closed the pipe and live on
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running[0].wait(_LOOK)
        code = self._running[0].returncode
        said = "closed its pipe" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            said = f"ended with signal {signal.Signals(-code).name}"
        return self._killed(DIED, f"the worker process {said}")

    def _killed(self, status: str, reason: str) -> dict[str, Any]:
        row = {
            "status": status,
            "reason": reason,
            "wall_seconds": time.monotonic() - self._began,
            "peak_mib": self._peak or None,
            "host": platform.node(),
        }
        self.close()
        return {"row": row, "told": None}


class LocalWorkers:
    """Jobs on processes of this machine.

    Parameters
    ----------
    count : int
        How many at a time.
    log : path
        Where workers print to.
    """

    def __init__(self, count: int, log: Path) -> None:
        self._workers = [Worker(log) for _ in range(count)]
        self._jobs: dict[Worker, Job] = {}
        self._log, self._heard = log, log.stat().st_size if log.exists() else 0
        self._told: set[str] = set()

    @property
    def free(self) -> int:
        """How many more jobs may be submitted."""
        return len(self._workers) - len(self._jobs)

    @property
    def running(self) -> int:
        """How many jobs are."""
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Begin a job on a worker that is free, of those the one that had the instance before."""
        idle = [worker for worker in self._workers if worker.idle]
        worker = next((w for w in idle if w.digest == job.digest), idle[0])
        worker.begin(job.told())
        self._jobs[worker] = job

    def finished(self, seconds: float) -> list[tuple[Job, dict[str, Any]]]:
        """The jobs that have ended, with what they brought; waits for the first of them, but not for long."""
        with selectors.DefaultSelector() as selector:
            for worker in self._jobs:
                selector.register(worker, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(min(seconds, _LOOK))}
        found = []
        for worker, job in list(self._jobs.items()):
            outcome = worker.read() if worker in ready else worker.look()
            if outcome is not None:
                found.append((job, outcome))
                del self._jobs[worker]
        return found

    def heard(self) -> list[str]:
        """What workers say they are compiling, each thing once: a first solve would seem to hang."""
        if not self._log.exists() or self._log.stat().st_size == self._heard:
            return []
        with open(self._log, "rb") as file:
            file.seek(self._heard)
            new = file.read()
        self._heard += len(new)
        said = [line for line in new.decode(errors="replace").splitlines() if line.startswith(_COMPILING)]
        found = [line for line in dict.fromkeys(said) if line not in self._told]
        self._told.update(found)
        return found

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()
        self._jobs.clear()


def _resident_mib(process: int) -> float:
    import psutil

    try:
        return float(psutil.Process(process).memory_info().rss / 2**20)
    except psutil.NoSuchProcess:
        return 0.0
