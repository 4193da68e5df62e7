"""`explain`: parts that add up, flips against enumeration, multipliers against theory and a linear program."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog

import prunesolve as ps
from prunesolve.explanations import best_told, explain, explain_result
from prunesolve.result_files import told_of

EVERY = 10**6


def selections(n):
    return np.array(list(itertools.product([False, True], repeat=n)), dtype=bool)


def symmetric(rng, n, scale=1.0):
    upper = np.triu(rng.normal(size=(n, n)) * scale, 1)
    return upper + upper.T


def constraints_of(rng, n, kinds):
    """Constraints that the selection keeping every other unit meets, some of them with nothing to spare."""
    x, found = np.arange(n) % 2 == 0, []
    if "count" in kinds:
        found.append(ps.Cardinality(int(x.sum())))
    if "groups" in kinds:
        group = rng.integers(-1, 3, size=n)
        counts = np.bincount(group[x & (group >= 0)], minlength=3)
        found.append(ps.GroupBounds(group, counts - rng.integers(0, 2, size=3), counts + rng.integers(0, 2, size=3)))
    if "budget" in kinds:
        cost, pair = rng.uniform(0.5, 2.0, size=n), np.abs(symmetric(rng, n, 0.3))
        spent = ps.Budget(cost, 0.0, pair).spent(x)
        found.append(ps.Budget(cost, float(spent + rng.uniform(0.0, 0.5)), pair))
    return x, found


@st.composite
def explained(draw):
    """A small problem under some mix of constraints, and a feasible selection."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 9))
    x, constraints = constraints_of(rng, n, draw(st.sets(st.sampled_from(["count", "groups", "budget"]))))
    return ps.BinaryQuadratic(rng.normal(size=n), symmetric(rng, n), constraints=constraints), x


def by_unit(problem, x, **options):
    """The rows of all units in the problem's order."""
    return sorted(explain(problem, x, most=EVERY, **options).rows, key=lambda row: row["unit"])


def cheapest_flips(problem, x):
    """By looking at all selections: (least change with unit i flipped, alone or against one of the other side)."""
    every = selections(problem.n)
    moved = every != x
    alone = moved.sum(axis=1) == 1
    swap = (moved.sum(axis=1) == 2) & (every.sum(axis=1) == x.sum())
    allowed = (alone | swap) & problem.is_feasible(every)
    change = np.where(allowed, problem.value(every) - problem.value(x), np.inf)
    return np.where(moved, change[:, None], np.inf).min(axis=0)


@given(explained())
@settings(max_examples=60)
def test_flip_costs_are_those_of_enumeration(case):
    problem, x = case
    rows, true = by_unit(problem, x), cheapest_flips(problem, x)
    found = np.array([np.inf if row["flip_cost"] is None else row["flip_cost"] for row in rows])
    np.testing.assert_allclose(found, true, rtol=1e-9, atol=1e-9)
    for row in rows:
        if row["flip_cost"] is None:
            assert row["flip_with"] is None
            continue
        flipped = x.copy()
        flipped[[row["unit"], *([] if row["flip_with_unit"] is None else [row["flip_with_unit"]])]] ^= True
        assert problem.is_feasible(flipped)
        assert problem.value(flipped) - problem.value(x) == pytest.approx(row["flip_cost"], abs=1e-9)


@given(explained())
@settings(max_examples=60)
def test_parts_add_up(case):
    problem, x = case
    for row in by_unit(problem, x):
        with_it, without = x.copy(), x.copy()
        with_it[row["unit"]], without[row["unit"]] = True, False
        assert row["linear"] + row["couplings"] == row["field"]
        assert row["field"] == pytest.approx(problem.value(with_it) - problem.value(without), abs=1e-9)
        reduced = row["field"] + row["multiplier"]
        assert row["margin"] == pytest.approx(-reduced if row["kept"] else reduced, abs=1e-12)
        assert len(row["partners"]) <= 3
        strengths = [abs(told["coupling"]) for told in row["partners"]]
        assert strengths == sorted(strengths, reverse=True)
        kept = np.abs(problem.quadratic[row["unit"]][x])
        assert strengths == sorted(kept[kept > 0], reverse=True)[:3]


