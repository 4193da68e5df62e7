"""Where the campaign ran, with which options, and how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from prunesolve.campaigns.records import Records
from prunesolve.report import Block, Code, Section

from .view import View


def environment(view: View) -> Section:
    """Machine, versions, options of the solvers, and the commands that run it again."""
    facts = list(_flat(view.records.environment))
    versions = sorted({row["version"] for row in view.rows if row["version"]})
    finished = sorted(row["finished"] for row in view.rows if row["finished"])
    facts += [("version of the jobs", ", ".join(versions))] if versions else []
    facts += [("first job finished", finished[0]), ("last job finished", finished[-1])] if finished else []
    reprs = sorted({(row["solver"], row["solver_repr"] or "unknown") for row in view.rows})
    blocks: list[Block] = [
        view.tables.add("environment", "Machine and versions", {"what": "", "value": ""}, facts),
        view.tables.add("solvers", "Solvers and their options", {"solver": "", "options": ""}, reprs),
    ]
    return Section("Environment, and how to run it again", [*blocks, *_commands(view.records)])


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _commands(records: Records) -> list[Block]:
    folder, campaign = shlex.quote(str(records.folder)), str(records.environment.get("file", "campaign.toml"))
    file = shlex.quote(campaign)
    return [
        Code(
            f"prunesolve batch {file} --out {folder}        # goes on where it stopped; what is solved stays\n"
            f"prunesolve batch {file} --out NEW_FOLDER        # from the beginning\n"
            f"prunesolve report {folder}        # this page once more"
        ),
        "The campaign's folder keeps a copy of the campaign file; paths in it are relative to where the original lay.",
    ]
