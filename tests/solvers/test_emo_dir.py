"""EMO-DIR against fronts enumerated without it; workers, limits and what it tells."""

from __future__ import annotations

import importlib
import itertools
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve.problems import (
    BinaryQuadratic,
    Composite,
    InvalidProblem,
    LevelChoice,
    MultiObjective,
    Selections,
    SolverFailed,
    UnsupportedProblem,
)
from prunesolve.solvers import Result, Solver, Status
from prunesolve.solvers._impairment import Table, exact_front, greedy_path, spread, table
from prunesolve.solvers.emo_dir import EmoDir

SIZES = (3, 4, 3)
NAMES = ("error", "size")


@dataclass(frozen=True)
class Everything(Solver):
    """An exact search of a part: every point, in order."""

    name: ClassVar[str] = "everything"
    accepts: ClassVar[type[Any]] = MultiObjective

    def _search(self, problem, run):
        run.evaluate(every(problem))


def every(problem: MultiObjective) -> np.ndarray:
    space = problem.space
    sizes = space.sizes if isinstance(space, LevelChoice) else [2] * problem.n
    rows = np.array(list(itertools.product(*map(range, sizes))))
    rows = rows.astype(bool) if isinstance(space, Selections) else rows
    return rows[problem.is_feasible(rows)]


class Error:
    """Additive over the parts, and with `coupling` what parts lose together."""

    def __init__(self, worth: np.ndarray, coupling: float = 0.0) -> None:
        self.worth, self.coupling = worth, coupling

    def __call__(self, x: np.ndarray) -> np.ndarray:
        gone = (1 - x) * self.worth
        inside = 0.3 * gone.sum(1) ** 2 if self.coupling else 0.0
        return np.stack([gone.sum(1) + self.coupling * inside, x @ np.arange(1.0, 1 + len(self.worth))], axis=1)


def composite(coupling: float = 0.0, seed: int = 0, **joint: Any) -> Composite:
    worth = np.random.default_rng(seed).uniform(0.2, 3.0, sum(SIZES))
    cuts = np.cumsum(SIZES)[:-1]
    cost = np.random.default_rng(seed + 1).integers(1, 9, sum(SIZES)).astype(float)
    parts = [
        MultiObjective.over([BinaryQuadratic(-w, offset=w.sum()), BinaryQuadratic(c)], NAMES)
        for w, c in zip(np.split(worth, cuts), np.split(cost, cuts), strict=True)
    ]
    together = coupling * np.outer(worth, worth)
    np.fill_diagonal(together, 0.0)
    # gone_i gone_j for every pair, written out in what is kept
    linear = -worth - together.sum(1)
    whole = BinaryQuadratic(linear, together, offset=worth.sum() + together.sum() / 2)
    return Composite(
        parts, MultiObjective.over([whole, BinaryQuadratic(cost)], NAMES, **joint), np.ones(sum(SIZES), dtype=bool)
    )


def true_front(problem: MultiObjective) -> list[tuple[float, float]]:
    """By comparison of every point with every other, without the library."""
    values = [tuple(v) for v in np.round(problem.evaluate(every(problem)), 9).tolist()]
    best = {v for v in values if not any(o[0] <= v[0] and o[1] <= v[1] and o != v for o in values)}
    return sorted(best)


def found(result: Result) -> list[tuple[float, float]]:
    return [tuple(v) for v in np.round(result.front.objectives, 9).tolist()]


THOROUGH = {"members": 1000, "points": 10_000}


# -- what is found


@pytest.mark.parametrize("seed", range(4))
def test_additive_impairments_joined_exactly_are_the_true_front(seed):
    problem = composite(seed=seed)
    result = EmoDir(Everything(), "knapsack", **THOROUGH).solve(problem)
    assert found(result) == true_front(problem.joint)
    assert result.status is Status.FINISHED


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_path_holds_the_hull_of_an_additive_front(seed):
    problem = composite(seed=seed)
    reached = set(found(EmoDir(Everything(), "gpir", **THOROUGH).solve(problem)))
    front = true_front(problem.joint)
    hull = [
        p
        for p in front
        if any(
            all(p[0] + t * p[1] <= q[0] + t * q[1] - 1e-9 for q in front if q != p)
            for t in np.geomspace(1e-4, 1e4, 4001)
        )
    ]
    assert len(hull) > 2
    assert set(hull) <= reached


