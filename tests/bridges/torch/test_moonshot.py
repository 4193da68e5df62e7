"""Per-sample gradients against autograd sample by sample, and both errors against their definitions on raw data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunesolve.bridges.torch.moonshot import LAMBDAS, averaged, combined, leading, mixed, swept, taylor_factors
from prunesolve.bridges.torch.unfold import weight_matrix
from prunesolve.problems import Cardinality, InvalidProblem, Keep, PerRow, SparseRegression
from prunesolve.problems.subset_regression import SubsetRegression
from prunesolve.solvers._sparse_rows import Rows

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


class Twice(nn.Module):
    """Calls one layer twice, an in-place activation behind it, and the loss sees both calls."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu_(self.norm(self.layer(x)))
        return self.head(torch.relu_(self.layer(x)).mean((2, 3)))


class Tokens(nn.Module):
    """A Linear over a sequence: (B, T, in)."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(x.flatten(2).transpose(1, 2)).tanh().mean(1))


def convolution(layer):
    return nn.ModuleDict({"net": nn.Sequential(layer, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())})[
        "net"
    ]


CASES = {
    "twice": (Twice, "layer"),
    "tokens": (Tokens, "layer"),
    "strided": (lambda: convolution(nn.Conv2d(4, 3, 3, stride=2, padding=1, dilation=2, bias=False)), "0"),
    "grouped": (lambda: convolution(nn.Conv2d(4, 6, 3, groups=2)), "0"),
    "transposed": (lambda: convolution(nn.ConvTranspose2d(4, 3, 3, stride=2)), "0"),
}


def case(name):
    torch.manual_seed(0)
    model = CASES[name][0]().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model, CASES[name][1], (torch.randn(7, 4, 5, 5).double(), torch.arange(7) % 3)


def by_autograd(model, path, data, loss):
    """(samples, o, d), one backward a sample."""
    module, found = model.get_submodule(path), []
    model.eval()
    for x, y in zip(*data, strict=True):
        (gradient,) = torch.autograd.grad(loss(model(x[None]), y[None]), module.weight)
        twin = type("Layer", (), {"weight": gradient, "groups": getattr(module, "groups", 1)})
        if isinstance(module, nn.ConvTranspose2d):
            twin = nn.ConvTranspose2d(module.in_channels, module.out_channels, module.kernel_size, bias=False).double()
            twin.weight.data.copy_(gradient)
        elif isinstance(module, nn.Conv2d):
            o, i = module.out_channels, module.in_channels
            twin = nn.Conv2d(i, o, module.kernel_size, groups=module.groups, bias=False).double()
            twin.weight.data.copy_(gradient)
        else:
            found.append(gradient)
            continue
        found.append(weight_matrix(twin).flatten(0, 1))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", [None, nn.functional.cross_entropy], ids=["default", "mean"])
def test_factors_are_the_gradients_of_single_samples(name, loss):
    model, path, data = case(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [tuple(part[rows] for part in data) for rows in (slice(0, 3), slice(3, 7))]
    model.train()
    factors = taylor_factors(model, path, batches, loss=loss, samples=5)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    expected = by_autograd(model, path, tuple(part[:5] for part in data), nn.functional.cross_entropy)
    assert np.abs(expected).max() > 1e-4
    outer = np.einsum("sod,soe->ode", expected, expected) / 5
    np.testing.assert_allclose(np.einsum("odr,oer->ode", factors, factors), outer, rtol=1e-9, atol=1e-14)
    assert factors.shape == (*outer.shape[:2], 5)


def test_frozen_weights_have_gradients_all_the_same():
    model, path, data = case("twice")
    plain = taylor_factors(model, path, data)
    for p in model.parameters():
        p.requires_grad_(False)
    np.testing.assert_allclose(taylor_factors(model, path, data), plain)


def test_a_sketch_is_right_on_average():
    """Over all signs of two samples in one column the cross terms cancel: (a + b)(a + b)' and (a - b)(a - b)'."""
    model, path, data = case("tokens")
    full, sketch = (taylor_factors(model, path, data, rank=rank) for rank in (None, 3))
    assert sketch.shape[2] == 3
    for column in range(3):
        ways = [
            sum(sign * full[:, :, s] for s, sign in zip(range(column, 7, 3), signs, strict=True))
            for signs in itertools.product([1, -1], repeat=len(range(column, 7, 3)))
        ]
        assert min(np.abs(sketch[:, :, column] - way).max() for way in ways) < 1e-12


@few
@given(seeds, st.integers(1, 6))
def test_leading_is_the_best_of_its_rank(seed, rank):
    """Eckart and Young: what is left has the smallest eigenvalues, and nothing nearer exists."""
    full = np.random.default_rng(seed).standard_normal((2, 5, 4))
    short = leading(full, rank)
    assert short.shape == (2, 5, min(rank, 4))
    for one, other in zip(full, short, strict=True):
        left = np.linalg.eigvalsh(one @ one.T - other @ other.T)
        kept = np.sort(np.linalg.eigvalsh(one @ one.T))[::-1][rank:]
        np.testing.assert_allclose(np.sort(left)[::-1][: len(kept)], kept, atol=1e-9)
        np.testing.assert_allclose(np.abs(left).sum(), kept[kept > 1e-9].sum(), atol=1e-8)


def test_a_layer_that_does_not_read_samples_first_is_refused():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.reshape(-1, 4)).reshape(len(x), -1, 3).mean(1)

    with pytest.raises(InvalidProblem, match="layer: expected 2 samples on the first axis of what it reads"):
        taylor_factors(Folded(), "layer", (torch.randn(2, 8), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "laier"}, "layer"),
        ({"samples": 0}, "samples: expected at least 1"),
        ({"rank": 0}, "rank: expected at least 1"),
        ({"data": torch.randn(2, 4, 5, 5)}, "targets"),
        ({"data": (torch.full((2, 4, 5, 5), float("nan")), torch.tensor([0, 1]))}, "not finite"),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing_behind(options, words):
    model, path, data = case("twice")
    model = model.float().train()
    asked = {"path": path, "data": (data[0].float(), data[1])} | options
    with pytest.raises(InvalidProblem, match=words):
        taylor_factors(model, asked.pop("path"), asked.pop("data"), **asked)
    assert not model.layer._forward_hooks
    assert model.training


# -- both errors in one regression


def raw(seed, o=3, d=4, m=6):
    """Inputs of a pruned and a dense network, dense weights, and gradients of each row."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((20, d)) + 0.3
    pruned = dense + 0.2 * rng.standard_normal((20, d))
    return pruned, dense, rng.standard_normal((o, d)), rng.standard_normal((o, d, m)) / np.sqrt(m)


