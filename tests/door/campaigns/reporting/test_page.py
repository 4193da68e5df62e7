"""A campaign's page: whole, well-formed, self-contained; every table is a file too."""

from __future__ import annotations

import numpy as np
import pytest

from prunesolve.campaigns import comparison

from .pages import campaign, files, read, row


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    records = campaign(tmp_path_factory.mktemp("campaign"))
    failure = {"status": "DIED", "reason": "signal 9 <&>", "seconds": None, "evaluations": None}
    records.rows.append(row("p0", "greedy", 3, None, **failure))
    return records, read(records)


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


def test_headings_to_be_opened_have_the_numbers_of_the_tables(usual):
    _, found = usual
    at = found.files["tables/instances.csv"]
    column = found.heads[at].index("best known")
    shown = {cells[0][0]: cells[column][1] for cells in found.tables[at]}
    assert shown["p0"] == "−100"
    told = {title.partition(": best known ")[0]: title.partition(": best known ")[2] for title in found.folded}
    assert {instance: rest.partition(", ")[0] for instance, rest in told.items()} == shown


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
