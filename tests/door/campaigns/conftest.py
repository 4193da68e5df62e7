"""Campaigns in small, and solvers that misbehave, registered as a third party would."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunesolve.problems import generators

MISBEHAVING = """
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from prunesolve.problems import BinaryQuadratic
from prunesolve.solvers import Solver


@dataclass(frozen=True)
class Raises(Solver):
    name: ClassVar[str] = "raises"

    def _search(self, problem, run):
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True)
class Sleeps(Solver):
    name: ClassVar[str] = "sleeps"
    seconds: float = 3600.0

    def _search(self, problem, run):
        x = np.zeros(problem.n, bool)
        x[: problem.k or 0] = True
        run.offer(x)
        time.sleep(self.seconds)


@dataclass(frozen=True)
class Eats(Solver):
    name: ClassVar[str] = "eats"

    def _search(self, problem, run):
        eaten = []
        while not run.should_stop():
            eaten.append(np.ones(2**21))
            time.sleep(0.01)


@dataclass(frozen=True)
class Exits(Solver):
    name: ClassVar[str] = "exits"

    def _search(self, problem, run):
        import os

        print("a last word")
        os._exit(7)


@dataclass(frozen=True)
class Falters(Solver):
    name: ClassVar[str] = "falters"

    def _search(self, problem, run):
        import os
        from pathlib import Path

        if not Path("faltered").exists():
            Path("faltered").touch()
            os._exit(9)
        x = np.zeros(problem.n, bool)
        x[: problem.k or 0] = True
        run.offer(x)


@dataclass(frozen=True)
class Spawns(Solver):
    name: ClassVar[str] = "spawns"

    def _search(self, problem, run):
        import subprocess, sys
        from pathlib import Path

        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("child.pid").write_text(str(child.pid))
        time.sleep(600)


@dataclass(frozen=True)
class Talks(Solver):
    name: ClassVar[str] = "talks"

    def _search(self, problem, run):
        print("this is no JSON")
        x = np.zeros(problem.n, bool)
        x[: problem.k or 0] = True
        run.offer(x)
"""
NAMES = {
    "raises": "Raises",
    "sleeps": "Sleeps",
    "eats": "Eats",
    "exits": "Exits",
    "talks": "Talks",
    "spawns": "Spawns",
    "falters": "Falters",
}


class Place:
    """A folder with three instances; runs the command in processes of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.out = folder / "out"

    def campaign(self, solvers: str, head: str = "evaluation_limit = 300\nseeds = [0, 1]", path: str = "*.npz") -> Path:
        file = self.folder / "campaign.toml"
        named = "\n".join(f"[[solver]]\nname = {line}" for line in solvers.splitlines() if line.strip())
        file.write_text(f'{head}\n[[instance]]\npath = "{path}"\n{named}\n')
        return file

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "prunesolve.cli", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=self.environment, cwd=self.folder)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def batch(self, *arguments: object, out: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.run("batch", "campaign.toml", "--out", out or self.out, *arguments)


def journal(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def answers(folder: Path) -> dict[tuple[object, ...], object]:
    """{(job, instance, solver, seed): (status, objective, solution)}: what must not hang on how it was run."""
    from prunesolve.campaigns import Records

    records = Records.load(folder)
    found = {}
    for row in records.rows:
        told = records.told(row["job"])
        key = (row["job"], row["instance"], row["solver"], row["seed"], row["repeat"])
        found[key] = (row["status"], row["objective"], None if told is None else tuple(told["solution"]))
    return found


def until(condition, seconds: float = 60.0) -> None:
    """Wait until something has become so."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A folder on the path of processes: a package of solvers that misbehave, as an installed one."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "misbehaving.py").write_text(MISBEHAVING)
    info = folder / "misbehaving-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    lines = [f"{name} = misbehaving:{cls}" for name, cls in NAMES.items()]
    (info / "entry_points.txt").write_text("\n".join(["[prunesolve.solvers]", *lines, ""]))
    return folder


@pytest.fixture
def place(tmp_path, code):
    for seed, n in enumerate((20, 30, 40)):
        generators.max_diversity(n, 6, seed=seed).save(tmp_path / f"div{n}.npz")
    return Place(tmp_path, os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"})