@pytest.mark.parametrize("join", ["gpir", "knapsack"])
def test_every_point_is_the_whole_network_s_own(join):
    problem = composite(coupling=0.4)
    result = EmoDir(Everything(), join).solve(problem)
    assert np.allclose(result.front.objectives, problem.joint.evaluate(result.front.solutions))
    assert result.details["parts"][0]["members"] > 2
    told = result.details["additive"]
    assert max(np.subtract(told["measured"], told["foretold"])) > 0.1
    assert 0.5 < told["correlation"] <= 1.0


def test_what_is_told_of_additive_impairments_is_exact():
    told = EmoDir(Everything(), "gpir").solve(composite()).details["additive"]
    assert np.allclose(told["measured"], told["foretold"])
    assert told["correlation"] == pytest.approx(1.0)


def test_levels_are_parts_as_well():
    tables = [([3.0, 1.0, 0.0], [1.0, 2.0, 4.0]), ([5.0, 2.0, 0.0], [2.0, 3.0, 7.0])]
    choices = [LevelChoice([e], [c], 100.0) for e, c in tables]
    whole = LevelChoice([e for e, _ in tables], [c for _, c in tables], 100.0)

    def objectives(choice):
        return MultiObjective(choice, lambda x: np.stack([choice.value(x), choice.spent(x)], 1), NAMES)

    problem = Composite([objectives(c) for c in choices], objectives(whole), [2, 2])
    result = EmoDir(Everything(), "knapsack").solve(problem)
    assert found(result) == true_front(problem.joint)


def test_limits_of_the_whole_decide_which_schemes_are_evaluated():
    free = EmoDir(Everything(), "knapsack").solve(composite(coupling=0.2))
    most = float(np.median(free.front.objectives[:, 1]))
    bounded = composite(coupling=0.2, limits=[np.inf, most])
    result = EmoDir(Everything(), "knapsack", points=5).solve(bounded)
    assert len(result.front.objectives) >= 5
    assert (result.front.objectives[:, 1] <= most).all()


