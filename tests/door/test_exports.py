"""Campaigns in other people's forms: QOBLIB's rules by its own checker's words, dimod's reader, and `check`."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dimod
import numpy as np
import pytest

from prunesolve import solvers
from prunesolve.cli import main
from prunesolve.exports import QOBLIB_FIELDS, export
from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, InvalidProblem, LevelChoice
from prunesolve.problems.readers import native_objective
from prunesolve.result_files import told_of

# the header that misc/ci/check_submission.py of ZIB-AOPT/QOBLIB compares with, in its order
HEADER = (
    "Problem,Submitter,Affiliation,Date,Reference,Best Objective Value,Optimality Bound,Modeling Approach,"
    "# Decision Variables,# Binary Variables,# Integer Variables,# Continuous Variables,# Non-Zero Coefficients,"
    "Coefficients Type,Coefficients Range,Workflow,Algorithm Type,Paradigm,# Runs,# Feasible Runs,# Successful Runs,"
    "Success Threshold,Hardware Specifications,Total Runtime,Time to Solution,CPU Runtime,GPU Runtime,QPU Runtime,"
    "Other HW Runtime,Remarks"
)
WHOLE = [name for name in HEADER.split(",") if name.startswith("# ")]
NUMBERS = ["Best Objective Value", "Optimality Bound", "Success Threshold"]
NUMBERS += [name for name in HEADER.split(",") if "Runtime" in name or name == "Time to Solution"]


@dataclass
class Recorded:
    """What `prunesolve.campaigns.Records` answers."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=lambda: {"cpu": "Some CPU", "cores": 2, "machine": "here"})
    solutions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def told(self, job: str) -> dict[str, Any] | None:
        return self.solutions.get(job)

    def ran(self, instance: str, solver: str, seed: int, problem: Any, result: Any, **more: Any) -> None:
        """A job that ended; without a result where it is None."""
        job = f"{len(self.rows):016x}"
        row = dict.fromkeys(("objective", "bound", "seconds", "compile_seconds", "best_known", "instance_hash"))
        row |= {"job": job, "instance": instance, "solver": solver, "solver_repr": solver, "seed": seed, "repeat": 0}
        row |= {"status": "FAILED", "feasible": False, "wall_seconds": 9.0, "version": "0.1.0"}
        if result is not None:
            told = told_of(instance, problem, result) | {"trace": [list(step) for step in result.trace]}
            self.solutions[job] = told
            row |= {key: told[key] for key in ("instance_hash", "objective", "bound", "feasible", "status", "seconds")}
            row["solver_repr"] = result.solver
        self.rows.append(row | more)


def problem_of(seed: int, sense: str = "minimise") -> BinaryQuadratic:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(-3, 9, size=(8, 8)), 1).astype(float)
    linear = rng.integers(-9, 3, size=8)
    return BinaryQuadratic(linear, upper + upper.T, constraints=[Cardinality(4)], meta={"sense": sense})


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Two instances, three solvers, two seeds; of one instance the sense is maximise; a job failed."""
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    records = Recorded()
    for name, problem in (("deep/a.npz", problem_of(0)), ("b.npz", problem_of(1, "maximise"))):
        problem.save(name)
        for solver in ("exact", "greedy", "swap-annealing"):
            for seed in (0, 1):
                result = solvers.get(solver).solve(problem, seed=seed)
                records.ran(name, solver, seed, problem, result, best_known=-99.0)
    records.ran("b.npz", "greedy", 2, problem, None)
    return records


def summary(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def check_submission(folder: Path) -> list[Path]:
    """The rules of QOBLIB's CONTRIBUTING.md for one submission; the folders of its instances."""
    instances = sorted(path.parent for path in folder.rglob("*_summary.csv"))
    for path in instances:
        name = path.name
        text = (path / f"{name}_summary.csv").read_text()
        assert text.splitlines()[0] == HEADER
        row = summary(path / f"{name}_summary.csv")
        assert row["Problem"] == name
        for column, kind in [(c, int) for c in WHOLE] + [(c, float) for c in NUMBERS]:
            assert row[column] == "N/A" or kind(row[column]) is not None
        assert [p for p in path.iterdir() if re.fullmatch(rf"{re.escape(name)}_solution\.[^./]+", p.name)]
        for run in json.loads((path / f"{name}_objective_time_series.json").read_text()):
            times, values = ([float(entry[key]) for entry in run] for key in ("Time", "Incumbent"))
            assert run
            assert times == sorted(times)
            assert values in (sorted(values), sorted(values, reverse=True))
    return instances


def test_the_fields_are_those_of_the_checker():
    assert ",".join(QOBLIB_FIELDS) == HEADER


def test_submissions_keep_the_rules_of_the_library(campaign, tmp_path):
    done = export(campaign, "out", "qoblib", submitter="Jane Doe, John Roe", affiliation="A, B", date="2026-01-31")
    assert done.left_out == ()
    tops = sorted(path.name for path in Path("out").iterdir())
    assert tops == ["20260131_exact_Doe", "20260131_greedy_Doe", "20260131_swap-annealing_Doe"]
    for top in tops:
        assert [path.name for path in check_submission(tmp_path / "out" / top)] == ["b.npz", "deep_a.npz"]
    assert sorted(done.written) == sorted(str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file())


