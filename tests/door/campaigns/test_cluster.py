"""A real scheduler and two worker processes on loopback."""

import json
import subprocess
import sys

import pytest

from prunesolve.campaigns import Records

from .conftest import answers, journal, until

pytest.importorskip("distributed")
TWO = '"greedy"\n"swap-annealing"'


class Cluster:
    """A scheduler and its workers, each a process."""

    def __init__(self, place):
        self.place, self.processes, self.workers = place, [], []
        self.file = place.folder / "scheduler.json"
        self._begin("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
        until(lambda: self.file.exists() and self.file.stat().st_size)

    @property
    def address(self):
        return json.loads(self.file.read_text())["address"]

    def add_worker(self):
        self.workers.append(self._begin("dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"))

    def _begin(self, module, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--scheduler-file", str(self.file), *arguments]
        log = open(self.place.folder / f"{module}{len(self.processes)}.log", "wb")  # noqa: SIM115  (the process has it)
        with log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.place.environment, cwd=self.place.folder
            )
        self.processes.append(process)
        return process

    def end(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(place):
    found = Cluster(place)
    try:
        found.add_worker()
        found.add_worker()
        yield found
    finally:
        found.end()


@pytest.mark.slow
def test_a_cluster_answers_as_this_machine_does(place, cluster):
    place.campaign('"greedy"\n"swap-annealing"\n"auto"\n"raises"')
    local = place.batch("--workers", 2, out=place.folder / "local")
    done = place.batch("--scheduler", cluster.address)
    assert (done.returncode, local.returncode) == (1, 1), done.stderr
    assert answers(place.out) == answers(place.folder / "local")
    assert len(answers(place.out)) == 24


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(place, cluster):
    place.campaign(TWO, head="evaluation_limit = 20000\nseeds = [0, 1, 2, 3, 4]\nrepeats = 2")
    place.batch("--workers", 2, out=place.folder / "local")
    process = place.start("batch", "campaign.toml", "--out", place.out, "--scheduler", cluster.address)
    file = place.out / "journal.jsonl"
    until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 5)
    cluster.workers[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "60 of 60 jobs done" in out
    assert answers(place.out) == answers(place.folder / "local")
    assert len(journal(place.out)) == 60


@pytest.mark.slow
def test_a_cluster_of_this_machine_s_processes(place):
    place.campaign('"greedy"', head="evaluation_limit = 300")
    done = place.batch("--scheduler", "local", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert len(Records.load(place.out).rows) == 3


def test_a_scheduler_that_is_not_there_is_told_and_nothing_begins(place, monkeypatch):
    place.campaign('"greedy"')
    place.environment["DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT"] = "1s"
    done = place.batch("--scheduler", "tcp://127.0.0.1:1")
    assert done.returncode == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_of_a_scheduler_are_its_own(place):
    place.campaign('"greedy"')
    assert place.batch("--scheduler", "tcp://127.0.0.1:1", "--workers", 2).returncode == 2


def test_the_content_of_an_instance_is_sent_once(tmp_path, monkeypatch):
    """Dask keeps a task's result on the workers that needed it; what is left to us is to send it as one task."""
    from prunesolve.campaigns import cluster
    from prunesolve.campaigns.jobs import Job
    from prunesolve.campaigns.plan import Contestant, Limits
    from prunesolve.campaigns.sources import FileSource
    from prunesolve.problems import generators

    sent = []

    class Future:
        def __init__(self, key):
            self.key = key

        def add_done_callback(self, told):
            pass

    class Client:
        def submit(self, function, *arguments, key=None, **options):
            sent.append(function.__name__)
            return Future(key or f"job-{len(sent)}")

    monkeypatch.setattr(cluster, "_connected", lambda address, count: (Client(), None))
    workers = cluster.DaskWorkers("tcp://anywhere")
    for name in ("a", "b"):
        generators.qubo(5, seed=len(name)).save(tmp_path / f"{name}.npz")
        source = FileSource(name, path=str(tmp_path / f"{name}.npz"))
        digest = f"{name}{source.digest(source.content())}"
        for seed in range(10):
            workers.submit(Job(source, digest, Contestant("greedy", "greedy", {}, "Greedy()"), seed, 0, Limits(1.0)))
    assert sent == 2 * ["_content", *10 * ["solved"]]
