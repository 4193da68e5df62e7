"""Bounds hold: against enumeration, for every storage and mix of constraints, and where a diagonal claim is false."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize
from scipy.sparse import csr_array

from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LowRank,
    generators,
)
from prunesolve.solvers import Exact, Status, _branching, _budget_fronts, _convexity, block_fronts, testing
from prunesolve.solvers._completion import completion_bound
from prunesolve.solvers.bounds import Polytope, Relaxation, convex_diagonal, frank_wolfe, lower_bound


def optimum(problem):
    x = (np.arange(2**problem.n)[:, None] >> np.arange(problem.n)) & 1 == 1
    return float(problem.value(x[problem.is_feasible(x)]).min(initial=np.inf))


@st.composite
def problems(draw):
    """Up to nine units, any storage, any mix of constraints that can be built."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, 9))
    upper = np.triu(rng.normal(size=(n, n)), 1)
    full = upper + upper.T
    half = n // 2
    quadratic = draw(
        st.sampled_from(
            [
                full,
                csr_array(full * (np.abs(full) > 0.7)),
                Blocks([full[:half, :half], full[half:, half:]]),
                LowRank(rng.normal(size=(n, 2))),
                LowRank(rng.normal(size=(n, 2)), sign=-1),
            ]
        )
    )
    cost = rng.integers(1, 9, n).astype(float)
    choices = {
        "cardinality": [Cardinality(draw(st.integers(0, n)))],
        "groups": [GroupBounds(rng.integers(-1, 2, n), [0, 0], [max(1, n // 3)] * 2)],
        "budget": [Budget(cost, 0.6 * cost.sum())],
        "bilinear": [Budget(cost, 0.7 * cost.sum(), np.abs(np.rint(full)))],
    }
    constraints = [c for kind in sorted(choices) if draw(st.booleans()) for c in choices[kind]]
    scale = 10.0 ** draw(st.integers(-6, 6))
    try:
        problem = BinaryQuadratic(rng.normal(size=n), quadratic, offset=1.0, constraints=constraints)
    except InvalidProblem:
        problem = BinaryQuadratic(rng.normal(size=n), quadratic)
    return scaled(problem, scale)


def scaled(problem, scale):
    matrix = problem.quadratic
    if isinstance(matrix, Blocks):
        matrix = Blocks([scale * block for block in matrix.blocks])
    elif isinstance(matrix, LowRank):
        matrix = LowRank(np.sqrt(scale) * matrix.F, sign=matrix.sign)
    else:
        matrix = scale * matrix
    return problem.replace(linear=scale * problem.linear, quadratic=matrix, offset=scale * problem.offset)


@given(problems(), st.integers(1, 60))
@settings(max_examples=80)
def test_the_bound_is_never_above_the_optimum_wherever_it_stops(problem, iterations):
    best = optimum(problem)
    assert lower_bound(problem, iterations=iterations) <= best


@given(problems(), st.integers(-200, 200), st.booleans())
@settings(max_examples=60)
def test_the_bound_holds_at_any_magnitude_and_with_an_incumbent(problem, power, told):
    problem = scaled(problem, 10.0**power)
    best = optimum(problem)
    value = best if told and np.isfinite(best) else None
    assert lower_bound(problem, iterations=40, incumbent=value) <= best


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e3, 1e9, 1e200]), st.sampled_from([0, 4, None]))
@settings(max_examples=40)
def test_a_giant_coupling_spoils_no_bound(seed, giant, k):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(10, 10)), 1)
    upper[0, 1] = giant * rng.choice([-1, 1])
    constraints = [] if k is None else [Cardinality(k)]
    problem = BinaryQuadratic(rng.normal(size=10), upper + upper.T, constraints=constraints)
    assert lower_bound(problem, iterations=100) <= optimum(problem)


@given(st.integers(0, 2**32 - 1), st.integers(0, 14))
@settings(max_examples=25)
def test_branching_alone_proves_a_small_optimum(seed, k):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(14, 14)), 1)
    problem = BinaryQuadratic(rng.normal(size=14), upper + upper.T, constraints=[Cardinality(k)])
    best = optimum(problem)
    assert best - 1e-9 <= lower_bound(problem) <= best


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_completions_bound_a_knapsack_from_below_and_beyond_the_first_split(seed):
    problem = generators.quadratic_knapsack(12, density=0.6, seed=seed)
    budget, best = problem.of_kind(Budget)[0], optimum(problem)
    first = completion_bound(problem, budget, iterations=1)
    last = completion_bound(problem, budget, iterations=300)
    assert first <= last <= best


