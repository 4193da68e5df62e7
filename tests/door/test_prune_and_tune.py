"""`ps.prune_and_tune` through the door: `ps.prune` goes down the rounds, the bridge trains."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import prunesolve as ps

from .networks import examples, macs, params, small


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_untrained_without_refit_it_is_the_masked_network():
    model, (inputs, targets) = small(), examples()
    out = ps.prune_and_tune(
        model, (inputs, targets), keep=8, steps=2, solver="greedy", refit=False, threshold=float("inf")
    )
    assert [r.units for r in out.rounds] == [13, 8]  # of 18
    masked = ps.apply_masks(copy.deepcopy(model), out.masks).eval()
    torch.testing.assert_close(out.model.eval()(inputs), masked(inputs), rtol=1e-4, atol=1e-5)
    assert out.report["params"] == [params(out.model, inputs), params(model, inputs)]
    assert out.report["macs"] == [macs(out.model, inputs), macs(model, inputs)]
    assert out.selection.keep.sum() == 8


def test_rounds_are_those_of_prune_with_the_same_options():
    model, data = small(), examples()
    options = {"formulation": "l1-qubo", "solver": "greedy", "refit": False}
    out = ps.prune_and_tune(model, data, keep=9, steps=1, threshold=float("inf"), layers=["conv2", "inner"], **options)
    once = ps.prune(model, data, keep=9, layers=["conv2", "inner"], **options)
    np.testing.assert_array_equal(out.selection.keep, once.selection.keep)
    assert all(torch.equal(a, b) for a, b in zip(out.model.parameters(), once.model.parameters(), strict=True))


def test_trained_rounds_learn_the_labels_and_repeat():
    model, data = small(), examples()
    asked = {"keep": 9, "steps": 2, "solver": "greedy", "threshold": 0.0, "lr": 0.02, "epochs": 30, "share": 0.0}
    runs = [ps.prune_and_tune(model, data, seed=1, metric=_certainty, **asked) for _ in range(2)]
    assert any(r.tuned for r in runs[0].rounds)
    assert all(r.after > r.pruned for r in runs[0].rounds if r.tuned)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True))


def _certainty(outputs, targets):
    """Mean log-probability of the right class: more is better."""
    return outputs.log_softmax(1).gather(1, targets[:, None]).mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "gredy"}, "greedy"),
        ({"formulation": "moonshoot"}, "moonshot"),
        ({"keep": 99}, "99"),
        ({"batchnorm": "of"}, "batchnorm"),
        ({"momentun": 0.5}, "momentum"),
    ],
)
def test_nonsense_is_refused_in_words(options, words):
    asked = {"keep": 9, "steps": 1, "solver": "greedy"} | options
    with pytest.raises(ps.InvalidProblem, match=words):
        ps.prune_and_tune(small(), examples(), **asked)
