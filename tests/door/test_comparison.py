"""Statistics over rows: against scipy, numpy, enumeration and figures worked out by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from prunesolve.campaigns import comparison
from prunesolve.campaigns.records import COLUMNS

INF = math.inf


def row(instance, solver, objective, **columns):
    """A run; None brought nothing feasible."""
    found = objective is not None
    known = {"instance": instance, "solver": solver, "objective": objective, "feasible": found, "status": "FINISHED"}
    return dict.fromkeys(COLUMNS) | known | columns


def duel(differences):
    """Two solvers on instances whose best known is 1, where b is at it and a's gap is larger by each difference."""
    rows = []
    for i, difference in enumerate(differences):
        a, b = (1 + difference, 1.0) if difference >= 0 else (1.0, 1 - difference)
        rows += [row(f"i{i}", "a", None if a == INF else a), row(f"i{i}", "b", None if b == INF else b)]
    return rows


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


# --- quantiles -----------------------------------------------------------------------------------------------------


@given(values, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
def test_quantiles_are_numpys_where_all_is_finite(sample, q):
    assert comparison.quantile(sample, q) == pytest.approx(np.quantile(sample, q, method="averaged_inverted_cdf"))


@pytest.mark.parametrize(
    ("sample", "middle"), [([1, INF, 2], 2), ([1, INF], INF), ([INF, INF], INF), ([1, 2, INF, INF], INF)]
)
def test_half_without_a_value_is_no_median(sample, middle):
    assert comparison.quantile(sample, 0.5) == middle


def test_quantiles_go_along_the_first_axis():
    table = np.array([[1.0, INF], [3.0, 2.0], [2.0, INF]])
    assert comparison.quantile(table, 0.5).tolist() == [2.0, INF]


# --- best known and gaps -------------------------------------------------------------------------------------------


def test_best_known_is_the_least_of_the_feasible_and_of_what_was_given():
    rows = [
        row("both", "s", -3.0, best_known=-4.0),
        row("beaten", "s", -5.0, best_known=-4.0),
        row("equal", "s", -4.0, best_known=-4.0),
        row("own", "s", -1.0),
        row("own", "s", -9.0, feasible=False),
        row("given", "s", None, best_known=7.0),
        row("nothing", "s", None),
        row("nan", "s", math.nan, feasible=True, best_known=math.nan),
    ]
    assert comparison.best_known(rows) == {
        "both": (-4.0, True),
        "beaten": (-5.0, False),
        "equal": (-4.0, True),
        "own": (-1.0, False),
        "given": (7.0, True),
    }


@pytest.mark.parametrize(
    ("objective", "best", "gap"),
    [(-9.0, -10.0, 0.1), (11.0, 10.0, 0.1), (0.25, 0.0, 0.25), (0.25, 1e-13, 0.25), (2e-9, 1e-9, 1.0)],
)
def test_gaps_are_relative_unless_the_best_is_zero(objective, best, gap):
    assert comparison.gap(objective, best) == pytest.approx(gap)


def test_what_is_not_feasible_is_infinitely_far():
    rows = [row("a", "s", -8.0), row("a", "s", -12.0, feasible=False), row("a", "t", -10.0), row("a", "t", None)]
    assert comparison.gaps(rows).tolist() == pytest.approx([0.2, INF, 0.0, INF])


@given(values, values)
def test_the_median_gap_is_the_gap_of_the_median(first, second):
    rows = [row("a", "s", x) for x in first] + [row("a", "t", x) for x in second]
    best = min(first + second)
    found = comparison.median_gaps(rows)["a"]
    for solver, sample in (("s", first), ("t", second)):
        expected = (np.median(sample) - best) / (abs(best) if abs(best) > 1e-12 else 1)
        assert found[solver] == pytest.approx(expected, abs=1e-9, rel=1e-9)


# --- summary -------------------------------------------------------------------------------------------------------

CAMPAIGN = [
    row("x", "s", -10.0, status="OPTIMAL", gap=0.0, seconds=1.0, evaluations=10),
    row("x", "s", -8.0, gap=0.5, seconds=3.0, evaluations=30),
    row("x", "t", -10.0, seconds=9.0),
    row("x", "t", None, status="DIED"),
    row("y", "s", -90.0, seconds=5.0),
    row("y", "t", -100.0, seconds=7.0),
    row("z", "s", None, status="NO_FEASIBLE_FOUND", seconds=2.0),
    row("z", "t", None, status="FAILED"),
]


def test_a_summary_worked_out_by_hand():
    s, t = comparison.summaries(CAMPAIGN)
    assert (s.solver, s.instances, s.runs, s.proved, s.failed) == ("s", 3, 4, 1, 0)
    assert (t.solver, t.instances, t.runs, t.proved, t.failed) == ("t", 3, 4, 0, 2)
    # z is nobody's: two instances to be best on; gaps of the medians: s has 10 % on both, t none on x and 0 on y
    assert (s.best_found, t.best_found) == (0.5, 1.0)
    assert (s.mean_gap, s.median_gap) == pytest.approx((0.1, 0.1))
    assert (t.mean_gap, t.median_gap) == (0.0, 0.0)
    assert (s.bound_gap, t.bound_gap) == (0.25, None)
    assert (s.feasible, t.feasible) == (0.75, 0.5)
    assert (s.seconds, t.seconds) == (2.5, 8.0)
    assert (s.evaluations, t.evaluations) == (20.0, None)


def test_nobody_is_best_where_nobody_solved_anything():
    (only,) = comparison.summaries([row("x", "s", None)])
    assert (only.best_found, only.mean_gap, only.median_gap) == (None, None, None)


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_wins_are_counted_on_medians():
    rows = [row("x", "a", v) for v in (-9.0, -8.0, -1.0)] + [row("x", "b", v) for v in (-10.0, -7.0, -7.0)]
    (pair,) = comparison.pairwise(rows)
    assert (pair.a, pair.b, pair.wins, pair.ties, pair.losses) == ("a", "b", 1, 0, 0)
    assert pair.difference == pytest.approx(-0.1)


@pytest.mark.parametrize(("other", "counts"), [(1 + 5e-10, (0, 1, 0)), (1 + 2e-9, (1, 0, 0)), (None, (1, 0, 0))])
def test_ties_are_within_a_billionth(other, counts):
    (pair,) = comparison.pairwise([row("x", "a", 1.0), row("x", "b", other)])
    assert (pair.wins, pair.ties, pair.losses) == counts


def test_two_that_found_nothing_tie_and_instances_of_one_solver_do_not_count():
    rows = [row("x", "a", None), row("x", "b", None), row("y", "a", 1.0)]
    (pair,) = comparison.pairwise(rows)
    assert (pair.wins, pair.ties, pair.losses, pair.p, pair.ahead) == (0, 1, 0, None, None)


different = st.lists(
    st.floats(-3, 3).map(lambda d: round(d, 3)).filter(lambda d: abs(d) > 1e-3), min_size=6, max_size=9, unique_by=abs
)


@given(different)
def test_p_is_scipys_of_the_differences(differences):
    (pair,) = comparison.pairwise(duel([*differences, 0.0]))
    assert pair.p == pytest.approx(wilcoxon(differences, method="exact").pvalue)
    assert pair.adjusted == pair.p
    assert (pair.wins, pair.ties, pair.losses) == (sum(d < 0 for d in differences), 1, sum(d > 0 for d in differences))


@pytest.mark.parametrize(
    "differences",
    [
        [0.5, 0.1, -0.2, 0.4, 0.7, 0.9, -0.05],
        [0.5, 0.5, -0.5, 0.5, 0.25, 0.25, 0.125],
        [INF, INF, -INF, 0.5, 0.25, 0.125, 0.0625],
    ],
)
def test_p_is_the_share_of_sign_flips_at_least_as_one_sided(differences):
    ranks = rankdata(np.abs(differences))
    seen = abs((np.sign(differences) * ranks).sum())
    flips = [abs(np.dot(signs, ranks)) >= seen for signs in product((-1, 1), repeat=len(ranks))]
    (pair,) = comparison.pairwise(duel(differences))
    assert pair.p == pytest.approx(np.mean(flips))
    assert pair.ahead == "b"


@pytest.mark.parametrize("count", [50, 51, 200])
def test_many_instances_are_scipys_too(count):
    differences = np.random.default_rng(count).normal(0.3, 1.0, count)
    expected = wilcoxon(differences, method="exact" if count <= 50 else "auto").pvalue
    assert comparison.signed_ranks(differences)[0] == pytest.approx(expected, rel=1e-9)


def test_ties_leave_all_wins_as_sure_as_they_are():
    assert comparison.signed_ranks([INF] * 30)[0] == pytest.approx(2.0**-29)


def test_fewer_than_six_that_differ_are_too_few():
    assert comparison.pairwise(duel([0.1, 0.2, 0.3, 0.4, 0.5, 0.0]))[0].p is None
    assert comparison.pairwise(duel([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))[0].p == pytest.approx(2 / 2**6)


def test_what_one_alone_solved_weighs_more_than_any_difference():
    (pair,) = comparison.pairwise(duel([0.1, 0.2, 0.3, 0.4, 0.5, -INF]))
    assert pair.p == pytest.approx(wilcoxon([1, 2, 3, 4, 5, -1000.0]).pvalue)
    assert math.isfinite(pair.difference)


def test_names_do_not_matter():
    rows = duel([0.5, 0.1, -0.2, 0.4, 0.7, 0.9, -0.05])
    swapped = [of | {"solver": {"a": "b", "b": "a"}[of["solver"]]} for of in rows]
    (one,), (other,) = comparison.pairwise(rows), comparison.pairwise(swapped)
    assert (one.wins, one.losses, one.p) == (other.losses, other.wins, other.p)
    assert one.difference == pytest.approx(-other.difference)
    assert {one.ahead, other.ahead} == {"a", "b"}


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_by_its_definition(p):
    adjusted = comparison.holm(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    for place, i in enumerate(order):
        expected = max(min(1.0, (len(p) - j) * p[order[j]]) for j in range(place + 1))
        assert adjusted[i] == pytest.approx(expected)


def test_holm_corrects_over_the_pairs_that_were_tested():
    rows = duel([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) + [row("i0", "c", 1.0)]
    pairs = comparison.pairwise(rows)
    assert [(p.a, p.b, p.p, p.adjusted) for p in pairs] == [
        ("a", "b", 0.03125, 0.03125),
        ("a", "c", None, None),
        ("b", "c", None, None),
    ]
    three = duel([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) + [row(f"i{i}", "c", 9.0 + i) for i in range(6)]
    assert [p.adjusted for p in comparison.pairwise(three)] == pytest.approx([3 * 0.03125] * 3)
    assert not any(p.shown for p in comparison.pairwise(three))


def test_standings_put_the_one_that_wins_most_first():
    rows = [row(i, s, v) for i in "xyz" for s, v in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
    assert comparison.standings(comparison.pairwise(rows)) == {"b": 1.0, "c": 0.0, "a": -1.0}


# --- profiles ------------------------------------------------------------------------------------------------------

times = st.lists(st.floats(0.01, 100) | st.just(INF), min_size=4, max_size=4)


@given(st.fixed_dictionaries({"s": times, "t": times, "u": times}))
def test_profiles_by_their_definition(taken):
    drawn = comparison.profile(taken)
    assert drawn.x[0] == 1.0
    assert (np.diff(drawn.x) > 0).all()
    fastest = [min(of) for of in zip(*taken.values(), strict=True)]
    for solver, own in taken.items():
        for x, share in zip(drawn.x, drawn.shares[solver], strict=True):
            within = [t < INF and t / least <= x for t, least in zip(own, fastest, strict=True)]
            assert share == pytest.approx(sum(within) / 4)


def test_a_profile_of_what_nobody_reached_is_flat():
    drawn = comparison.profile({"s": [INF, INF], "t": [INF, 3.0]})
    assert (drawn.x.tolist(), drawn.shares["s"].tolist(), drawn.shares["t"].tolist()) == ([1.0], [0.0], [0.5])


# --- traces --------------------------------------------------------------------------------------------------------

TRACE = [[0.1, 5, None, -20.0], [0.2, 10, -5.0, -20.0], [0.4, 20, -8.0, None], [0.4, 21, -9.0, None]]


def run(**columns):
    return row("x", "s", -9.5, seconds=2.0, evaluations=99, **columns)


def test_a_descent_holds_each_gap_until_the_next():
    taken = comparison.descent(run(), TRACE, -10.0)
    assert taken.at.tolist() == [0.2, 0.4, 0.4, 2.0]
    assert taken.gap.tolist() == pytest.approx([0.5, 0.2, 0.1, 0.05])
    at = comparison.held(taken, np.array([0.1, 0.2, 0.3, 0.4, 1.0, 5.0]))
    assert at.tolist() == pytest.approx([INF, 0.5, 0.5, 0.1, 0.1, 0.05])
    assert [comparison.reached(taken, gap) for gap in (0.6, 0.5, 0.15, 0.05, 0.01)] == [0.2, 0.2, 0.4, 2.0, INF]


def test_evaluations_take_the_place_of_seconds():
    assert comparison.descent(run(), TRACE, -10.0, "evaluations").at.tolist() == [10, 20, 21, 99]


@pytest.mark.parametrize("trace", [None, [], [[0.1, 5, None, -20.0]]])
def test_without_a_trace_a_run_counts_at_its_end(trace):
    taken = comparison.descent(run(), trace, -10.0)
    assert (taken.at.tolist(), taken.gap.tolist()) == ([2.0], pytest.approx([0.05]))


def test_a_run_without_a_result_never_gets_anywhere():
    taken = comparison.descent(row("x", "s", None), None, -10.0)
    assert comparison.reached(taken, 1e9) == INF
    assert comparison.held(taken, np.array([1.0, 2.0])).tolist() == [INF, INF]


def test_evaluations_are_the_axis_where_they_alone_are_limited():
    assert comparison.axis_of([run(evaluation_limit=100)]) == "evaluations"
    assert comparison.axis_of([run(evaluation_limit=100, time_limit=1.0)]) == "seconds"
    assert comparison.axis_of([run()]) == "seconds"


def test_traces_are_read_one_at_a_time_and_not_of_what_has_none():
    rows = [run(job="a"), row("x", "s", None, job="b"), run(job="c") | {"objective": -10.0}]
    read = []

    def trace_of(of):
        read.append(of["job"])
        return TRACE if of["job"] == "a" else None

    found = comparison.anytime(rows, trace_of, comparison.best_known(rows), [0.1, 0.0])
    assert read == ["a", "c"]
    assert found.without == 1
    assert found.grid[-1] == 2.0
    assert found.gap[:, -1].tolist() == pytest.approx([0.05, INF, 0.0])
    assert found.reached[0.1].tolist() == [0.4, INF, 2.0]
    assert found.reached[0.0].tolist() == [INF, INF, 2.0]
    # the grid holds the trace's own values, each from when it was found
    at = found.grid.searchsorted(0.4)
    assert found.gap[0, at - 1 : at + 1].tolist() == pytest.approx([0.5, 0.1])


def test_nothing_solved_leaves_nothing_to_draw():
    assert comparison.anytime([row("x", "s", None, seconds=1.0)], lambda of: None, {}, [0.1]) is None


@pytest.mark.parametrize("seconds", [1e-9, 1e-4, 1.5e-4, 3e-4, 7.3, 1e5])
def test_the_grid_rises_to_the_longest_run(seconds):
    rows = [row("x", "s", -1.0, seconds=seconds)]
    found = comparison.anytime(rows, lambda of: None, comparison.best_known(rows), [0.0])
    assert (np.diff(found.grid) > 0).all()
    assert found.grid[-1] >= seconds
    assert found.gap[0, -1] == 0.0
