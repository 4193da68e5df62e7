"""A run that is killed without warning and started again ends with the front of one that was left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from prunesolve import solvers

from .cases import Bench
from .units import seeds

POPULATION, GENERATIONS_BEFORE = 40, 4


def jobs(asked: Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    for draw in range(asked.draws):
        for name in asked.network.split(","):
            key = {"network": name, "draw": draw, "limit": asked.evaluations, "method": "killed and resumed"}
            yield key, lambda name=name, draw=draw: row(name, draw, asked.evaluations)


def row(name: str, draw: int, evaluations: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed.npz", Path(folder) / "whole.npz"
        process = _started(name, draw, evaluations, killed)
        _wait_for(killed, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed = _finished(_started(name, draw, evaluations, killed))
        alone = _finished(_started(name, draw, evaluations, whole))
    same = resumed["front"] == alone["front"] and resumed["solutions"] == alone["solutions"]
    told = {f"{what} of {who}": run[what] for who, run in _named(resumed, alone) for what in ("evaluated", "seconds")}
    return {"ended with": process.returncode, "same": same, "points": len(alone["front"]), **told}


def _named(resumed: dict[str, Any], alone: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("the resumed", resumed), ("the whole", alone)]


def _started(name: str, draw: int, evaluations: int, checkpoint: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trade_offs.resume", name, str(draw), str(evaluations), str(checkpoint)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)


def _wait_for(checkpoint: Path, process: subprocess.Popen[str]) -> None:
    """Until the checkpoint has been written a few times; a run that ends before shows nothing."""
    written: set[float] = set()
    while len(written) < GENERATIONS_BEFORE:
        if process.poll() is not None:
            raise SystemExit("the run ended before it could be killed; allow it more evaluations")
        if checkpoint.exists():
            written.add(checkpoint.stat().st_mtime)
        time.sleep(0.01)


def _finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a run that was not killed ended with {process.returncode}")
    return json.loads(said.splitlines()[-1])


def main() -> None:
    """The child: one run with a checkpoint; prints its front."""
    name, draw, evaluations, checkpoint = sys.argv[1:]
    torch.set_num_threads(1)
    bench = Bench(name, int(draw))
    objectives = bench.objectives()
    solver = solvers.get("nsga2", population=POPULATION, checkpoint=checkpoint)
    began = time.perf_counter()
    problem = bench.problem(objectives, seeds(bench, objectives))
    found = solver.solve(problem, seed=int(draw), evaluation_limit=int(evaluations)).front
    told = {"front": found.objectives.tolist(), "solutions": found.solutions.astype(int).tolist()}
    print(json.dumps(told | {"evaluated": len(objectives.log), "seconds": time.perf_counter() - began}))


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| network | draw | evaluations | killed by | evaluated after the kill | points of the front | same front |"
    yield "|---|---|---|---|---|---|---|"
    for r in rows:
        cells = [r["network"], r["draw"], r["limit"], f"signal {-r['ended with']}", r["evaluated of the resumed"]]
        yield "| " + " | ".join(map(str, [*cells, r["points"], "yes" if r["same"] else "NO"])) + " |"


if __name__ == "__main__":
    main()