def least_violation(problem, x):
    """The linear program with every limit that is met exactly, and a budget that some dropped unit overruns."""
    sign, columns, bounds = np.where(x, 1.0, -1.0), [], []
    for c in problem.constraints:
        if isinstance(c, ps.Cardinality):
            columns.append(np.ones(problem.n))
            bounds.append((None, None))
        elif isinstance(c, ps.GroupBounds):
            for g, count in enumerate(c.counts(x)):
                lower, upper = count == c.low[g] and c.low[g] > 0, count == c.high[g] and c.high[g] < c.sizes[g]
                columns.append((c.group == g).astype(float))
                bounds.append((None if lower else 0.0, None if upper else 0.0))
        else:
            rate = c.cost + c.pair @ x
            if (rate[~x] > c.limit - c.spent(x) + 1e-9 * c.scale).any():
                columns.append(rate)
                bounds.append((0.0, None))
    m = len(columns)
    charged = sign[:, None] * np.stack([np.zeros(problem.n), *columns], axis=1)[:, 1:]
    table = np.hstack([charged, -np.eye(problem.n)])
    least = np.r_[np.zeros(m), np.ones(problem.n)]
    fields = problem.fields(x)
    return linprog(least, table, -sign * fields, bounds=bounds + [(0, None)] * problem.n).fun


@given(explained())
@settings(max_examples=60)
def test_multipliers_leave_as_little_on_the_wrong_side_as_can_be(case):
    problem, x = case
    margins = np.array([row["margin"] for row in by_unit(problem, x)])
    assert np.maximum(0.0, -margins).sum() == pytest.approx(least_violation(problem, x), rel=1e-6, abs=1e-7)


def test_the_threshold_lies_between_the_last_kept_and_the_first_dropped():
    linear = np.array([5.0, -7.0, 1.0, 2.0, -1.0, 3.5])
    problem = ps.BinaryQuadratic(linear, constraints=[ps.Cardinality(3)])
    told = explain(problem, np.isin(np.arange(6), np.argsort(linear)[:3]))
    assert told.facts["multipliers"] == [{"constraint": "exactly 3 units", "multiplier": -1.5, "units": 6}]
    assert [row["unit"] for row in told.rows[:2]] == [2, 3]
    assert [row["margin"] for row in told.rows[:2]] == [0.5, 0.5]
    assert told.facts["wrong_side"] == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.data())
@settings(max_examples=40)
def test_whatever_the_couplings_the_threshold_follows_the_kth_field(seed, n, data):
    rng, k = np.random.default_rng(seed), data.draw(st.integers(0, n))
    problem = ps.BinaryQuadratic(rng.normal(size=n), symmetric(rng, n), constraints=[ps.Cardinality(k)])
    x = np.isin(np.arange(n), rng.permutation(n)[:k])
    fields = np.sort(problem.fields(x))
    ends = [fields[i] for i in (k - 1, k) if 0 <= i < n]
    assert -explain(problem, x).facts["multipliers"][0]["multiplier"] == pytest.approx(np.mean(ends))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_without_couplings_nobody_is_on_the_wrong_side_of_an_optimum(seed):
    rng, n = np.random.default_rng(seed), 9
    group = np.repeat([0, 1, 2], 3)
    bounds = ps.GroupBounds(group, rng.integers(0, 2, size=3), rng.integers(2, 4, size=3))
    problem = ps.BinaryQuadratic(rng.normal(size=n), constraints=[ps.Cardinality(int(rng.integers(3, 7))), bounds])
    every = selections(n)
    every = every[problem.is_feasible(every)]
    told = explain(problem, every[problem.value(every).argmin()], most=EVERY)
    assert told.facts["wrong_side"] == 0
    assert told.facts["best_flip"]["change"] >= 0.0
    # weak duality: with these prices the relaxed problem has its minimum at the same place
    assert min(row["margin"] for row in told.rows) >= -1e-12


