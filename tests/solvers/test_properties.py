"""Every solver against enumeration, under random mixes of constraints and in every storage.

Values and feasibility are computed here from the definition, pair by pair, so that nothing of the library vouches for
itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Cardinality, GroupBounds, InvalidProblem, LowRank
from prunesolve.solvers import Exact, Polish, Restarts, SimulatedAnnealing, Status, SwapAnnealing, SwapTabu, _kernels
from prunesolve.solvers._base import Run
from prunesolve.solvers._descent import descend
from prunesolve.solvers._search import Search
from prunesolve.solvers.bounds import lower_bound

STORAGES = ("dense", "sparse", "blocks", "low-rank", "negative low-rank")
MIXES = (
    "nothing", "cardinality", "patterns", "exact groups", "groups", "overlapping groups", "budget", "pair budget",
    "budgets", "cardinality and groups", "cardinality and budget", "groups and budget", "everything",
)  # fmt: skip
# flips and swaps reach every selection of these from every other, and no budget stands between
LAMINAR = ("nothing", "cardinality", "patterns", "exact groups", "groups", "cardinality and groups")
CLOSE = 1e-9


# --- random problems -----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A problem, its couplings written out, and all its selections with their values, by the definition."""

    problem: BinaryQuadratic
    matrix: Any  # (n, n)
    every: Any  # (2^n, n) bool
    values: Any  # (2^n,)
    meets: Any  # (2^n,) bool

    @property
    def optimum(self):
        """The least value of a feasible selection, inf without one."""
        return float(self.values[self.meets].min(initial=np.inf))

    def value(self, x):
        """The value of one selection."""
        return float(self.values[self.at(x)])

    def at(self, x):
        """Where a selection stands in `every`."""
        return int(np.asarray(x) @ (1 << np.arange(self.problem.n)))


def symmetric(rng, n, scale=1.0):
    upper = np.triu(rng.normal(0.0, scale, (n, n)), 1)
    return upper + upper.T


def couplings(rng, n, storage):
    """(as given, written out)."""
    if storage.endswith("low-rank"):
        F, sign = rng.normal(0.0, 0.8, (n, int(rng.integers(1, 4)))), -1 if storage.startswith("negative") else 1
        gram = sign * (F @ F.T)
        np.fill_diagonal(gram, 0.0)
        return LowRank(F, sign=sign), gram
    matrix = symmetric(rng, n)
    if storage == "dense":
        return matrix, matrix
    if storage == "sparse":
        matrix = matrix * (np.abs(matrix) > 0.9)
        return sparse.csr_array(matrix), matrix
    first = int(rng.integers(1, n))
    matrix[:first, first:] = matrix[first:, :first] = 0.0
    return Blocks([matrix[:first, :first], matrix[first:, first:]]), matrix


def groups(rng, x, parts, slack, loose=True):
    """Bounds that x meets, within `slack`; with units of no group where `loose`."""
    group = rng.integers(-1 if loose else 0, parts, size=len(x))
    kept = np.bincount(group[x & (group >= 0)], minlength=parts)
    sizes = np.bincount(group[group >= 0], minlength=parts)
    low = np.maximum(kept - rng.integers(0, slack + 1, parts), 0)
    return GroupBounds(group, low, np.minimum(kept + rng.integers(0, slack + 1, parts), sizes))


def budget(rng, x, paired):
    """A budget that x meets with little left."""
    n = len(x)
    cost = rng.integers(0, 9, n).astype(float) if rng.random() < 0.5 else rng.random(n)
    pair = None
    if paired:
        pair = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.3), 1)
        pair = pair + pair.T
    kept = np.flatnonzero(x)
    spent = cost[kept].sum() + (0.0 if pair is None else pair[np.ix_(kept, kept)].sum() / 2)
    return Budget(cost, float(spent * 1.05 + 0.05 * rng.random()), pair)


