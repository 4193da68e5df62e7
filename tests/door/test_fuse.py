"""`ps.fuse` as the door promises it."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch

import prunesolve as ps

from .networks import small
from .test_light import HEAVY, loaded_after


def pair():
    other = small()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return [small(), other]


@pytest.fixture(scope="module")
def images():
    return torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_signature_is_the_contract():
    parameters = inspect.signature(ps.fuse).parameters
    assert [p for p in parameters if parameters[p].kind is not inspect.Parameter.KEYWORD_ONLY][:2] == ["models", "data"]
    assert {name: parameters[name].default for name in ("alpha", "lam", "repair")} == {
        "alpha": 0.4,
        "lam": 0.5,
        "repair": None,
    }


def test_naming_it_loads_nothing_heavy():
    assert loaded_after("import prunesolve\nprunesolve.fuse", *HEAVY) == []


def test_what_comes_back(images):
    models = pair()
    states = [copy.deepcopy(m.state_dict()) for m in models]
    out = ps.fuse(models, [(images, torch.arange(24) % 4)], alpha=0.4, repair="bn")
    assert out.model(images).shape == (24, 4)
    assert json.loads(json.dumps(out.report)) == out.report
    size = out.report["parameters"]
    assert size["fused"] == sum(p.numel() for p in out.model.parameters()) <= sum(size["models"])
    assert set(out.report["layers"]) == set(out.couplings[0])
    assert all(torch.equal(m.state_dict()[k], s[k]) for m, s in zip(models, states, strict=True) for k in s)


def test_alpha_one_is_the_ensemble(images):
    models = pair()
    out = ps.fuse(models, images, alpha=1.0)
    with torch.no_grad():
        wanted = sum(m.eval()(images) for m in models) / 2
        torch.testing.assert_close(out.model.eval()(images), wanted, atol=1e-5, rtol=1e-4)


def test_bad_input_is_refused_in_one_line(images):
    for asked, words in (
        (lambda: ps.fuse(pair()[:1], images), "two networks or more"),
        (lambda: ps.fuse(pair(), images, alpha=2), "alpha: expected numbers from 0 to 1"),
        (lambda: ps.fuse(pair(), images, lam=2), "lam: expected a number from 0 to 1"),
        (lambda: ps.fuse(pair(), []), "expected at least one sample"),
        (lambda: ps.fuse(pair(), images * torch.nan), "layer 'bn1' of model 0 gives activations that are not finite"),
    ):
        with pytest.raises(ps.InvalidProblem, match=words) as error:
            asked()
        assert "\n" not in str(error.value)
