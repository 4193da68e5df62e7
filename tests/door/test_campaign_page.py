"""A campaign's page: whole, well-formed, self-contained; every table is a file too; every odd campaign has a page."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesolve import pipeline, solvers
from prunesolve.campaigns import comparison, page
from prunesolve.campaigns.page import write_page
from prunesolve.campaigns.records import COLUMNS, Records
from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem

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


@pytest.fixture(autouse=True)
def _few_plots(monkeypatch):
    """Drawing takes most of the time; `usual` draws all."""
    monkeypatch.setattr(page, "PLOTTED", 1)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    records = campaign(tmp_path_factory.mktemp("campaign"))
    failure = {"status": "DIED", "reason": "signal 9 <&>", "seconds": None, "evaluations": None}
    records.rows.append(row("p0", "greedy", 3, None, **failure))
    return records, read(records)


# --- the page as a whole -------------------------------------------------------------------------------------------


def test_sections_stand_in_their_order(usual):
    _, found = usual
    assert found.headings == [
        "Solvers",
        "Performance profile",
        "Runs within a gap at the end",
        "Time to target",
        "Gap over time",
        "Pairs of solvers",
        "Instances",
        "Jobs without a result",
        "Environment, and how to run it again",
    ]


def test_nothing_is_fetched(usual):
    _, found = usual
    assert found.addresses == []
    assert not any("://" in word for word in found.words)
    assert found.drawings == 3 + 8


def test_every_table_is_a_file_with_equal_values(usual):
    records, found = usual
    written = files(records.folder)
    assert {f"tables/{name}.csv" for name in written} == {*found.files, "tables/runs.csv"}
    for name in written.keys() - {"runs"}:
        assert found.table(name) == written[name]


def test_single_runs_are_in_the_file_of_runs(usual):
    records, found = usual
    runs = files(records.folder)["runs"]
    assert len(runs) == len(records.rows)
    own = [at for at, head in enumerate(found.heads) if "repeat" in head and "reason" not in head]
    assert len(own) == 8
    for instance, at in zip(sorted({of["instance"] for of in runs}), own, strict=True):
        shown = {tuple(v for v, _ in cells[:4]) + (cells[6][0],) for cells in found.tables[at]}
        keys = ("solver", "seed", "repeat", "objective", "seconds")
        assert shown == {tuple(of[key] for key in keys) for of in runs if of["instance"] == instance}


def test_the_winner_and_how_sure_that_is_come_first(usual):
    _, found = usual
    assert found.told("annealing did best: by the median objective on 8 instances it won 16, tied 0 and lost 0 of 16")
    # eight instances, all one way, three pairs: 3 * 2 / 2^8
    assert found.told("significant against every other solver (Wilcoxon, Holm-corrected p at most 0.023)")


def test_facts_are_counted(usual):
    text = " ".join(usual[1].words)
    for fact in (
        "73 jobs",
        "8 instances",
        "3 solvers",
        "4 seeds and repeats",
        "1 jobs without a result",
        "1 s time limit",
    ):
        assert fact in text


def test_the_summary_is_that_of_the_comparison(usual):
    records, found = usual
    lines = found.table("summary")
    assert [line["solver"] for line in lines] == ["annealing", "tabu", "greedy"]
    for line, of in zip(lines, sorted(comparison.summaries(records.rows), key=lambda s: s.mean_gap), strict=True):
        assert float(line["mean gap / %"]) == pytest.approx(100 * of.mean_gap)
        assert float(line["best found / %"]) == 100 * of.best_found
        assert int(line["failed"]) == of.failed


def test_times_to_targets_worked_out_by_hand(usual):
    lines = {line["solver"]: line for line in usual[1].table("targets")}
    # annealing's last step is the best known, at 1 s; its step before is half of it
    assert (lines["annealing"]["best: reached / %"], lines["annealing"]["best: median s"]) == ("100.0", "1.0")
    # tabu ends 1.0 to 1.28 % away
    share = 100 * np.mean([0.01 * (1 + 0.1 * s + 0.01 * i) <= 0.01 for i in range(8) for s in range(3)])
    assert float(lines["tabu"]["1 %: reached / %"]) == pytest.approx(share)
    assert (lines["tabu"]["best: reached / %"], lines["tabu"]["best: median s"]) == ("0.0", "")


def test_failures_tell_why(usual):
    assert usual[1].table("failures") == [
        {
            "instance": "p0",
            "solver": "greedy",
            "seed": "3",
            "repeat": "0",
            "status": "DIED",
            "reason": "signal 9 <&>",
            "wall s": "1.5",
        }
    ]


# --- odd campaigns -------------------------------------------------------------------------------------------------


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


def only_what_must_be(of):
    kept = ("job", "status", "instance", "solver", "feasible", "objective")
    return dict.fromkeys(COLUMNS) | {key: of[key] for key in kept}


def nothing_but_names(of):
    return dict.fromkeys(COLUMNS) | {"job": of["job"], "status": "FAILED"}


def at_zero(of):
    return {"objective": 0.0 if of["solver"] == "annealing" else 0.03}


def infinite(of):
    return {"bound": -math.inf, "gap": math.inf, "seconds": math.nan if of["seed"] else 1.0, "best_known": -math.inf}


def some_seeds_fail(of):
    return nothing_feasible(of) if of["seed"] > 0 else {}


def one_fails(of):
    return nothing_feasible(of) if of["solver"] == "tabu" else {}


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (7, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "change",
    [nothing_feasible, all_failed, only_what_must_be, nothing_but_names, at_zero, infinite, some_seeds_fail, one_fails],
    ids=lambda change: change.__name__,
)
def test_every_odd_campaign_has_its_page(tmp_path, shape, change):
    instances, count, seeds = shape
    names = ("annealing", "tabu", "greedy")[:count]
    found = read(spoiled(campaign(tmp_path, instances, names, seeds), change))
    assert len(found.headings) == 9
    shown = [value.lower() for table in found.tables for cells in table for cell in cells for value in cell]
    assert not {"inf", "-inf", "nan", "−inf"} & set(shown)
    for name, lines in files(tmp_path).items():
        assert not any(value.lower() in ("inf", "-inf", "nan") for line in lines for value in line.values()), name
    assert not re.search(r"\b(inf|nan)\b", " ".join(found.words))


def test_one_solver_is_not_compared(tmp_path):
    found = read(campaign(tmp_path, 2, ["tabu"], 2))
    assert found.told("tabu ran alone")
    assert "tables/pairs.csv" not in found.files
    assert found.told("A performance profile compares solvers; there is only one.")


def test_a_lead_on_few_instances_is_not_called_shown(tmp_path):
    found = read(campaign(tmp_path, 3))
    assert found.told("That lead is not shown to be more than chance: ")
    assert {line["verdict"] for line in found.table("pairs")} == {"too few instances to tell"}


def test_where_all_tie_the_fastest_is_named(tmp_path):
    records = campaign(tmp_path, 6)
    for of in records.rows:
        of["objective"], of["seconds"] = -5.0, {"annealing": 2.0, "tabu": 0.25, "greedy": 9.0}[of["solver"]]
    records.traces.clear()
    found = read(records)
    assert found.told("all solvers reach the same objective in the median run. tabu got there first: after 0.25 s")
    assert {line["verdict"] for line in found.table("pairs")} == {"all tie"}


def test_a_best_known_of_zero_is_said(tmp_path):
    found = read(spoiled(campaign(tmp_path, 2), at_zero))
    assert found.told("p0, p1: the best known objective is 0")
    gaps = {line["solver"]: line["best gap / %"] for line in found.table("instances")}
    assert {solver: float(gap) for solver, gap in gaps.items()} == {"annealing": 0.0, "greedy": 3.0, "tabu": 3.0}


def test_evaluations_where_they_are_what_is_limited(tmp_path):
    found = read(campaign(tmp_path, 2, time_limit=None, evaluation_limit=100))
    assert "Gap over evaluations" in found.headings
    assert float(found.table("targets")[0]["best: median evaluations"]) == 100.0


def test_maximised_instances_show_their_own_values(tmp_path):
    records = campaign(tmp_path, 1, best_known=-101.0, bound=-110.0)
    for of in records.rows:
        of.update(sense="maximise", native_objective=-of["objective"])
    found = read(records)
    lines = {line["solver"]: line for line in found.table("instances")}
    line, values = lines["tabu"], [-of["objective"] for of in records.rows if of["solver"] == "tabu"]
    assert [float(line[c]) for c in ("best", "median", "worst")] == [max(values), np.median(values), min(values)]
    assert [float(line[c]) for c in ("best known", "bound", "best bound")] == [101.0, 110.0, 110.0]
    assert float(line["best gap / %"]) == pytest.approx(100 * (101 - max(values)) / 101)


def test_changed_files_and_options_are_told_apart(tmp_path):
    records = campaign(tmp_path, 2, ["tabu"], 2)
    for of in records.rows:
        of["instance_hash"] = f"{of['instance']}hash{of['seed'] if of['instance'] == 'p0' else 0}"
        of["solver_repr"] = f"Tabu(tenure={of['seed']})"
    found = read(records)
    assert [line["instance"] for line in found.table("instances")] == ["p0 (p0hash0)", "p0 (p0hash1)", "p1"]
    assert found.told("tabu: the jobs of one name ran with different options")
    assert found.told("4 of 6 combinations") is False
    assert found.told("2 of 6 combinations")


def test_a_bound_above_the_best_known_is_doubted(tmp_path):
    records = campaign(tmp_path, 2)
    records.rows[0]["bound"] = -50.0
    assert read(records).told("p0: a bound lies above the best known objective")


def test_a_beaten_best_known_is_said(tmp_path):
    assert read(campaign(tmp_path, 2, best_known=-101.0)).told("which beats the value that came with p1.")


def test_damaged_traces_do_not_keep_the_page_away(tmp_path):
    records = campaign(tmp_path, 2)

    def damaged(job):
        raise InvalidProblem("no")

    records.told = damaged
    assert read(records).told("The traces of 18 runs could not be read; they count at their end.")


def test_names_are_only_names(tmp_path):
    names = ["_hidden", "a$b$c", "<b>&'\"", "long " * 20 + "1", "long " * 20 + "2", "=1+1"]
    found = read(campaign(tmp_path, 2, names, 1))
    assert {line["solver"] for line in found.table("summary")} == set(names)
    words = {word.strip() for word in found.words}
    assert {"_hidden", "a$b$c", "<b>&'\""} <= words
    assert sum(bool(re.match(r"\d: long long", word)) for word in words) == 2


def test_many_solvers_are_told_apart(tmp_path):
    found = read(campaign(tmp_path, 2, [f"s{i}" for i in range(30)], 1))
    assert [line["solver"] for line in found.table("summary")] == [f"s{i}" for i in range(30)]


def test_sizes_make_panels(tmp_path):
    records = campaign(tmp_path, 9)
    for of in records.rows:
        of["n"] = (64, 256, 1024)[int(of["instance"][1:]) % 3]
    words = {word.strip() for word in read(records).words}
    assert {"n = 64 (3 instances)", "n = 256 (3 instances)", "n = 1024 (3 instances)"} <= words
    for of in records.rows:
        of["n"] = 90 + 3 * int(of["instance"][1:])
    words = {word.strip() for word in read(records).words}
    assert {"n = 10 to 99 (4 instances)", "n = 100 to 999 (5 instances)"} <= words


# --- size, files and failures --------------------------------------------------------------------------------------


def test_what_the_page_cannot_hold_is_in_the_files(tmp_path, monkeypatch):
    for name, most in {"PLOTTED": 2, "DETAILED": 5, "ROWS": 7, "RUNS": 4, "REASON": 10}.items():
        monkeypatch.setattr(page, name, most)
    records = campaign(tmp_path, 6)
    for of in records.rows:
        if of["instance"] == "p4" and of["solver"] == "tabu":
            of.update(all_failed(of))
    found = read(records)
    assert found.drawings == 3 + 2
    # p4 is solved by some only; of the others the spread grows with the number
    assert [title.partition(":")[0] for title in found.folded] == ["p4", "p5"]
    assert found.told("With more than 5 instances only those with a plot can be opened here")
    assert found.told("With more than 4 runs the single ones are left to the file of runs.")
    assert found.told("These are the first 7 of 18 rows; the file has them all.")
    written = files(tmp_path)
    assert found.table("instances") == written["instances"][:7]
    assert len(written["instances"]) == 18
    assert len(written["runs"]) == 54
    assert {line["reason"] for line in found.table("failures")} == {"X" * 10 + "…"}
    assert {line["reason"] for line in written["failures"]} == {"X" * 5000}


def test_traces_are_read_once_each(tmp_path):
    records, read_jobs = campaign(tmp_path, 2), []
    told = records.told
    records.told = lambda job: read_jobs.append(job) or told(job)
    write_page(records)
    assert sorted(read_jobs) == sorted(of["job"] for of in records.rows)


def test_tables_of_an_earlier_page_go_and_other_files_stay(tmp_path):
    write_page(campaign(tmp_path, 2))
    (tmp_path / "tables" / "mine.csv").write_text("1\n")
    write_page(campaign(tmp_path, 2, ["tabu"]))
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert "mine.csv" in names
    assert "pairs.csv" not in names


def test_nothing_half_written(tmp_path, monkeypatch):
    def broken(*_, **__):
        yield [1]
        raise RuntimeError("no more")

    monkeypatch.setattr(page, "_run_rows", broken)
    with pytest.raises(RuntimeError, match="no more"):
        write_page(campaign(tmp_path, 1, ["tabu"], 1), tmp_path / "new" / "page.html")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_job_yet_is_an_error(tmp_path):
    with pytest.raises(InvalidProblem, match="expected at least one finished job, got none"):
        write_page(Campaign(tmp_path, []))


def test_the_page_goes_where_it_is_asked_to(tmp_path):
    path = write_page(campaign(tmp_path / "c", 1, ["tabu"], 1), tmp_path / "p" / "x.html")
    assert path == tmp_path / "p" / "x.html"
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["tables", "x.html"]


def test_the_same_campaign_gives_the_same_page(tmp_path):
    first = write_page(campaign(tmp_path, 2)).read_bytes()
    records = campaign(tmp_path, 2)
    records.rows.sort(key=lambda of: (of["seed"], of["solver"]))
    assert write_page(records).read_bytes() == first


def test_real_runs_from_a_journal(tmp_path):
    rows = []
    with open(tmp_path / "solutions.jsonl", "wb") as solutions:
        for i, name in [(i, name) for i in range(3) for name in ("greedy", "swap-annealing", "exact")]:
            rng = np.random.default_rng(i)
            half = np.triu(rng.normal(size=(12, 12)), 1)
            problem = BinaryQuadratic(rng.normal(size=12), half + half.T, constraints=[Cardinality(5)])
            solver = solvers.get(name)
            result = solver.solve(problem, evaluation_limit=20_000)
            told = pipeline.told_of(f"r{i}", problem, result) | {"trace": [list(step) for step in result.trace]}
            line = json.dumps({"job": f"{i}{name}"} | told).encode() + b"\n"
            columns = {
                key: told[key] for key in ("objective", "bound", "gap", "feasible", "status", "seconds", "evaluations")
            }
            given = {"job": f"{i}{name}", "evaluation_limit": 20_000, "time_limit": None, "n": problem.n}
            rows.append(row(f"r{i}", name, 0, None) | columns | given | {"at": [solutions.tell(), len(line)]})
            solutions.write(line)
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(of) + "\n" for of in rows))
    found = read(Records.load(tmp_path))
    lines = {line["solver"]: line for line in found.table("summary")}
    # exact proves what is best, so nobody's gap is negative and its own is none
    assert lines["exact"]["optimal"] == "3"
    assert float(lines["exact"]["mean gap / %"]) == pytest.approx(0.0, abs=1e-7)
    assert min(float(line["mean gap / %"]) for line in lines.values()) >= 0.0
    assert "Gap over evaluations" in found.headings
    assert found.told("could not be read") is False
