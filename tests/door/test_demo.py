"""The demo: what it writes, that its rows tell the truth, and that nothing but the race depends on time."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunesolve import demo, solvers
from prunesolve.demo import DemoResult, Method, Row, render, run_demo
from prunesolve.demo_networks import demo_task
from prunesolve.formulations import L1Qubo, Reconstruction
from prunesolve.problems import BinaryQuadratic, Cardinality, Group, InvalidProblem, Statistics

FEW = (
    Method("random", None),
    Method("L1", L1Qubo(beta=0.0)),
    Method("reconstruction", Reconstruction(), demo.SEARCHES),
)


def row(method="L1", solver="greedy", removed=0.2, objective=1.0, masked=90.0):
    kept = {"conv1": (3, 4), "conv2": (5, 8)}
    return Row(method, solver, removed, 99.0, masked, 95.0, 8, 1234, 56789, objective, 0.01, 1e-7, kept)


@pytest.fixture
def told(tmp_path):
    problem = BinaryQuadratic(-np.arange(1.0, 7.0), constraints=[Cardinality(3)])
    rows = (
        row("random", objective=None, masked=11.0),
        row("reconstruction", "swap-annealing", objective=0.5),
        row("reconstruction", "swap-tabu", objective=0.25, masked=80.0),
        row("reconstruction", "greedy", objective=0.25, masked=85.0),
        row("random", removed=0.5, objective=None),
        row("reconstruction", removed=0.5, objective=2.0),
    )
    return DemoResult(
        task=demo_task("classify"),
        rows=rows,
        dense=99.0,
        references={"dense": 99.0},
        units=12,
        params=5000,
        macs=90000,
        instance="reconstruction, 50 % removed",
        anytime={"greedy": solvers.get("greedy").solve(problem)},
        seconds=1.0,
        report=tmp_path / "report.html",
        table=tmp_path / "table.csv",
    )


def test_best_is_the_least_objective_not_the_best_metric(told):
    assert [(r.method, r.removed, r.solver) for r in told.best] == [
        ("random", 0.2, "greedy"),
        ("reconstruction", 0.2, "swap-tabu"),
        ("random", 0.5, "greedy"),
        ("reconstruction", 0.5, "greedy"),
    ]


def test_table_fits_a_terminal_of_80_columns(told):
    from rich.console import Console

    wide = replace(told, rows=(*told.rows, row("reconstruction", "simulated-annealing", objective=-0.00123456)))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(wide))
    text = captured.get()
    assert "…" not in text
    assert sum("1.23k" in line and "56.8k" in line for line in text.splitlines()) == len(wide.rows)
    assert text.count("units kept") == 2
    for shown in (
        "masked",
        "+ refit",
        "MACs",
        "objective",
        "simulated-annealing",
        "swap-tabu",
        "11.00",
        "50 % removed",
    ):
        assert shown in text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (1234, "1.23k"), (54472, "54.5k"), (161_280_000, "161M"), (2e9, "2.00G")]
)
def test_short_numbers(number, text):
    assert demo._short(number) == text


def test_page_and_table_hold_the_rows(told):
    demo._write_table(told)
    demo._write_page(told)
    with told.table.open() as file:
        read = list(csv.DictReader(file))
    assert [(r["method"], float(r["masked"]), int(r["macs"])) for r in read] == [
        (r.method, r.masked, r.macs) for r in told.rows
    ]
    assert [r["objective"] for r in read][:2] == ["", "0.5"]
    page = told.report.read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert page.count("<tr>") == 2 + len(told.rows) + len(told.anytime)


def test_drawn_units_meet_the_budget_and_leave_no_layer_empty():
    groups = [Group(f"conv{g}", 6, [(f"conv{g}", "out", np.arange(6)[:, None])]) for g in range(3)]
    stats = Statistics(groups, {"l1": np.r_[np.full(12, 100.0), np.ones(6)]})
    kept = set()
    for seed in range(4):
        problem = Method("random", None).problem(stats, 0.8, seed)
        x = solvers.get("greedy").solve(problem).solution
        assert x.sum() == 4
        assert all(x[g * 6 : g * 6 + 6].any() for g in range(3))
        kept.add(x.tobytes())
    assert len(kept) > 1


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InvalidProblem, match="expected a folder"):
        run_demo("classify", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_unknown_task_writes_nothing(tmp_path):
    with pytest.raises(InvalidProblem, match="denoise"):
        run_demo("denoising", tmp_path / "out")
    assert list(tmp_path.rglob("*.*")) == []


def denoiser_parameters(counts: dict[str, tuple[int, int]]) -> int:
    """Parameters of a PhotoDenoiser of these widths, layer by layer."""
    widths = [counts[name][0] for name in sorted(counts, key=lambda path: int(path.split(".")[1]))]
    inner = sum(9 * a * b + 2 * b for a, b in zip(widths, widths[1:], strict=False))
    return 9 * 3 * widths[0] + widths[0] + inner + 9 * widths[-1] * 3 + 3


def without_time(rows: tuple[Row, ...]) -> list[Row]:
    return [r._replace(seconds=0.0) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "denoise"])
def test_demo_end_to_end(task, tmp_path):
    result = run_demo(task, tmp_path, methods=FEW, removed=(0.36,), race_seconds=0.2)
    assert len(result.rows) == 1 + 1 + len(demo.SEARCHES)
    for r in result.rows:
        assert r.kept == int(np.floor((1 - r.removed) * result.units + 0.5))
        assert r.kept == sum(kept for kept, _ in r.counts.values())
        assert r.difference < 1e-4
        assert r.refitted > r.masked
        assert r.params < result.params
        assert r.macs < result.macs
        if task == "denoise":
            assert r.params == denoiser_parameters(r.counts)
    assert len(result.anytime) >= 3
    assert list(result.references) == (["dense", "noisy input"] if task == "denoise" else ["dense"])
    assert all(run.feasible for run in result.anytime.values())
    assert result.report.stat().st_size > 20_000
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["metric.svg", "report.html", "table.csv"]


@pytest.mark.slow
def test_same_seed_same_rows(tmp_path):
    once, twice = (
        run_demo("classify", tmp_path / name, seed=3, methods=FEW[::2], removed=(0.5,), race_seconds=0.05)
        for name in ("a", "b")
    )
    assert without_time(once.rows) == without_time(twice.rows)
    assert replace(once, anytime={}, rows=(), seconds=0.0, report=Path(), table=Path()) == replace(
        twice, anytime={}, rows=(), seconds=0.0, report=Path(), table=Path()
    )