def plain(pruned, dense, weights):
    return pruned.T @ pruned, pruned.T @ dense @ weights.T, float(np.square(dense @ weights.T).sum())


@few
@given(seeds, st.floats(0.0, 1.0), st.sampled_from([0.0, 0.05]))
def test_the_value_of_any_weights_is_the_weighted_sum_of_both_errors(seed, lam, ridge):
    pruned, dense, weights, factors = raw(seed)
    gram, cross, offset = plain(pruned, dense, weights)
    told = combined(gram, cross, weights, factors, lam, offset=offset, ridge=ridge)
    problem = SparseRegression(pattern=Keep(5), **told)
    tried = np.random.default_rng(seed + 1).standard_normal(weights.shape)
    lost = np.square(pruned @ tried.T - dense @ weights.T).sum()
    taylor = sum(np.square((w - v) @ u).sum() for w, v, u in zip(tried, weights, factors, strict=True))
    unit = np.square(pruned @ weights.T).sum() / sum(
        np.square(v @ u).sum() for v, u in zip(weights, factors, strict=True)
    )
    moved = ridge * np.trace(gram) / 4 * np.square(tried - weights).sum()
    expected = lam * lost + (1 - lam) * (unit * taylor + moved)
    assert problem.error(tried) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_without_a_pattern_the_dense_weights_are_best_where_inputs_are_the_dense_ones(lam):
    _, dense, weights, factors = raw(5)
    gram, cross, offset = plain(dense, dense, weights)
    problem = SparseRegression(pattern=Keep(12), **combined(gram, cross, weights, factors, lam, offset=offset))
    np.testing.assert_allclose(problem.dense_weights, weights, rtol=1e-7)
    assert problem.least == pytest.approx(0.0, abs=1e-8)


def test_at_one_it_is_the_plain_problem_bit_by_bit():
    pruned, dense, weights, factors = raw(1)
    gram, cross, offset = plain(pruned, dense, weights)
    ours = SparseRegression(pattern=PerRow(2), **combined(gram, cross, weights, factors, 1.0, offset=offset))
    theirs = SparseRegression(gram, cross, PerRow(2), offset=offset, start_weights=weights)
    assert ours.hash == theirs.hash
    ours = SubsetRegression(
        **averaged(gram, cross, weights, factors, 1.0, offset=offset), block=range(4), constraints=[Cardinality(2)]
    )
    theirs = SubsetRegression(gram, cross, range(4), [Cardinality(2)], offset=offset)
    assert ours.hash == theirs.hash


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_a_plain_problem_is_mixed_as_its_arrays_are(lam):
    pruned, dense, weights, factors = raw(4)
    gram, cross, offset = plain(pruned, dense, weights)
    labels = [f"w{i}" for i in range(12)]
    whole = SparseRegression(gram, cross, PerRow(2), offset=offset, start_weights=weights, labels=labels)
    ours = mixed(whole, factors, lam)
    told = combined(gram, cross, weights, factors, lam, offset=offset)
    assert ours.hash == SparseRegression(pattern=PerRow(2), labels=labels, **told).hash
    assert (ours.hash == whole.hash) == (lam == 1.0)
    assert ours.meta["lam"] == lam
    if lam < 1.0:
        with pytest.raises(InvalidProblem, match="expected a plain one"):
            mixed(ours, factors, lam)


