"""The README's code runs as it stands: section by section, in a fresh process and an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def blocks(text, *languages):
    """The fenced blocks of these languages, in order."""
    fences = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for language, code in fences if language in languages]


def commands(text):
    """The `prunesolve ...` lines of the console blocks, continued lines joined, comments and prompts dropped."""
    lines = "\n".join(blocks(text, "console", "bash", "sh", "shell")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["prunesolve"]]


SECTIONS = [
    part for part in re.split(r"^(?=#+ )", README, flags=re.MULTILINE) if blocks(part, "python") or commands(part)
]


def run(arguments, folder):
    told = subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, f"{shlex.join(arguments)}\n{told.stdout}\n{told.stderr}"
    return told


def test_there_is_something_to_run():
    assert any(blocks(part, "python") for part in SECTIONS)
    assert any(commands(part) for part in SECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=[part.splitlines()[0].strip("# ") for part in SECTIONS])
def test_the_section_runs(section, tmp_path):
    code = blocks(section, "python")
    if code:
        (tmp_path / "readme.py").write_text("\n".join(code), encoding="utf-8")
        run([sys.executable, "readme.py"], tmp_path)
    for arguments in commands(section):
        run([sys.executable, "-m", "prunesolve.cli", *arguments], tmp_path)


def test_the_links_lead_somewhere():
    root = Path(__file__).resolve().parents[2]
    targets = [t for t in re.findall(r"\]\(([^)#]+)", README) if "://" not in t]
    assert [target for target in targets if not (root / target).exists()] == []