def layered(rng, sizes, *, uniform=True, limit=0.5):
    """Layers of Gram couplings under a budget bilinear in the widths of neighbours."""
    layer = np.repeat(np.arange(len(sizes)), sizes)
    n = len(layer)
    grams = [(lambda f: f @ f.T / 3)(rng.normal(size=(size, 3))) for size in sizes]
    cost, pair = np.full(n, 2.0), np.where(abs(layer[:, None] - layer) == 1, 5.0, 0.0)
    if not uniform:
        cost, noise = rng.integers(1, 5, n).astype(float), np.triu(rng.integers(0, 3, (n, n)), 1)
        pair += noise + noise.T
    budget = Budget(cost, limit * (cost.sum() + pair.sum() / 2), pair)
    groups = GroupBounds(layer, [1] * len(sizes), list(sizes))
    blocks = Blocks([2 * (gram - np.diag(np.diag(gram))) for gram in grams])
    return BinaryQuadratic(-2 * rng.random(n), blocks, offset=1.0, constraints=[groups, budget])


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([2, 14]))
@settings(max_examples=40, deadline=None)
def test_fronts_bound_a_bilinear_budget_at_any_round(seed, uniform, limit, enumerated):
    problem = layered(np.random.default_rng(seed), (3, 5, 4), uniform=uniform, limit=limit)
    budget, best = problem.of_kind(Budget)[0], optimum(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_fronts, "_ENUMERATED", enumerated)
        bounds = [_budget_fronts.budget_bound(problem, budget, rounds=rounds) for rounds in (1, 2, 100)]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= best


def test_fronts_are_exact_where_the_budget_does_not_bind():
    problem = layered(np.random.default_rng(3), (3, 5, 4), limit=1.0)
    budget = problem.of_kind(Budget)[0]
    assert _budget_fronts.budget_bound(problem, budget) == pytest.approx(optimum(problem), rel=1e-9)


def test_the_price_on_a_bilinear_budget_is_the_best_there_is():
    problem = layered(np.random.default_rng(4), (3, 4, 5), limit=0.4)
    priced = _budget_fronts._Priced(problem, problem.of_kind(Budget)[0])
    priced.begin(lambda: False)
    counts = list(itertools.product(range(4), range(5), range(6)))
    fronts = [block.upper for block in priced.blocks]
    worth = np.array([sum(front[k] for front, k in zip(fronts, path, strict=True)) for path in counts])
    excess = (
        np.array([2 * (i + j + k) + 5 * (i * j + j * k) for i, j, k in counts]) / problem.of_kind(Budget)[0].limit - 1
    )
    possible = np.isfinite(worth)
    # the dual of all counts at once, as a linear programme: max t, t - m excess <= worth
    solved = linprog(
        [-1.0, 0.0],
        A_ub=np.column_stack([np.ones(possible.sum()), -excess[possible]]),
        b_ub=worth[possible],
        bounds=[(None, None), (0, None)],
    )
    assert priced.bound()[0] == pytest.approx(problem.offset - solved.fun, abs=1e-6)


def test_counts_that_no_budget_allows_are_told():
    problem = layered(np.random.default_rng(5), (3, 4), limit=1.0)
    starved = Budget(np.full(7, 2.0), 3.0)
    assert _budget_fronts.budget_bound(problem, starved) == np.inf


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
@pytest.mark.parametrize("constraints", [[], [Cardinality(6)], [Budget(np.arange(1.0, 14.0), 40.0)]])
def test_a_proof_means_the_same_in_any_unit(scale, constraints):
    rng = np.random.default_rng(11)
    upper = np.triu(rng.normal(size=(13, 13)), 1)
    problem = scaled(BinaryQuadratic(rng.normal(size=13), upper + upper.T, constraints=constraints), scale)
    result = Exact(enumerate_up_to=0).solve(problem, start=None)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(optimum(problem), rel=1e-9)


def test_blocks_under_a_cardinality_are_proved_by_their_fronts():
    rng = np.random.default_rng(12)
    grams = [(lambda f: f @ f.T)(rng.normal(size=(9, 2))) for _ in range(2)]
    blocks = Blocks([gram - np.diag(np.diag(gram)) for gram in grams])
    problem = BinaryQuadratic(-rng.random(18), blocks, constraints=[Cardinality(9)])
    result = Exact(enumerate_up_to=0).solve(problem)
    assert (result.status, result.details["blocks"]) == (Status.OPTIMAL, 2)
    assert result.objective == pytest.approx(optimum(problem), rel=1e-9)