def test_a_group_that_its_minimum_holds_is_paid_and_another_is_not():
    linear = [-9.0, -8.0, -7.0, -1.0, -0.5, -0.2]
    units = [ps.Unit("a", 0), ps.Unit("a", 1), ps.Unit("a", 2), ps.Unit("b", 0), ps.Unit("b", 1), ps.Unit("b", 2)]
    bounds = ps.GroupBounds([0, 0, 0, 1, 1, 1], [1, 1], [3, 3])
    problem = ps.BinaryQuadratic(linear, constraints=[ps.Cardinality(3), bounds], labels=units)
    told = explain(problem, [True, True, False, True, False, False])
    prices = {t["constraint"]: t["multiplier"] for t in told.facts["multipliers"]}
    assert set(prices) == {"exactly 3 units", "at least 1 of b"}
    assert prices["exactly 3 units"] == pytest.approx(7.5)
    assert prices["exactly 3 units"] + prices["at least 1 of b"] == pytest.approx(0.75)
    assert told.facts["loose"] == ["bounds of 1 group"]
    free = explain(
        problem.replace(linear=[-9.0, -1.0, -0.5, -8.0, -7.0, -0.2]), [True, False, False, True, True, False]
    )
    assert {t["constraint"]: t["multiplier"] for t in free.facts["multipliers"]}["at least 1 of a"] == 0.0


def test_exact_groups_make_the_cardinality_follow():
    bounds = ps.GroupBounds([0, 0, 0, 0], [2], [2])
    problem = ps.BinaryQuadratic([-4.0, -3.0, -1.0, 0.0], constraints=[ps.Cardinality(2), bounds])
    told = explain(problem, [True, True, False, False])
    assert [(t["constraint"], t["multiplier"]) for t in told.facts["multipliers"]] == [("exactly 2 of group 0", 2.0)]
    assert told.facts["loose"] == ["exactly 2 units (follows from the groups)"]


def test_the_price_of_a_budget_is_per_unit_of_marginal_cost():
    # worth per cost: 3, 2.5, then 2; fields are all linear
    pair = np.zeros((3, 3))
    pair[0, 2] = pair[2, 0] = 1.0
    budget = ps.Budget([2.0, 4.0, 2.0], 6.0, pair)
    problem = ps.BinaryQuadratic([-6.0, -10.0, -6.0], constraints=[budget])
    told = explain(problem, [True, True, False], most=EVERY)
    assert told.facts["multipliers"][0]["multiplier"] == pytest.approx(2.25)
    rows = {row["unit"]: row for row in told.rows}
    assert rows[2]["multiplier"] == pytest.approx(2.25 * 3.0)
    assert told.facts["wrong_side"] == 0
    roomy = problem.replace(constraints=[ps.Budget([2.0, 4.0, 2.0], 20.0, pair)])
    assert explain(roomy, [True, True, False]).facts["multipliers"] == []


def test_a_budget_that_keeps_nobody_out_has_no_price():
    problem = ps.BinaryQuadratic([-6.0, 3.0], constraints=[ps.Budget([1.0, 5.0], 2.0)])
    assert explain(problem, [True, False]).facts["multipliers"][0]["multiplier"] == 0.0


def test_a_giant_that_nobody_can_afford_takes_no_digits():
    problem = ps.BinaryQuadratic([-1.0, -2.0, -5.0], constraints=[ps.Budget([1.0, 1.0, 1e300], 1.0)])
    rows = by_unit(problem, [True, False, False])
    assert [row["flip_cost"] for row in rows] == [-1.0, -1.0, None]


def test_every_storage_says_the_same():
    rng, n = np.random.default_rng(3), 300
    factor = rng.normal(size=(n, 4))
    blocks = [symmetric(rng, size) for size in (100, 150, 50)]
    low, block = ps.LowRank(factor, sign=-1), ps.Blocks(blocks)
    x = np.isin(np.arange(n), rng.permutation(n)[:170])
    for stored in (low, block):
        dense = stored.dense()
        told = [
            by_unit(ps.BinaryQuadratic(np.linspace(-1, 1, n), q, constraints=[ps.Cardinality(170)]), x)
            for q in (dense, stored, sparse.csr_array(dense))
        ]
        for other in told[1:]:
            for key in ("couplings", "multiplier", "margin", "flip_cost"):
                np.testing.assert_allclose([r[key] for r in other], [r[key] for r in told[0]], rtol=1e-9, atol=1e-9)
            assert [r["flip_with"] for r in other] == [r["flip_with"] for r in told[0]]


def test_the_whole_matrix_is_never_built(monkeypatch):
    for kind in (ps.LowRank, ps.Blocks):
        monkeypatch.setattr(kind, "dense", lambda self: pytest.fail("built the n x n matrix"))
    for quadratic in (ps.LowRank(np.ones((6, 2))), ps.Blocks([np.ones((3, 3)) - np.eye(3)] * 2)):
        problem = ps.BinaryQuadratic(np.arange(6.0), quadratic, constraints=[ps.Cardinality(3)])
        assert len(explain(problem, np.arange(6) < 3).rows) == 6


