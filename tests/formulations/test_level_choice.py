"""Keep counts as levels: errors and costs against the statistics they come from, and what the battery must catch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import sparse

from prunesolve.formulations import KeepCounts
from prunesolve.formulations.level_choice import eliminated
from prunesolve.formulations.testing import check_formulation, example_statistics
from prunesolve.problems import Group, InvalidProblem, LevelChoice, Statistics

VARIANTS = [
    KeepCounts(),
    KeepCounts(levels=2),
    KeepCounts(levels=3, minimum=0),
    KeepCounts(minimum=2),
    KeepCounts(order="taylor"),
]


@pytest.mark.parametrize("formulation", VARIANTS, ids=repr)
def test_every_option_keeps_its_word(formulation):
    check_formulation(formulation)


def uneven(seed=0, sizes=(5, 4, 6)):
    """Statistics whose units cost differently, alone and in pairs, within a group and across groups."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    grams = []
    for size in sizes:
        features = rng.standard_normal((size, 9)) + 0.3
        grams.append(features @ features.T)
    upper = np.triu(rng.integers(0, 9, (n, n)), 1).astype(float)
    return Statistics(
        [Group(f"g{i}", size, [(f"g{i}", "out", np.arange(size)[:, None])]) for i, size in enumerate(sizes)],
        saliency={"l1": rng.random(n)},
        blocks={"reconstruction": grams},
        cost={"params": rng.integers(1, 30, n).astype(float)},
        pair_cost={"params": sparse.csr_array(upper + upper.T)},
        constant={"params": 17.0},
    )


@pytest.mark.parametrize("formulation", [KeepCounts(levels=3), KeepCounts(order="l1"), KeepCounts(minimum=0)], ids=repr)
def test_levels_cost_and_lose_what_the_statistics_say(formulation):
    """Unequal units, pairs inside a group, pairs of any two groups: the definition, level by level."""
    stats = uneven()
    choice = formulation.encode(stats, params=0.7)
    assert set(choice.pair_cost) == {(0, 1), (0, 2), (1, 2)}
    assert choice.budget == pytest.approx(0.7 * stats.total("params") - 17.0)
    for levels in itertools.product(*map(range, choice.sizes)):
        keep = formulation.decode(stats, levels).keep
        assert choice.spent(levels) + 17.0 == stats.spent("params", keep)
        gone = 1.0 - keep
        spans = zip(stats.starts, stats.starts[1:], stats.matrices("reconstruction"), strict=False)
        lost = sum(gone[a:b] @ gram @ gone[a:b] for a, b, gram in spans)
        assert choice.value(levels) == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_backward_elimination_removes_the_cheapest_unit_each_time(seed):
    gram = uneven(seed).matrices("reconstruction")[2]
    order, error = eliminated(gram)
    gone = np.zeros(len(gram))
    for step, unit in enumerate(order):
        after = [np.inf if gone[i] else (gone + e) @ gram @ (gone + e) for i, e in enumerate(np.eye(len(gram)))]
        assert unit == int(np.argmin(after))
        gone[unit] = 1.0
        assert error[step + 1] == pytest.approx(gone @ gram @ gone)


def test_a_saliency_ranks_instead_where_it_is_asked_for():
    stats = uneven()
    for g, gram in enumerate(stats.matrices("reconstruction")):
        span = slice(stats.starts[g], stats.starts[g + 1])
        worth = stats.criterion("l1")[span]
        choice = KeepCounts(order="l1").encode(stats, keep=1.0)
        for s, count in enumerate(choice.meta["levels"][g]["counts"]):
            x = choice.sizes - 1
            x[g] = s
            kept = KeepCounts(order="l1").decode(stats, x).keep[span]
            assert set(np.flatnonzero(kept)) == set(np.argsort(worth)[len(gram) - count :])


def test_levels_are_spread_from_the_minimum_to_all():
    sizes = (40, 16, 3, 1)
    stats = Statistics(
        [Group(f"g{i}", m, [(f"g{i}", "out", np.arange(m)[:, None])]) for i, m in enumerate(sizes)],
        blocks={"reconstruction": [np.eye(m) for m in sizes]},
    )
    counts = [ladder["counts"] for ladder in KeepCounts(minimum=2).encode(stats, keep=0.5).meta["levels"]]
    assert [len(c) for c in counts] == [16, 15, 2, 1]
    assert [(c[0], c[-1]) for c in counts] == [(2, 40), (2, 16), (2, 3), (1, 1)]
    assert max(np.diff(counts[0])) - min(np.diff(counts[0])) <= 1