@pytest.mark.parametrize(("name", "seed", "sense"), [("deep_a.npz", 0, "minimise"), ("b.npz", 1, "maximise")])
def test_a_submission_says_what_is_so(campaign, name, seed, sense):
    export(campaign, "out", "qoblib", submitter="Jane Doe", threshold=0.1, date="2026-01-31")
    problem, path = problem_of(seed, sense), Path("out/20260131_exact_Doe") / name
    row = summary(path / f"{name}_summary.csv")
    lines = (path / f"{name}_solution.sol").read_text().split()
    assert lines[::2] == [f"x#{i}" for i in range(1, 9)]
    x = np.array(lines[1::2], dtype=int).astype(bool)
    assert problem.is_feasible(x)
    best = float(row["Best Objective Value"])
    assert best == native_objective(problem, problem.value(x))
    assert row["Optimality Bound"] == row["Best Objective Value"]
    assert [row[c] for c in ("# Runs", "# Feasible Runs", "# Successful Runs", "Success Threshold")] == [
        "2",
        "2",
        "2",
        "0.1",
    ]
    assert row["# Non-Zero Coefficients"] == str(
        np.count_nonzero(problem.linear) + np.count_nonzero(problem.quadratic) // 2 + 8
    )
    own = problem.linear if sense == "minimise" else -problem.linear
    pairs = problem.quadratic if sense == "minimise" else -problem.quadratic
    low, high = min(own.min(), pairs.min(), 1), max(own.max(), pairs.max(), 1)
    assert row["Coefficients Range"] == f"{{{low:g}; {high:g}}}"
    assert (row["Coefficients Type"], row["Algorithm Type"], row["Paradigm"]) == (
        "Integer",
        "Deterministic",
        "Classical",
    )
    assert row["Hardware Specifications"] == "Some CPU; 2 cores"
    assert "best known value " + str(99.0 if sense == "maximise" else -99.0) in row["Remarks"]
    series = json.loads((path / f"{name}_objective_time_series.json").read_text())
    assert [run[-1]["Incumbent"] for run in series] == [best, best]


def test_runs_are_counted_and_times_are_means(tmp_path):
    problem = BinaryQuadratic([-10.0, -9.5, -5.0, 0.0], constraints=[Cardinality(1)])
    records, result = Recorded(), solvers.get("greedy").solve(problem)
    for seed, kept in enumerate([0, 1, 2, None]):
        more = {"wall_seconds": 2.0 + seed, "compile_seconds": 1.0, "seconds": 0.5, "status": "FINISHED"}
        records.ran("x.npz", "s", seed, problem, None if kept is None else result, **more)
        if kept is not None:
            value = problem.linear[kept]
            records.rows[-1]["objective"] = value
            trace = [[0.1, 1, 0.0, None], [0.2 + seed / 10, 2, value, None], [0.45, 3, value, -11.0]]
            records.solutions[records.rows[-1]["job"]] |= {"solution": [kept], "objective": value, "trace": trace}
    records.rows[1]["bound"], records.rows[2]["bound"] = -12.5, -11.0
    for threshold, successful in ((0.0, "1"), (0.05, "2"), (0.5, "3")):
        place = tmp_path / str(threshold)
        about = {"threshold": threshold, "date": "2026-01-31", "remarks": "All by hand"}
        export(records, place, "qoblib", load=lambda _: problem, **about)
        row = summary(place / "20260131_s_unnamed" / "x.npz" / "x.npz_summary.csv")
        assert row["# Successful Runs"] == successful
    assert (row["# Runs"], row["# Feasible Runs"], row["Best Objective Value"]) == ("4", "3", "-10.0")
    assert float(row["Total Runtime"]) == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert float(row["CPU Runtime"]) == 0.5
    assert float(row["Time to Solution"]) == pytest.approx((0.2 + 0.3 + 0.4) / 3)
    assert (row["Optimality Bound"], row["GPU Runtime"]) == ("-11.0", "N/A")
    assert row["Algorithm Type"] == "Stochastic"
    assert row["Remarks"].startswith("All by hand; ")
    assert "seeds 0, 1, 2, 3" in row["Remarks"]


def test_runs_without_a_feasible_solution_claim_none(tmp_path):
    problem = BinaryQuadratic([-1.0, -2.0], constraints=[Cardinality(1), Budget([1.0, 1.0], 1.0)])
    records = Recorded()
    result = solvers.get("exact").solve(problem)
    records.ran("x", "s", 0, problem, result, feasible=False, status="NO_FEASIBLE_FOUND")
    records.solutions[records.rows[0]["job"]] |= {"solution": [0, 1], "kept": 2, "trace": []}
    records.ran("y", "s", 0, problem, None)
    done = export(records, tmp_path / "out", "qoblib", date="2026-01-31", load=lambda _: problem)
    assert done.left_out == ("y, s: none of 1 runs brought a solution",)
    (path,) = check_submission(tmp_path / "out")
    row = summary(path / "x_summary.csv")
    assert (row["# Feasible Runs"], row["# Successful Runs"], row["Best Objective Value"]) == ("0", "0", "N/A")
    assert (path / "x_solution.sol").read_text() == "x#1 1\nx#2 1\n"
    assert json.loads((path / "x_objective_time_series.json").read_text()) == []