def test_a_better_exchange_is_said_plainly():
    problem = ps.BinaryQuadratic([-3.0, -2.0, -1.0], constraints=[ps.Cardinality(1)], labels=["a", "b", "c"])
    told = explain(problem, [False, False, True])
    assert told.facts["best_flip"] == {"change": -2.0, "goes": "c", "comes": "a"}
    assert "not optimal: better by 2 if c goes instead of a" in str(told)
    best = explain(problem, [True, False, False])
    assert "no flip or exchange makes it better; the nearest adds 1: a goes instead of b" in str(best)
    loose = explain(problem.replace(constraints=[]), [True, True, False])
    assert "not optimal: better by 1 if c stays" in str(loose)
    forced = explain(problem.replace(constraints=[ps.Cardinality(3)]), [True, True, True])
    assert forced.facts["best_flip"] is None
    assert "no flip of one unit, alone or in exchange, is feasible" in str(forced)


def test_those_on_the_wrong_side_are_held_by_couplings_only_where_no_flip_helps():
    # 1 looks better than 0, but only beside it: they attract each other
    attracted = np.zeros((3, 3))
    attracted[0, 1] = attracted[1, 0] = -4.0
    problem = ps.BinaryQuadratic([-2.0, -1.0, 0.0], attracted, constraints=[ps.Cardinality(1)])
    told = explain(problem, [True, False, False])
    assert told.facts["wrong_side"] == 2
    assert told.facts["best_flip"]["change"] == 1.0
    assert "2 units on the wrong side: held by couplings" in str(told)
    assert "2 units on the wrong side\n" in str(explain(problem.replace(linear=[0.0, -1.0, 0.0]), [True, False, False]))


def test_how_many_others_keep_a_unit():
    problem = ps.BinaryQuadratic([-4.0, -3.0, -2.0, -1.0], constraints=[ps.Cardinality(2)])
    kept = [[0, 1], [0, 1], [0, 2], [1, 2]]
    others = [np.isin(np.arange(4), pair) for pair in kept] + [np.ones(4, dtype=bool)]
    told = explain(problem, others[0].copy(), others, most=EVERY)
    pairs = list(itertools.combinations(map(set, kept), 2))
    assert told.facts["stability"] == {
        "others": 4,
        "of_same_solver": 0,
        "left_out": 1,
        "core": 0,
        "border": 3,
        "never": 1,
        "overlap": pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs])),
    }
    rows = {row["unit"]: row["others"] for row in told.rows}
    assert rows[0] == {"count": 3, "share": 0.75, "share_of_same_solver": None}
    assert rows[3]["count"] == 0
    assert "4 other results: 0 units kept in all, 3 in some, 1 in none" in str(told)


def test_results_of_the_same_solver_are_counted_apart():
    problem = ps.library.load("resnet20-layer1.0-reconstruction-keep50")
    results = [ps.solve(problem, solver=s, seed=seed) for s in ("greedy", "swap-annealing") for seed in (0, 1)]
    told = explain(problem, replace(results[2]), results, most=EVERY)
    assert told.facts["stability"]["of_same_solver"] == 2
    for row in told.rows:
        own = [bool(r.solution[row["unit"]]) for r in results[2:]]
        assert row["others"]["share_of_same_solver"] == np.mean(own)
        assert row["others"]["count"] == sum(bool(r.solution[row["unit"]]) for r in results)
        assert row["label"] == f"{row['layer']}[{row['channel']}]"
        assert problem.labels[row["unit"]] == (row["layer"], row["channel"])


def test_result_files_are_explained_as_solutions_are():
    problem = ps.library.load("resnet20-layer1.0-reconstruction-keep50")
    results = [ps.solve(problem, solver=s) for s in ("greedy", "swap-annealing")]
    told = [told_of("library:x", problem, result) for result in results]
    none = {"n": problem.n, "solution": None, "status": "NO_FEASIBLE_FOUND"}
    assert explain_result(problem, told[1], [*told, none]) == explain(problem, results[1], results)
    assert best_told(problem, [none, *told]) is told[1 if results[1].objective < results[0].objective else 0]