def constraints(rng, n, mix):
    """What the mix says, all met by one hidden selection."""
    x = rng.random(n) < 0.5
    k = Cardinality(int(x.sum()))
    width = int(rng.integers(2, 5))
    return {
        "nothing": list,
        "cardinality": lambda: [k],
        "patterns": lambda: [GroupBounds(np.arange(n) // width, *_patterns(n, width))],
        "exact groups": lambda: [groups(rng, x, 3, 0)],
        "groups": lambda: [groups(rng, x, 3, 1)],
        "overlapping groups": lambda: [groups(rng, x, 3, 1), groups(rng, x, 2, 1), groups(rng, x, 4, 2, loose=False)],
        "budget": lambda: [budget(rng, x, False)],
        "pair budget": lambda: [budget(rng, x, True)],
        "budgets": lambda: [budget(rng, x, False), budget(rng, x, True), budget(rng, x, False)],
        "cardinality and groups": lambda: [k, groups(rng, x, 2, 1)],
        "cardinality and budget": lambda: [k, budget(rng, x, False)],
        "groups and budget": lambda: [groups(rng, x, 2, 1), budget(rng, x, True)],
        "everything": lambda: [budget(rng, x, True), groups(rng, x, 3, 1), k, groups(rng, x, 2, 2), budget(rng, x, 0)],
    }[mix]()  # fmt: skip


def _patterns(n, width):
    """(low, high) of N:M patterns: half of every full group, the last group free."""
    whole, parts = n // width, -(-n // width)
    low = np.where(np.arange(parts) < whole, width // 2, 0)
    return low, np.where(np.arange(parts) < whole, width // 2, n - whole * width)


def written_out(problem, matrix):
    """The case of a problem whose couplings are `matrix`."""
    n = problem.n
    every = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    values = problem.offset + every @ np.asarray(problem.linear)
    for i in range(n):
        for j in range(i):
            values += matrix[i, j] * (every[:, i] & every[:, j])
    meets = np.ones(2**n, dtype=bool)
    for c in problem.constraints:
        if isinstance(c, Cardinality):
            meets &= every.sum(axis=1) == c.k
        elif isinstance(c, GroupBounds):
            for g, (low, high) in enumerate(zip(c.low, c.high, strict=True)):
                kept = every[:, c.group == g].sum(axis=1)
                meets &= (low <= kept) & (kept <= high)
        else:
            spent = every @ c.cost
            for i, j, q in [] if c.pair is None else zip(*sparse.find(sparse.triu(c.pair)), strict=True):
                spent = spent + q * (every[:, i] & every[:, j])
            meets &= spent <= c.limit * (1 + 1e-9)
    return Case(problem, matrix, every, values, meets)


def case_of(seed, storage, mix, n):
    rng = np.random.default_rng(seed)
    stored, matrix = couplings(rng, n, storage)
    problem = BinaryQuadratic(
        rng.normal(-0.3, 1.0, n), stored, offset=float(rng.normal()), constraints=constraints(rng, n, mix)
    )
    return written_out(problem, matrix)


def cases(most=10, mixes=MIXES, storages=STORAGES):
    seeds = st.integers(0, 2**32 - 1)
    return st.builds(case_of, seeds, st.sampled_from(storages), st.sampled_from(mixes), st.integers(3, most))


# --- what any solver must keep -------------------------------------------------------------------------------------

SOLVERS = {
    "greedy": (solvers.get("greedy"), None),
    "swap-annealing": (SwapAnnealing(), 600),
    "swap-tabu": (SwapTabu(), 200),
    "simulated-annealing": (SimulatedAnnealing(reads=2, sweeps=20, bisections=5), None),
    "polish": (Polish("greedy"), None),
    "restarts": (Restarts(SwapTabu(), times=2), 100),
    "exact": (Exact(), None),
    "exact by tree": (Exact(enumerate_up_to=0), None),
    "auto": (solvers.get("auto"), None),
}
PROVING = ("exact", "exact by tree", "auto")


def near(a, b):
    return abs(a - b) <= CLOSE * max(1.0, abs(b))


def checked(case, result):
    """A result that is right about itself and never better than the optimum."""
    if result.feasible:
        assert case.meets[case.at(result.solution)], "told feasible and is not"
        assert near(result.objective, case.value(result.solution))
        assert result.objective >= case.optimum - CLOSE
        assert result.status not in (Status.INFEASIBLE, Status.NO_FEASIBLE_FOUND)
    else:
        assert result.status in (Status.INFEASIBLE, Status.NO_FEASIBLE_FOUND)
    if result.status is Status.INFEASIBLE:
        assert not case.meets.any()
    if result.status is Status.OPTIMAL:
        assert near(result.objective, case.optimum)
    if result.bound is not None:
        assert result.bound <= case.optimum + CLOSE * max(1.0, abs(case.optimum))
    return result


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=40)
@given(case=cases(), seed=st.integers(0, 9))
def test_every_answer_is_true(name, case, seed):
    solver, limit = SOLVERS[name]
    result = checked(case, solver.solve(case.problem, seed=seed, evaluation_limit=limit))
    assert result.feasible, f"{result.status}: {case.meets.sum()} selections meet the constraints"
    assert limit is None or result.evaluations <= limit
    if name in PROVING:
        assert result.status is Status.OPTIMAL
    again = solver.solve(case.problem, seed=seed, evaluation_limit=limit)
    assert np.array_equal(again.solution, result.solution)
    assert (again.objective, again.status, again.evaluations) == (result.objective, result.status, result.evaluations)


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=20)
@given(case=cases(8), at=st.integers(0, 2**8), limit=st.integers(1, 60))
def test_no_answer_is_worse_than_its_start(name, case, at, limit):
    solver, _ = SOLVERS[name]
    starts = np.flatnonzero(case.meets)
    start = starts[at % len(starts)]
    result = checked(case, solver.solve(case.problem, seed=at, start=case.every[start], evaluation_limit=limit))
    assert result.objective <= case.values[start] + CLOSE


def contradiction(seed, n):
    """Overlapping constraints that may leave nothing, and a problem or a refusal at construction."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((2, n)) < 0.5
    asked = [groups(rng, x, 2, 0, loose=False), groups(rng, y, 3, 0), budget(rng, x & y, bool(rng.integers(2)))]
    asked.append(Cardinality(int(rng.integers(0, n + 1))))
    return [c for c in asked if rng.random() < 0.7], rng.normal(size=n), symmetric(rng, n)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 8))
def test_what_cannot_be_met_is_refused_or_found_out_and_nothing_else(seed, n):
    asked, linear, matrix = contradiction(seed, n)
    case = written_out(BinaryQuadratic(linear, matrix), matrix)
    meets = written_out(_Unchecked(linear, asked), np.zeros((n, n))).meets
    try:
        problem = BinaryQuadratic(linear, matrix, constraints=asked)
    except InvalidProblem:
        assert not meets.any(), "refused, though it can be met"
        return
    case = case._replace(problem=problem, meets=meets)
    for name, (solver, limit) in SOLVERS.items():
        result = checked(case, solver.solve(problem, evaluation_limit=limit))
        if name in PROVING:
            assert result.status is (Status.OPTIMAL if meets.any() else Status.INFEASIBLE)


class _Unchecked(NamedTuple):
    """Linear biases and constraints, before the library looks at them."""

    linear: Any
    constraints: Any
    offset: float = 0.0

    @property
    def n(self):
        return len(self.linear)


# --- what good searches reach --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXES)
def test_annealing_and_tabu_search_reach_the_optimum(mix):
    """All of a fixed batch, in every storage, at 4 to 14 units."""
    missed = []
    for seed in range(5 * len(STORAGES)):
        case = case_of(seed, STORAGES[seed % 5], mix, (4, 6, 8, 9, 10, 11, 14)[seed % 7])
        for solver, limit in ((SwapAnnealing(), 20_000), (SwapTabu(), 20_000)):
            result = checked(case, solver.solve(case.problem, seed=seed, evaluation_limit=limit))
            if not near(result.objective, case.optimum):
                missed.append(f"{solver.name}, case {seed}: {result.objective} for {case.optimum}")
    assert not missed


@settings(max_examples=60)
@given(case=cases(), at=st.integers(0, 2**10))
def test_descent_leaves_no_single_move_that_improves(case, at):
    starts = np.flatnonzero(case.meets)
    start = starts[at % len(starts)]
    end = case.at(descend(case.problem, case.every[start]))
    assert case.meets[end]
    assert case.values[end] <= case.values[start] + CLOSE
    assert not improving(case, end)


def improving(case, at):
    """Feasible selections one add, drop or swap away that are better."""
    moved = case.every != case.every[at]
    gained = (moved & case.every).sum(axis=1)
    one = moved.sum(axis=1) == 1
    swap = (moved.sum(axis=1) == 2) & (gained == 1)
    better = case.values < case.values[at] - CLOSE
    return np.flatnonzero((one | swap) & case.meets & better).tolist()


@settings(max_examples=25)
@given(case=cases(), seed=st.integers(0, 9))
def test_polished_answers_are_local_optima_and_no_worse(case, seed):
    # one sweep at a heat that accepts nearly everything: an answer with much left to improve
    rough = SwapAnnealing(sweeps=1, restarts=1, t_start=10.0, t_end=1.0, quench=0.0)
    bare, polished = rough.solve(case.problem, seed=seed), Polish(rough).solve(case.problem, seed=seed)
    assert polished.objective <= bare.objective + CLOSE
    assert not improving(case, case.at(checked(case, polished).solution))


# --- the same problem told otherwise -------------------------------------------------------------------------------


# two that find the optimum of nine units surely, and one that proves it
SEARCHES = (SwapAnnealing(), SwapTabu(iterations=20_000), Exact(enumerate_up_to=0))


@settings(max_examples=8)
@given(case=cases(9, LAMINAR, ("blocks",)))
def test_storages_of_one_matrix_have_one_answer(case):
    told = case.problem
    for stored in (
        told.quadratic,
        case.matrix,
        np.asfortranarray(case.matrix),
        sparse.csc_array(case.matrix),
        Blocks([case.matrix]),
    ):
        problem = BinaryQuadratic(told.linear, stored, offset=told.offset, constraints=told.constraints)
        for solver in SEARCHES:
            assert near(solver.solve(problem, seed=3).objective, case.optimum)


@settings(max_examples=15)
@given(case=cases(9, LAMINAR, ("low-rank", "negative low-rank")))
def test_factors_and_the_matrix_they_make_have_one_answer(case):
    told = case.problem
    problem = BinaryQuadratic(told.linear, case.matrix, offset=told.offset, constraints=told.constraints)
    for solver in SEARCHES:
        assert near(solver.solve(problem, seed=3).objective, case.optimum)
        assert near(solver.solve(told, seed=3).objective, case.optimum)


@settings(max_examples=25)
@given(case=cases(9, storages=("dense",)), seed=st.integers(0, 99))
def test_the_order_of_the_units_does_not_matter(case, seed):
    told, order = case.problem, np.random.default_rng(seed).permutation(case.problem.n)
    shuffled = BinaryQuadratic(
        told.linear[order],
        case.matrix[np.ix_(order, order)],
        offset=told.offset,
        constraints=[_shuffled(c, order) for c in told.constraints],
    )
    result = Exact(enumerate_up_to=0).solve(shuffled)
    assert near(result.objective, case.optimum)
    there = np.zeros(told.n, dtype=bool)
    there[order] = result.solution
    assert case.meets[case.at(there)]
    assert near(case.value(there), case.optimum)


def _shuffled(constraint, order):
    if isinstance(constraint, Cardinality):
        return constraint
    if isinstance(constraint, GroupBounds):
        return GroupBounds(constraint.group[order], constraint.low, constraint.high)
    pair = None if constraint.pair is None else constraint.pair.toarray()[np.ix_(order, order)]
    return Budget(constraint.cost[order], constraint.limit, pair)


@settings(max_examples=15)
@given(case=cases(9, LAMINAR, ("dense", "sparse")))
def test_choosing_what_goes_is_choosing_what_stays(case):
    r"""With y = 1 - x the value is offset + sum a + sum_{i<j} J - (a + J 1).y + sum_{i<j} J_ij y_i y_j."""
    told, n = case.problem, case.problem.n
    complement = BinaryQuadratic(
        -(told.linear + case.matrix.sum(axis=1)),
        case.matrix,
        offset=told.offset + told.linear.sum() + case.matrix.sum() / 2,
        constraints=[
            Cardinality(n - c.k)
            if isinstance(c, Cardinality)
            else GroupBounds(c.group, c.sizes - np.minimum(c.high, c.sizes), c.sizes - np.maximum(c.low, 0))
            for c in told.constraints
        ],
    )
    for solver in SEARCHES:
        result = solver.solve(complement, seed=1)
        assert near(result.objective, case.optimum)
        assert case.meets[case.at(~result.solution)]


@pytest.mark.parametrize("name", ["greedy", "swap-annealing", "swap-tabu", "polish", "exact by tree"])
@settings(max_examples=12)
@given(case=cases(9), shift=st.integers(-(2**20), 2**20))
def test_an_offset_shifts_the_objective_and_nothing_else(name, case, shift):
    solver, limit = SOLVERS[name]
    shifted = case.problem.replace(offset=case.problem.offset + shift)
    here, there = (solver.solve(p, seed=2, evaluation_limit=limit) for p in (case.problem, shifted))
    assert np.array_equal(here.solution, there.solution)
    assert there.objective - shift == pytest.approx(here.objective, abs=1e-8)


@settings(max_examples=20)
@given(case=cases(9), power=st.integers(-60, 60))
def test_units_of_measurement_do_not_matter(case, power):
    """Scaled by a power of two, which rounds nothing: the same path, the same selection."""
    told, scale = case.problem, 2.0**power
    stored = told.quadratic
    if isinstance(stored, LowRank):
        stored = case.matrix
        told = BinaryQuadratic(told.linear, stored, offset=told.offset, constraints=told.constraints)
    scaled = Blocks([scale * b for b in stored.blocks]) if isinstance(stored, Blocks) else scale * stored
    asked = [
        Budget(c.cost * scale, c.limit * scale, None if c.pair is None else c.pair * scale)
        if isinstance(c, Budget)
        else c
        for c in told.constraints
    ]
    problem = BinaryQuadratic(scale * told.linear, scaled, offset=scale * told.offset, constraints=asked)
    for name in ("greedy", "swap-annealing", "swap-tabu", "exact by tree"):
        solver, limit = SOLVERS[name]
        here, there = (solver.solve(p, seed=4, evaluation_limit=limit) for p in (told, problem))
        assert np.array_equal(here.solution, there.solution), name


# --- bounds --------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(case=cases(), iterations=st.sampled_from([1, 3, 30, 300]))
def test_no_bound_is_above_the_optimum(case, iterations):
    assert lower_bound(case.problem, iterations=iterations) <= case.optimum + CLOSE * max(1.0, abs(case.optimum))


@settings(max_examples=20)
@given(case=cases(), claim=st.floats(0.0, 3.0), seed=st.integers(0, 99))
def test_no_claimed_diagonal_lifts_a_bound_above_the_optimum(case, claim, seed):
    lie = case.problem.replace(diagonal=claim * np.random.default_rng(seed).normal(size=case.problem.n))
    assert lower_bound(lie, iterations=200) <= case.optimum + CLOSE * max(1.0, abs(case.optimum))


# --- the kernels' own books ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sums", [False, True])
@settings(max_examples=25)
@given(case=cases(), seed=st.integers(0, 99))
def test_fields_and_values_do_not_drift(sums, case, seed):
    """After hundreds of random moves the fields are a + J x, from z = F'x too, and the value that of x."""
    run = Run(case.problem, seed=seed)
    run.start = case.every[np.flatnonzero(case.meets)[0]]
    search = Search.begin(case.problem, run, sums=sums)
    search.heat(np.inf, 1.0, 60)
    while search.unfinished:
        search.anneal()
    x = search.state.x
    assert case.meets[case.at(x)]
    assert near(search.walk.real[search._at.VALUE] + case.problem.offset, case.value(x))
    told = case.problem.couplings
    if sums and _kernels.factored(case.problem):
        fields = case.problem.linear + told.sign * (told.F @ search.state.f - np.einsum("ir,ir->i", told.F, told.F) * x)
    else:
        fields = search.state.f
    assert np.allclose(fields, case.problem.linear + case.matrix @ x, atol=1e-9)
