"""The command line: what each command prints and writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import prunesolve as ps
from prunesolve.problems import readers

from .conftest import FACTORY
from .networks import examples, macs, small

KEYS = {
    "instance", "instance_hash", "solver", "status", "objective", "sense", "native_objective", "bound", "gap",
    "feasible", "kept", "n", "seconds", "seed", "evaluations", "solution", "kept_units", "version",
}  # fmt: skip
COMMANDS = (
    "demo", "prune", "measure", "encode", "solve", "apply", "solvers", "formulations", "instances", "info", "convert",
    "check",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def twelve() -> ps.BinaryQuadratic:
    """Four of twelve, small enough to enumerate."""
    rng = np.random.default_rng(5)
    couplings = np.triu(rng.normal(size=(12, 12)), 1)
    return ps.BinaryQuadratic(rng.normal(size=12), couplings + couplings.T, constraints=[ps.Cardinality(4)])


def best(problem, k):
    """The least value of k of n, by enumeration."""
    rows = np.zeros((0, problem.n), dtype=bool)
    rows = np.array([np.isin(np.arange(problem.n), chosen) for chosen in combinations(range(problem.n), k)])
    return problem.value(rows).min()


@pytest.fixture
def instance(folder):
    twelve().save(folder / "instance.npz")
    return "instance.npz"


# The way through files


@pytest.mark.parametrize("model", ["net_factory:trained", "net_factory.py:trained"])
def test_measure_encode_solve_check_apply(command, folder, model):
    told = command("measure", model, "--data", "data.npz", "-o", "stats.npz")
    assert (told.code, told.out.splitlines()[0]) == (0, "stats.npz: 18 units in 3 groups")
    assert "left out: head" in told.err
    assert command("encode", "stats.npz", "--formulation", "reconstruction", "--keep", "0.5", "-o", "i.npz").code == 0
    told = command("solve", "i.npz", "--solver", "swap-annealing", "--out", "result.json", "--json")
    assert (told.code, told.err) == (0, "")
    printed, written = json.loads(told.out), json.loads((folder / "result.json").read_text())
    assert {name: value for name, value in written.items() if name != "trace"} == printed
    assert printed["kept"] == 9
    assert command("check", "i.npz", "result.json").code == 0
    told = command("apply", model, "result.json", "-o", "smaller")
    assert (told.code, told.err) == (0, "")
    assert {p.name for p in (folder / "smaller").iterdir()} >= {"masks.safetensors", "model.safetensors", "widths.json"}

    stats = ps.measure(small(), [examples()])
    problem = ps.formulations.Reconstruction().encode(stats, keep=0.5)
    selection = ps.formulations.Reconstruction().decode(stats, ps.solve(problem, "swap-annealing").solution)
    assert printed["instance_hash"] == problem.hash
    assert printed["kept_units"] == selection.kept
    masks, read = ps.masks(selection, small()), ps.load(folder / "smaller" / "masks.safetensors")
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[path], masks[path]) for path in masks)
    inputs, _ = examples(4)
    removed = ps.load(folder / "smaller" / "model.pt2")
    torch.testing.assert_close(removed(inputs), ps.apply_masks(small(), masks).eval()(inputs))


@pytest.mark.parametrize("budget", [("--keep", "9"), ("--macs", "0.5"), ("--params", "400")])
def test_encode_takes_every_budget(command, folder, budget):
    ps.measure(small(), [examples()]).save(folder / "stats.npz")
    assert command("encode", "stats.npz", "--formulation", "l1-qubo", *budget, "-o", "i.npz").code == 0
    name, asked = budget[0][2:], float(budget[1]) if "." in budget[1] else int(budget[1])
    problem = ps.formulations.L1Qubo().encode(ps.load("stats.npz"), **{name: asked})
    assert ps.load("i.npz").hash == problem.hash


def test_encode_hands_options_to_the_formulation(command, folder):
    ps.measure(small(), [examples()]).save(folder / "stats.npz")
    told = command(
        "encode", "stats.npz", "--formulation", "l1-qubo", "--option", "beta=0.5", "--keep", "9", "-o", "i.npz"
    )
    assert told.code == 0
    assert ps.load("i.npz").hash == ps.formulations.L1Qubo(beta=0.5).encode(ps.load("stats.npz"), keep=9).hash


@pytest.mark.parametrize("model", ["net_factory:trained", "net_factory.py:trained"])
def test_prune_writes_the_folder_and_prints_the_report(command, folder, model):
    told = command(
        "prune", model, "--data", "data.npz", "--macs", "0.5", "--solver", "swap-annealing", "--repair", "bn",
        "--seed", "3", "--layers", "conv1,inner,conv2", "--device", "cpu", "--formulation", "l1-qubo", "--out", "o/p",
    )  # fmt: skip
    assert (told.code, told.err) == (0, "")
    report = ps.load("o/p/report.json")
    assert told.out == f"{report}\n"
    assert [step["step"] for step in report["steps"]] == ["dense", "masked", "refit", "bn"]
    assert report["solver"]["seed"] == 3
    inputs, _ = examples(4)
    assert macs(ps.load("o/p/model.pt2"), inputs) <= 0.5 * macs(small(), inputs)
    assert command("check", "o/p/instance.npz", "o/p/result.json").code == 0
    assert command("apply", model, "o/p/result.json", "-o", "again").code == 0
    one, other = ps.load("o/p/masks.safetensors"), ps.load("again/masks.safetensors")
    assert all(torch.equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize(("flag", "steps"), [("none", 2), ("least-squares", 3)])
def test_prune_refit(command, flag, steps):
    told = command(
        "prune", "net_factory:trained", "--data", "data.npz", "--keep", "0.5", "--solver", "greedy", "--refit", flag,
        "--out", "out",
    )  # fmt: skip
    assert told.code == 0
    assert len(ps.load("out/report.json")["steps"]) == steps


# solve


def test_solve_prints_one_object_with_every_key(command, instance):
    told = command("solve", instance, "--solver", "swap-annealing", "--seed", "4", "--bound", "--json")
    assert (told.code, told.err) == (0, "")
    printed, problem = json.loads(told.out), twelve()
    assert set(printed) >= KEYS
    assert printed["objective"] == pytest.approx(best(problem, 4))
    assert problem.value(np.isin(np.arange(12), printed["solution"])) == pytest.approx(printed["objective"])
    assert (printed["kept"], printed["n"], printed["seed"], printed["feasible"]) == (4, 12, 4, True)
    assert (printed["sense"], printed["native_objective"]) == ("minimise", printed["objective"])
    assert printed["bound"] <= printed["objective"] + 1e-9
    assert printed["gap"] == pytest.approx(
        (printed["objective"] - printed["bound"]) / abs(printed["objective"]), abs=1e-9
    )
    assert printed["status"] in ps.Status.__members__
    assert printed["instance_hash"] == problem.hash
    assert printed["kept_units"] is None
    assert printed["version"] == ps.__version__
    assert printed["instance"] == instance


def test_solve_prints_a_summary_without_json(command, instance):
    told = command("solve", instance, "--solver", "greedy")
    assert told.code == 0
    for word in ("instance", "Greedy(", "status", "objective", "4 of 12", "seed 0"):
        assert word in told.out


@pytest.mark.parametrize(("keep", "k"), [("3", 3), ("0.5", 6), ("0.2", 2), ("12", 12), ("0", 0)])
def test_keep_replaces_the_cardinality(command, instance, keep, k):
    printed = json.loads(command("solve", instance, "--solver", "greedy", "--keep", keep, "--json").out)
    assert printed["kept"] == k


def test_solve_options_and_limits(command, instance):
    told = command(
        "solve", instance, "--solver", "swap-annealing", "--option", "sweeps=7", "--option", "t-start=0.2",
        "--evaluation-limit", "50", "--threads", "1", "--json",
    )  # fmt: skip
    printed = json.loads(told.out)
    assert "sweeps=7" in printed["solver"]
    assert "t_start=0.2" in printed["solver"]
    assert printed["status"] == "ITERATION_LIMIT"


def test_solve_starts_from_a_result_and_writes_the_trace(command, instance, folder):
    assert command("solve", instance, "--solver", "swap-annealing", "--out", "one.json").code == 0
    one = json.loads((folder / "one.json").read_text())
    assert one["trace"][-1][2] == one["objective"]
    assert command("solve", instance, "--solver", "greedy", "--start", "one.json", "--out", "two.json").code == 0
    two = json.loads((folder / "two.json").read_text())
    assert two["objective"] <= one["objective"]
    assert two["trace"][0][2] == one["objective"]


def test_an_instance_of_a_file_that_maximises(command, folder):
    # Beasley: number of instances; n and entries; i j value, off-diagonals counted twice
    (folder / "bqp.txt").write_text("2\n2 2\n1 1 5\n2 2 -1\n2 3\n1 1 -3\n1 2 4\n2 2 1\n")
    printed = json.loads(command("solve", "bqp.txt:2", "--solver", "greedy", "--json").out)
    assert (printed["native_objective"], printed["sense"], printed["objective"]) == (6, "maximise", -6)
    assert printed["solution"] == [0, 1]
    assert printed["instance"] == "bqp.txt:2"
    told = command("solve", "bqp.txt", "--solver", "greedy")
    assert told.code == 2
    assert "2 instances" in told.err
    assert command("info", "bqp.txt").out == "bqp.txt: 2 instances; name one as bqp.txt:1 to bqp.txt:2\n"


def test_the_format_can_be_named(command, folder):
    (folder / "dist.txt").write_text("3 2\n0 1 5\n0 2 1\n1 2 2\n")
    printed = json.loads(command("solve", "dist.txt", "--format", "mdplib", "--solver", "greedy", "--json").out)
    assert (printed["solution"], printed["native_objective"]) == ([0, 1], 5)
    assert command("solve", "dist.txt", "--format", "qkp", "--solver", "greedy").code == 2


def test_no_feasible_solution_is_exit_code_1_after_printing(command, folder):
    # any two units cost 5 together
    budget = ps.Budget([0, 0, 0], 1, 5 * (1 - np.eye(3)))
    ps.BinaryQuadratic([-1.0, -1, -1], constraints=[ps.Cardinality(2), budget]).save(folder / "none.npz")
    told = command("solve", "none.npz", "--solver", "greedy", "--json")
    assert told.code == 1
    assert json.loads(told.out)["feasible"] is False


# The others


def test_the_lists_say_what_each_one_is(command):
    for name, known in (("solvers", ps.solvers.names()), ("formulations", ps.formulations.names())):
        told = command(name)
        assert [line.split()[0] for line in told.out.splitlines()] == known
        assert all(line.endswith(".") and len(line.split()) > 2 for line in told.out.splitlines())


@pytest.mark.parametrize("suffix", [".npz", ".bqm", ".cqm", ".coo"])
def test_convert_keeps_the_objective(command, folder, suffix):
    problem = twelve().replace(constraints=[])
    problem.save(folder / "free.npz")
    assert command("convert", "free.npz", f"other{suffix}").code == 0
    read = readers.read(folder / f"other{suffix}")
    x = np.random.default_rng(0).random((20, 12)) < 0.5
    np.testing.assert_allclose(read.value(x), problem.value(x), rtol=1e-6)


def test_info_of_everything_that_is_written(command, folder, instance):
    out = ps.prune(small(), [examples()], keep=0.5, solver="greedy")
    out.save(folder / "out")
    out.statistics.save(folder / "stats.npz")
    expected = {
        "out/instance.npz": "BinaryQuadratic, n = 18",
        "out/result.json": "Result, status",
        "out/report.json": "asked        keep=0.5",
        "out/masks.safetensors": "conv1: ",
        "out/model.safetensors": "Weights: ",
        "out/widths.json": "out_channels = ",
        "out/model.pt2": "parameters",
        "stats.npz": "Statistics, 18 units in 3 groups",
        instance: "Cardinality(4)",
    }
    for file, words in expected.items():
        told = command("info", file)
        assert (told.code, told.err) == (0, "")
        assert words in told.out


def test_check_recomputes(command, folder, instance):
    command("solve", instance, "--solver", "greedy", "--out", "result.json")
    told = command("check", instance, "result.json")
    assert told.code == 0
    assert told.out.startswith("holds: objective")
    claim = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(claim | {"objective": claim["objective"] - 1}))
    told = command("check", instance, "result.json")
    assert told.code == 1
    assert "wrong: claims objective" in told.out
    less = [*claim["solution"]][:3]
    value = twelve().value(np.isin(np.arange(12), less))
    (folder / "result.json").write_text(json.dumps(claim | {"objective": value, "solution": less}))
    told = command("check", instance, "result.json")
    assert told.code == 1
    assert "violation 1" in told.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command, name):
    told = command(name, "--help")
    assert (told.code, told.err) == (0, "")
    assert "Usage" in told.out


def test_without_arguments_the_help(command):
    told = command()
    for name in COMMANDS:
        assert name in told.out + told.err


# Processes of their own


def fresh(code, folder, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder, **options
    )


def test_solving_a_dense_instance_loads_nothing_it_does_not_need(folder, instance):
    code = (
        "import sys\nfrom prunesolve.cli import main\n"
        "try: main(['solve', 'instance.npz', '--solver', 'greedy', '--json'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "heavy = 'scipy.sparse dimod rich torch matplotlib numba pandas'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    assert fresh(code, folder).stderr == "[]\n"


def test_listing_loads_no_solver(folder):
    code = (
        "import sys\nfrom prunesolve.cli import main\n"
        "for name in ('solvers', 'formulations'):\n"
        "    try: main([name])\n    except SystemExit: pass\n"
        "heavy = [n for n in sys.modules if n.startswith(('prunesolve.solvers.', 'prunesolve.formulations.'))]\n"
        "print([*heavy, *({'scipy', 'numba', 'torch', 'dimod', 'rich'} & set(sys.modules))], file=sys.stderr)"
    )
    assert fresh(code, folder).stderr == "[]\n"


# a real signal, shortly after the clock has started and the kernels are loaded
INTERRUPTING = """
import os, signal, threading
from prunesolve.solvers import Solver

