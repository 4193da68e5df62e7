"""Block fronts: the optimum of every block-diagonal problem, told from where it is proved, and bounds that hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from prunesolve.solvers import Greedy, Status, SwapAnnealing, _diagonal, _kernels, block_fronts
from prunesolve.solvers.block_fronts import BlockFronts, components, splits


def symmetric(rng, n):
    upper = np.triu(rng.normal(size=(n, n)), 1)
    return upper + upper.T


def optimum(problem):
    x = (np.arange(2**problem.n)[:, None] >> np.arange(problem.n)) & 1 == 1
    return float(problem.value(x[problem.is_feasible(x)]).min())


def grams(sizes, keep, seed=0, minimum=None):
    """Reconstruction-like: f = sum over blocks of p'Gp with p = 1 - x, and the natural diagonal claimed."""
    rng = np.random.default_rng(seed)
    linear, blocks, diagonal, offset = [], [], [], 0.0
    for n in sizes:
        factors = rng.normal(size=(n, n)) * rng.lognormal(0.0, 0.7, size=(n, 1)) + rng.normal(size=n)
        gram = factors @ factors.T / np.sum(factors.sum(axis=0) ** 2)
        gram = (gram + gram.T) / 2
        linear.append(np.diag(gram) - 2 * gram.sum(axis=1))
        diagonal.append(np.diag(gram))
        blocks.append(2 * (gram - np.diag(np.diag(gram))))
        offset += gram.sum()
    n = sum(sizes)
    constraints = [Cardinality(round(keep * n))]
    if minimum is not None:
        group = np.repeat(np.arange(len(sizes)), sizes)
        constraints.append(GroupBounds(group, [minimum] * len(sizes), list(sizes)))
    return BinaryQuadratic(
        np.concatenate(linear), Blocks(blocks), offset, constraints, diagonal=np.concatenate(diagonal)
    )


@pytest.fixture
def no_enumeration(monkeypatch):
    """Small blocks too go through greedy fronts, relaxation and branch and bound."""
    monkeypatch.setattr(block_fronts, "_ENUMERATED", 0)


