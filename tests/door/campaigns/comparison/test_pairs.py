"""Pairs of solvers: against scipy, enumeration and definitions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from prunesolve.campaigns import comparison

from .runs import INF, duel, row


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