@few
@given(seeds, st.floats(0.05, 0.95))
def test_rows_are_inverted_by_woodbury(seed, lam):
    """B - B U (I + U' B U)^-1 U' B of the solvers is the inverse of H_i."""
    pruned, dense, weights, factors = raw(seed)
    gram, cross, offset = plain(pruned, dense, weights)
    problem = SparseRegression(
        pattern=Keep(5), **combined(gram, cross, weights, leading(factors, 1), lam, offset=offset)
    )
    rows = Rows(problem)
    for i in range(3):
        inverse = np.linalg.inv(problem.hessian(i))
        np.testing.assert_allclose(rows.inverse(i) / np.outer(rows.scale, rows.scale), inverse, rtol=1e-6, atol=1e-10)


@few
@given(seeds, st.floats(0.0, 1.0))
def test_shared_rows_have_the_mean_of_their_fisher_matrices(seed, lam):
    """Where all rows have the same one, the average is no approximation: values agree on every selection of inputs."""
    pruned, dense, weights, factors = raw(seed)
    same = np.broadcast_to(factors[:1], factors.shape)
    gram, cross, offset = plain(pruned, dense, weights)
    one = SparseRegression(pattern=Keep(6), **combined(gram, cross, weights, same, lam, offset=offset))
    other = SubsetRegression(
        **averaged(gram, cross, weights, same, lam, offset=offset), block=range(4), constraints=[Cardinality(2)]
    )
    for pair in itertools.combinations(range(4), 2):
        keep = np.isin(np.arange(4), pair)
        assert other.value(keep) == pytest.approx(one.value(np.tile(keep, 3)), rel=1e-7)
    mean = np.einsum("odr,oer->de", factors, factors) / 3
    told = averaged(gram, cross, weights, factors, 0.0, ridge=0.0)
    ratio = told["gram"] / mean
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)


def test_a_layer_the_loss_does_not_feel_is_left_to_the_reconstruction():
    pruned, dense, weights, factors = raw(2)
    gram, cross, offset = plain(pruned, dense, weights)
    told = combined(gram, cross, weights, 0 * factors, 0.5, offset=offset, ridge=0.0)
    np.testing.assert_allclose(told["gram"], gram / 2)
    assert not told["row_factors"].any()


@pytest.mark.parametrize("lam", [-0.1, 1.5])
def test_a_weight_outside_of_zero_to_one_is_refused(lam):
    gram, cross, _ = plain(*raw(0)[:3])
    with pytest.raises(InvalidProblem, match="lam: expected a number from 0 to 1"):
        combined(gram, cross, *raw(0)[2:], lam)


def test_the_sweep_takes_the_least_loss_the_plain_pruner_among_equals():
    assert swept(lambda lam: lam, lambda _: 1.0).lam == 1.0
    found = swept(lambda lam: f"at {lam}", lambda answer: {"at 0.4": 0.5, "at 0.9": float("nan")}.get(answer, 2.0))
    assert (found.lam, found.answer) == (0.4, "at 0.4")
    assert [lam for lam, _ in found.table] == list(LAMBDAS)
    assert dict(found.table)[0.9] == float("inf")
    with pytest.raises(InvalidProblem, match="at least one"):
        swept(lambda lam: lam, lambda _: 0.0, [])


def test_a_rows_own_term_is_what_the_loss_gains_when_that_row_moves():
    """On labels drawn from the network itself the Fisher matrix is the curvature: 1/2 step' F step, to second order."""
    model, path, _ = case("tokens")
    torch.manual_seed(1)
    inputs = torch.randn(1500, 4, 5, 5).double()
    with torch.no_grad():
        own = model(inputs).log_softmax(1)
    labels = torch.distributions.Categorical(logits=own).sample()
    factors = taylor_factors(model, path, (inputs, labels), samples=1500)
    step = 0.05 * torch.randn(4).double()
    gained = []
    for sign in (1, -1):  # what is odd in the step is of third order
        with torch.no_grad():
            model.layer.weight[2] += sign * step
            gained.append(float((own.exp() * (own - model(inputs).log_softmax(1))).sum(1).mean()))
            model.layer.weight[2] -= sign * step
    assert 0.5 * np.square(step.numpy() @ factors[2]).sum() == pytest.approx(np.mean(gained), rel=0.1)
