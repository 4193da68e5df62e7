"""Bad input: one typed error that says what was expected, what came and what to do; nothing half-written."""

from __future__ import annotations

import functools
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import prunesolve as ps

from .networks import examples, small

NAN, INF = float("nan"), float("inf")
EYE = np.eye(3)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def problem():
    rng = np.random.default_rng(5)
    couplings = np.triu(rng.normal(size=(6, 6)), 1)
    return ps.BinaryQuadratic(rng.normal(size=6), couplings + couplings.T, constraints=[ps.Cardinality(3)])


@functools.cache
def stats():
    return ps.measure(small(), [examples()])


def pruning(model=None, data=None, **options):
    options = {"keep": 0.5, "solver": "greedy"} | options
    options = {name: value for name, value in options.items() if value is not ...}
    return lambda: ps.prune(model or small(), [examples()] if data is None else data, **options)


def solving(**options):
    return lambda: ps.solve(problem(), **({"solver": "greedy"} | options))


def raising(*_):
    raise RuntimeError("the user's own bug")


class Untraceable(nn.Module):
    """Reads its data as numbers in the middle, and expects three channels there."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3))

    def forward(self, x):
        return self.body(self.stem(x)).mean(dim=(2, 3))


# From Python

INVALID = {
    # arrays
    "nan in linear": (lambda: ps.BinaryQuadratic([1.0, NAN]), "linear.*(finite|NaN)"),
    "inf in quadratic": (lambda: ps.BinaryQuadratic([1.0, 1], [[0, INF], [INF, 0]]), "quadratic.*(finite|inf)"),
    "asymmetric": (lambda: ps.BinaryQuadratic([1.0, 1], [[0, 1.0], [2.0, 0]]), "symmetric"),
    "ill-shaped": (lambda: ps.BinaryQuadratic([1.0, 1], EYE - EYE), r"\(2, 2\).*\(3, 3\)"),
    "not square": (lambda: ps.BinaryQuadratic([1.0, 1], np.zeros((2, 3))), "(square|shape|\\(2, 3\\))"),
    "diagonal in quadratic": (lambda: ps.BinaryQuadratic([1.0] * 3, EYE), "diagonal"),
    "text for numbers": (lambda: ps.BinaryQuadratic(["a", "b"]), "linear.*numbers"),
    "nan importance": (lambda: ps.select([1.0, NAN], keep=1), "importance"),
    "select asks nothing": (lambda: ps.select([1.0, 2.0]), "keep, costs with budget or groups"),
    "costs without budget": (lambda: ps.select([1.0, 2.0], costs=[1, 1]), "costs needs budget"),
    # constraints
    "k > n": (lambda: ps.BinaryQuadratic([1.0], constraints=[ps.Cardinality(2)]), "2.*1"),
    "negative k": (lambda: ps.Cardinality(-1), "-1"),
    "two cardinalities": (
        lambda: ps.BinaryQuadratic([1.0, 2], constraints=[ps.Cardinality(1), ps.Cardinality(2)]),
        "contradict",
    ),
    "low above high": (lambda: ps.GroupBounds([0, 0], [2], [1]), "asks for 2 to 1"),
    "low above size": (
        lambda: ps.BinaryQuadratic([1.0, 1], constraints=[ps.GroupBounds([0, 0], [3], [3])]),
        "(3|size)",
    ),
    "bounds against cardinality": (
        lambda: ps.BinaryQuadratic(
            [1.0] * 4, constraints=[ps.GroupBounds([0, 0, 1, 1], [1, 1], [1, 1]), ps.Cardinality(3)]
        ),
        "2",
    ),
    "budget below the cheapest k": (
        lambda: ps.BinaryQuadratic([1.0] * 3, constraints=[ps.Cardinality(2), ps.Budget([3, 4, 5], 6)]),
        "7",
    ),
    "negative budget": (lambda: ps.Budget([1.0], -1), "-1"),
    # unknown names
    "solver": (solving(solver="gredy"), "did you mean 'greedy'"),
    "option": (solving(solver="swap-annealing", sweps=3), "did you mean 'sweeps'"),
    "option out of range": (solving(solver="swap-annealing", sweeps=-3), "sweeps.*-3"),
    "option of a wrong type": (solving(solver="swap-annealing", sweeps="many"), "sweeps.*many"),
    "solver of a wrong type": (solving(solver=3), "int"),
    "formulation": (pruning(formulation="reconstrution"), "did you mean 'reconstruction'"),
    "formulation of a wrong type": (pruning(formulation=3), "int"),
    "layer": (pruning(layers=["iner"]), "did you mean 'inner'"),
    "repair": (pruning(repair=["batchnorm"]), "Known: asr, bias, bn"),
    "refit": (pruning(refit="lsq"), "lsq"),
    "granularity": (pruning(granularity="chanel"), "did you mean 'channel'"),
    "allocation": (pruning(allocation="uniform"), "auto"),
    "mask": (lambda: ps.apply_masks(small(), {"conv9": torch.ones(6, dtype=torch.bool)}), "conv9"),
    "ways to apply": (lambda: ps.apply_masks(small(), {}, how="hard"), "hard"),
    # limits
    "time limit 0": (solving(time_limit=0), "time_limit.*0"),
    "time limit nan": (solving(time_limit=NAN), "time_limit.*nan"),
    "negative evaluations": (solving(evaluation_limit=-1), "evaluation_limit.*-1"),
    "negative seed": (solving(seed=-1), "seed.*-1"),
    "half a seed": (pruning(seed=0.5), "seed.*0.5"),
    "short start": (solving(start=[True, False]), "start"),
    "start that breaks": (solving(start=[True] * 6), "start.*violation"),
    # budgets
    "no budget": (pruning(keep=...), "keep, params or macs"),
    "fraction above 1": (pruning(keep=1.5), "1.5"),
    "more than there are": (pruning(keep=19), "19 of 18.*18"),
    "none": (pruning(keep=0), "smallest count that can is 3"),
    "nan budget": (pruning(keep=..., macs=NAN), "nan"),
    "text budget": (pruning(keep="half"), "half"),
    "macs that cannot be met": (pruning(keep=..., macs=10), r"smallest limit that can is \d+"),
    "params that cannot be met": (pruning(keep=..., params=0.01), r"smallest limit that can is \d+"),
    # model and data
    "a layer that cannot run": (pruning(Untraceable()), r"'body\.1' \(Conv2d\)"),
    "no model": (pruning("resnet"), "expected .*Module.*str"),
    "a scripted model": (pruning(torch.jit.script(nn.Sequential(nn.Linear(2, 2)))), "torch.jit"),
    "a model without units": (pruning(nn.Sequential(nn.ReLU())), "no units"),
    "an example it cannot read": (pruning(data=[(torch.zeros(4, 3), torch.zeros(4).long())]), "'conv1'"),
    "an empty loader": (pruning(data=[]), "at least one sample"),
    "an empty iterator": (pruning(data=iter([])), "at least one sample"),
    "data that are none": (pruning(data=7), "int"),
    "batches of three": (pruning(data=[(1, 2, 3)]), "3 items"),
    "targets of another length": (pruning(data=[(torch.zeros(4, 1, 8, 8), torch.zeros(3).long())]), r"\[4, 3\]"),
    "classes out of range": (pruning(data=[(examples()[0], examples()[1] + 2)]), "classes 0 to 3, got 2 to 5"),
    "float classes": (pruning(data=[(examples()[0], examples()[1].float())]), "float32"),
    "nan inputs": (pruning(data=[(examples()[0] * NAN, examples()[1])]), "finite"),
    "no such device": (pruning(device="cuba"), "cuba"),
    "a device that is not here": (pruning(device="cuda:99"), "cuda:99"),
    "select: nothing fits": (lambda: ps.select([1.0, 2], costs=[3, 3], budget=2, keep=1), "3"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "words"), INVALID.values(), ids=INVALID)
def test_python_refuses(call, words):
    with pytest.raises(ps.InvalidProblem, match=words) as refused:
        call()
    assert len(str(refused.value)) > 20


def test_a_foreign_problem_is_unsupported():
    with pytest.raises(ps.UnsupportedProblem, match="BinaryQuadratic, got dict"):
        ps.solve({}, "greedy")


def test_a_callback_that_raises_keeps_the_incumbent():
    with pytest.raises(ps.SolverFailed, match="callback raised RuntimeError: the user's own bug") as failed:
        ps.solve(problem(), "greedy", callback=raising)
    assert failed.value.result.solution.sum() == 3
    assert isinstance(failed.value.__cause__, RuntimeError)


class GivesUp(ps.Solver):
    """Finds nothing but the first k."""

    name = "gives-up"

    def _search(self, problem, run):
        run.offer(np.arange(problem.n) < 1)


@pytest.mark.parametrize("call", [lambda s: ps.select([1.0, 1, 1], keep=2, solver=s), lambda s: pruning(solver=s)()])
def test_no_feasible_selection_carries_the_nearest(call):
    with pytest.raises(ps.SolverFailed, match="No feasible solution was found") as failed:
        call(GivesUp())
    assert failed.value.result.solution.sum() == 1
    assert failed.value.result.status is ps.Status.NO_FEASIBLE_FOUND


# From the command line


@pytest.fixture
def files(folder):
    """Good files and broken ones."""
    problem().save(folder / "instance.npz")
    stats().save(folder / "stats.npz")
    ps.solve(problem(), "greedy").save(folder / "result.json")
    whole = (folder / "instance.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.json").write_text((folder / "result.json").read_text()[:40])
    (folder / "array.json").write_text("[1, 2]")
    (folder / "short.json").write_text(json.dumps({"solution": [0]}))
    np.savez(folder / "foreign.npz", x=np.arange(3))
    np.savez(
        folder / "pickle.npz", format=np.array("prunesolve/1"), kind=np.array("binary-quadratic"), x=np.array([{}])
    )
    (folder / "raw.npz").write_bytes(pickle.dumps({"inputs": 1}))
    np.savez(folder / "no_targets.npz", inputs=examples()[0])
    np.savez(folder / "pickled_data.npz", inputs=np.array([{}], dtype=object), targets=np.zeros(1))
    np.savez(folder / "text_data.npz", inputs=np.array(["a", "b"]), targets=np.zeros(2))
    np.savez(folder / "empty_data.npz", inputs=np.zeros((0, 1, 8, 8)), targets=np.zeros(0, int))
    np.savez(folder / "uneven_data.npz", inputs=np.zeros((4, 1, 8, 8)), targets=np.zeros(3, int))
    np.savez(folder / "classes_data.npz", inputs=examples()[0], targets=examples()[1] + 7)
    np.savez(folder / "float_data.npz", inputs=examples()[0], targets=np.zeros(24))
    np.savez(folder / "flat_data.npz", inputs=np.zeros((4, 64)), targets=np.zeros(4, int))
    np.save(folder / "bare.npz.npy", np.zeros(3))
    (folder / "bare.npz.npy").rename(folder / "bare.npz")
    (folder / "noise.safetensors").write_bytes(b"\xff" * 64)
    (folder / "noise.pt2").write_bytes(b"\xff" * 64)
    (folder / "noise.bqm").write_bytes(b"\xff" * 64)
    (folder / "noise.cqm").write_bytes(b"\xff" * 64)
    (folder / "noise.lp").write_text("maximise my happiness\n")
    (folder / "noise.txt").write_text("hello world\n")
    (folder / "empty.txt").write_text("")
    (folder / "doubtful.txt").write_text("3 2\n0 1\n")
    (folder / "cut.txt").write_text("1\n3 2\n1 1 5\n")
    (folder / "fails.py").write_text("def trained():\n    raise ValueError('no weights here')\n")
    (folder / "broken.py").write_text("def trained(:\n")
    (folder / "needy.py").write_text("import a_package_nobody_has\n")
    (folder / "number.py").write_text("def trained():\n    return 7\n")
    (folder / "a_folder").mkdir()
    return folder


P = "prune {net} --data data.npz --solver greedy --out out"
M = "measure net_factory:trained -o new.npz --data"
S = "solve instance.npz --solver greedy"
NET = "net_factory:trained"

REFUSED = {
    # usage
    "no such command": ("prun", "prun"),
    "no such flag": (f"{S} --sede 1", "--sede"),
    "a flag without its value": (f"{S} --seed", "--seed"),
    "a seed that is none": (f"{S} --seed one", "--seed"),
    "no out": (f"prune {NET} --data data.npz --keep 0.5", "--out"),
    # readers
    "missing file": ("solve instanc.npz", "no such file; did you mean instance.npz"),
    "a folder": ("solve a_folder", "got a folder"),
    "truncated npz": ("solve truncated.npz", "truncated"),
    "foreign npz": ("solve foreign.npz", "prunesolve/1"),
    "pickles": ("solve pickle.npz", "pickle"),
    "a pickle itself": ("solve raw.npz", "raw.npz"),
    "a bare array": ("solve bare.npz", "bare.npz"),
    "statistics to solve": ("solve stats.npz", "'statistics'"),
    "instance to encode": ("encode instance.npz --keep 0.5 -o new.npz", "'binary-quadratic'"),
    "a second instance": ("solve instance.npz:2", "index 2"),
    "instance 0": ("solve instance.npz:0", "from 1"),
    "noise text": ("solve noise.txt", "noise.txt"),
    "empty text": ("solve empty.txt", "empty.txt"),
    "doubtful text": ("solve doubtful.txt", "format"),
    "cut text": ("solve cut.txt --format beasley", "cut.txt"),
    "unknown format": ("solve noise.txt --format beasly", "did you mean 'beasley'"),
    "noise bqm": ("solve noise.bqm", "noise.bqm"),
    "noise cqm": ("solve noise.cqm", "noise.cqm"),
    "noise lp": ("solve noise.lp", "noise.lp"),
    "info of noise masks": ("info noise.safetensors", "noise.safetensors"),
    "info of a noise program": ("info noise.pt2", "noise.pt2"),
    "info of truncated json": ("info truncated.json", "truncated.json"),
    "info of a foreign npz": ("info foreign.npz", "foreign"),
    "info of an index": ("info instance.npz:2", "index 2"),
    "convert to what": ("convert instance.npz new.xyz", ".xyz"),
    "convert what it cannot say": ("convert instance.npz new.bqm", "bqm"),
    "check against truncated": ("check instance.npz truncated.json", "truncated.json"),
    "check against an array": ("check instance.npz array.json", "object"),
    "check against part": ("check instance.npz short.json", "short.json"),
    "start from part": (f"{S} --start short.json", "short.json"),
    "start from nothing": (f"{S} --start none.json", "no such file"),
    # solve
    "solver": ("solve instance.npz --solver swap-aneling", "did you mean 'swap-annealing'"),
    "option": ("solve instance.npz --solver swap-annealing --option sweps=3", "did you mean 'sweeps'"),
    "option without a value": (f"{S} --option direction", "k=v"),
    "option of a wrong type": ("solve instance.npz --solver swap-annealing --option sweeps=many", "many"),
    "choice": (f"{S} --option direction=sideways", "sideways"),
    "time limit 0": (f"{S} --time-limit 0", "time_limit"),
    "negative time limit": (f"{S} --time-limit -1", "time_limit"),
    "evaluation limit 0": (f"{S} --evaluation-limit 0", "evaluation_limit"),
    "negative seed": (f"{S} --seed -1", "seed"),
    "threads 0": (f"{S} --threads 0", "--threads"),
    "keep 1.5": (f"{S} --keep 1.5", "1.5"),
    "keep 7 of 6": (f"{S} --keep 7", "7 of 6"),
    "keep -1": (f"{S} --keep -1", "-1"),
    "keep half": (f"{S} --keep half", "half"),
    "keep nan": (f"{S} --keep nan", "nan"),
    "out in a file": (f"{S} --out instance.npz/result.json", "is a file"),
    "out a folder": (f"{S} --out a_folder", ".json"),
    # model
    "no factory": (P.format(net="net_factory") + " --keep 0.5", "MODULE:FACTORY"),
    "unknown factory": (P.format(net="net_factory:traind") + " --keep 0.5", "did you mean 'trained'"),
    "unknown module": (P.format(net="net_factry:trained") + " --keep 0.5", "did you mean 'net_factory'"),
    "unknown file": (P.format(net="net_factry.py:trained") + " --keep 0.5", "did you mean net_factory.py"),
    "a factory that fails": (P.format(net="fails:trained") + " --keep 0.5", "ValueError: no weights here"),
    "a file that is no Python": (P.format(net="broken.py:trained") + " --keep 0.5", "SyntaxError"),
    "a module that is no Python": (P.format(net="broken:trained") + " --keep 0.5", "SyntaxError"),
    "a module that misses another": (P.format(net="needy:trained") + " --keep 0.5", "a_package_nobody_has"),
    "no module": (P.format(net="number:trained") + " --keep 0.5", "int"),
    # prune
    "no budget": (P.format(net=NET), "keep, params or macs"),
    "prune 1.5": (P.format(net=NET) + " --keep 1.5", "1.5"),
    "prune 0": (P.format(net=NET) + " --keep 0", "smallest count that can is 3"),
    "prune 19": (P.format(net=NET) + " --keep 19", "19 of 18"),
    "macs": (P.format(net=NET) + " --macs 10", "smallest limit"),
    "params": (P.format(net=NET) + " --params 0.01", "smallest limit"),
    "formulation": (P.format(net=NET) + " --keep 0.5 --formulation l1", "l1-qubo"),
    "prune by": (f"prune {NET} --data data.npz --keep 0.5 --solver gready --out out", "greedy"),
    "layer": (P.format(net=NET) + " --keep 0.5 --layers conv1,iner", "did you mean 'inner'"),
    "repair": (P.format(net=NET) + " --keep 0.5 --repair bm", "Known: asr, bias, bn"),
    "refit": (P.format(net=NET) + " --keep 0.5 --refit lsq", "least-squares"),
    "device": (P.format(net=NET) + " --keep 0.5 --device cuba", "cuba"),
    "prune seed": (P.format(net=NET) + " --keep 0.5 --seed -2", "seed"),
    "prune time limit": (P.format(net=NET) + " --keep 0.5 --time-limit 0", "time_limit"),
    "prune into a file": (f"prune {NET} --data data.npz --keep 0.5 --out data.npz", "file"),
    "prune below a file": (f"prune {NET} --data data.npz --keep 0.5 --out data.npz/out", "file"),
    # data
    "missing data": (f"{M} dta.npz", "did you mean data.npz"),
    "data that are a pickle": (f"{M} raw.npz", "raw.npz"),
    "data with pickles": (f"{M} pickled_data.npz", "pickle"),
    "data without targets": (f"{M} no_targets.npz", "'targets'"),
    "truncated data": (f"{M} truncated.npz", "truncated.npz"),
    "text data": (f"{M} text_data.npz", "numbers"),
    "empty data": (f"{M} empty_data.npz", "at least one sample"),
    "uneven data": (f"{M} uneven_data.npz", "[4, 3]"),
    "classes out of range": (f"{M} classes_data.npz", "classes 0 to 3, got 7 to 10"),
    "float targets": (f"{M} float_data.npz", "float32"),
    "inputs the model cannot read": (f"{M} flat_data.npz", "'conv1'"),
    "measure into what": (f"measure {NET} --data data.npz -o new.csv", ".npz"),
    # encode and apply
    "encode nothing": ("encode stats.npz -o new.npz", "keep, params or macs"),
    "encode by": ("encode stats.npz --formulation fischer --keep 0.5 -o new.npz", "did you mean 'fisher'"),
    "encode with": ("encode stats.npz --formulation l1-qubo --option bta=1 --keep 0.5 -o new.npz", "'beta'"),
    "encode ill": ("encode stats.npz --formulation l1-qubo --option beta=much --keep 0.5 -o new.npz", "beta"),
    "apply without units": (f"apply {NET} result.json -o out", "kept_units"),
    "apply part": (f"apply {NET} short.json -o out", "kept_units"),
    "apply truncated": (f"apply {NET} truncated.json -o out", "truncated.json"),
    # demo
    "demo into a file": ("demo --out data.npz", "file"),
}  # fmt: skip


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_command_line_refuses(command, files, line, words):
    before = contents(files)
    told = command(*line.split())
    assert told.code == 2, told
    assert told.out == ""
    assert words in told.err
    assert told.err.startswith("prunesolve: ")
    assert told.err.count("\n") == 1
    assert len(told.err) < 600
    assert contents(files) == before


def test_a_result_for_another_instance_is_refused(command, files):
    assert command("solve", "instance.npz", "--solver", "greedy", "--keep", "2", "--out", "other.json").code == 0
    told = command("check", "instance.npz", "other.json")
    assert told.code == 1
    assert "made for instance" in told.out


def test_a_result_for_another_model_is_refused(command, files):
    ps.formulations.L1Qubo().encode(stats(), keep=0.5).save(files / "i.npz")
    assert command("solve", "i.npz", "--solver", "greedy", "--out", "r.json").code == 0
    (files / "other_factory.py").write_text(
        "from torch import nn\ndef trained(): return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))\n"
    )
    told = command("apply", "other_factory:trained", "r.json", "-o", "out")
    assert told.code == 2
    assert "18 units" in told.err
    assert not (files / "out").exists()


def test_an_infeasible_result_is_not_applied(command, files):
    ps.formulations.L1Qubo().encode(stats(), keep=0.5).save(files / "i.npz")
    assert command("solve", "i.npz", "--solver", "greedy", "--out", "r.json").code == 0
    told = json.loads((files / "r.json").read_text())
    (files / "r.json").write_text(json.dumps(told | {"feasible": False}))
    told = command("apply", "net_factory:trained", "r.json", "-o", "out")
    assert told.code == 2
    assert "breaks a constraint" in told.err
