"""A layer in blocks computes what the dense one with zeros computes, whichever way it runs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.blocks import Blocks, blocks, dense_weight, plain_layers, structure
from prunesolve.problems import InvalidProblem

RNG = np.random.default_rng(0)
FUSION = [[True, True, False], [True, True, True], [False, True, True]]
LAYERS = {
    "linear": (lambda: nn.Linear(1, 1), (4,)),
    "conv1d": (lambda: nn.Conv1d(1, 1, 3, padding=1), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(1, 1, 3, 2, 1, padding_mode="circular"), (4, 8, 8)),
}


def made(kind, inputs, outputs, reads=FUSION, bias=True):
    """(blocks, dense weight with zeros, bias)."""
    like, _ = LAYERS[kind]
    into, out = (np.repeat(np.arange(3), sizes) for sizes in (inputs, outputs))
    taps = like().weight[0, 0].numel()
    weight = RNG.standard_normal((len(out), len(into), taps)) * np.array(reads)[out][:, into][..., None]
    added = RNG.standard_normal(len(out)) if bias else None
    keys = "abc"
    segments = [[(k, s) for k, s in zip(keys, sizes, strict=True)] for sizes in (inputs, outputs)]
    return blocks(like(), weight, added, *segments, reads), weight, added


def reference(kind, weight, bias, x):
    like: nn.Module = LAYERS[kind][0]()
    w = torch.from_numpy(weight.reshape(*weight.shape[:2], *like.weight.shape[2:])).float()
    b = None if bias is None else torch.from_numpy(bias).float()
    if kind == "linear":
        return F.linear(x, w, b)
    if kind == "conv1d":
        return F.conv1d(x, w, b, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w, b, stride=2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize(
    "sizes", [((2, 3, 2), (1, 4, 2)), ((2, 0, 3), (2, 0, 1)), ((0, 4, 2), (0, 3, 1)), ((3, 4, 0), (1, 2, 5))]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_blocks_are_the_dense_layer(kind, sizes, batch, bias):
    layer, weight, added = made(kind, *sizes, bias=bias)
    x = torch.randn(batch, sum(sizes[0]), *LAYERS[kind][1][1:])
    torch.testing.assert_close(layer(x), reference(kind, weight, added, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dense_weight(layer), weight, rtol=1e-6)
    if isinstance(layer, Blocks) and bias:
        torch.testing.assert_close(layer.bias, torch.from_numpy(added).float())


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d"])
def test_one_convolution_or_parts_are_the_same_and_so_are_their_gradients(kind, joins):
    layer, weight, added = made(kind, (3, 5, 2), (4, 3, 3))
    layer.joins = joins
    x = torch.randn(40, 10, *LAYERS[kind][1][1:], requires_grad=True)
    answer = layer(x)
    torch.testing.assert_close(answer, reference(kind, weight, added, x), rtol=1e-4, atol=1e-5)
    answer.square().sum().backward()
    got = [x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    x.grad = None
    layer.joins = not joins
    layer(x).square().sum().backward()
    for one, other in zip(got, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_an_empty_block_costs_nothing():
    f, a = 6, 4
    layer, _, _ = made("linear", (a, f, a), (a, f, a), bias=False)
    assert sum(p.numel() for p in layer.parameters()) == f * (f + 2 * a) + 2 * a * (f + a)
    nothing_fused, _, _ = made("linear", (a, 0, a), (a, 0, a), bias=False)
    assert sum(p.numel() for p in nothing_fused.parameters()) == 2 * a * a
    assert isinstance(made("linear", (0, f, 0), (0, f, 0))[0], nn.Linear)
    assert isinstance(made("linear", (a, f, a), (0, f, 0))[0], nn.Linear)


def test_rows_that_read_the_same_are_one_part():
    layer, _, _ = made("linear", (0, 3, 0), (2, 3, 2))
    assert isinstance(layer, nn.Linear)
    layer, _, _ = made("linear", (2, 3, 2), (2, 3, 2), [[True, False, True], [True, False, True], [False, True, True]])
    assert [columns.tolist() for _, columns, _ in layer.parts()] == [[0, 1, 5, 6], [2, 3, 4, 5, 6]]
    assert [(rows.start, rows.stop) for _, _, rows in layer.parts()] == [(0, 5), (5, 7)]
    assert len(layer.parts()) == 2


def test_structure_is_where_weights_are_stored():
    layer, weight, _ = made("conv2d", (2, 3, 2), (1, 4, 2))
    assert np.array_equal(structure(layer), (weight != 0).any(axis=2))
    assert structure(nn.Linear(2, 3)).all()


def test_plain_layers_replace_blocks_inside_a_network():
    layer, _, _ = made("linear", (2, 3, 2), (1, 4, 2))
    net = nn.Sequential(nn.Sequential(layer), nn.ReLU())
    x = torch.randn(3, 7)
    wanted = net(x)
    plain = plain_layers(net)
    assert not any(isinstance(module, Blocks) for module in plain.modules())
    torch.testing.assert_close(plain(x), wanted)


def test_a_sample_without_a_batch_axis_works():
    layer, _, _ = made("conv2d", (2, 3, 2), (1, 4, 2))
    x = torch.randn(7, 8, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


def test_other_layers_are_refused():
    with pytest.raises(InvalidProblem, match="Conv3d: expected Linear, Conv1d or Conv2d"):
        blocks(nn.Conv3d(1, 1, 1), np.zeros((1, 1, 1)), None, [("a", 1)], [("a", 1)], [[True]])
