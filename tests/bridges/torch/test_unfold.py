from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunesolve.bridges.torch import unfold
from prunesolve.bridges.torch.unfold import columns, output_columns, set_weight, weight_matrix


@st.composite
def layers(draw):
    """Any convolution, plain or transposed, in one to three dimensions, and an input it takes."""
    dims, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    reads, makes = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    several = st.lists(st.integers(1, 3), min_size=dims, max_size=dims)
    options = {"kernel_size": draw(several), "dilation": draw(several), "groups": groups}
    if draw(st.booleans()):
        stride = draw(several)
        extra = [draw(st.integers(0, s - 1)) for s in stride]
        kind = unfold.TRANSPOSED[dims - 1]
        options |= {"stride": stride, "padding": draw(st.integers(0, 2)), "output_padding": extra}
        if any(e >= max(s, d) for e, s, d in zip(extra, stride, options["dilation"], strict=True)):
            options["output_padding"] = 0
    else:
        kind = unfold.CONVOLUTIONS[dims - 1]
        options["padding"] = draw(st.sampled_from(["same", "valid", 0, 1, 2]))
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        options["stride"] = 1 if options["padding"] == "same" else draw(several)
    sizes = [draw(st.integers(7, 9)) for _ in range(dims)]
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    chance = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return kind(reads, makes, **options), torch.randn(draw(st.integers(1, 3)), reads, *sizes, generator=chance)


def reproduced(module, inputs):
    """(module's outputs, weight times columns), piece by piece in the same order."""
    outputs = module(inputs).detach()
    bias = module.bias.detach().reshape(weight_matrix(module).shape[0], -1, 1)
    pairs = [
        (output_columns(module, outputs, span), weight_matrix(module) @ x + bias) for x, span in columns(module, inputs)
    ]
    assert sum(a.numel() for a, _ in pairs) == outputs.numel()
    return pairs


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60)
@given(layers())
def test_columns_times_weights_are_the_layers_outputs(case):
    module, inputs = case
    for wanted, got in reproduced(module.double(), inputs.double()):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("piece", "convolved", "linear"), [(1, 16, 10), (110, 8, 1), (500, 2, 1), (10000, 1, 1)])
def test_pieces_cover_everything_once(monkeypatch, piece, convolved, linear):
    monkeypatch.setattr(unfold, "_PIECE", piece)
    layers = [nn.Conv2d(2, 3, 3), torch.randn(4, 2, 6, 5)], [nn.Linear(4, 3), torch.randn(5, 2, 4)]
    for (module, inputs), count in zip(layers, (convolved, linear), strict=True):
        pairs = reproduced(module.double(), inputs.double())
        assert len(pairs) == count
        for wanted, got in pairs:
            torch.testing.assert_close(got, wanted)


@settings(max_examples=30)
@given(layers())
def test_set_weight_undoes_weight_matrix(case):
    module, _ = case
    before, matrix = module.weight.detach().clone(), weight_matrix(module).clone()
    nn.init.zeros_(module.weight)
    set_weight(module, matrix)
    assert torch.equal(module.weight, before)


def test_an_unbatched_input_is_one_sample():
    module = nn.Conv2d(2, 3, 3).double()
    inputs = torch.randn(2, 6, 5).double()
    for wanted, got in reproduced(module, inputs):
        torch.testing.assert_close(got, wanted)