@st.composite
def problems(draw):
    """Up to 12 units in blocks, any storage and order, a cardinality and at times bounds on groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda s: sum(s) <= 12))
    n = sum(sizes)
    scale = 10.0 ** draw(st.integers(-4, 4))
    parts = [scale * np.rint(2 * symmetric(rng, m)) * draw(st.sampled_from([0.0, 0.5, 1.0])) for m in sizes]
    whole = Blocks(parts).dense()
    order = rng.permutation(n)
    shuffled = whole[np.ix_(order, order)]
    block = np.repeat(np.arange(len(sizes)), sizes)
    storage = draw(st.sampled_from(["blocks", "dense", "sparse"]))
    stored = {"blocks": Blocks(parts), "dense": shuffled, "sparse": csr_array(shuffled)}[storage]
    labels = block if storage == "blocks" else block[order]
    constraints = [Cardinality(draw(st.integers(0, n)))]
    groups = draw(st.sampled_from(["none", "blocks", "unions", "inside", "random"]))
    if groups != "none":
        inside = labels * 2 + rng.integers(0, 2, n)
        group = {"blocks": labels, "unions": labels // 2, "inside": inside, "random": rng.integers(-1, 2, n)}[groups]
        held = np.bincount(group[group >= 0], minlength=1)
        low = rng.integers(0, held // 2 + 1)
        constraints.append(GroupBounds(group, low, rng.integers(low, held + 1)))
    linear = scale * rng.normal(size=n)
    try:
        return BinaryQuadratic(linear, stored, offset=scale, constraints=constraints)
    except InvalidProblem:
        return BinaryQuadratic(linear, stored, offset=scale, constraints=constraints[:1])


@given(problems())
@settings(max_examples=150, deadline=None)
def test_the_optimum_of_every_small_problem_is_found_and_proved(problem):
    result = BlockFronts().solve(problem)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(optimum(problem), rel=1e-9, abs=1e-9)


@given(problems(), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_so_it_is_by_relaxation_and_branch_and_bound(problem, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_fronts, "_ENUMERATED", 0)
        result = BlockFronts(patience=0).solve(problem, seed=seed)
    best = optimum(problem)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert all(row.bound is None or row.bound <= best + 1e-9 * max(1.0, abs(best)) for row in result.trace)


@given(problems(), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_bounds_hold_wherever_the_search_is_cut_off(problem, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_fronts, "_ENUMERATED", 0)
        result = BlockFronts().solve(problem, evaluation_limit=limit)
    best = optimum(problem)
    assert result.feasible
    assert result.bound is None or result.bound <= best + 1e-9 * max(1.0, abs(best))
    assert result.status in (Status.OPTIMAL, Status.ITERATION_LIMIT)


@given(st.integers(0, 2**32 - 1), st.integers(2, 10), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_lower_front_is_below_the_true_one(seed, n, gram):
    rng = np.random.default_rng(seed)
    problem = BinaryQuadratic(rng.normal(size=n), Blocks([symmetric(rng, n)]), constraints=[Cardinality(1)])
    if gram:
        problem = grams([n], 0.5, seed)
    x = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    values = problem.value(x) - problem.offset
    true = np.array([values[x.sum(axis=1) == k].min() for k in range(n + 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_fronts, "_ENUMERATED", 0)
        block = block_fronts._Coupled(problem, np.arange(n))
    block.begin()
    # an upper front far too high, or it would hide a lower one that is too high
    block.upper[:] = true + 1.0
    block.relax(n // 2, lambda: False)
    assert (block.lower <= true + 1e-9).all()
    for k in rng.permutation(np.arange(1, n))[:3]:
        tree = block.tree(int(k), lambda: False)
        assert (block.lower <= true + 1e-9).all()
        while tree.grow(np.inf, 1e-9, 3):
            assert block.lower[k] <= true[k] + 1e-9
        assert block.upper[k] == pytest.approx(true[k], abs=1e-8)
        assert block.lower[k] == pytest.approx(true[k], abs=1e-8)


def test_the_join_is_the_best_partition_of_the_cardinality():
    rng = np.random.default_rng(0)
    at = _kernels.load("fronts")
    fronts = [rng.normal(size=size) for size in (4, 1, 6, 3)]
    for k in range(11):
        tables = [np.full(k + 1, np.inf)]
        tables[0][0] = 0.0
        for front in fronts:
            tables.append(np.empty(k + 1))
            at.join(tables[-2], front, tables[-1])
        shares = itertools.product(*(range(len(front)) for front in fronts))
        sums = [sum(f[s] for f, s in zip(fronts, share, strict=True)) for share in shares if sum(share) == k]
        assert tables[-1][k] == pytest.approx(min(sums))


def test_what_the_others_come_to_beside_each_count():
    rng = np.random.default_rng(1)
    before, after, rest = rng.normal(size=8), rng.normal(size=8), np.empty(12)
    _kernels.load("fronts").around(before, after, rest)
    for k in range(12):
        expected = min((before[s] + after[7 - s - k] for s in range(max(0, 8 - k))), default=np.inf)
        assert rest[k] == expected


@pytest.mark.usefixtures("no_enumeration")
@pytest.mark.parametrize("k", [1, 4, 8, 9])
def test_the_tightest_diagonal_gives_a_bound_between_the_natural_one_and_the_optimum(k):
    problem = grams([10], k / 10, seed=3)
    J, a, claim = problem.couplings.blocks[0], problem.linear, problem.diagonal
    tight = _diagonal.tightest(J, a, k, _diagonal.natural(J, claim), lambda: False)
    across = np.eye(10) - 0.1
    assert np.linalg.eigvalsh(across @ (J / 2 + np.diag(tight.d)) @ across)[0] >= -1e-12
    assert np.linalg.eigvalsh(J / 2 + np.diag(tight.d) + tight.ridge)[0] >= -1e-12
    bound, before = (relaxed(J, a, d, k) for d in (tight.d, claim))
    best = optimum(problem) - problem.offset
    assert before - 1e-6 <= bound <= best + 1e-12
    # worth its time: at least a third of the gap goes
    assert best - bound <= 0.67 * (best - before) + 1e-6


def relaxed(J, a, d, k):
    """min (a - d).y + y'(J/2 + diag d)y over the slice of the box, by scipy."""
    from scipy.optimize import LinearConstraint, minimize

    M = J / 2 + np.diag(d)
    found = minimize(
        lambda y: (a - d) @ y + y @ M @ y,
        np.full(len(a), k / len(a)),
        jac=lambda y: a - d + 2 * M @ y,
        bounds=[(0, 1)] * len(a),
        constraints=LinearConstraint(np.ones(len(a)), k, k),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return found.fun


def test_a_false_claim_of_a_diagonal_is_not_believed():
    J = symmetric(np.random.default_rng(0), 8)
    d = _diagonal.natural(J, np.zeros(8))
    assert np.linalg.eigvalsh(J / 2 + np.diag(d))[0] >= -1e-12


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_layers_of_a_network_are_proved(keep):
    problem = grams([16, 20, 24], keep, minimum=1)
    result = BlockFronts().solve(problem)
    assert result.status is Status.OPTIMAL
    assert result.details["blocks"] == 3
    assert result.details["open_pairs"] == result.details["heuristic_blocks"] == 0
    assert result.objective <= SwapAnnealing().solve(problem).objective + 1e-9


def test_every_seed_finds_one_value():
    problem = grams([20, 20, 12], 0.5, seed=5)
    values = [BlockFronts().solve(problem, seed=seed).objective for seed in range(4)]
    assert values == pytest.approx([values[0]] * 4, rel=1e-12)


def test_what_is_not_proved_is_said():
    problem = grams([30, 30], 0.6, seed=1)
    result = BlockFronts(node_limit=1).solve(problem)
    assert result.status is Status.ITERATION_LIMIT
    assert result.bound < result.objective
    assert result.details["heuristic_blocks"] > 0
    assert result.objective - result.bound <= result.details["front_gap"] * 2 + 1e-6 or result.details["open_pairs"] > 2


def test_little_time_is_enough_for_greedy():
    problem = generators.pruning(600, keep=0.5, layers=10, seed=0)
    BlockFronts()._prepare(problem)
    result = BlockFronts().solve(problem, time_limit=0.05)
    assert result.objective <= Greedy().solve(problem).objective
    assert result.seconds < 0.05 + 1.0


def test_a_start_is_used():
    problem = grams([18, 18], 0.5)
    best = BlockFronts().solve(problem)
    again = BlockFronts().solve(problem, start=best.solution, evaluation_limit=1)
    assert again.objective == best.objective


@pytest.mark.parametrize(
    ("couplings", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (Blocks([np.ones((3, 3)) - np.eye(3), np.zeros((3, 3))]), [0, 0, 0, 1, 2, 3]),
        (LowRank([[1, 0], [0, 1], [1, 0], [0, 0], [0, 2], [0, 0]]), [0, 1, 0, 2, 1, 3]),
    ],
)
def test_components(couplings, expected):
    problem = BinaryQuadratic(np.zeros(6), couplings, constraints=[Cardinality(2)])
    assert components(problem).tolist() == expected


def test_bounds_on_a_group_tie_its_blocks_together():
    bounds = GroupBounds([0, 0, 1, 1, -1, -1], [1, 0], [2, 2])
    problem = BinaryQuadratic(np.zeros(6), constraints=[Cardinality(3), bounds])
    assert components(problem).tolist() == [0, 0, 1, 2, 3, 4]


def test_units_without_couplings_are_sorted():
    linear = np.random.default_rng(0).normal(size=20_000)
    result = BlockFronts().solve(BinaryQuadratic(linear, constraints=[Cardinality(7000)]))
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(np.sort(linear)[:7000].sum())


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ([], "got none"),
        ([Budget(np.ones(4), 2.0)], "got Budget"),
        ([Cardinality(2), Budget(np.ones(4), 2.0)], "got Cardinality, Budget"),
        (
            [Cardinality(2), GroupBounds([0] * 4, [1], [3]), GroupBounds([0, 0, 1, 1], [1, 0], [2, 2])],
            "one GroupBounds",
        ),
    ],
)
def test_other_constraints_are_refused_in_words(constraints, words):
    problem = BinaryQuadratic(np.zeros(4), constraints=constraints)
    assert words in BlockFronts().refuse(problem)
    assert not splits(problem)


