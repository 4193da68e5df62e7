"""A page read as a reader of HTML would, and campaigns to make pages of."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from prunesolve.campaigns.records import COLUMNS
from prunesolve.campaigns.reporting import write_page

VOID = {"meta", "br", "hr", "img", "input", "link", "col"}


class Page(HTMLParser):
    """Headings, tables, what can be opened and what would be fetched; complains where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.heads: list[list[str]] = []
        self.files: dict[str, int] = {}
        self.headings: list[str] = []
        self.folded: list[str] = []
        self.addresses: list[str] = []
        self.drawings = 0
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if v and "://" in v and not k.startswith("xmlns")]
        if tag in VOID:
            return
        self.open.append(tag)
        named = dict(attrs)
        self.drawings += tag == "svg"
        if tag == "table":
            self.tables.append([])
            self.heads.append([])
        elif tag == "tr" and "tbody" in self.open:
            self.tables[-1].append([])
        elif tag == "td":
            self.tables[-1][-1].append((named["data-value"], ""))
        elif tag == "th":
            self.heads[-1].append("")
        elif tag == "a":
            self.files[named["href"]] = len(self.tables) - 1
        elif tag in ("h2", "summary"):
            (self.headings if tag == "h2" else self.folded).append("")

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if v and "://" in v and not k.startswith("xmlns")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self.open:
            value, shown = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (value, shown + data)
        elif "th" in self.open:
            self.heads[-1][-1] += data
        elif "h2" in self.open:
            self.headings[-1] += data
        elif "summary" in self.open:
            self.folded[-1] += data

    def told(self, part: str) -> bool:
        return part in " ".join(self.words)

    def table(self, name: str) -> list[dict[str, str]]:
        """Rows as {heading: raw value} of the table that is this file too."""
        at = self.files[f"tables/{name}.csv"]
        return [dict(zip(self.heads[at], (v for v, _ in row), strict=True)) for row in self.tables[at]]


@dataclass
class Campaign:
    """What the page asks of records."""

    folder: Path
    rows: list[dict[str, Any]]
    traces: dict[str, Any] = field(default_factory=dict)
    name: str = "c1"
    environment: dict[str, Any] = field(default_factory=dict)

    def told(self, job):
        trace = self.traces.get(job)
        return None if trace is None else {"trace": trace}


def row(instance, solver, seed, objective, **columns):
    columns = {
        "job": f"{instance}/{solver}/{seed}/{columns.get('repeat', 0)}",
        "instance": instance,
        "solver": solver,
        "solver_repr": f"{solver}()",
        "seed": seed,
        "repeat": 0,
        "objective": objective,
        "native_objective": objective,
        "sense": "minimise",
        "feasible": objective is not None,
        "status": "FINISHED" if objective is not None else "NO_FEASIBLE_FOUND",
        "n": 10,
        "seconds": 1.0,
        "evaluations": 100,
        "wall_seconds": 1.5,
        "time_limit": 1.0,
        "version": "0.1.0",
        "finished": "2026-01-01T00:00:00Z",
    } | columns
    return dict.fromkeys(COLUMNS) | columns


def trace_of(of):
    """Three steps down to the row's objective, which is negative."""
    return [[0.001, 1, None, -1e9]] + [[of["seconds"] / k, 100 // k, of["objective"] / k, -1e9] for k in (8, 4, 2, 1)]


def campaign(folder, instances=8, names=("annealing", "tabu", "greedy"), seeds=3, **columns):
    """The first solver is best, each later one worse; greedy leaves no traces."""
    rows = [
        row(f"p{i}", solver, seed, -100.0 * (1 + i) * (1 - 0.01 * s * (1 + 0.1 * seed + 0.01 * i)), **columns)
        for i in range(instances)
        for s, solver in enumerate(names)
        for seed in range(seeds)
    ]
    return Campaign(folder, rows, {of["job"]: trace_of(of) for of in rows if of["solver"] != "greedy"})


def read(records) -> Page:
    return Page(write_page(records).read_text(encoding="utf-8"))


def files(folder) -> dict[str, list[dict[str, str]]]:
    found = {}
    for path in sorted((folder / "tables").glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as text:
            found[path.stem] = list(csv.DictReader(text))
    return found


def spoiled(records, change):
    return Campaign(records.folder, [of | change(of) for of in records.rows], records.traces, records.name)


def nothing_feasible(of):
    return {"feasible": False, "objective": None, "native_objective": None, "status": "NO_FEASIBLE_FOUND"}


def all_failed(of):
    return nothing_feasible(of) | {
        "status": "FAILED",
        "reason": "X" * 5000,
        "seconds": None,
        "evaluations": None,
        "n": None,
    }
