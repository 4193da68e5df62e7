"""Instances made to break a solver: the right answer, by exact enumeration, or a refusal in words; never a warning."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Cardinality, GroupBounds, InvalidProblem, LowRank
from prunesolve.solvers import Exact, Restarts, Result, Status, SwapAnnealing, SwapTabu

NAN, INF = float("nan"), float("inf")
TINY = 5e-324  # the least positive float
RNG = np.random.default_rng(7)
A8 = RNG.normal(-0.5, 1.0, 8).round(3)
J8 = np.triu(RNG.normal(size=(8, 8)).round(3), 1)
J8 = J8 + J8.T
F8 = RNG.normal(size=(8, 2)).round(3)
K4 = Cardinality(4)


def problem(linear, quadratic=None, *constraints, offset=0.0):
    return BinaryQuadratic(linear, quadratic, offset=offset, constraints=constraints)


def with_pair(matrix, i, j, bias):
    changed = np.array(matrix, dtype=float)
    changed[i, j] = changed[j, i] = bias
    return changed


def ones(n, bias=1.0):
    return bias * (np.ones((n, n)) - np.eye(n))


def duplicated(matrix):
    """Units 0 and 1 couple to all others alike, and so do 2 and 3."""
    changed = np.array(matrix)
    for first, second in ((0, 1), (2, 3)):
        changed[second] = changed[first]
        changed[:, second] = changed[:, first]
        changed[first, second] = changed[second, first] = 0.7
    np.fill_diagonal(changed, 0.0)
    return (changed + changed.T) / 2


HALVES = GroupBounds(np.arange(8) % 2, [1, 1], [3, 3])
COST = np.array([3.0, 5, 2, 7, 4, 1, 6, 2])

HOSTILE = {
    # magnitudes
    "1e150": problem(1e150 * A8, 1e150 * J8, K4),
    "1e150, unconstrained": problem(1e150 * A8, 1e150 * J8),
    "1e300": problem(1e300 * A8, 1e300 * J8, K4),
    "1e300, unconstrained": problem(1e300 * A8, 1e300 * J8),
    "1e300, sparse": problem(1e300 * A8, sparse.csr_array(1e300 * J8), K4),
    "1e300, blocks": problem(1e300 * A8, Blocks([1e300 * J8[:3, :3], 1e300 * J8[3:, 3:]]), HALVES),
    "1e149, low rank": problem(1e298 * A8, LowRank(1e149 * F8), K4),
    "1e149, negative low rank": problem(1e298 * A8, LowRank(1e149 * F8, sign=-1)),
    "1e300, group bounds and budget": problem(1e300 * A8, 1e300 * J8, HALVES, Budget(COST, 14.5)),
    "1e-300": problem(1e-300 * A8, 1e-300 * J8, K4),
    "1e-300, unconstrained": problem(1e-300 * A8, 1e-300 * J8),
    "1e-300, budget": problem(1e-300 * A8, 1e-300 * J8, Budget(COST, 14.5)),
    "1e-150, low rank": problem(1e-300 * A8, LowRank(1e-150 * F8), K4),
    "denormal biases": problem(TINY * np.round(10 * A8), TINY * np.round(10 * J8), K4),
    "denormal biases, unconstrained": problem(TINY * np.round(10 * A8), TINY * np.round(10 * J8)),
    "one denormal": problem([TINY, 0, -TINY, 0, 0, 0, 0, 0], None, K4),
    "denormal factors": problem(A8, LowRank(TINY * np.ones((8, 2))), K4),
    "1e-300 beside 1e10": problem(np.where(np.arange(8) % 2, 1e10, 1e-300) * A8, with_pair(J8, 0, 2, 1e-300), K4),
    "all scales": problem(-(10.0 ** np.arange(-12, 12, 3)), with_pair(J8, 6, 7, 1e9), K4),
    # one giant coupling
    "giant 1e6": problem(A8, with_pair(J8, 1, 6, 1e6), K4),
    "giant 1e12": problem(A8, with_pair(J8, 1, 6, 1e12), K4),
    "giant 1e12, unconstrained": problem(A8, with_pair(J8, 1, 6, 1e12)),
    "giant 1e12, sparse": problem(A8, sparse.csr_array(with_pair(J8, 1, 6, 1e12)), K4),
    "giant 1e12, group bounds": problem(A8, with_pair(J8, 1, 6, 1e12), HALVES),
    "giant 1e12, budget": problem(A8, with_pair(J8, 1, 6, 1e12), Budget(COST, 14.5)),
    "giant -1e12": problem(A8, with_pair(J8, 1, 6, -1e12), K4),
    "giant 1e16": problem(A8, with_pair(J8, 1, 6, 1e16), K4),
    "giant 1e16, unconstrained": problem(A8, with_pair(J8, 1, 6, 1e16)),
    "giant 1e16, blocks": problem(A8, Blocks([J8[:4, :4], with_pair(J8[4:, 4:], 1, 3, 1e16)]), K4),
    "giant 1e300": problem(A8, with_pair(J8, 1, 6, 1e300), K4),
    "giant unit": problem(np.where(np.arange(8) == 3, 1e16, A8), J8, K4),
    "giant factor": problem(A8, LowRank(np.where(np.arange(8)[:, None] == 3, 1e6, 1.0) * F8), K4),
    "three giants": problem(A8, with_pair(with_pair(with_pair(J8, 0, 1, 1e14), 2, 5, 1e13), 3, 4, 1e14), K4),
    # ties
    "all zero": problem(np.zeros(8), np.zeros((8, 8)), K4),
    "all zero, sparse": problem(np.zeros(8), sparse.csr_array((8, 8)), K4),
    "all zero, unconstrained": problem(np.zeros(8), np.zeros((8, 8))),
    "equal biases": problem(-np.ones(8), ones(8), K4),
    "equal biases, unconstrained": problem(-np.ones(8), ones(8)),
    "equal biases, group bounds": problem(-np.ones(8), ones(8), HALVES),
    "equal biases, low rank": problem(-np.ones(8), LowRank(np.ones((8, 1))), K4),
    "minus zero": problem(-np.zeros(8), -np.zeros((8, 8)), K4, offset=-0.0),
    "duplicate units": problem(A8[[0, 0, 2, 2, 4, 5, 6, 7]], duplicated(J8), K4),
    "duplicate units, unconstrained": problem(A8[[0, 0, 2, 2, 4, 5, 6, 7]], duplicated(J8)),
    "duplicate factors": problem(A8, LowRank(F8[[0, 0, 0, 0, 1, 1, 1, 1]]), K4),
    # offsets
    "offset 1e15": problem(A8, J8, K4, offset=1e15),
    "offset -1e300": problem(A8, J8, K4, offset=-1e300),
    "offset 1e300, unconstrained": problem(A8, J8, offset=1e300),
    # shapes
    "n = 1, kept": problem([-1.0]),
    "n = 1, dropped": problem([1.0], [[0.0]]),
    "n = 1, k = 1": problem([1.0], None, Cardinality(1)),
    "n = 1, k = 0": problem([-1.0], None, Cardinality(0)),
    "n = 1, budget 0": problem([-1.0], None, Budget([1.0], 0.0)),
    "n = 2": problem([-1.0, -1.0], [[0, 3.0], [3.0, 0]]),
    "n = 2, k = 1": problem([-1.0, -2.0], [[0, 3.0], [3.0, 0]], Cardinality(1)),
    "k = 1": problem(A8, J8, Cardinality(1)),
    "k = n - 1": problem(A8, J8, Cardinality(7)),
    "k = n": problem(A8, J8, Cardinality(8)),
    "k = 1, low rank": problem(A8, LowRank(F8), Cardinality(1)),
    "k = n - 1, sparse": problem(A8, sparse.csr_array(J8 * (np.abs(J8) > 1)), Cardinality(7)),
    # couplings
    "no coupling": problem(A8, None, K4),
    "one coupling": problem(A8, with_pair(np.zeros((8, 8)), 2, 5, -3.0), K4),
    "one coupling, sparse": problem(A8, sparse.csr_array(with_pair(np.zeros((8, 8)), 2, 5, -3.0)), K4),
    "disconnected, sparse": problem(A8, sparse.block_diag([J8[:2, :2], np.zeros((3, 3)), J8[5:, 5:]]).tocsr(), K4),
    "blocks of one": problem(A8, Blocks([[[0.0]]] * 8), K4),
    "blocks of none and one": problem(A8, Blocks([np.zeros((0, 0)), J8[:7, :7], [[0.0]], np.zeros((0, 0))]), K4),
    "rank 0": problem(A8, LowRank(np.zeros((8, 0))), K4),
    "rank 0, unconstrained": problem(A8, LowRank(np.zeros((8, 0)), sign=-1)),
    "zero factors": problem(A8, LowRank(np.zeros((8, 3)), sign=-1), K4),
    "some zero factors": problem(A8, LowRank(F8 * (np.arange(8) % 2)[:, None]), K4),
    "rank above n": problem(A8, LowRank(np.random.default_rng(3).normal(size=(8, 11)).round(3)), K4),
    # groups
    "groups of none": problem(A8, J8, GroupBounds([0] * 4 + [2] * 4, [1, 0, 1], [2, 0, 3])),
    "no group at all": problem(A8, J8, GroupBounds([-1] * 8, [], [])),
    "units of no group": problem(A8, J8, GroupBounds([-1] * 7 + [0], [1], [1]), K4),
    "exact groups": problem(A8, J8, GroupBounds(np.arange(8) // 4, [2, 2], [2, 2])),
    "groups that settle all": problem(A8, J8, GroupBounds(np.arange(8) // 4, [0, 4], [0, 4])),
    "one unit per group": problem(A8, J8, GroupBounds(np.arange(8), [0] * 8, [1] * 8), K4),
    "huge bounds": problem(A8, J8, GroupBounds([0] * 8, [-(2**40)], [2**40])),
    # budgets
    "costs of microseconds": problem(A8, J8, Budget(1e-12 * COST, 14.5e-12)),
    "1e300 at costs 1e-300": problem(1e300 * A8, 1e300 * J8, Budget(1e-300 * COST, 14.5e-300), K4),
    "1e-300 at costs 1e300": problem(1e-300 * A8, 1e-300 * J8, Budget(1e300 * COST, 14.5e300), K4),
    "one pair cost 1e300": problem(A8, J8, Budget(COST, 14.5, with_pair(ones(8, 0.1), 1, 4, 1e300))),
    "one pair cost 1e300 and k": problem(A8, J8, Budget(COST, 14.5, with_pair(ones(8, 0.1), 1, 4, 1e300)), K4),
    "budget of zeros": problem(A8, J8, Budget(np.zeros(8), 0.0)),
    "budget of zeros and k": problem(A8, J8, Budget(np.zeros(8), 0.0), K4),
    "limit 0": problem(A8, J8, Budget(COST, 0.0)),
    "limit 0, one free": problem(A8, J8, Budget(np.where(np.arange(8) == 2, 0.0, COST), 0.0), Cardinality(1)),
    "limit above all": problem(A8, J8, Budget(COST, 1e300)),
    "equal costs": problem(A8, J8, Budget(np.full(8, 0.1), 0.3)),
    "costs 1e-300": problem(A8, J8, Budget(1e-300 * COST, 1.45e-299)),
    "denormal costs": problem(A8, J8, Budget(TINY * COST, 14 * TINY), K4),
    "costs 1e300": problem(A8, J8, Budget(1e300 * COST, 14.5e300)),
    "costs 1e300 and k": problem(A8, J8, Budget(1e300 * COST, 14.5e300), K4),
    "denormal and huge costs": problem(A8, J8, Budget(np.where(np.arange(8) % 3 == 0, 1e300, TINY), 1.5e300), K4),
    "one cost 1e300": problem(A8, J8, Budget(np.where(np.arange(8) == 2, 1e300, COST), 14.5)),
    "pair costs 1e300": problem(A8, J8, Budget(1e300 * COST, 20e300, 1e300 * np.abs(ones(8)))),
    "only pairs cost": problem(A8, J8, Budget(np.zeros(8), 3.0, ones(8))),
    "limit met with equality": problem(-np.ones(8), None, Budget(0.1 * COST, 0.1 * 30)),
    "minus zero cost": problem(A8, J8, Budget(-np.zeros(8), -0.0)),
    "duplicate budgets": problem(A8, J8, Budget(COST, 14.5), Budget(COST, 14.5), Budget(2 * COST, 29.0)),
}  # fmt: skip

REFUSED = {
    "1e308 many times": (lambda: problem(1e308 * np.ones(8), None, K4), "float64 range"),
    "factors 1e200": (lambda: problem(A8, LowRank(1e200 * F8), K4), "float64 range"),
    "couplings 1e308": (lambda: problem(A8, 1e308 * ones(8), K4), "float64 range"),
    "blocks 1e308": (lambda: problem(A8, Blocks([1e308 * ones(8)]), K4), "float64 range"),
    "sparse 1e308": (lambda: problem(A8, sparse.csr_array(1e308 * ones(8)), K4), "float64 range"),
    "asymmetric 1e308": (lambda: problem([1.0, 1.0], [[0, 1e308], [-1e308, 0]]), "(symmetric|range)"),
    "offset and biases": (lambda: problem(1e308 * np.ones(1), None, offset=1.7e308), "float64 range"),
    "costs 1e308": (lambda: problem(A8, J8, Budget(1e308 * np.ones(8), 1e308)), "Budget.*float64 range"),
    "pair costs 1e308": (lambda: problem(A8, J8, Budget(COST, 30.0, 1e308 * ones(8))), "Budget.*float64 range"),
    "nan bias": (lambda: problem([NAN, 1.0]), "finite"),
    "inf bias": (lambda: problem([1.0, -INF]), "finite"),
    "nan coupling": (lambda: problem([1.0, 1.0], [[0, NAN], [NAN, 0]]), "finite"),
    "nan on the diagonal": (lambda: problem([1.0, 1.0], [[NAN, 0], [0, 0]]), "finite"),
    "inf sparse": (lambda: problem([1.0, 1.0], sparse.csr_array([[0, INF], [INF, 0]])), "finite"),
    "nan block": (lambda: problem([1.0, 1.0], Blocks([[[0, NAN], [NAN, 0]]])), "finite"),
    "nan factor": (lambda: problem([1.0, 1.0], LowRank([[NAN], [1.0]])), "finite"),
    "nan offset": (lambda: problem([1.0], offset=NAN), "finite"),
    "inf diagonal": (lambda: BinaryQuadratic([1.0], diagonal=[INF]), "finite"),
    "nan cost": (lambda: Budget([NAN], 1.0), "finite"),
    "inf limit": (lambda: Budget([1.0], INF), "finite"),
    "nan pair cost": (lambda: Budget([1.0, 1.0], 1.0, [[0, NAN], [NAN, 0]]), "finite"),
    "nan k": (lambda: Cardinality(NAN), "finite"),
    "half a k": (lambda: Cardinality(1.5), "whole"),
    "huge k": (lambda: problem(A8, None, Cardinality(10**30)), "(largest|range|whole)"),
    "nan group": (lambda: GroupBounds([NAN], [0], [1]), "finite"),
    "huge group": (lambda: GroupBounds([1e300], [0], [1]), "GroupBounds.group"),
    "huge low": (lambda: GroupBounds([0], [1e300], [1e300]), "GroupBounds"),
    "complex biases": (lambda: problem([1j, 1.0]), "numbers"),
    "a string of digits": (lambda: problem("123"), "(numbers|shape)"),
}  # fmt: skip

SEARCHES = {
    "exact": Exact(),
    "exact by tree": Exact(enumerate_up_to=0),
    "auto": solvers.get("auto"),
    "swap-annealing": SwapAnnealing(sweeps=300, restarts=2),
    "swap-tabu": SwapTabu(iterations=5000),
}
FLOORS = {
    "restarts": Restarts(SwapTabu(iterations=500)),
    "greedy": solvers.get("greedy"),
    "polish": solvers.get("polish"),
    "simulated-annealing": solvers.get("simulated-annealing", sweeps=50),
}


def exact_fractions(array):
    return [Fraction(float(v)) for v in array]


class Oracle:
    """Every selection with its exact value and whether it is feasible, in rational arithmetic."""

    def __init__(self, problem):
        n = problem.n
        self.linear = exact_fractions(problem.linear)
        if isinstance(problem.couplings, LowRank):
            F = [exact_fractions(row) for row in problem.couplings.F]
            dot = {
                (i, j): problem.couplings.sign * sum((p * q for p, q in zip(F[i], F[j], strict=True)), Fraction(0))
                for i, j in itertools.combinations(range(n), 2)
            }
        else:
            J = problem.couplings.dense()
            dot = {(i, j): Fraction(float(J[i, j])) for i, j in itertools.combinations(range(n), 2)}
        self.pairs = {pair: bias for pair, bias in dot.items() if bias}
        self.problem, self.offset = problem, Fraction(problem.offset)
        values = {x: self.value(x) for x in itertools.product([0, 1], repeat=n) if self.feasible(x)}
        self.optimum = min(values.values())
        self.worst = np.array(max(values, key=values.__getitem__), dtype=bool)

    def value(self, x):
        total = self.offset + sum(a for a, kept in zip(self.linear, x, strict=True) if kept)
        return total + sum(bias for (i, j), bias in self.pairs.items() if x[i] and x[j])

    def feasible(self, x, slack=1e-12):
        for c in self.problem.constraints:
            if isinstance(c, Cardinality) and sum(x) != c.k:
                return False
            if isinstance(c, GroupBounds):
                counts = [sum(kept for kept, g in zip(x, c.group, strict=True) if g == h) for h in range(len(c.low))]
                if any(not low <= count <= high for low, count, high in zip(c.low, counts, c.high, strict=True)):
                    return False
            if isinstance(c, Budget):
                spent = sum(Fraction(float(cost)) for cost, kept in zip(c.cost, x, strict=True) if kept)
                if c.pair is not None:
                    q = c.pair.toarray()
                    kept = [i for i, bit in enumerate(x) if bit]
                    spent += sum(Fraction(float(q[i, j])) for i, j in itertools.combinations(kept, 2))
                if spent > Fraction(c.limit) * Fraction(1 + slack):
                    return False
        return True


ORACLES = {}


def oracle(name):
    if name not in ORACLES:
        ORACLES[name] = Oracle(HOSTILE[name])
    return ORACLES[name]


def near(objective, true):
    """Equal to nine digits of the value itself, however large or small; floats hold no more of a sum with an offset."""
    return abs(Fraction(objective) - true) <= abs(true) * Fraction(1e-9)


def finite(told):
    """Whether no number in parsed JSON is NaN or infinite."""
    if isinstance(told, dict):
        return all(finite(value) for value in told.values())
    if isinstance(told, list):
        return all(finite(value) for value in told)
    return not isinstance(told, float) or math.isfinite(told)


def checked(name, solver, **limits):
    """A result that is right about itself, survives JSON and is never below the optimum."""
    truth = oracle(name)
    result = solver.solve(HOSTILE[name], **limits)
    assert result.feasible, result.status
    assert near(result.objective, truth.value(result.solution)), "the objective is not the value of the solution"
    assert truth.feasible(result.solution, slack=1e-8), "told feasible and is not"
    assert result.objective >= truth.optimum or near(result.objective, truth.optimum)
    text = result.to_json()
    assert finite(json.loads(text))
    again = Result.from_json(text)
    assert again.to_json() == text
    assert np.array_equal(again.solution, result.solution)
    if result.bound is not None:
        assert result.bound <= truth.optimum or near(result.bound, truth.optimum)
    if result.status is Status.OPTIMAL:
        assert near(result.objective, truth.optimum), "told OPTIMAL and is not"
    return result


@pytest.mark.parametrize("start", ["greedy", "worst"])
@pytest.mark.parametrize("solver", SEARCHES)
@pytest.mark.parametrize("name", HOSTILE)
def test_searches_find_the_optimum(name, solver, start):
    result = checked(name, SEARCHES[solver], seed=1, start=oracle(name).worst if start == "worst" else None)
    assert near(result.objective, oracle(name).optimum), f"{result.objective} for {float(oracle(name).optimum)}"


# dwave-samplers warns of biases that are all zero, which is no mistake here
@pytest.mark.filterwarnings("ignore:All bqm biases are zero:UserWarning")
@pytest.mark.parametrize("solver", FLOORS)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_others_are_feasible_and_right_about_themselves(name, solver):
    checked(name, FLOORS[solver], seed=1)


@pytest.mark.parametrize("name", HOSTILE)
def test_bounds_hold(name):
    result = checked(name, FLOORS["greedy"], bound=True, time_limit=0.5)
    assert result.bound is not None
    assert Fraction(result.bound) <= oracle(name).optimum or near(result.bound, oracle(name).optimum)


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1.0, 50.0, 1e4])
def test_a_capped_budget_is_met_by_the_same_selections(limit):
    rng = np.random.default_rng(0)
    every = np.array(list(itertools.product([False, True], repeat=6)))
    for paired in (False, True) * 20:
        pair = np.triu(10.0 ** rng.integers(-3, 9, (6, 6)) * (rng.random((6, 6)) < 0.4), 1) if paired else None
        cost = 10.0 ** rng.integers(-3, 9, 6) * (rng.random(6) < 0.7)
        budget = Budget(cost, limit, None if pair is None else pair + pair.T)
        assert np.array_equal(budget.capped.holds(every), budget.holds(every))
        assert budget.capped.cost.max() <= max(1.0, 1000 * limit)


@pytest.mark.parametrize("unit", [1e-290, 1e-12, 1.0, 1e12, 1e290])
def test_a_budget_is_judged_in_its_own_unit(unit):
    budget = Budget(unit * np.array([3.0, 4.0, 1e300 / max(unit, 1.0)]), unit * 5.0)
    assert budget.holds(np.array([[True, False, False], [False, True, False]])).all()
    assert not budget.holds(np.array([[True, True, False], [False, False, True]])).any()


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_what_floats_cannot_hold_is_refused(build, words):
    with pytest.raises(InvalidProblem, match=words):
        build()


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def solved(tmp_path, monkeypatch, capfd):
    """Runs `prunesolve solve FILE --json` in this process: exit code, stdout, stderr."""
    from prunesolve.cli import main

    monkeypatch.chdir(tmp_path)

    def run(name, content=None, *options):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            (tmp_path / name).write_text(content)
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["solve", name, "--solver", "greedy", "--json", *options])
        return left.value.code, *capfd.readouterr()

    return run


def refused(told):
    """Exit 2 in one clear line, nothing on stdout."""
    code, out, err = told
    assert (code, out) == (2, ""), told
    assert err.startswith("prunesolve: "), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err, err
    assert 20 < len(err) < 700, err


TEXTS = {
    # name, content, options
    "an empty npz": ("a.npz", b"", ()),
    "noise as npz": ("a.npz", np.random.default_rng(0).bytes(4096), ()),
    "a zip of nothing": ("a.npz", b"PK\x05\x06" + bytes(18), ()),
    "noise as bqm": ("a.bqm", np.random.default_rng(1).bytes(4096), ()),
    "noise as cqm": ("a.cqm", np.random.default_rng(2).bytes(4096), ()),
    "noise as text": ("a.txt", np.random.default_rng(3).bytes(4096), ()),
    "no lp": ("a.lp", "Minimize\n obj: x + \nSubject", ()),
    "an empty text": ("a.txt", "", ()),
    "blank lines": ("a.txt", "\n \n\n", ()),
    "prose": ("a.txt", "Lorem ipsum dolor sit amet\n", ()),
    "html": ("a.txt", "<!DOCTYPE html><html><body>404 Not Found</body></html>\n", ()),
    "coo nan": ("a.coo", "0 0 nan\n0 1 1.0\n", ("--format", "coo")),
    "coo 1e309": ("a.coo", "0 0 1e309\n0 1 1.0\n", ("--format", "coo")),
    "coo 1e308": ("a.coo", "0 0 1e308\n1 1 1e308\n0 1 1e308\n", ("--format", "coo")),
    "coo negative": ("a.coo", "-1 0 1.0\n", ("--format", "coo")),
    "coo half": ("a.coo", "0 0.5 1.0\n", ("--format", "coo")),
    "coo huge index": ("a.coo", "0 1000000000000 1.0\n", ("--format", "coo")),
    "coo index of 40 digits": ("a.coo", f"0 {10**40} 1.0\n", ("--format", "coo")),
    "coo two columns": ("a.coo", "0 1\n", ("--format", "coo")),
    "beasley truncated": ("a.txt", "1\n3 4\n1 1 5\n1 2 -3\n", ("--format", "beasley")),
    "beasley nan": ("a.txt", "1\n2 1\n1 2 nan\n", ("--format", "beasley")),
    "beasley index 0": ("a.txt", "1\n2 1\n0 2 5\n", ("--format", "beasley")),
    "beasley index beyond": ("a.txt", "1\n2 1\n1 3 5\n", ("--format", "beasley")),
    "beasley of minus two": ("a.txt", "1\n-2 1\n1 1 5\n", ("--format", "beasley")),
    "beasley of 1e12": ("a.txt", "1\n1000000000000 1\n1 1 5\n", ("--format", "beasley")),
    "beasley of more instances": ("a.txt", "5\n2 1\n1 2 5\n", ("--format", "beasley")),
    "mdplib truncated": ("a.txt", "4 2\n0 1 5.0\n0 2 1.0\n", ("--format", "mdplib")),
    "mdplib inf": ("a.txt", "2 1\n0 1 inf\n", ("--format", "mdplib")),
    "mdplib m > n": ("a.txt", "2 3\n0 1 1.0\n", ("--format", "mdplib")),
    "mdplib of 1e9": ("a.txt", "1000000000 3\n0 1 1.0\n", ("--format", "mdplib")),
    "qkp truncated": ("a.txt", "r_10_100_1\n3\n1 2 3\n4", ("--format", "qkp")),
    "qkp nan": ("a.txt", "r\n2\n1 nan\n3\n\n0\n5\n1 2\n", ("--format", "qkp")),
    "qkp of 1e9": ("a.txt", "r\n1000000000\n1 2\n3\n\n0\n5\n1 2\n", ("--format", "qkp")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options"), TEXTS.values(), ids=TEXTS)
def test_hostile_files_are_refused_in_one_line(solved, name, content, options):
    refused(solved(name, content, *options))


# (array, what it becomes) in an instance of every storage and constraint that is otherwise whole
DAMAGE = {
    "nan bias": ("linear", lambda a: np.where(np.arange(len(a)) == 1, NAN, a)),
    "text biases": ("linear", lambda a: np.array(["one"] * len(a))),
    "square biases": ("linear", lambda a: np.outer(a, a)),
    "one bias less": ("linear", lambda a: a[1:]),
    "no biases": ("linear", None),
    "inf offset": ("offset", lambda a: np.array(INF)),
    "offset of two": ("offset", lambda a: np.array([1.0, 2.0])),
    "text offset": ("offset", lambda a: np.array("zero")),
    "foreign coupling": ("coupling", lambda a: np.array("Circulant")),
    "another coupling": ("coupling", lambda a: np.array("Sparse")),
    "negative sizes": ("quadratic.sizes", lambda a: -a),
    "sizes that do not add up": ("quadratic.sizes", lambda a: a + 1),
    "half a size": ("quadratic.sizes", lambda a: a / 2),
    "blocks cut short": ("quadratic.blocks", lambda a: a[:-3]),
    "nan in a block": ("quadratic.blocks", lambda a: a * NAN),
    "asymmetric block": ("quadratic.blocks", lambda a: np.arange(len(a), dtype=float)),
    "k beyond n": ("constraint0.k", lambda a: np.array(99)),
    "k of two": ("constraint0.k", lambda a: np.array([1, 2])),
    "half a k": ("constraint0.k", lambda a: np.array(2.5)),
    "k below zero": ("constraint0.k", lambda a: np.array(-1)),
    "foreign constraint": ("constraint0.kind", lambda a: np.array("Knapsack")),
    "short groups": ("constraint1.group", lambda a: a[:-1]),
    "groups beyond": ("constraint1.group", lambda a: a + 7),
    "low above high": ("constraint1.low", lambda a: a + 9),
    "no high": ("constraint1.high", None),
    "negative cost": ("constraint2.cost", lambda a: -a),
    "nan limit": ("constraint2.limit", lambda a: np.array(NAN)),
    "limit of two": ("constraint2.limit", lambda a: np.array([1.0, 2.0])),
    "pairs out of range": ("constraint2.indices", lambda a: a + 50),
    "pairs below zero": ("constraint2.indices", lambda a: a - 50),
    "pointers that fall": ("constraint2.indptr", lambda a: a[::-1].copy()),
    "pairs cut short": ("constraint2.data", lambda a: a[:-1]),
    "labels that are no JSON": ("labels", lambda a: np.array("[1, 2")),
    "labels of one": ("labels", lambda a: np.array("[1]")),
    "labels that are a number": ("labels", lambda a: np.array("7")),
    "meta that is no JSON": ("meta", lambda a: np.array("{")),
    "meta that is a list": ("meta", lambda a: np.array("[1, 2]")),
    "no meta": ("meta", None),
    "another format": ("format", lambda a: np.array("prunesolve/99")),
    "another kind": ("kind", lambda a: np.array("statistics")),
    "short diagonal": ("diagonal", lambda a: a[1:]),
    "pickles": ("linear", lambda a: np.array([{}] * len(a), dtype=object)),
}  # fmt: skip


def stored(folder):
    """The arrays of a stored instance that has everything."""
    whole = BinaryQuadratic(
        A8,
        Blocks([J8[:3, :3], J8[3:, 3:]]),
        constraints=[K4, HALVES, Budget(COST, 40.0, ones(8))],
        labels=list("abcdefgh"),
        diagonal=np.full(8, 9.0),
    )
    whole.save(folder / "whole.npz")
    with np.load(folder / "whole.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(("array", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_instances_are_refused_in_one_line(solved, tmp_path, array, damage):
    arrays = stored(tmp_path)
    assert solved("whole.npz")[0] == 0
    before = arrays.pop(array)
    if damage is not None:
        arrays[array] = damage(before)
    np.savez(tmp_path / "damaged.npz", **arrays)
    refused(solved("damaged.npz"))


def test_flipped_and_missing_bytes_never_end_in_a_traceback(solved, tmp_path):
    stored(tmp_path)
    whole = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    answer = json.loads(solved("whole.npz")[1])["objective"]
    for attempt in range(60):
        damaged = bytearray(whole)
        if attempt % 2:
            del damaged[rng.integers(1, len(whole)) :]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        told = solved("damaged.npz", bytes(damaged))
        if told[0] == 0:
            # a flipped bit in a part of the archive that nobody reads
            assert json.loads(told[1])["objective"] == answer
        else:
            refused(told)
