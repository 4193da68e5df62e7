"""What a campaign costs beside the solving, and that its answers do not hang on how it is run.

    python benchmarks/campaigns.py overhead     200 jobs on 2 workers against the sum of the same runs in one process
    python benchmarks/campaigns.py executors    the same jobs on 1 worker, 2 workers and a Dask cluster: equal answers
    python benchmarks/campaigns.py library      1,000 and 10,000 instance files: seconds to the first row, peak memory

Runs have an evaluation limit, so that they are the same everywhere. Each worker has one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from prunesolve import solvers
from prunesolve.campaigns import Records
from prunesolve.problems import generators
from prunesolve.problems.readers import read

SOLVERS = ("greedy", "swap-annealing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overhead", "executors", "library"])
    parser.add_argument("--instances", type=int, default=20, help="of overhead and executors, with 10 jobs each")
    parser.add_argument("--units", type=int, default=200, help="of each instance")
    parser.add_argument("--evaluations", type=int, default=200_000, help="limit of each job")
    parser.add_argument("--repeats", type=int, default=3, help="of overhead; the median is told")
    parser.add_argument("--files", type=int, nargs="+", default=[1_000, 10_000], help="of library")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"overhead": overhead, "executors": executors, "library": library}[asked.part](Path(folder), asked)


# --- overhead ----------------------------------------------------------------------------------------------------


def overhead(folder: Path, asked: argparse.Namespace) -> None:
    campaign, jobs = written(folder, asked), 10 * asked.instances
    singles = [single_runs(folder, asked) for _ in range(asked.repeats)]
    print(f"{jobs} jobs, {asked.units} units, at most {asked.evaluations} evaluations each; medians of {asked.repeats}")
    print(f"{'one process, one after the other':<44}{median(singles):>8.2f} s")
    for workers in (1, 2):
        walls = [batch(campaign, folder / f"out{workers}-{i}", "--workers", workers) for i in range(asked.repeats)]
        wall, share = median(walls), median(singles) / workers
        spans = [between(folder / f"out{workers}-{i}") for i in range(asked.repeats)]
        print(f"{f'prunesolve batch --workers {workers}':<44}{wall:>8.2f} s")
        print(f"{'  overhead a job, whole command':<44}{1e3 * (wall - share) / jobs:>8.1f} ms of wall time")
        per_row = (median(spans) - share * (jobs - 1) / jobs) / (jobs - 1)
        print(f"{'  overhead a job, first row to last':<44}{1e3 * per_row:>8.1f} ms of wall time")
        print(f"{'  the same of each worker':<44}{1e3 * per_row * workers:>8.1f} ms")


def single_runs(folder: Path, asked: argparse.Namespace) -> float:
    """Seconds of the same runs in this process, each instance read once, kernels loaded before."""
    for name in SOLVERS:
        solvers.get(name).solve(generators.max_diversity(20, 5), evaluation_limit=100)
    began = time.perf_counter()
    for path in sorted(folder.glob("*.npz")):
        problem = read(path)
        for name in SOLVERS:
            for seed in range(5):
                solvers.get(name).solve(problem.replace(), seed=seed, evaluation_limit=asked.evaluations)
    return time.perf_counter() - began


def between(out: Path) -> float:
    """Seconds between the first row and the last."""
    from datetime import datetime

    times = [datetime.fromisoformat(row["finished"]).timestamp() for row in Records.load(out).rows]
    return max(times) - min(times)


# --- executors ---------------------------------------------------------------------------------------------------


def executors(folder: Path, asked: argparse.Namespace) -> None:
    campaign = written(folder, asked)
    ways = {
        "1 worker": ("--workers", 1),
        "2 workers": ("--workers", 2),
        "Dask, 2 workers": ("--scheduler", "local", "--workers", 2),
    }
    found = {}
    for name, arguments in ways.items():
        out = folder / name.replace(" ", "-")
        print(f"{name:<20}{batch(campaign, out, *arguments):>8.2f} s")
        found[name] = answers(out)
    first = found["1 worker"]
    for name, told in found.items():
        print(f"{name:<20}{sum(told[job] == first[job] for job in first)} of {len(first)} answers equal")
    if any(told != first for told in found.values()):
        sys.exit("answers differ")


def answers(out: Path) -> dict[str, object]:
    records = Records.load(out)
    return {row["job"]: (row["objective"], records.told(row["job"])["solution"]) for row in records.rows}


# --- library -----------------------------------------------------------------------------------------------------


def library(folder: Path, asked: argparse.Namespace) -> None:
    print(f"{'files':>8}{'first row':>12}{'whole':>10}{'done again':>12}{'peak of the process':>22}{'of a worker':>14}")
    for files in asked.files:
        home = folder / str(files)
        home.mkdir()
        for i in range(files):
            generators.max_diversity(20, 5, seed=i).save(home / f"{i:05}.npz")
        campaign = home / "campaign.toml"
        campaign.write_text(
            'evaluation_limit = 100\n[[instance]]\npath = "*.npz"\n[[solver]]\nname = "greedy"\n', encoding="utf-8"
        )
        first, whole, peaks = watched(campaign, home / "out")
        again = batch(campaign, home / "out", "--workers", 2)
        print(f"{files:>8}{first:>10.2f} s{whole:>8.1f} s{again:>10.2f} s{peaks[0]:>18.0f} MiB{peaks[1]:>10.0f} MiB")


def watched(campaign: Path, out: Path) -> tuple[float, float, tuple[float, float]]:
    """Seconds until there is a row, until the end; peak resident memory of the process and of its largest worker."""
    began, first, own, workers = time.perf_counter(), 0.0, 0.0, 0.0
    process = subprocess.Popen(command(campaign, out, "--workers", 2), stdout=subprocess.DEVNULL)
    watched_process = psutil.Process(process.pid)
    while process.poll() is None:
        journal = out / "journal.jsonl"
        if not first and journal.exists() and journal.stat().st_size:
            first = time.perf_counter() - began
        # it may end between the two looks
        with contextlib.suppress(psutil.NoSuchProcess):
            own = max(own, watched_process.memory_info().rss)
            workers = max([workers, *(child.memory_info().rss for child in watched_process.children())])
        time.sleep(0.02)
    return first, time.perf_counter() - began, (own / 2**20, workers / 2**20)


# --- campaigns ---------------------------------------------------------------------------------------------------


def written(folder: Path, asked: argparse.Namespace) -> Path:
    """A campaign of two solvers and five seeds on instances in files."""
    for i in range(asked.instances):
        generators.pruning(asked.units, layers=4, seed=i).save(folder / f"pruning{i}.npz")
    named = "".join(f'[[solver]]\nname = "{name}"\n' for name in SOLVERS)
    campaign = folder / "campaign.toml"
    campaign.write_text(
        f'evaluation_limit = {asked.evaluations}\nseeds = [0, 1, 2, 3, 4]\n[[instance]]\npath = "*.npz"\n{named}',
        encoding="utf-8",
    )
    return campaign


def command(campaign: Path, out: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "prunesolve.cli", "batch", str(campaign), "--out", str(out), *map(str, arguments)]


def batch(campaign: Path, out: Path, *arguments: object) -> float:
    """Seconds of the whole command."""
    began = time.perf_counter()
    subprocess.run(command(campaign, out, *arguments), check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