def test_points_to_begin_with_are_in_the_front():
    # a point that no scheme reaches: the parts' searches see another error
    problem = composite(coupling=0.4)
    rows = every(problem.joint)
    best = true_front(problem.joint)
    start = next(r for r in rows if tuple(np.round(problem.joint.evaluate(r[None])[0], 9)) == best[len(best) // 2])
    joint = problem.joint.replace(starts=start[None])
    result = EmoDir(Everything(), members=1, points=1).solve(Composite(problem.parts, joint, problem.dense))
    assert best[len(best) // 2] in found(result)


@pytest.mark.parametrize("join", ["gpir", "knapsack"])
def test_what_is_left_of_the_evaluations_polishes_the_joined_front(join):
    problem = composite(coupling=0.4, reference=[60.0, 60.0])
    result = EmoDir(join=join, members=4, points=4).solve(problem, evaluation_limit=250)
    joined = result.details["joined"]
    assert joined["evaluations"] < result.evaluations <= 250
    assert joined["hypervolume"] < result.details["hypervolume"]
    plain = EmoDir(join=join, members=4, points=4, polish=False).solve(problem, evaluation_limit=250)
    assert "joined" not in plain.details
    for one in (result, plain):
        assert np.allclose(one.front.objectives, problem.joint.evaluate(one.front.solutions))


# -- limits


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 300])
@pytest.mark.parametrize("join", ["gpir", "knapsack"])
def test_every_evaluation_counts_and_none_is_beyond_the_limit(limit, join):
    asked = []
    problem = composite(coupling=0.2)

    def counting(one, where):
        def evaluate(x):
            asked.extend((where, row.tobytes()) for row in x)
            return one.evaluate(x)

        return MultiObjective(one.space, evaluate, NAMES)

    parts = [counting(part, s) for s, part in enumerate(problem.parts)]
    watched = Composite(parts, counting(problem.joint, "whole"), problem.dense)
    result = EmoDir(Everything(), join).solve(watched, evaluation_limit=limit)
    assert result.evaluations == len(asked) == len(set(asked))
    assert result.evaluations <= limit
    assert result.feasible
    assert np.allclose(result.front.objectives, problem.joint.evaluate(result.front.solutions))


def test_the_time_limit_holds():
    problem = composite()

    def slow(x):
        time.sleep(0.02 * len(x))
        return problem.joint.evaluate(x)

    joint = MultiObjective(problem.joint.space, slow, NAMES, reference=[30.0, 60.0])
    began = time.perf_counter()
    result = EmoDir(Everything()).solve(Composite(problem.parts, joint, problem.dense), time_limit=0.3)
    assert time.perf_counter() - began < 1.5
    assert result.status is Status.TIME_LIMIT
    assert result.feasible


def test_a_callback_stops_it():
    seen = []
    problem = composite(reference=[30.0, 60.0])
    result = EmoDir(Everything()).solve(problem, callback=lambda told: seen.append(told) or True)
    assert result.status is Status.STOPPED
    assert len(seen) == 1


def test_one_seed_one_front():
    problem = composite(coupling=0.3)
    runs = [EmoDir().solve(composite(coupling=0.3), seed=5, evaluation_limit=150) for _ in range(2)]
    assert np.array_equal(runs[0].front.solutions, runs[1].front.solutions)
    assert np.allclose(runs[0].front.objectives, problem.joint.evaluate(runs[0].front.solutions))


def test_points_without_a_value_are_left_out():
    problem = composite()
    holed = MultiObjective(
        problem.joint.space,
        lambda x: np.where(x[:, :1] | x.all(1, keepdims=True), problem.joint.evaluate(x), np.nan),
        NAMES,
    )
    result = EmoDir(Everything(), "knapsack").solve(Composite(problem.parts, holed, problem.dense))
    assert result.front.solutions[:, 0].all()
    assert result.details["failures"]


def test_a_dense_point_without_a_value_leaves_nothing_to_join():
    problem = composite()
    nothing = MultiObjective(problem.joint.space, lambda x: np.full((len(x), 2), np.nan), NAMES)
    result = EmoDir(Everything()).solve(Composite(problem.parts, nothing, problem.dense))
    assert result.status is Status.NO_FEASIBLE_FOUND


def test_a_part_that_fails_twice_is_said():
    problem = composite()

    def lost(x):
        raise RuntimeError("the device is lost")

    parts = [*problem.parts[:2], MultiObjective(problem.parts[2].space, lost, NAMES)]
    with pytest.raises(SolverFailed, match="the device is lost"):
        EmoDir(Everything()).solve(Composite(parts, problem.joint, problem.dense))


# -- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"join": "gpri"}, "did you mean 'gpir'"),
        ({"share": 1.0}, "share: expected a number between 0 and 1"),
        ({"members": 0}, "members: expected a whole number >= 1"),
        ({"workers": -1}, "workers: expected a whole number >= 0"),
        ({"points": True}, "points: expected a whole number >= 1"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(InvalidProblem, match=words):
        EmoDir(**options)


def test_what_is_no_composite_and_an_inner_solver_that_takes_no_part():
    with pytest.raises(UnsupportedProblem, match="emo-dir takes Composite"):
        EmoDir().solve(composite().joint)
    with pytest.raises(UnsupportedProblem, match="greedy takes"):
        EmoDir("greedy").solve(composite())


# -- workers


@pytest.mark.slow
def test_workers_find_the_same_front():
    runs = [
        EmoDir("nsga2", workers=workers).solve(composite(coupling=0.3), seed=3, evaluation_limit=150)
        for workers in (0, 2)
    ]
    assert np.array_equal(runs[0].front.solutions, runs[1].front.solutions)
    assert runs[0].evaluations == runs[1].evaluations
    assert [p["front"] for p in runs[0].details["parts"]] == [p["front"] for p in runs[1].details["parts"]]


def test_parts_that_cannot_be_sent_are_refused_before_anything_starts():
    problem = composite()
    parts = [MultiObjective(p.space, lambda x, p=p: p.evaluate(x), NAMES) for p in problem.parts]
    with pytest.raises(InvalidProblem, match=r"workers: part 0 cannot be sent .* or set workers=0"):
        EmoDir(Everything(), workers=2).solve(Composite(parts, problem.joint, problem.dense))


# a module of its own: a worker imports what it is sent by name, and these tests have none
FAILING = """
import os

class Lost:
    def __call__(self, x):
        raise RuntimeError("the device is lost")

class Dies:
    def __call__(self, x):
        os._exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), [("Lost", "part 1: .*the device is lost"), ("Dies", r"process of part 1 ended .*exit code 7")]
)
def test_a_worker_that_fails_is_said(name, words, tmp_path, monkeypatch):
    (tmp_path / "failing_parts.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    evaluate = getattr(importlib.import_module("failing_parts"), name)()
    problem = composite()
    parts = [problem.parts[0], MultiObjective(problem.parts[1].space, evaluate, NAMES), problem.parts[2]]
    with pytest.raises(SolverFailed, match=words):
        EmoDir("nsga2", workers=1).solve(Composite(parts, problem.joint, problem.dense), evaluation_limit=60)


SCRIPT = """
import os, sys, time
import numpy as np
from prunesolve.problems import BinaryQuadratic, Composite, MultiObjective
from prunesolve.solvers.emo_dir import EmoDir

class Slow:
    def __call__(self, x):
        open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
        time.sleep(60)

if __name__ == "__main__":
    quadratic = BinaryQuadratic([-1.0, -2.0])
    part = MultiObjective.over([quadratic, BinaryQuadratic([1.0, 1.0])], ["error", "size"])
    slow = MultiObjective(part.space, Slow(), ["error", "size"])
    whole = [BinaryQuadratic([-1.0, -2.0] * 2), BinaryQuadratic(np.ones(4))]
    joint = MultiObjective.over(whole, ["error", "size"], reference=[1.0, 5.0])
    result = EmoDir(workers=2).solve(Composite([slow, slow], joint, np.ones(4, dtype=bool)))
    print(result.status, len(result.front.solutions), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_caller(tmp_path: Path, ending):
    script, pids = tmp_path / "run.py", tmp_path / "pids"
    pids.mkdir()
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script), str(pids)], stdout=subprocess.PIPE, text=True) as caller:
        _until(lambda: len(list(pids.iterdir())) == 2)
        caller.send_signal(ending)
        told, _ = caller.communicate(timeout=30)
    if ending is signal.SIGINT:
        assert told.split() == ["STOPPED", "1"]
    _until(lambda: not any(_runs(int(path.name)) for path in pids.iterdir()))


