from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.bridges.torch.allocation import RULES, keep_counts, lamp_scores, level_counts
from prunesolve.problems import InvalidProblem

SHAPES = [(6, 4), (3, 2, 3, 3), (40, 30), (2, 2), (8, 5, 1, 1)]


def layers(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {f"layer{i}": rng.normal(0, rng.uniform(0.2, 3), shape) for i, shape in enumerate(shapes)}


@given(
    st.integers(0, 2**20),
    st.sampled_from(sorted(RULES)),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_the_counts_add_up_and_every_layer_keeps_one(seed, rule, shapes, share):
    weights = layers(seed, shapes)
    total = sum(w.size for w in weights.values())
    keep = len(shapes) + int(share * (total - len(shapes)))
    counts = keep_counts(weights, keep, rule)
    assert sum(counts.values()) == keep
    assert all(1 <= counts[path] <= w.size for path, w in weights.items())


@pytest.mark.parametrize("keep", [100, 137, 700])
def test_uniform_keeps_the_same_share_of_each_layer(keep):
    weights = layers(0)
    total = sum(w.size for w in weights.values())
    counts = keep_counts(weights, keep, "uniform")
    assert all(abs(counts[path] - keep * w.size / total) < 1 for path, w in weights.items())


@pytest.mark.parametrize("keep", [100, 250, 700, 1200])
def test_erk_as_its_authors_fill_layers_one_round_after_another(keep):
    weights = layers(1)
    full: set[str] = set()
    while True:
        rest = keep - sum(weights[path].size for path in full)
        factor = rest / sum(sum(w.shape) for path, w in weights.items() if path not in full)
        more = {p for p, w in weights.items() if p not in full and factor * sum(w.shape) > w.size}
        if not more:
            break
        full |= more
    for path, count in keep_counts(weights, keep, "erk").items():
        wanted = weights[path].size if path in full else factor * sum(weights[path].shape)
        assert abs(count - wanted) < 1


def test_erk_is_in_proportion_to_the_dimensions_where_no_layer_is_full():
    weights = {"a": np.ones((50, 30)), "b": np.ones((20, 40, 3, 3))}
    assert keep_counts(weights, 146, "erk") == {"a": 80, "b": 66}


@pytest.mark.parametrize("keep", [20, 100, 300, 1200])
def test_lamp_and_global_by_their_definitions(keep):
    weights = layers(2)
    scored = {
        "global": {p: np.abs(w).ravel() for p, w in weights.items()},
        "lamp": {
            p: np.array([v * v / sum(u * u for u in w.flat if u * u >= v * v) for v in w.flat])
            for p, w in weights.items()
        },
    }
    for rule, scores in scored.items():
        threshold = np.sort(np.concatenate(list(scores.values())))[::-1][keep - 1]
        wanted = {p: int((s >= threshold).sum()) for p, s in scores.items()}
        if all(wanted.values()):
            assert keep_counts(weights, keep, rule) == wanted


def test_lamp_scores_are_of_the_weights_own_shape_and_zeros_come_last():
    scores = lamp_scores(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    np.testing.assert_allclose(scores, [[0.0, 1.0], [0.2, 0.0]])


def test_global_keeps_one_weight_of_a_layer_that_has_none_of_the_largest():
    assert keep_counts({"large": np.full(4, 9.0), "small": np.full(3, 0.1)}, 3, "global") == {"large": 2, "small": 1}


@settings(max_examples=30)
@given(st.integers(0, 2**20), st.floats(0, 1))
def test_levels_lose_no_more_than_the_best_of_all_choices(seed, share):
    rng = np.random.default_rng(seed)
    counts = {p: np.sort(rng.choice(30, 4, replace=False)) + 1 for p in "abc"}
    errors = {p: np.sort(rng.random(4))[::-1] for p in "abc"}
    low, high = (sum(int(c[end]) for c in counts.values()) for end in (0, -1))
    keep = low + int(share * (high - low))
    best = min(
        sum(errors[p][s] for p, s in zip("abc", levels, strict=True))
        for levels in itertools.product(range(4), repeat=3)
        if sum(counts[p][s] for p, s in zip("abc", levels, strict=True)) <= keep
    )
    found = level_counts(errors, counts, keep)
    assert sum(found.values()) == keep
    # between two levels the error is taken from the straight line
    assert sum(np.interp(found[p], counts[p], errors[p]) for p in "abc") <= best + 1e-9


def test_bad_input():
    weights = layers(0)
    with pytest.raises(InvalidProblem, match="did you mean 'lamp'"):
        keep_counts(weights, 100, "lampe")
    with pytest.raises(InvalidProblem, match="5 weights, one a layer"):
        keep_counts(weights, 4)
    with pytest.raises(InvalidProblem, match="up to all"):
        keep_counts(weights, 10**6)