@pytest.mark.parametrize("giant", [1e12, 1e16, 1e300])
def test_a_giant_neither_hides_a_better_selection_nor_is_told_optimal(giant):
    rng = np.random.default_rng(13)
    upper = np.triu(rng.normal(size=(8, 8)), 1)
    upper[1, 6] = giant
    problem = BinaryQuadratic(rng.normal(size=8), upper + upper.T, constraints=[Cardinality(4)])
    worst = np.zeros(8, dtype=bool)
    worst[[1, 6, 0, 2]] = True
    result = Exact(enumerate_up_to=0).solve(problem, start=worst)
    assert result.objective == pytest.approx(optimum(problem), rel=1e-9)
    assert result.bound <= result.objective


def test_prices_never_lift_the_objective_of_a_feasible_selection():
    rng = np.random.default_rng(5)
    n = 10
    cost = rng.integers(1, 9, n).astype(float)
    bounds = [GroupBounds(np.arange(n) % 3, [1, 0, 2], [2, 3, 3]), Budget(cost, 0.5 * cost.sum())]
    problem = BinaryQuadratic(rng.normal(size=n), constraints=[Cardinality(5), *bounds])
    x = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    feasible = x[problem.is_feasible(x)]
    for polytope in Polytope.all_of(problem):
        for _ in range(10):
            priced = polytope.priced(problem, rng.normal(size=n))
            assert (priced.value(feasible) <= problem.value(feasible) + 1e-7).all()


def test_a_sharpened_diagonal_is_convex_on_the_slice_and_bounds_better():
    rng = np.random.default_rng(1)
    n, k = 40, 15
    upper = np.triu(np.abs(np.corrcoef(rng.normal(size=(n, 12)))), 1)
    cosines = upper + upper.T
    problem = BinaryQuadratic(-rng.random(n), cosines, constraints=[Cardinality(k)])
    core = _branching.Core.of(problem, Relaxation.of(problem).d)
    sharpener = _convexity.Sharpener(
        core.half, k, core.d, core.middle(), lambda d, y: _branching._relax_closely(core, y, d), lambda: False
    )
    while sharpener.step():
        pass
    d = sharpener.verified()
    slice_basis = np.linalg.svd(np.ones((1, n)))[2][1:]
    assert np.linalg.eigvalsh(slice_basis @ (core.half + np.diag(d)) @ slice_basis.T)[0] >= -1e-13
    assert sharpener.bound > _branching._relax(core, core.middle(), np.inf).bound + 1e-3


@given(problems())
@settings(max_examples=40)
def test_the_shifted_matrix_is_positive_semidefinite(problem):
    matrix = 0.5 * problem.couplings.dense() + np.diag(convex_diagonal(problem))
    assert np.linalg.eigvalsh(matrix)[0] >= -1e-13 * np.abs(matrix).sum()


@given(problems())
@settings(max_examples=40)
def test_the_relaxation_equals_the_problem_on_bits(problem):
    relaxation = Relaxation.of(problem)
    x = np.random.default_rng(0).random(problem.n) < 0.5
    y = x.astype(float)
    assert relaxation.value(y, relaxation.product(y)) == pytest.approx(
        problem.value(x), rel=1e-9, abs=1e-9 * abs(problem.linear).max()
    )


def test_every_example_of_the_battery_is_bounded():
    for name, example in testing.examples().items():
        assert lower_bound(example.problem, iterations=300) <= testing._optimum(example), name


def test_a_linear_problem_is_bounded_by_its_linear_programme():
    rng = np.random.default_rng(3)
    n = 30
    group = np.arange(n) % 5
    cost = rng.uniform(1, 5, n)
    problem = BinaryQuadratic(
        rng.normal(size=n), constraints=[Cardinality(12), GroupBounds(group, [1] * 5, [3] * 5), Budget(cost, 30.0)]
    )
    members = (group == np.arange(5)[:, None]).astype(float)
    solved = linprog(
        problem.linear,
        A_ub=np.vstack([members, -members, cost]),
        b_ub=np.concatenate([np.full(5, 3.0), np.full(5, -1.0), [30.0]]),
        A_eq=np.ones((1, n)),
        b_eq=[12],
        bounds=(0, 1),
    )
    assert lower_bound(problem) == pytest.approx(solved.fun, abs=1e-6)


