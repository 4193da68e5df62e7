"""NSGA-II: true fronts of small instances, feasible points alone, and runs that go on where they were killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LevelChoice,
    LevelTuples,
    MultiObjective,
    Product,
    Selections,
    SolverFailed,
    UnsupportedProblem,
)
from prunesolve.solvers import Status
from prunesolve.solvers._evolution import _spread
from prunesolve.solvers._front import hypervolume
from prunesolve.solvers.nsga2 import Nsga2


def network(widths, seed=0, constraints=(), **more):
    """Reconstruction errors of the layers, added up, and the bilinear parameter count of the chain of widths."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(widths)), widths)
    blocks, linear, offset = [], [], 0.0
    for width in widths:
        units = rng.normal(size=(width, max(4, width // 2))) * rng.lognormal(0.0, 0.8, size=(width, 1)) + 0.3
        gram = units @ units.T + np.diag(0.1 * rng.lognormal(size=width))
        # sums of multiples of 2^-20 are exact, so that values do not hang on how many rows are valued together
        gram = np.round(gram / gram.sum() / len(widths) * 2**20) / 2**20
        offset += gram.sum()
        linear.append(np.diag(gram) - 2.0 * gram.sum(axis=1))
        blocks.append(2.0 * (gram - np.diag(np.diag(gram))))
    error = BinaryQuadratic(np.concatenate(linear), Blocks(blocks), offset=offset, constraints=constraints)
    pairs = 9.0 * (np.abs(group[:, None] - group) == 1)
    ends = 27.0 * (group == 0) + 10.0 * (group == len(widths) - 1)
    size = BinaryQuadratic(ends, pairs)
    dense = size.value(np.ones(len(group), dtype=bool))
    more = {"reference": [1.05 * offset, 1.05 * dense], "groups": group} | more
    return MultiObjective.over([error, size], ["error", "params"], **more)


def removal_path(problem):
    """From dense to nothing, always the unit of least error for what its going saves."""
    error, size = problem.parts
    x = np.ones(problem.n, dtype=bool)
    path = [x.copy()]
    while x.any():
        rate = np.where(x, -error.fields(x) / size.fields(x).clip(1e-9), np.inf)
        x[rate.argmin()] = False
        path.append(x.copy())
    return np.array(path)


def conflicting(n, objectives=2):
    """Objectives that pull apart and do not add up over the coordinates."""
    # eighths, whose sums are exact: the values of a row must not hang on what else is asked with it
    weights = np.random.default_rng(n).integers(4, 13, (n, objectives - 1)) / 8

    def evaluate(x):
        rows = x.astype(float)
        return np.concatenate([30.0 / (1.0 + rows @ weights), (rows**2).sum(axis=1, keepdims=True)], axis=1)

    return evaluate


def true_front(problem):
    """(p, m) by definition, over every point of the space."""
    space = problem.space
    parts = space.spaces if isinstance(space, Product) else [space]
    sizes = [s for part in parts for s in ([2] * part.n if isinstance(part, Selections) else part.sizes)]
    rows = np.array(list(itertools.product(*map(range, sizes))))
    rows = rows.astype(bool) if isinstance(space, Selections) else rows
    values = problem.evaluate(rows[space.is_feasible(rows)])
    at_most, below = (values[:, None] <= values).all(axis=2), (values[:, None] < values).any(axis=2)
    return np.unique(values[~(at_most & below).any(axis=0)].round(9), axis=0)


LEVELS = LevelTuples([[1, 2, 4, 7], [0, 1, 2], [2, 3, 5]], budget=9, exact=False)
EXACT = LevelTuples([[1, 2, 4, 7], [0, 1, 2], [2, 3, 5]], budget=9)
CHOICE = LevelChoice(
    [[3, 1, 0.0], [2.0, 0.0], [1, 0.5, 0]], [[1, 2, 4], [1, 3], [1, 2, 3]], 8.0, {(0, 1): np.ones((3, 2))}
)
GROUP = np.arange(9) // 3
SPACES = {
    "free": Selections(8),
    "cardinality": Selections(9, [Cardinality(4)]),
    "bounds": Selections(9, [GroupBounds(GROUP, [1, 0, 2], [2, 2, 3])]),
    "budget": Selections(9, [Budget(np.arange(1.0, 10.0), 20.0)]),
    "overlapping": Selections(
        9, [GroupBounds(GROUP, [1, 1, 1], [2, 2, 2]), GroupBounds(np.arange(9) % 3, [1] * 3, [2] * 3)]
    ),
    "levels": LEVELS,
    "exact levels": EXACT,
    "level choice": CHOICE,
    "both": Product([Selections(5, [Cardinality(2)]), LEVELS]),
}


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("space", SPACES)
def test_small_fronts_are_found_whole(space, objectives):
    names = ["a", "b", "c"][:objectives]
    problem = MultiObjective(
        SPACES[space], conflicting(SPACES[space].n, objectives), names, reference=[31.0] * objectives
    )
    result = Nsga2(population=32).solve(problem)
    assert result.status is Status.FINISHED
    assert np.array_equal(np.unique(result.front.objectives.round(9), axis=0), true_front(problem))


def budget_in_pairs(n):
    group = np.arange(n) // 8
    return Budget(np.ones(n), 0.4 * n * 8, pair=1.0 * (np.abs(group[:, None] - group) == 1))


N = 64
LARGER = {
    "free": Selections(N),
    "cardinality": Selections(N, [Cardinality(20)]),
    "bounds": Selections(N, [GroupBounds(np.arange(N) // 8, [2] * 8, [6] * 8)]),
    "cardinality and bounds": Selections(N, [Cardinality(30), GroupBounds(np.arange(N) // 8, [2] * 8, [6] * 8)]),
    "two of four": Selections(N, [GroupBounds(np.arange(N) // 4, [2] * 16, [2] * 16)]),
    "budget": Selections(N, [Budget(np.arange(1.0, N + 1), 400.0)]),
    "bilinear budget": Selections(N, [budget_in_pairs(N)]),
    "cardinality and budget": Selections(N, [Cardinality(20), Budget(np.arange(1.0, N + 1), 400.0)]),
    "all": Selections(N, [Cardinality(20), GroupBounds(np.arange(N) // 8, [1] * 8, [6] * 8), budget_in_pairs(N)]),
    "levels": LevelTuples([np.arange(10) * (1 + i % 3) for i in range(20)], 100, exact=False),
    "exact levels": LevelTuples([np.arange(10) * (1 + i % 3) for i in range(20)], 100),
    "level choice": LevelChoice(
        [np.arange(9.0, -1, -1)] * 12, [np.arange(10.0)] * 12, 120.0, {(i, i + 1): np.eye(10) for i in range(11)}
    ),
    "both": Product([Selections(20, [Cardinality(9)]), LevelTuples([np.arange(10)] * 6, 30)]),
}


@pytest.mark.parametrize("space", LARGER)
def test_every_point_asked_for_is_feasible_and_new(space):
    space = LARGER[space]
    evaluate, asked = conflicting(space.n), []

    def watched(x):
        asked.extend(row.tobytes() for row in x)
        assert np.asarray(space.is_feasible(x)).all()
        return evaluate(x)

    result = Nsga2(population=40).solve(
        MultiObjective(space, watched, ["a", "b"], reference=[31.0, 1e4]), evaluation_limit=400
    )
    assert result.evaluations == len(asked) == len(set(asked)) == 400


def test_the_first_points_spread_over_the_densities():
    asked = []

    def watched(x):
        asked.append(x.mean(axis=1))
        return conflicting(60)(x)

    Nsga2(population=50, generations=1).solve(MultiObjective(Selections(60), watched, ["a", "b"]))
    density = np.sort(np.concatenate(asked))
    assert density[0] == 0.0
    assert density[-1] == 1.0
    assert np.diff(density).max() < 0.2


def test_the_starts_come_first_and_evenly_where_the_limit_allows_only_some():
    problem = network([8, 8])
    path = removal_path(problem)
    asked = []

    def watched(x):
        asked.extend(x.sum(axis=1).tolist())
        return np.stack([part.value(x) for part in problem.parts], axis=1)

    Nsga2().solve(problem.replace(starts=path, evaluate=watched), evaluation_limit=5)
    assert len(asked) == 5
    assert set(asked) <= {16, 0, 8, 12, 4}


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16])
def test_spread_is_an_order_of_all(count):
    assert sorted(_spread(count)) == list(range(count))


@pytest.mark.parametrize(("limit", "expected"), [(30, 10), (400, 20), (1000, 40), (None, 40)])
def test_a_small_limit_makes_generations_small(limit, expected):
    result = Nsga2(population=40, generations=3).solve(network([8] * 4), evaluation_limit=limit)
    assert result.details["population"] == expected


def test_seeded_by_the_removal_path_the_front_is_better_than_the_path():
    problem = network([12] * 5)
    path = removal_path(problem)
    seeded = Nsga2(population=50).solve(problem.replace(starts=path), evaluation_limit=1000)
    assert -seeded.objective > hypervolume(problem.values(path), problem.reference)


def pymoo_default(problem, evaluations, seed):
    """Hypervolume of everything that pymoo's NSGA-II evaluates with its operators for bits."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling

    algorithm = NSGA2(
        pop_size=100,
        sampling=BinaryRandomSampling(),
        crossover=TwoPointCrossover(),
        mutation=BitflipMutation(),
        eliminate_duplicates=True,
    )
    algorithm.setup(Problem(n_var=problem.n, n_obj=2, xl=0, xu=1, vtype=bool), termination=NoTermination(), seed=seed)
    seen = []
    for _ in range(evaluations // 100):
        children = algorithm.ask()
        values = problem.values(children.get("X").astype(bool))
        seen.append(values)
        algorithm.tell(infills=children.set("F", values))
    return hypervolume(np.concatenate(seen), problem.reference)


def test_a_fifth_better_than_pymoo_as_it_comes():
    problem = network([16] * 3 + [32] * 3 + [64] * 3)
    cold = Nsga2().solve(problem, evaluation_limit=1000)
    assert -cold.objective >= 1.2 * pymoo_default(problem, 1000, seed=0)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def told(result):
    return result.front.solutions.tolist(), result.front.objectives.tolist(), result.objective, result.evaluations


def counted(problem):
    """The problem, and a list that every evaluated row is put into."""
    asked, evaluate = [], problem.evaluate

    def watched(x):
        asked.extend(row.tobytes() for row in x)
        return evaluate(x)

    return problem.replace(evaluate=watched), asked


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("space", ["free", "cardinality and bounds", "exact levels", "both"])
def test_a_run_stopped_in_the_middle_and_resumed_ends_as_one_that_was_not(space, every, tmp_path):
    # without a reference of its own, so that the first run's must be taken over
    problem = MultiObjective(
        LARGER[space], conflicting(LARGER[space].n), ["a", "b"], groups=np.arange(LARGER[space].n) // 5
    )
    plain = Nsga2(population=20, generations=12)
    whole = plain.solve(problem.replace(), seed=3)
    kept = Nsga2(population=20, generations=12, checkpoint=str(tmp_path / "run.npz"), checkpoint_every=every)
    stopped = kept.solve(problem.replace(), seed=3, callback=lambda incumbent: incumbent.evaluations > 100)
    assert stopped.status is Status.STOPPED
    assert stopped.evaluations < whole.evaluations
    again, asked = counted(problem)
    resumed = kept.solve(again, seed=3)
    assert told(resumed) == told(whole)
    assert 0 < len(asked) < whole.evaluations


def test_ctrl_c_in_an_evaluation_costs_the_generation_alone(tmp_path):
    problem = network([10] * 3)
    evaluate, calls = problem.evaluate, itertools.count()

    def interrupted(x):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(x)

    options = {"population": 20, "generations": 10}
    kept = Nsga2(**options, checkpoint=str(tmp_path / "run.npz"))
    assert kept.solve(problem.replace(evaluate=interrupted)).status is Status.STOPPED
    assert told(kept.solve(problem.replace())) == told(Nsga2(**options).solve(problem.replace()))


def test_the_end_is_kept_too(tmp_path):
    problem = network([10] * 3)
    kept = Nsga2(population=20, generations=5, checkpoint=str(tmp_path / "run.npz"))
    first = kept.solve(problem.replace())
    again, asked = counted(problem)
    assert told(kept.solve(again)) == told(first)
    assert not asked


def test_a_larger_limit_goes_on_and_a_start_may_be_given_again(tmp_path):
    problem = network([10] * 3)
    dense = np.ones(30, dtype=bool)
    kept = Nsga2(population=20, checkpoint=str(tmp_path / "run.npz"))
    kept.solve(problem.replace(), evaluation_limit=60, start=dense)
    again, asked = counted(problem)
    result = kept.solve(again, evaluation_limit=100, start=dense)
    # the start is looked at before the file is, which says that it was counted
    assert result.evaluations == 100
    assert len(asked) == 41


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_nsga2 import Nsga2, network
problem = network([10] * 3)
evaluate = problem.evaluate
slow = lambda x: (time.sleep(0.02), evaluate(x))[1]
Nsga2(population=20, generations=12, checkpoint={path!r}).solve(problem.replace(evaluate=slow), seed=5)
"""


def test_a_killed_process_is_resumed(tmp_path):
    path = tmp_path / "run.npz"
    script = SCRIPT.format(tests=os.path.dirname(__file__), path=str(path))
    child = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    problem, asked = counted(network([10] * 3))
    resumed = Nsga2(population=20, generations=12, checkpoint=str(path)).solve(problem, seed=5)
    whole = Nsga2(population=20, generations=12).solve(network([10] * 3), seed=5)
    assert told(resumed) == told(whole)
    assert 0 < len(asked) < whole.evaluations


def test_foreign_checkpoints_are_refused(tmp_path):
    path = str(tmp_path / "run.npz")
    problem = network([8, 8])
    Nsga2(population=10, generations=3, checkpoint=path).solve(problem)
    for other in (network([8, 8], seed=1), problem.replace(starts=removal_path(problem)), problem.replace(groups=None)):
        with pytest.raises(InvalidProblem, match="this instance"):
            Nsga2(population=10, generations=3, checkpoint=path).solve(other)
    bounded = MultiObjective(Selections(16, [Cardinality(5)]), problem.evaluate, problem.objectives)
    Nsga2(population=10, generations=3, checkpoint=path + "5").solve(bounded)
    for space in (Selections(16, [Cardinality(6)]), Selections(16), Product([Selections(16, [Cardinality(5)])])):
        with pytest.raises(InvalidProblem, match="this instance"):
            Nsga2(population=10, generations=3, checkpoint=path + "5").solve(bounded.replace(space=space))
    with pytest.raises(InvalidProblem, match="this options.*name another file"):
        Nsga2(population=11, generations=3, checkpoint=path).solve(problem)
    with pytest.raises(SolverFailed, match="seed 1, got one of seed 0"):
        Nsga2(population=10, generations=3, checkpoint=path).solve(problem, seed=1)
    whole = (tmp_path / "run.npz").read_bytes()
    (tmp_path / "run.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidProblem, match="truncated"):
        Nsga2(population=10, generations=3, checkpoint=path).solve(problem)


def test_a_checkpoint_holds_no_pickle_and_nothing_half_written_is_left(tmp_path):
    Nsga2(population=10, generations=3, checkpoint=str(tmp_path / "run.npz")).solve(network([8, 8]))
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        assert {"format", "kind", "population", "evaluated", "told"} <= set(file.files)
        assert all(file[name].dtype != object for name in file.files)


# --- options and bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutation", ["random", "variance", "conjunctive"])
@pytest.mark.parametrize("schedule", ["fixed", "increase", "decrease", "exponential", "late"])
def test_every_mutation_and_schedule_repeats(mutation, schedule):
    problem = network([8] * 3, constraints=[Cardinality(10)], activity=np.random.default_rng(0).random((30, 24)))
    solver = Nsga2(population=20, mutation=mutation, schedule=schedule)
    first, again = (solver.solve(problem.replace(), seed=1, evaluation_limit=200) for _ in range(2))
    assert told(first) == told(again)
    assert first.evaluations == 200


@pytest.mark.parametrize("mutation", ["variance", "conjunctive"])
def test_mutations_by_activations_need_some(mutation):
    with pytest.raises(UnsupportedProblem, match=f"{mutation}.*activity"):
        Nsga2(mutation=mutation).solve(network([4, 4]))


@pytest.mark.parametrize("crossover", ["uniform", "groups", "none"])
def test_crossovers_are_what_they_say(crossover):
    result = Nsga2(population=20, crossover=crossover).solve(network([8] * 3), evaluation_limit=200)
    expected = {"uniform": {"step", "exchange"}, "groups": {"step", "exchange_groups"}, "none": {"step"}}
    assert set(result.details["operators"]) == expected[crossover]


@pytest.mark.parametrize(
    "options",
    [
        {"population": 0},
        {"generations": 0},
        {"candidates": 0},
        {"checkpoint_every": 0},
        {"probability": 1.5},
        {"amount": 0.0},
        {"crossover": "sbx"},
        {"mutation": "polynomial"},
        {"schedule": "cosine"},
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(InvalidProblem, match=next(iter(options))):
        Nsga2(**options)


def test_where_the_first_points_have_no_value_it_looks_further():
    evaluate = conflicting(12)

    def holed(x):
        # dense, empty and nearly so: nothing of the first three points has a value
        return np.where((x.sum(axis=1) % 3 == 0)[:, None], np.nan, evaluate(x))

    result = Nsga2(population=3, generations=30).solve(MultiObjective(Selections(12), holed, ["a", "b"]))
    assert len(result.front.objectives)
    assert (result.front.solutions.sum(axis=1) % 3 != 0).all()


def test_without_any_value_it_ends_and_says_so():
    box = MultiObjective(Selections(6), lambda x: np.full((len(x), 2), np.nan), ["a", "b"])
    result = Nsga2(population=20).solve(box)
    assert result.status is Status.NO_FEASIBLE_FOUND
    assert result.evaluations <= 64
    assert result.details["failures"]


def test_beyond_the_limits_the_least_violated_is_told_and_approached():
    problem = network([8] * 3)
    limits = [0.5 * problem.values(np.zeros(24, dtype=bool))[0], 1.0]
    result = Nsga2(population=20, generations=20).solve(problem.replace(limits=limits))
    assert result.status is Status.NO_FEASIBLE_FOUND
    told_least = result.details["least_violated"]
    values = problem.values(np.array(told_least["point"], dtype=bool))
    assert np.allclose(values, told_least["objectives"])
    random = np.random.default_rng(0).random((400, 24)) < np.linspace(0, 1, 400)[:, None]
    assert told_least["violation"] <= problem.replace(limits=limits).excess(problem.values(random)).min()


def test_the_front_keeps_within_limits_that_can_be_met():
    problem = network([8] * 3)
    limits = problem.values(np.arange(24) % 2 == 0) * [1.2, 1.0]
    front = Nsga2(population=30, generations=20).solve(problem.replace(limits=limits)).front
    assert len(front.objectives)
    assert (front.objectives <= limits).all()


def test_naming_it_loads_no_pymoo():
    code = "import sys; from prunesolve.solvers import get; get('nsga2'); sys.exit('pymoo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_problem_may_be_sent_to_another_process():
    import pickle

    problem = network([6, 6])
    solve = partial(Nsga2(population=10, generations=4).solve, seed=2)
    assert told(solve(pickle.loads(pickle.dumps(problem)))) == told(solve(problem))
