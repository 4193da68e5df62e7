"""The campaign of docs/campaigns.md runs, its commands and its Python too; every key and status is told."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prunesolve.campaigns import campaign_file, records
from prunesolve.problems import generators

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "campaigns.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_it_runs(tmp_path):
    for seed in range(2):
        (tmp_path / "instances").mkdir(exist_ok=True)
        generators.pruning(30, seed=seed).save(tmp_path / "instances" / f"{seed}.npz")
    (toml,) = blocks("toml")
    (tmp_path / toml.split()[1]).write_text(toml, encoding="utf-8")
    lines = [shlex.split(line) for line in "".join(blocks("console")).splitlines()]
    assert [line[1] for line in lines] == ["batch", "report", "explain", "export"]
    for line in lines:
        run([sys.executable, "-m", "prunesolve.cli", *line[1:]], tmp_path)
    assert run([sys.executable, "-c", *blocks("python")], tmp_path).split()
    assert len(list((tmp_path / "samples").rglob("*.json"))) == len({r["instance"] for r in rows(tmp_path)}) == 7
    assert (tmp_path / "night" / "report.html").stat().st_size > 10_000


def rows(folder):
    return records.Records.load(folder / "night").rows


def run(command, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, f"{shlex.join(command)}\n{told.stdout}\n{told.stderr}"
    return told.stdout


def test_every_key_is_told():
    table = DOCUMENT[DOCUMENT.index("## What can be said") : DOCUMENT.index("## What a job is")]
    for key in {*campaign_file._TOP, *campaign_file._OF_FILE, *campaign_file._OF_LIBRARY, "generator", "label"} - {
        "instance",
        "solver",
    }:
        assert f"`{key}`" in table, key
    for key in set(campaign_file._OF_NETWORK) - {"device", "name"}:
        assert f"`{key}`" in table, key


def test_every_status_and_file_is_told():
    assert all(status in DOCUMENT for status in records.WITHOUT_RESULT)
    for name in (records.JOURNAL, records.SOLUTIONS, records.RESULTS, records.CAMPAIGN, records.ENVIRONMENT):
        assert name in DOCUMENT