def test_it_converges_to_the_relaxed_optimum_that_scipy_finds():
    problem = generators.pruning(24, keep=0.5, layers=2, rank=4, seed=1)
    relaxation = Relaxation.of(problem)
    solved = minimize(
        lambda y: relaxation.value(y, relaxation.product(y)),
        np.full(24, 0.5),
        jac=lambda y: relaxation.gradient(relaxation.product(y)),
        bounds=[(0, 1)] * 24,
        constraints=[LinearConstraint(np.ones(24), problem.k, problem.k)],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    free = np.full(24, -1, dtype=np.int8)
    whole = frank_wolfe(relaxation, Polytope.tightest(problem), free, iterations=10_000)
    assert whole.bound == pytest.approx(solved.fun, rel=1e-5)
    core = _branching.Core.of(problem, relaxation.d)
    by_pairs = _branching._relax(core, core.middle(), np.inf)
    assert core.unit * by_pairs.bound == pytest.approx(solved.fun, rel=1e-7)


def relaxed(problem):
    free = np.full(problem.n, -1, dtype=np.int8)
    return frank_wolfe(Relaxation.of(problem), Polytope.tightest(problem), free, iterations=3000).bound


def test_a_true_diagonal_makes_the_relaxation_tighter():
    rng = np.random.default_rng(0)
    gram = np.cov(rng.normal(size=(30, 60)) * rng.uniform(0.1, 3, (30, 1)))
    couplings = gram - np.diag(np.diag(gram))
    without = BinaryQuadratic(-2 * gram.sum(axis=1) * rng.random(30), 2 * couplings, constraints=[Cardinality(15)])
    assert relaxed(without.replace(diagonal=np.diag(gram))) > relaxed(without) + 1e-3


def test_the_diagonal_of_a_low_rank_matrix_is_recovered():
    problem = generators.pruning(90, keep=0.5, layers=2, rank=8, seed=0)
    found = _convexity.recovered_diagonal(problem.quadratic)
    assert found == pytest.approx(problem.diagonal, rel=1e-6)


def test_a_matrix_of_full_rank_has_no_diagonal_to_recover():
    upper = np.triu(np.random.default_rng(0).normal(size=(30, 30)), 1)
    assert _convexity.recovered_diagonal(upper + upper.T) is None


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.999999, -3.0])
def test_a_false_diagonal_never_lifts_it_above_the_optimum(factor):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(10, 3))
    gram = factors @ factors.T
    couplings = 2 * (gram - np.diag(np.diag(gram)))
    problem = BinaryQuadratic(
        rng.normal(size=10), couplings, constraints=[Cardinality(5)], diagonal=factor * np.diag(gram)
    )
    assert lower_bound(problem) <= optimum(problem)


def test_blocks_are_shifted_each_by_its_own_eigenvalue():
    rng = np.random.default_rng(0)
    weak, strong = (scale * np.triu(rng.normal(size=(6, 6)), 1) for scale in (0.01, 10.0))
    problem = BinaryQuadratic(np.zeros(12), Blocks([weak + weak.T, strong + strong.T]))
    d = convex_diagonal(problem)
    assert d[:6].max() < 0.1 < d[6:].min()


def test_a_block_too_large_for_eigenvalues_is_made_dominant(monkeypatch):
    monkeypatch.setattr(_convexity, "LARGEST_EIGEN", 4)
    for storage in (lambda m: m, csr_array, lambda m: Blocks([m])):
        upper = np.triu(np.random.default_rng(0).normal(size=(8, 8)), 1)
        problem = BinaryQuadratic(np.ones(8), storage(upper + upper.T))
        d = convex_diagonal(problem)
        assert (d >= 0.5 * np.abs(upper + upper.T).sum(axis=1)).all()
        assert lower_bound(problem) <= optimum(problem)


def test_a_problem_of_no_units_is_its_offset():
    assert lower_bound(BinaryQuadratic([], offset=2.0)) == pytest.approx(2.0)


def test_no_selection_has_no_bound_but_infinity():
    impossible = BinaryQuadratic(np.ones(3), constraints=[Budget(np.ones(3), 1.0, np.ones((3, 3)) - np.eye(3))])
    both = np.array([1, 1, -1], dtype=np.int8)
    assert next(Polytope.all_of(impossible)).minimise(np.ones(3), both) is None


@given(problems(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_the_linear_minimum_over_a_face_is_below_every_selection_on_it(problem, seed):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=problem.n)
    fixed = rng.choice([-1, -1, 0, 1], problem.n).astype(np.int8)
    x = (np.arange(2**problem.n)[:, None] >> np.arange(problem.n)) & 1 == 1
    on_face = x[problem.is_feasible(x) & ((x == fixed) | (fixed < 0)).all(axis=1)]
    for polytope in Polytope.all_of(problem):
        found = polytope.minimise(g, fixed)
        if found is None:
            assert not len(on_face)
        elif len(on_face):
            s, value = found
            assert value <= (on_face @ g).min() + 1e-9
            assert ((s == fixed) | (fixed < 0)).all()