searching = Solver._guarded

def guarded(*arguments):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    return searching(*arguments)

Solver._guarded = guarded
from prunesolve.cli import main
main({arguments})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_in_solve_prints_the_incumbent(folder):
    rng = np.random.default_rng(0)
    couplings = np.triu(rng.normal(size=(300, 300)), 1)
    problem = ps.BinaryQuadratic(rng.normal(size=300), couplings + couplings.T, constraints=[ps.Cardinality(100)])
    problem.save(folder / "large.npz")
    arguments = ["solve", "large.npz", "--solver", "swap-annealing", "--option", "restarts=1000000", "--json"]
    told = fresh(INTERRUPTING.format(arguments=arguments), folder, timeout=120)
    assert told.returncode == 130, told.stderr
    printed = json.loads(told.stdout)
    assert (printed["status"], printed["feasible"], printed["kept"]) == ("STOPPED", True, 100)
    assert told.stderr.splitlines()[-1] == "prunesolve: interrupted"
    assert "Traceback" not in told.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_while_pruning_is_one_line_and_no_folder(folder):
    (folder / "slow_factory.py").write_text(
        FACTORY.replace(
            "    return small()",
            "    import os, signal, time\n    model, calls = small(), []\n"
            "    def watch(*_):\n        calls.append(1)\n"
            "        if len(calls) == 20: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
            "    model.register_forward_hook(watch)\n    return model",
        )
    )
    told = subprocess.run(
        [sys.executable, "-m", "prunesolve.cli", "prune", "slow_factory:trained", "--data", "data.npz", "--keep", "0.5",
         "--solver", "greedy", "--out", "out"],
        capture_output=True, text=True, check=False, cwd=folder, timeout=120,
    )  # fmt: skip
    assert told.returncode == 130, told.stderr
    assert told.stderr == "prunesolve: interrupted\n"
    assert told.stdout == ""
    assert {p.name for p in Path(folder).iterdir()} <= {"net_factory.py", "slow_factory.py", "data.npz", "__pycache__"}


def test_the_demo_is_told_its_task(command):
    told = command("demo", "--task", "translate")
    assert told.code == 2
    assert "classify" in told.err
