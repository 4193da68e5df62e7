"""Every odd campaign has its page, and what is odd about it is said."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from prunesolve.campaigns.records import COLUMNS
from prunesolve.problems import InvalidProblem

from .pages import all_failed, campaign, files, nothing_feasible, read, spoiled


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