def test_the_problem_survives_a_file_with_its_levels(tmp_path):
    stats = uneven()
    choice = KeepCounts().encode(stats, params=0.5)
    choice.save(tmp_path / "choice.npz")
    again = LevelChoice.load(tmp_path / "choice.npz")
    assert again.hash == choice.hash
    assert again.meta["levels"] == choice.meta["levels"]
    assert list(again.labels) == ["g0", "g1", "g2"]


def test_what_says_nothing_is_refused():
    stats = uneven()
    with pytest.raises(InvalidProblem, match="expected one budget, got keep, params"):
        KeepCounts().encode(stats, keep=0.5, params=0.5)
    with pytest.raises(InvalidProblem, match="a macs budget needs cost 'macs', the statistics hold params"):
        KeepCounts().encode(stats, macs=0.5)
    with pytest.raises(InvalidProblem, match="needs saliency 'l9'"):
        KeepCounts(order="l9").encode(stats, keep=0.5)
    with pytest.raises(InvalidProblem, match="levels: expected a whole number >= 2, got 1"):
        KeepCounts(levels=1)
    with pytest.raises(InvalidProblem, match="order: expected 'elimination'"):
        KeepCounts(order=3)


def test_the_smallest_budget_that_is_named_can_be_met():
    stats = uneven()
    with pytest.raises(InvalidProblem, match="params: 20 of .* the smallest that can is") as refused:
        KeepCounts().encode(stats, params=20)
    smallest = int(str(refused.value).rsplit(" ", 1)[1])
    choice = KeepCounts().encode(stats, params=smallest)
    assert choice.is_feasible(np.zeros(3, dtype=int))
    with pytest.raises(InvalidProblem, match=f"the smallest that can is {smallest}"):
        KeepCounts().encode(stats, params=smallest - 1)


@pytest.mark.parametrize("wrong", [None, [0, 0], [0, 0, 99], [0, 0, -1], [[0, 0, 0]]])
def test_levels_that_are_none_are_refused(wrong):
    with pytest.raises(InvalidProblem, match="level-choice: "):
        KeepCounts().decode(uneven(), wrong)


# --- one broken formulation for each thing the battery looks at ----------------------------------------------------


@dataclass(frozen=True)
class WrongError(KeepCounts):
    def encode(self, stats, **asked):
        choice = super().encode(stats, **asked)
        return choice.replace(error=[e + 0.01 for e in choice.error])


@dataclass(frozen=True)
class ForgetsPairs(KeepCounts):
    def encode(self, stats, **asked):
        return super().encode(stats, **asked).replace(pair_cost={})


@dataclass(frozen=True)
class KeepsOthers(KeepCounts):
    def decode(self, stats, solution):
        selection = super().decode(stats, solution)
        return replace(selection, keep=selection.keep[::-1])


@dataclass(frozen=True)
class NamesOthers(KeepCounts):
    def encode(self, stats, **asked):
        choice = super().encode(stats, **asked)
        told = [{**ladder, "channels": ladder["channels"][::-1]} for ladder in choice.meta["levels"]]
        return choice.replace(meta=dict(choice.meta) | {"levels": told})


@dataclass(frozen=True)
class SkipsTheMinimum(KeepCounts):
    def encode(self, stats, **asked):
        return KeepCounts(minimum=2).encode(stats, **asked)

    def decode(self, stats, solution):
        return KeepCounts(minimum=2).decode(stats, solution)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (WrongError(), "value differs from meaning"),
        (ForgetsPairs(), "admits"),
        (KeepsOthers(), "value differs from meaning"),
        (NamesOthers(), "`meta` names"),
        (SkipsTheMinimum(), "counts of layer0 are"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, KeepCounts) else "",
)
def test_the_battery_fails_in_words(broken, said):
    with pytest.raises(AssertionError, match=said):
        check_formulation(broken, example_statistics())
