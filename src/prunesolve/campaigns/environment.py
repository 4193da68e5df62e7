"""What a campaign's folder says of itself: what was asked, on which machine, with which versions."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from prunesolve import __version__
from prunesolve.problems._npz import whole_file

from .plan import Campaign
from .records import CAMPAIGN, ENVIRONMENT

_PACKAGES = ("numpy", "scipy", "numba", "dimod", "dwave-samplers", "pymoo", "POT", "torch", "tntorch", "pyarrow")


def describe(campaign: Campaign, folder: Path) -> None:
    """Put the campaign and what it runs on beside its results."""
    with whole_file(folder / CAMPAIGN) as file:
        file.write(campaign.text.encode())
    with whole_file(folder / ENVIRONMENT) as file:
        file.write(json.dumps(_environment(campaign), indent=2).encode() + b"\n")


def _environment(campaign: Campaign) -> dict[str, Any]:
    versions = {"prunesolve": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "campaign": campaign.name,
        "file": str(campaign.path),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.node(),
        "system": platform.platform(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
