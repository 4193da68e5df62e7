"""Networks of a campaign as instance files, made before anything is solved: measured once, encoded for every budget."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from prunesolve import __version__
from prunesolve.problems import InvalidProblem

from .plan import Campaign, Network
from .sources import FileSource

INSTANCES = "instances"


def encoded(campaign: Campaign, folder: Path, say: Callable[[str], None]) -> list[FileSource]:
    """The networks' instances as files in the campaign's folder; those that are there already stay.

    Each is made by the commands `measure` and `encode` in a process of their own, so that torch is loaded in none that
    solves.

    Raises
    ------
    InvalidProblem
        If a model, its data or its budget are refused.
    """
    return [_file(network, folder / INSTANCES, say) for network in campaign.networks]


def _file(network: Network, folder: Path, say: Callable[[str], None]) -> FileSource:
    path = folder / f"{_slug(network.name)}-{_digest(network)}.npz"
    if not path.exists():
        statistics = folder / f"statistics-{_digest(network, budget=False)}.npz"
        if not statistics.exists():
            say(f"{network.name}: measuring {network.model}")
            _command("measure", network.model, "--data", network.data, *_options(network), "-o", str(statistics))
        budget = [f"--{network.budget}", str(network.amount)]
        given = [word for key, value in network.options.items() for word in ("--option", f"{key}={value}")]
        _command("encode", str(statistics), "--formulation", network.formulation, *budget, *given, "-o", str(path))
    return FileSource(network.name, path=str(path))


def _options(network: Network) -> list[str]:
    layers = [] if network.layers is None else ["--layers", network.layers]
    return layers + ([] if network.device is None else ["--device", network.device])


def _command(*arguments: str) -> None:
    """One command of ours; what it complains of is our complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "prunesolve.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InvalidProblem(f"prunesolve {arguments[0]} {arguments[1]}: {last[-1].removeprefix('prunesolve: ')}")


def _digest(network: Network, budget: bool = True) -> str:
    """Of what decides the instance: the model's file where it is one, the data, the formulation and the budget."""
    file = network.model.rpartition(":")[0]
    told: list[object] = [network.model, network.layers, __version__]
    if budget:
        told += [network.formulation, dict(network.options), network.budget, network.amount]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for path in _files(file, network.data):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _files(*names: str) -> Sequence[Path]:
    return [Path(name) for name in names if Path(name).is_file()]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
