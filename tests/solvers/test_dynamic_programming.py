"""What the dynamic program claims, against enumeration and against HiGHS."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from prunesolve.problems import BinaryQuadratic, InvalidProblem, LevelChoice, UnsupportedProblem
from prunesolve.solvers import DynamicProgramming, Result, Status

CLOSE = 1e-9


class Case(NamedTuple):
    """A choice beside all its tuples with their errors and spending, by the definition."""

    choice: LevelChoice
    every: Any  # (m, L)
    error: Any  # (m,)
    spent: Any  # (m,)

    @property
    def within(self):
        """(m,) what keeps the budget."""
        return self.spent <= self.choice.budget + CLOSE

    @property
    def optimum(self):
        """The least error within the budget."""
        return float(self.error[self.within].min())

    @property
    def front(self):
        """(p, 2) the points that no other dominates, of those that differ by more than rounding."""
        points = np.stack([self.error[self.within], self.spent[self.within]], axis=1)
        points = points[np.lexsort(points.T[::-1])]
        kept: list[Any] = []
        for error, spent in points:
            if not kept or spent < kept[-1][1] - CLOSE:
                kept.append((error, spent))
        return np.array(kept)


def numbers(rng, kind, shape, low=0):
    """Ties in plenty, halves, or real numbers."""
    if kind == "whole":
        return rng.integers(low, 5, shape).astype(float)
    return rng.integers(2 * low, 6, shape) / 2 if kind == "halves" else low + 5.0 * rng.random(shape)


def random_case(seed, total):
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(["whole", "halves", "real"]))
    sizes = rng.integers(1, 5, int(rng.integers(1, 6)))
    error = [numbers(rng, kind, size, int(rng.integers(-2, 1))) for size in sizes]
    cost = [np.zeros(size) if rng.random() < 0.1 else numbers(rng, kind, size) for size in sizes]
    joined = [low for low in range(len(sizes) - 1) if rng.random() < 0.6]
    pair = {(a, a + 1): numbers(rng, kind, (sizes[a], sizes[a + 1]), int(rng.integers(-3, 1))) for a in joined}
    every = np.array(list(itertools.product(*map(range, sizes))))
    terms = [c[every[:, i]] for i, c in enumerate(cost)] + [p[every[:, a], every[:, b]] for (a, b), p in pair.items()]
    spent = np.sum(terms, axis=0) if total == "sum" else np.max(terms, axis=0)
    budget = rng.choice(spent) if rng.random() < 0.7 else rng.uniform(spent.min(), spent.max() + 0.5)
    lost = np.sum([e[every[:, i]] for i, e in enumerate(error)], axis=0)
    return Case(LevelChoice(error, cost, float(budget), pair, total), every, lost, spent)


CASES = st.builds(random_case, st.integers(0, 10**6), st.sampled_from(["sum", "max"]))


def close(a, b):
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=CLOSE, atol=CLOSE)


# --- against enumeration -------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(CASES)
def test_one_budget_is_proved_optimal(case):
    result = DynamicProgramming().solve(case.choice)
    assert result.status is Status.OPTIMAL
    assert close(result.objective, case.optimum)
    assert result.bound == result.objective
    assert case.within[(case.every == result.solution).all(axis=1)].all()


@settings(max_examples=120, deadline=None)
@given(CASES)
def test_the_front_is_complete(case):
    result = DynamicProgramming(front=True).solve(case.choice)
    assert result.status is Status.OPTIMAL
    assert close(result.front.objectives, case.front)
    assert close(result.objective, case.optimum)
    rows = [int(np.flatnonzero((case.every == row).all(axis=1))[0]) for row in result.front.solutions]
    assert close(np.stack([case.error[rows], case.spent[rows]], axis=1), case.front)


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(1, 40), st.booleans())
def test_rounded_costs_stay_feasible_and_bound(case, bins, front):
    result = DynamicProgramming(bins=bins, front=front).solve(case.choice)
    assert result.feasible
    assert result.objective >= case.optimum - CLOSE
    assert result.bound <= case.optimum + CLOSE
    assert result.status is not Status.OPTIMAL or close(result.objective, case.optimum)
    if front:
        assert (case.choice.spent(result.front.solutions) <= case.choice.budget + CLOSE).all()


@settings(max_examples=60, deadline=None)
@given(CASES, st.booleans())
def test_the_lagrangian_method_bounds_what_it_finds(case, front):
    result = DynamicProgramming(method="lagrangian", front=front).solve(case.choice)
    assert result.feasible
    assert result.objective >= case.optimum - CLOSE
    assert result.bound <= case.optimum + CLOSE
    assert result.status is not Status.OPTIMAL or close(result.objective, case.optimum)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_lagrangian_bound_is_that_of_the_best_multiplier(seed):
    """max over multipliers of min over choices, both by enumeration: the dual is piecewise linear in the multiplier."""
    case = random_case(seed, "sum")
    bound = DynamicProgramming(method="lagrangian").solve(case.choice).bound
    spent, error = case.spent - case.choice.budget, case.error
    # its corners lie where two choices change places
    with np.errstate(divide="ignore", invalid="ignore"):
        meets = (error[:, None] - error) / (spent - spent[:, None])
    multipliers = np.unique(np.append(meets[np.isfinite(meets) & (meets >= 0)].round(12), 0.0))
    best = max(float((error + m * spent).min()) for m in multipliers)
    assert bound == pytest.approx(best, abs=1e-5)
    assert bound <= case.optimum + CLOSE


def test_supported_points_are_the_front_of_the_lagrangian_method():
    case = random_case(17, "sum")
    result = DynamicProgramming(method="lagrangian", front=True).solve(case.choice)
    true = {tuple(point) for point in case.front.round(9).tolist()}
    assert {tuple(point) for point in result.front.objectives.round(9).tolist()} <= true
    assert result.status is Status.FINISHED


# --- against a second library --------------------------------------------------------------------------------------


def by_highs(choice: LevelChoice) -> float:
    """The optimum by HiGHS: a path through the levels, one arc from layer to layer, within the budget."""
    arcs = [(0, 0, t) for t in range(choice.sizes[0])]
    arcs += [
        (layer, s, t)
        for layer in range(1, choice.n)
        for s in range(choice.sizes[layer - 1])
        for t in range(choice.sizes[layer])
    ]
    pair = choice.pair_cost
    error = np.array([choice.error[layer][t] for layer, _, t in arcs])
    cost = np.array(
        [
            choice.cost[layer][t] + (pair[layer - 1, layer][s, t] if (layer - 1, layer) in pair else 0.0)
            for layer, s, t in arcs
        ]
    )
    starts = np.concatenate([[0], np.cumsum(choice.sizes)])
    flow = sparse.lil_array((1 + int(starts[-2]), len(arcs)))
    for column, (layer, s, t) in enumerate(arcs):
        if layer == 0:
            flow[0, column] = 1.0
        else:
            flow[1 + starts[layer - 1] + s, column] -= 1.0
        if layer < choice.n - 1:
            flow[1 + starts[layer] + t, column] += 1.0
    sent = np.zeros(flow.shape[0])
    sent[0] = 1.0
    constraints = [LinearConstraint(flow.tocsr(), sent, sent), LinearConstraint(cost[None], -np.inf, choice.budget)]
    found = milp(error, constraints=constraints, integrality=np.ones(len(arcs)), bounds=Bounds(0, 1),
                 options={"mip_rel_gap": 0.0})  # fmt: skip
    assert found.success
    return float(found.fun)


def widths(seed, layers, chain, levels=5) -> LevelChoice:
    """Keep counts of a made-up network: errors fall with the count, costs are products of neighbouring counts."""
    rng = np.random.default_rng(seed)
    counts = [np.linspace(1, w, levels).round() for w in rng.integers(8, 64, layers)]
    error = [rng.lognormal() * (1 - c / c[-1]) ** rng.uniform(1, 3) for c in counts]
    pair = {(a, a + 1): 9.0 * np.outer(counts[a], counts[a + 1]) for a in range(layers - 1)} if chain else {}
    cost = [c * rng.integers(1, 30) for c in counts]
    free = LevelChoice(error, cost, 1e12, pair)
    return free.replace(budget=float(rng.uniform(0.2, 0.8)) * free.spent(free.sizes - 1))


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_highs_finds_the_same_optimum(seed, chain):
    choice = widths(seed, 8, chain)
    result = DynamicProgramming().solve(choice)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(by_highs(choice), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_every_budget_of_a_front_is_its_own_optimum(seed):
    choice = widths(seed, 12, chain=True)
    front = DynamicProgramming(front=True).solve(choice).front
    assert len(front.objectives) > 20
    assert (np.diff(front.objectives[:, 0]) > 0).all()
    assert (np.diff(front.objectives[:, 1]) < 0).all()
    for error, spent in front.objectives[:: len(front.objectives) // 6]:
        assert DynamicProgramming().solve(choice.replace(budget=float(spent))).objective == pytest.approx(error)
        below = choice.replace(budget=max(float(spent) - 1.0, float(choice.spent(choice.cheapest))))
        assert DynamicProgramming().solve(below).objective >= error - CLOSE


# --- limits, refusals, storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DynamicProgramming(), DynamicProgramming(front=True), DynamicProgramming(bins=50)])
@pytest.mark.parametrize("limit", [1, 5, 20, 40, 60])
def test_a_run_cut_short_keeps_an_incumbent_and_a_bound(solver, limit):
    choice = widths(3, 12, chain=True)
    best = DynamicProgramming().solve(choice).objective
    result = solver.solve(choice, evaluation_limit=limit)
    assert result.feasible
    assert result.evaluations <= limit
    assert result.bound <= best + CLOSE <= result.objective + 2 * CLOSE
    if result.status is Status.OPTIMAL:
        assert close(result.objective, best)
    if solver.front:
        assert choice.is_feasible(result.front.solutions).all()


def test_more_partial_choices_than_may_be_held_end_the_run_with_a_bound():
    choice = widths(5, 12, chain=True)
    best = DynamicProgramming().solve(choice).objective
    for solver in (DynamicProgramming(label_limit=5), DynamicProgramming(label_limit=50, front=True)):
        result = solver.solve(choice)
        assert result.status is Status.FINISHED
        assert result.details["label_limit"] == "reached"
        assert result.bound <= best <= result.objective
        assert result.details.get("front", "supported points") == "supported points"


def test_ctrl_c_keeps_the_supported_points():
    choice, seen = widths(3, 12, chain=True), []

    def interrupt(incumbent):
        seen.append(incumbent.objective)
        if len(seen) == 2:
            raise KeyboardInterrupt

    result = DynamicProgramming(front=True).solve(choice, callback=interrupt)
    assert result.status is Status.STOPPED
    assert result.feasible
    assert result.bound <= DynamicProgramming().solve(choice).objective
    assert choice.is_feasible(result.front.solutions).all()


def test_a_start_is_not_lost():
    choice = widths(1, 6, chain=True)
    best = DynamicProgramming().solve(choice)
    again = DynamicProgramming().solve(choice, start=best.solution, evaluation_limit=1)
    assert again.objective == best.objective


def test_other_pairs_are_refused_by_name():
    pair = {(0, 1): np.ones((2, 2)), (0, 2): np.ones((2, 2))}
    choice = LevelChoice([[1, 0]] * 3, [[0, 1]] * 3, 5.0, pair, labels=["conv1", "conv2", "conv3"])
    with pytest.raises(UnsupportedProblem, match=r"0 \(conv1\) and 2 \(conv3\); level-switch and coefficient-search"):
        DynamicProgramming().solve(choice)
    with pytest.raises(UnsupportedProblem, match="takes LevelChoice, got BinaryQuadratic"):
        DynamicProgramming().solve(BinaryQuadratic([1.0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "greedy"}, "expected one of exact, lagrangian"),
        ({"bins": 0}, "bins: expected a whole number >= 1"),
        ({"bins": True}, "bins: expected a whole number >= 1"),
        ({"label_limit": 0.5}, "label_limit: expected a whole number"),
        ({"front": "yes"}, "front: expected True or False"),
        ({"bins": 9, "method": "lagrangian"}, "leave bins out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(InvalidProblem, match=said):
        DynamicProgramming(**options)


def test_a_front_survives_json():
    result = DynamicProgramming(front=True).solve(random_case(5, "sum").choice)
    again = Result.from_json(result.to_json())
    assert np.array_equal(again.front.solutions, result.front.solutions)
    assert np.array_equal(again.front.objectives, result.front.objectives)


def test_many_levels_that_all_tie_take_one_partial_choice_each():
    choice = LevelChoice([np.zeros(16)] * 30, [np.zeros(16)] * 30, 0.0)
    result = DynamicProgramming(front=True).solve(choice)
    assert result.status is Status.OPTIMAL
    assert result.front.objectives.tolist() == [[0.0, 0.0]]
    assert result.details["labels"] <= 30


@pytest.mark.parametrize("tiny", [1e-12, 1e-160, 1e-310])
def test_costs_that_hardly_differ_are_told_apart(tiny):
    """Hulls as steep as numbers go; the slack is relative to the scale, so the budgets lie apart by more than that."""
    choice = LevelChoice([[3.0, 1.0, 0.0]] * 3, [[0.0, tiny, 1.0]] * 3, 1.0, {(0, 1): np.full((3, 3), tiny)})
    every = np.array(list(itertools.product(range(3), repeat=3)))
    within = choice.is_feasible(every)
    for solver in (DynamicProgramming(), DynamicProgramming(front=True)):
        result = solver.solve(choice)
        assert result.status is Status.OPTIMAL
        assert result.objective == choice.value(every)[within].min()


def test_multipliers_that_tie_lose_no_point():
    """Equal layers: every part of the hull has the slope of many others."""
    choice = LevelChoice([[6.0, 3.0, 1.0, 0.0]] * 6, [[0.0, 1.0, 2.0, 3.0]] * 6, 18.0)
    every = np.array(list(itertools.product(range(4), repeat=6)))
    values, spent = choice.value(every), choice.spent(every)
    best = [min(values[spent <= budget]) for budget in range(19)]
    front = DynamicProgramming(front=True).solve(choice).front
    assert [min(front.objectives[front.objectives[:, 1] <= budget, 0]) for budget in range(19)] == best
