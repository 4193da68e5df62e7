"""A folder with a model factory and data, and the command line run in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from prunesolve.cli import main

from .networks import examples

FACTORY = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from networks import small


def trained():
    return small()
"""


class Told(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with `net_factory.py` (trained) and `data.npz`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "net_factory", raising=False)
    (tmp_path / "net_factory.py").write_text(FACTORY)
    inputs, targets = examples()
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    return tmp_path


@pytest.fixture
def command(folder, capfd):
    """Runs `prunesolve ARGUMENTS` in this process."""

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return Told(left.value.code, *capfd.readouterr())

    return run
