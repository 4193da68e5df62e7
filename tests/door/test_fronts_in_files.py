"""Several objectives on the command line: encode, solve, check, apply, prune; what is wrong ends in one line."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

import prunesolve as ps
from prunesolve.formulations import MultiObjectiveSelection
from prunesolve.formulations.testing import example_statistics

from .networks import examples, small
from .test_cli import INTERRUPTING, KEYS, fresh

SMALL = ("--solver", "nsga2", "--option", "population=20", "--option", "generations=6")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def instance(folder):
    MultiObjectiveSelection().encode(example_statistics(), params=0.9).save(folder / "i.npz")
    return "i.npz"


def dominated(values):
    """(p,) whether another row is no worse in all and better in one."""
    return [bool(((values <= v).all(axis=1) & (values < v).any(axis=1)).any()) for v in values]


def test_encode_without_a_budget_and_with_upper_limits(command, folder):
    example_statistics().save(folder / "stats.npz")
    told = command(
        "encode", "stats.npz", "--formulation", "multi-objective", "--option", "costs=params,macs", "-o", "i.npz"
    )
    assert (told.code, told.err) == (0, "")
    assert "objectives: reconstruction, params, macs" in told.out
    made = MultiObjectiveSelection(costs=("params", "macs")).encode(example_statistics())
    assert ps.load("i.npz").hash == made.hash
    told = command("encode", "stats.npz", "--formulation", "multi-objective", "--params", "1", "-o", "j.npz")
    assert told.code == 2
    assert "cannot be met" in told.err
    assert not (folder / "j.npz").exists()


def test_solve_prints_the_front_and_check_recomputes_it(command, folder, instance):
    told = command("solve", instance, *SMALL, "--json", "--out", "r.json")
    assert (told.code, told.err) == (0, "")
    printed, problem = json.loads(told.out), ps.load(instance)
    assert set(printed) >= KEYS | {"front", "units"}
    front = printed["front"]
    assert front["names"] == ["reconstruction", "params"]
    rows = np.array([np.isin(np.arange(problem.n), kept) for kept in front["solutions"]])
    values = problem.values(rows)
    np.testing.assert_allclose(front["objectives"], values)
    assert not any(dominated(values))
    assert printed["solution"] == front["solutions"][front["knee"]]
    assert printed["objective"] == pytest.approx(-front["hypervolume"])
    assert (values <= front["reference"]).any()
    assert printed["kept_units"].keys() == {"layer0", "layer1", "layer2"}
    checked = command("check", instance, "r.json")
    assert (checked.code, checked.out.split(":")[0]) == (0, "holds")
    result = ps.load("r.json")
    np.testing.assert_array_equal(result.front.solutions, rows)


def test_solve_by_itself_takes_nsga2_and_lists_the_points(command, instance):
    told = command("solve", instance, "--evaluation-limit", "60")
    assert told.code == 0
    lines = told.out.splitlines()
    assert "picked      nsga2: 2 objectives" in lines
    head = next(line for line in lines if line.startswith("front"))
    assert "of reconstruction, params; hypervolume" in head
    assert sum(line.startswith("  ") and ", " in line for line in lines) == int(head.split()[1])
    assert sum("knee" in line for line in lines) == 1


def spoiled(told, **changes):
    return told | {"front": told["front"] | changes}


def test_check_finds_what_is_not_as_claimed(command, folder, instance):
    command("solve", instance, *SMALL, "--out", "r.json")
    told = json.loads((folder / "r.json").read_text())
    front = told["front"]
    better = [[error - 0.1, cost] for error, cost in front["objectives"]]
    lies = {
        "recomputed": spoiled(told, objectives=better),
        "dominated": spoiled(
            told, solutions=[*front["solutions"], [0, 4, 5, 6, 7, 8, 9]], objectives=[*front["objectives"], [0.9, 0.9]]
        ),
        "minus the hypervolume is": told | {"objective": -1e9},
        "claims the knee at point": spoiled(told, knee=(front["knee"] + 1) % len(front["solutions"])),
        "claims to be infeasible": told | {"feasible": False},
        "made for instance": told | {"instance_hash": "0123456789abcdef"},
    }
    for words, lie in lies.items():
        (folder / "lie.json").write_text(json.dumps(lie))
        checked = command("check", instance, "lie.json")
        assert checked.code == 1, words
        assert words in checked.out


def test_check_needs_a_front(command, folder, instance):
    command("solve", instance, *SMALL, "--out", "r.json")
    told = json.loads((folder / "r.json").read_text())
    for spoil, words in (
        ({k: v for k, v in told.items() if k != "front"}, "expected a front, got none"),
        (spoiled(told, reference=None), "expected a reference of 2 numbers"),
        (spoiled(told, solutions=[[0, 99]], objectives=[[0.0, 0.0]]), "index 99 is out of bounds"),
    ):
        (folder / "bad.json").write_text(json.dumps(spoil))
        checked = command("check", instance, "bad.json")
        assert (checked.code, len(checked.err.splitlines())) == (2, 1)
        assert words in checked.err


def test_apply_takes_a_point_of_the_front(command, folder):
    stats = ps.measure(small(), [examples()])
    MultiObjectiveSelection().encode(stats).save(folder / "i.npz")
    command("solve", "i.npz", *SMALL, "--out", "r.json")
    told = json.loads((folder / "r.json").read_text())
    for index in (None, 0, -1):
        place = told["front"]["knee"] if index is None else index
        flag = () if index is None else ("--index", index)
        assert command("apply", "net_factory:trained", "r.json", "-o", "out", *flag).code == 0
        removed = ps.load("out/model.pt2")
        assert sum(p.numel() for p in removed.parameters()) == told["front"]["objectives"][place][1]
    wrong = command("apply", "net_factory:trained", "r.json", "-o", "out", "--index", "99")
    assert wrong.code == 2
    assert "--index: expected a point of the front" in wrong.err


def test_prune_writes_the_front_beside_the_picked_model(command, folder):
    told = command(
        "prune", "net_factory:trained", "--data", "data.npz", "--formulation", "multi-objective", "--params", "0.6",
        "--evaluations", "40", "--refit", "none", "--out", "out",
    )  # fmt: skip
    assert (told.code, told.err) == (0, "")
    assert {p.name for p in (folder / "out").iterdir()} >= {
        "front.json", "front.svg", "hypervolume.svg", "counts.svg", "report.html", "masks.safetensors",
        "model.safetensors", "widths.json", "instance.npz", "result.json", "report.json",
    }  # fmt: skip
    report = ps.load("out/report.json")
    assert report["achieved"]["params"][0] <= 0.6 * report["achieved"]["params"][1]
    assert told.out.endswith(f"{report}\n")
    assert command("check", "out/instance.npz", "out/result.json").code == 0
    front = json.loads((folder / "out" / "front.json").read_text())
    point = front["points"][report["solver"]["front"]["point"]]
    assert point["costs"]["params"] == report["achieved"]["params"][0]
    again = command(
        "apply", "net_factory:trained", "out/front.json", "--index", report["solver"]["front"]["point"], "-o", "again"
    )
    assert again.code == 0
    one, other = ps.load("out/masks.safetensors"), ps.load("again/masks.safetensors")
    assert all(torch.equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("solve", "i.npz", "--solver", "nsga"), "did you mean 'nsga2'"),
        (("solve", "i.npz", "--solver", "greedy"), "greedy takes BinaryQuadratic, got MultiObjective"),
        (("solve", "i.npz", "--keep", "3"), "--keep: a MultiObjective has no count"),
        (("solve", "i.npz", "--solver", "nsga2", "--option", "mutation=variance"), "looks at activations"),
        (("convert", "i.npz", "i.coo"), "only .npz holds a MultiObjective"),
        (("solve", "cut.npz"), "truncated"),
        (
            ("prune", "net_factory:trained", "--data", "data.npz", "--formulation", "multi-objective",
             "--objectives", "loss,parms", "--out", "out"),
            "did you mean 'params'",
        ),
        (
            ("prune", "net_factory:trained", "--data", "data.npz", "--formulation", "multi-objective",
             "--solver", "swap-annealing", "--out", "out"),
            "swap-annealing takes BinaryQuadratic, got MultiObjective",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else part[-1],
)  # fmt: skip
def test_bad_input_ends_in_one_line(command, folder, instance, arguments, words):
    (folder / "cut.npz").write_bytes((folder / "i.npz").read_bytes()[:900])
    told = command(*arguments)
    assert (told.code, told.out, len(told.err.splitlines())) == (2, "", 1)
    assert words in told.err
    assert not (folder / "out").exists()


def test_info_says_what_it_is(command, instance):
    told = command("info", instance)
    assert told.out.startswith("MultiObjective, n = 10, objectives: reconstruction, params, constraints: GroupBounds")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_prints_the_front_so_far(folder):
    stats = ps.measure(small(), [examples()])
    MultiObjectiveSelection(costs=("params", "macs")).encode(stats).save(folder / "i.npz")
    arguments = ["solve", "i.npz", *SMALL[:2], "--option", "generations=1000000", "--json"]
    told = fresh(INTERRUPTING.format(arguments=arguments), folder, timeout=120)
    assert told.returncode == 130, told.stderr
    printed = json.loads(told.stdout)
    assert printed["status"] == "STOPPED"
    assert len(printed["front"]["solutions"]) >= 1
    assert told.stderr.splitlines()[-1] == "prunesolve: interrupted"
    assert "Traceback" not in told.stderr