def test_what_cannot_be_explained_is_refused():
    problem = ps.BinaryQuadratic([-1.0, -2.0], constraints=[ps.Cardinality(1)])
    with pytest.raises(ps.InvalidProblem, match="expected a feasible solution, got one of violation 1"):
        explain(problem, [True, True])
    with pytest.raises(ps.InvalidProblem, match="made for instance ffff, this one is"):
        explain_result(problem, {"n": 2, "solution": [0], "instance_hash": "ffff"})
    good = {"n": 2, "solution": [0], "instance_hash": problem.hash}
    with pytest.raises(ps.InvalidProblem, match="made for instance ffff, this one is"):
        explain_result(problem, good, [good | {"instance_hash": "ffff"}])
    with pytest.raises(ps.InvalidProblem, match="got none"):
        explain_result(problem, {"n": 2, "solution": None, "status": "INFEASIBLE"})
    with pytest.raises(ps.InvalidProblem, match="got none among 1"):
        best_told(problem, [good | {"solution": [0, 1]}, good | {"solution": None}])
    with pytest.raises(ps.InvalidProblem, match="expected a number of rows"):
        explain(problem, [True, False], most=-1)
    with pytest.raises(ps.InvalidProblem, match=r"expected one of shape \(2,\)"):
        explain(problem, [[True, False]])
    transport = ps.PartialTransport([[1.0]], [1.0], [1.0], 1.0)
    for refused in (explain, explain_result):
        with pytest.raises(
            ps.UnsupportedProblem, match="BinaryQuadratic, SubsetRegression or LevelChoice, got Partial"
        ):
            refused(transport, {"solution": [0]})


def test_empty_and_single():
    for linear, x in (([], []), ([-1.0], [True]), ([-1.0], [False])):
        for constraints in ((), (ps.Cardinality(len(np.flatnonzero(x))),), (ps.Budget(np.ones(len(x)), 1.0),)):
            told = explain(ps.BinaryQuadratic(linear, constraints=constraints), np.array(x, dtype=bool))
            assert len(told.rows) == len(linear)
            assert str(told)


def test_the_table_is_aligned_and_the_object_is_json():
    problem = ps.library.load("resnet20-layer1.0-reconstruction-keep50")
    told = explain(problem, ps.library.best_solution("resnet20-layer1.0-reconstruction-keep50"), most=5)
    back = json.loads(told.to_json())
    assert back == {"facts": told.facts, "rows": told.rows}
    assert len(told.rows) == 5
    assert sorted(abs(row["margin"]) for row in told.rows) == [abs(row["margin"]) for row in told.rows]
    heading, *lines = str(told).split("\n\n")[1].splitlines()
    heads = ["unit", "kept", "linear", "couplings", "multiplier", "margin", "flip cost", "with", "kept in"]
    assert " ".join(heading.split()) == " ".join(heads)
    end = heading.index("margin") + len("margin")
    for row, line in zip(told.rows, lines, strict=True):
        assert line.startswith(row["label"])
        assert line[:end].split()[-1] == f"{row['margin']:.4g}"


def test_a_maximised_instance_says_so():
    problem = ps.BinaryQuadratic([-3.0, -2.0], meta={"sense": "maximise"})
    assert "objective -5 (5 maximised; all below is minimised)" in str(explain(problem, [True, True]))


# --- regressions -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
@settings(max_examples=20)
def test_of_a_regression_parts_and_flips_are_exact(seed, counted, always):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(40, 9)), rng.normal(size=(40, 2))
    block = np.array([0, 0, 1, 2, 2, 3, 4, 4, -1 if always else 4])
    x = np.array([True, False, True, False, True])
    problem = ps.SubsetRegression(
        inputs.T @ inputs, inputs.T @ targets, block, ps.Cardinality(3) if counted else (), offset=(targets**2).sum()
    )
    rows = by_unit(problem, x)
    np.testing.assert_allclose([row["flip_cost"] for row in rows], cheapest_flips(problem, x), atol=1e-8)
    for row in rows:
        one = np.arange(5) == row["unit"]
        assert row["linear"] == pytest.approx(problem.value(one) - problem.value(np.zeros(5, dtype=bool)), abs=1e-8)
        assert row["field"] == pytest.approx(problem.value(x | one) - problem.value(x & ~one), abs=1e-8)
        assert row["partners"] == []