def test_sample_sets_are_read_back_by_dimod(campaign):
    done = export(campaign, "out", "sampleset")
    assert done.written == ("b.npz.json", "deep_a.npz.json")
    for name, problem in (("deep_a.npz", problem_of(0)), ("b.npz", problem_of(1, "maximise"))):
        found = dimod.SampleSet.from_serializable(json.loads(Path(f"out/{name}.json").read_text()))
        assert len(found) == 6
        np.testing.assert_allclose(found.record.energy, problem.to_bqm().energies(found))
        assert found.record.is_feasible.all()
        assert found.info["instance_hash"] == problem.hash


def test_results_hold_before_check(campaign, capsys):
    done = export(campaign, "out", "results")
    assert len(done.written) == 12
    assert done.left_out == (f"job {campaign.rows[-1]['job']}: FAILED, no result",)
    assert "deep_a.npz-swap-annealing-seed1-0.json" in done.written
    for instance, name in (("deep/a.npz", "deep_a.npz-greedy-seed0-0"), ("b.npz", "b.npz-swap-annealing-seed1-0")):
        with pytest.raises(SystemExit) as ended:
            main(["check", instance, f"out/{name}.json"])
        assert ended.value.code in (0, None)
        assert "holds" in capsys.readouterr().out


def test_single_jobs(campaign):
    wanted = [campaign.rows[3]["job"], campaign.rows[5]["job"]]
    assert export(campaign, "one", "results", job=wanted[0]).written == ("deep_a.npz-greedy-seed1-0.json",)
    assert len(export(campaign, "two", "results", job=wanted).written) == 2
    with pytest.raises(InvalidProblem, match="unknown finished job 'zz'"):
        export(campaign, "three", "results", job="zz")


@pytest.mark.parametrize("form", ["qoblib", "sampleset", "results"])
def test_names_are_safe_and_never_the_same(form, tmp_path):
    problem, records = problem_of(0), Recorded()
    result = solvers.get("greedy").solve(problem)
    for name in ("../a:1", "a/1", "a_1", "A_1", "", "library:x"):
        for label in ("s/1", "s:1"):
            records.ran(name, label, 0, problem, result)
    written = export(records, tmp_path / "out", form, load=lambda _: problem).written
    assert len(written) == {"qoblib": 36, "sampleset": 6, "results": 12}[form]
    assert len({name.casefold() for name in written}) == len(written)
    for name in written:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", name)
        assert ".." not in name
    assert all(tmp_path / "out" in path.parents for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", ["qoblib", "sampleset"])
def test_instances_that_are_gone_changed_or_of_another_kind_are_left_out(form, campaign):
    problem_of(7).save("b.npz")
    done = export(campaign, "out", form)
    (reason,) = done.left_out
    assert re.match(r"b\.npz: is [0-9a-f]{16} now, was", reason)
    Path("b.npz").unlink()
    assert "no such file" in export(campaign, "gone", form).left_out[0]
    choice = LevelChoice([[0.0, 1.0]], [[0.0, 1.0]], 1.0)
    with pytest.raises(InvalidProblem, match="nothing to export.*expected a BinaryQuadratic, got a LevelChoice"):
        export(campaign, "none", form, load=lambda _: choice)
    assert not Path("none").exists()


def test_nothing_is_written_where_something_is_wrong(campaign):
    Path("out").mkdir()
    Path("out/other.txt").write_text("kept")
    with pytest.raises(InvalidProblem, match="unknown form of an export 'qoblab': did you mean 'qoblib'"):
        export(campaign, "out", "qoblab")
    with pytest.raises(InvalidProblem, match="unknown field of the form qoblib 'sumbitter'"):
        export(campaign, "out", "qoblib", sumbitter="x")
    with pytest.raises(InvalidProblem, match="unknown field of the form results"):
        export(campaign, "out", "results", submitter="x")
    with pytest.raises(InvalidProblem, match="YYYY-MM-DD"):
        export(campaign, "out", "qoblib", date="tomorrow")
    with pytest.raises(InvalidProblem, match="threshold"):
        export(campaign, "out", "qoblib", threshold=-1.0)
    with pytest.raises(InvalidProblem, match="no job has finished"):
        export(Recorded(), "out", "results")
    assert [path.name for path in Path("out").iterdir()] == ["other.txt"]
    export(campaign, "out", "sampleset")
    with pytest.raises(InvalidProblem, match="is there already"):
        export(campaign, "out", "sampleset")
    assert sorted(path.name for path in Path("out").iterdir()) == ["b.npz.json", "deep_a.npz.json", "other.txt"]