def test_one_block_does_not_split():
    assert not splits(generators.pruning(20, keep=0.5, seed=0))
    assert splits(grams([4, 4], 0.5))


@pytest.mark.usefixtures("no_enumeration")
@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-310])
def test_huge_and_tiny_biases_give_the_right_answer(scale):
    rng = np.random.default_rng(0)
    parts = [symmetric(rng, 5) * scale, symmetric(rng, 4) * scale]
    problem = BinaryQuadratic(rng.normal(size=9) * scale, Blocks(parts), constraints=[Cardinality(4)])
    result = BlockFronts().solve(problem)
    assert result.objective == pytest.approx(optimum(problem), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("options", [{"patience": -1}, {"node_limit": 0}])
def test_options_are_checked(options):
    with pytest.raises(InvalidProblem, match=next(iter(options))):
        BlockFronts(**options)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_counts_at_one_price_add_up_and_are_best_where_fronts_are_convex(seed, sizes, data):
    rng = np.random.default_rng(seed)
    kept = data.draw(st.integers(1, sum(sizes)))
    bent = [np.append(0.0, np.cumsum(rng.normal(size=n))) for n in sizes]
    convex = [np.append(0.0, np.cumsum(np.sort(rng.normal(size=n)))) for n in sizes]
    for fronts in (bent, convex):
        counts = block_fronts._priced(fronts, kept)
        assert counts.sum() == kept
        assert all(0 <= count <= n for count, n in zip(counts, sizes, strict=True))
    least = np.sort(np.concatenate([np.diff(front) for front in convex]))[:kept].sum()
    assert sum(front[count] for front, count in zip(convex, counts, strict=True)) == pytest.approx(least, abs=1e-9)


def test_a_run_without_time_still_answers(monkeypatch):
    monkeypatch.setattr(block_fronts.Run, "halted", property(lambda run: True))
    problem = grams([20, 18], 0.5, minimum=3)
    result = BlockFronts().solve(problem, time_limit=10.0)
    assert result.feasible
    assert result.bound is None