# --- levels ----------------------------------------------------------------------------------------------------------


def choice(**changes):
    tables = {
        "error": [[4.0, 1.0, 0.0], [3.0, 0.5, 0.0]],
        "cost": [[1.0, 2.0, 4.0], [1.0, 3.0, 4.0]],
        "budget": 5.0,
        "labels": ["front", "back"],
    }
    return ps.LevelChoice(**tables | changes)


def test_levels_say_what_one_switch_changes():
    problem, x = choice(pair_cost={(0, 1): np.arange(9.0).reshape(3, 3) / 10}, budget=5.5), [1, 1]
    rows = by_unit(problem, x)
    for layer, row in enumerate(rows):
        for name, step in (("down", -1), ("up", 1)):
            other = list(x)
            other[layer] += step
            assert row[name]["error_change"] == pytest.approx(problem.value(other) - problem.value(x))
            assert row[name]["cost_change"] == pytest.approx(problem.spent(other) - problem.spent(x))
            assert row[name]["short"] == pytest.approx(problem.violation(other))
    assert [row["label"] for row in rows] == ["front", "back"]
    assert by_unit(problem, [0, 0])[0]["down"] is None


def test_the_price_of_a_level_budget_holds_the_optimum():
    problem = choice()
    every = np.array(list(itertools.product(range(3), range(3))))
    every = every[problem.is_feasible(every)]
    x = every[problem.value(every).argmin()]
    told = explain(problem, x)
    price = told.facts["multipliers"][0]["multiplier"]
    # both layers at level 1: going up gains at most 0.5 for 1, going down loses at least 2.5 for 2
    assert x.tolist() == [1, 1]
    assert price == pytest.approx((0.5 + 1.25) / 2)
    assert told.facts["wrong_side"] == 0
    for row in told.rows:
        changes = [
            problem.error[row["unit"]][s] - row["error"] + price * (problem.cost[row["unit"]][s] - row["cost"])
            for s in range(3)
            if s != row["level"]
        ]
        assert row["margin"] == pytest.approx(min(changes))


def test_a_switch_that_makes_it_better_is_said():
    told = explain(choice(), [0, 0])
    assert told.facts["best_flip"] == {"change": -4.0, "layer": "front", "from": 0, "to": 2, "cost_change": 3.0}
    assert "not optimal: better by 4 if front goes from level 0 to 2" in str(told)


def test_levels_of_other_results():
    told = explain(choice(), [1, 1], [[1, 1], [1, 0], [0, 1], [2, 2]])
    assert told.facts["stability"]["left_out"] == 1
    assert told.facts["stability"]["alike"] == 0
    assert told.facts["stability"]["overlap"] == pytest.approx(np.mean([0.5, 0.5, 0.0]))
    assert {row["unit"]: row["others"]["count"] for row in told.rows} == {0: 2, 1: 2}
    assert "3 other results: 0 layers at one level in all" in str(told)
    json.loads(told.to_json())


def test_levels_without_a_choice():
    for problem, x in ((ps.LevelChoice([], [], 0.0), []), (ps.LevelChoice([[1.0]], [[1.0]], 1.0), [0])):
        told = explain(problem, np.array(x, dtype=np.int64))
        assert told.facts["best_flip"] is None
        assert "no switch of one layer is feasible" in str(told)


def test_the_largest_term_is_a_budget_too():
    problem = choice(total="max", budget=3.0)
    told = explain(problem, [1, 1])
    assert {row["unit"]: row["up"]["short"] for row in told.rows} == {0: 1.0, 1: 1.0}
    assert {row["unit"]: row["down"]["cost_change"] for row in told.rows} == {0: 0.0, 1: -1.0}


def test_the_explained_result_is_none_of_the_others():
    problem = ps.BinaryQuadratic([-3.0, -2.0, -1.0], constraints=[ps.Cardinality(1)])
    results = [ps.solve(problem, solver="greedy", seed=seed) for seed in range(3)]
    assert explain(problem, results[1], results).facts["stability"]["others"] == 2
    told = [{"n": 3, "solution": [0]}, {"n": 3, "solution": [0]}]
    assert explain_result(problem, told[0], told).facts["stability"]["others"] == 1
