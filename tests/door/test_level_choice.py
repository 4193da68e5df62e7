"""Levels through files and the command line: encode, info, solve, check, apply and prune."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import prunesolve as ps
from prunesolve.claims import examine
from prunesolve.formulations.testing import example_statistics
from prunesolve.result_files import told_of

from .networks import examples, macs, small

CHAIN = ("--formulation", "level-choice", "--params", "0.6")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def choice(folder):
    """The made-up chain of the formulations' battery, encoded through files."""
    stats = example_statistics()
    stats.save(folder / "chain.npz")
    return ps.formulations.KeepCounts().encode(stats, params=0.6)


def least(choice):
    rows = np.array(list(itertools.product(*map(range, choice.sizes))))
    return choice.value(rows)[choice.is_feasible(rows)].min()


def test_encode_info_solve_check(command, folder, choice):
    told = command("encode", "chain.npz", *CHAIN, "-o", "i.npz")
    assert (told.code, told.err) == (0, "")
    described = f"LevelChoice, 3 layers of 3 to 4 levels, chain costs, sum up to {choice.budget:g}, hash {choice.hash}"
    assert told.out == f"i.npz: {described}\n"
    assert command("info", "i.npz").out == f"{described}\n"
    assert ps.load("i.npz").hash == choice.hash
    told = command("solve", "i.npz", "--out", "result.json", "--json")
    printed = json.loads(told.out)
    assert told.code == 0
    assert printed["status"] == "OPTIMAL"
    assert printed["objective"] == pytest.approx(least(choice))
    assert printed["details"]["picked"].startswith("dynamic-programming")
    assert (printed["kept"], printed["n"], len(printed["solution"])) == (None, 3, 3)
    selection = ps.formulations.KeepCounts().decode(example_statistics(), printed["solution"])
    assert printed["kept_units"] == selection.kept
    told = command("check", "i.npz", "result.json")
    assert told.code == 0
    assert told.out.startswith("holds: objective ")
    assert " spent, feasible" in told.out


def test_a_front_goes_through_files_too(command, folder, choice):
    command("encode", "chain.npz", *CHAIN, "-o", "i.npz")
    told = command("solve", "i.npz", "--solver", "dynamic-programming", "--option", "front=True", "--out", "front.json")
    assert told.code == 0
    assert "points of error, spent, proved" in told.out
    front = ps.load("front.json").front
    rows = np.array(list(itertools.product(*map(range, choice.sizes))))
    rows = rows[choice.is_feasible(rows)]
    points = {(round(float(e), 9), round(float(c), 9)) for e, c in zip(choice.value(rows), choice.spent(rows))}  # noqa: B905
    best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {(round(e, 9), round(c, 9)) for e, c in front.objectives.tolist()} == best
    assert command("check", "i.npz", "front.json").code == 0


def test_a_general_pair_is_for_the_searches(command, folder):
    ps.LevelChoice([[1, 0]] * 3, [[1, 2]] * 3, 5.0, {(0, 2): np.ones((2, 2))}).save(folder / "pairs.npz")
    told = command("solve", "pairs.npz", "--solver", "dynamic-programming")
    assert (told.code, told.out) == (2, "")
    assert "layers 0 and 2; level-switch and coefficient-search take any" in told.err


def test_apply_and_prune_remove_what_the_levels_say(command, folder):
    ps.measure(small(), [examples()], layers=["inner"]).save(folder / "stats.npz")
    ask = ("--formulation", "level-choice", "--keep", "0.5", "-o", "i.npz")
    assert command("encode", "stats.npz", *ask).code == 0
    assert command("solve", "i.npz", "--out", "result.json").code == 0
    assert command("apply", "net_factory:trained", "result.json", "-o", "smaller").code == 0
    stats, choice = ps.load("stats.npz"), ps.load("i.npz")
    selection = ps.formulations.KeepCounts().decode(stats, ps.solve(choice).solution)
    masks, read = ps.masks(selection, small()), ps.load("smaller/masks.safetensors")
    assert all(torch.equal(read[path], masks[path]) for path in masks)
    told = command(
        "prune", "net_factory:trained", "--data", "data.npz", "--formulation", "level-choice", "--macs", "0.7",
        "--layers", "inner", "--out", "pruned",
    )  # fmt: skip
    assert told.code == 0
    inputs, _ = examples(4)
    assert macs(ps.load("pruned/model.pt2"), inputs) <= 0.7 * macs(small(), inputs)
    assert command("check", "pruned/instance.npz", "pruned/result.json").code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": 0.0}, "claims objective 0, recomputed"),
        ({"feasible": False}, "claims to be infeasible"),
        ({"bound": 1e9}, "claims bound 1000000000, above its objective"),
        ({"kept_units": {"layer0": [0]}}, "claims kept_units that are not those of its solution"),
        ({"solution": [2, 2, 2]}, "claims objective"),
        ({"instance_hash": "0" * 16}, "made for instance"),
        ({"front": {"solutions": [[0, 0, 0]], "objectives": [[0.0, 0.0]]}}, "claims a front whose errors or costs"),
    ],
)
def test_each_wrong_claim_is_found(choice, change, said):
    honest = told_of("i.npz", choice, ps.solve(choice))
    assert not examine(choice, honest).faults
    assert any(said in fault for fault in examine(choice, honest | change).faults)


def test_a_claimed_front_with_dominated_points_is_found(choice):
    honest = told_of("i.npz", choice, ps.solve(choice, "dynamic-programming", front=True))
    assert not examine(choice, honest).faults
    rows = np.array(honest["front"]["solutions"] + [[0, 0, 1], [0, 1, 0]])
    values = np.stack([choice.value(rows), choice.spent(rows)], axis=1)
    spoiled = honest | {"front": {"solutions": rows.tolist(), "objectives": values.tolist()}}
    assert any("of its points are dominated" in fault for fault in examine(choice, spoiled).faults)


def test_levels_of_another_number_are_no_solution(choice):
    honest = told_of("i.npz", choice, ps.solve(choice))
    for wrong in ({"solution": [0, 0]}, {"solution": [0, 0, 9]}, {"solution": None}):
        with pytest.raises(ps.InvalidProblem, match="solution"):
            examine(choice, honest | wrong)
