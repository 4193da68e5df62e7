"""What the page cannot hold, where it and its files go, and what is left when something fails."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prunesolve import result_files, solvers
from prunesolve.campaigns.records import Records
from prunesolve.campaigns.reporting import drilldown, failures, page, write_page
from prunesolve.campaigns.reporting import files as page_files
from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem

from .pages import Campaign, all_failed, campaign, files, read, row


def test_what_the_page_cannot_hold_is_in_the_files(tmp_path, monkeypatch):
    for name, most in {"PLOTTED": 2, "DETAILED": 5, "RUNS": 4}.items():
        monkeypatch.setattr(drilldown, name, most)
    monkeypatch.setattr(page_files, "ROWS", 7)
    monkeypatch.setattr(failures, "REASON", 10)
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

    monkeypatch.setattr(page, "_runs", broken)
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
            told = result_files.told_of(f"r{i}", problem, result) | {"trace": [list(step) for step in result.trace]}
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