def _until(holds) -> None:
    began = time.perf_counter()
    while not holds():
        assert time.perf_counter() - began < 60
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- the join by itself


def random_tables(rng, parts=3, members=5) -> list[Table]:
    return [
        table(np.arange(members)[:, None], rng.normal(1.0, 1.0, members), rng.integers(0, 9, members).astype(float))
        for _ in range(parts)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_join_is_the_enumerated_front_of_sums(seed):
    tables = random_tables(np.random.default_rng(seed))
    schemes = list(itertools.product(*(range(len(t.saving)) for t in tables)))
    sums = [
        (
            sum(t.impairment[i] for t, i in zip(tables, c, strict=True)),
            -sum(t.saving[i] for t, i in zip(tables, c, strict=True)),
        )
        for c in schemes
    ]
    rounded = {tuple(np.round(s, 9)) for s in sums}
    best = {v for v in rounded if not any(o[0] <= v[0] and o[1] <= v[1] and o != v for o in rounded)}
    joined = exact_front(tables)
    assert {tuple(np.round(sums[schemes.index(tuple(c))], 9)) for c in joined.tolist()} == best


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_path_goes_from_one_end_to_the_other_one_member_at_a_time(seed):
    tables = random_tables(np.random.default_rng(seed))
    path = greedy_path(tables)
    assert path[0].tolist() == [0, 0, 0]
    assert path[-1].tolist() == [len(t.saving) - 1 for t in tables]
    assert (np.abs(np.diff(path, axis=0)).sum(1) == 1).all()


def test_a_table_holds_no_dominated_member():
    found = table(np.arange(5)[:, None], np.array([0.0, -1.0, 2.0, 3.0, np.inf]), np.array([0.0, 1.0, 3.0, 2.0, 9.0]))
    assert found.members.ravel().tolist() == [1, 2]


def test_spread_takes_the_ends_and_no_point_twice():
    values = np.array([5.0, 1.0, 1.1, 1.2, 9.0])
    assert spread(values, 2).tolist() == [1, 4]
    assert spread(values, 4).tolist() == sorted(set(spread(values, 4).tolist()))
    assert len(spread(values, 4)) == 4
    assert spread(values, 10).tolist() == [0, 1, 2, 3, 4]
