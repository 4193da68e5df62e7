r"""Parameters and multiply-accumulates as an exact function of what is kept.

The kept inputs and outputs of every layer are affine in the unit bits x, so each layer costs a product of two affine
forms and the network, since x_i x_i = x_i,

    cost(x) = constant + sum_i c_i x_i + sum_{i<j} q_ij x_i x_j

    Linear, Conv    parameters: sum over the layer's groups of in * out * taps, and out biases
                    MACs: the same sum times the positions seen in a forward pass of one sample
    BatchNorm       parameters: 2 * channels
    attention       MACs: what its products of scores and values take, shared equally among its heads
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunesolve.problems import Group
from prunesolve.problems.units import offsets

from ._forward import evaluating
from ._layers import conv_groups, widths
from .attention import heads_of, layers_of, opened, owners
from .data import Inputs, call, slice_of
from .unfold import LINEAR_LAYERS, TRANSPOSED, taps


class Cost(NamedTuple):
    """constant + linear.x + sum_{i<j} pair_ij x_i x_j; pair is symmetric CSR with zero diagonal."""

    constant: float
    linear: np.ndarray[Any, Any]
    pair: Any


def count(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Parameters, and the MACs of one sample as half of what `torch.utils.flop_counter` counts.

    Examples
    --------
    >>> import torch
    >>> count(nn.Linear(3, 2), torch.zeros(4, 3))
    {'params': 8, 'macs': 6}
    """
    # the counter does not see inside the fused attention of the processor
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, slice_of(example, slice(1)))
    return {"params": sum(p.numel() for p in model.parameters()), "macs": counter.get_total_flops() // 2}


def costs(model: nn.Module, groups: Sequence[Group], example: Inputs) -> dict[str, Cost]:
    """What the network costs as a function of the units kept: {"params": Cost, "macs": Cost}.

    Parameters
    ----------
    model : Module
        The dense network.
    groups : sequence of Group
        The units.
    example : tensor or tuple of tensors
        Inputs; the first sample is run.

    Returns
    -------
    {"params": Cost, "macs": Cost}
        Exact for layers run as modules and for attention whose heads are units. Other multiplications outside of
        layers stay in the constant.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    >>> units = Group("0", 2, [("0", "out", [[0], [1]]), ("1", "in", [[0], [1]])])
    >>> params = costs(net, [units], torch.zeros(1, 3))["params"]
    >>> params.constant, params.linear
    (1.0, array([5., 5.]))
    """
    with opened(owners(groups), model):
        return _costs(model, groups, example)


def _costs(model: nn.Module, groups: Sequence[Group], example: Inputs) -> dict[str, Cost]:
    kept = _Kept(groups)
    heads = _head_paths(model, groups)
    positions = _positions(model, example)
    products = _products(model, heads, positions, example)
    params, macs = _Sum(kept.n), _Sum(kept.n)
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, LINEAR_LAYERS):
            inner, outer = kept.inputs(path, module), kept.outputs(path, module)
            if id(module.weight) not in seen:
                params.add_product(inner, outer, taps(module))
            macs.add_product(inner, outer, taps(module) * positions.get(path, 0))
            seen.add(id(module.weight))
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                params.add_affine(*kept.of_parameter(path, module, parameter))
    for path, units in heads.items():
        macs.linear[units] += products[path] / len(units)
    dense = count(model, example)
    return {"params": params.cost(dense["params"]), "macs": macs.cost(dense["macs"])}


class _Affine(NamedTuple):
    """fixed (g,) + slope (g, n) x: kept channels in each of a layer's g parts."""

    fixed: np.ndarray[Any, Any]
    slope: Any


class _Kept:
    """Kept channels of each module's axes as affine functions of the unit bits."""

    def __init__(self, groups: Sequence[Group]) -> None:
        starts = offsets(groups)
        self.n = int(starts[-1])
        self.owners: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
        for group, start in zip(groups, starts, strict=False):
            for member in group.members:
                units = np.repeat(start + np.arange(group.size), member.channels.shape[1])
                self.owners.setdefault((member.path, member.axis), []).append((member.channels.ravel(), units))

    def affine(self, path: str, axis: str, channels: int, groups: int = 1) -> _Affine:
        """Kept channels among `channels` of that axis, counted in each of `groups` equal parts."""
        from scipy import sparse

        owned = self.owners.get((path, axis), [])
        each = np.concatenate([c for c, _ in owned] + [np.zeros(0, np.int64)])
        units = np.concatenate([u for _, u in owned] + [np.zeros(0, np.int64)])
        part = each // (channels // groups)
        slope = sparse.csr_array((np.ones(len(each)), (part, units)), shape=(groups, self.n))
        return _Affine(channels / groups - np.bincount(part, minlength=groups), slope)

    def inputs(self, path: str, module: nn.Module) -> _Affine:
        """Kept inputs of each part of a linear layer."""
        return self.affine(path, "in", widths(module)[0], conv_groups(module))

    def outputs(self, path: str, module: nn.Module) -> _Affine:
        """Kept outputs of each part of a linear layer."""
        return self.affine(path, "out", widths(module)[1], conv_groups(module))

    def of_parameter(self, path: str, module: nn.Module, parameter: nn.Parameter) -> tuple[_Affine, float]:
        """Kept channels of a bias, a norm's or PReLU's vector or an embedding's table, and entries a channel."""
        axis = parameter.ndim - 1 if isinstance(module, nn.Embedding) else 0
        channels = parameter.shape[axis] if parameter.ndim else 1
        if channels == 1:
            return self.affine("", "out", 1), float(parameter.numel())
        return self.affine(path, "out", channels), parameter.numel() / channels


class _Sum:
    """Adds affine forms and products of two; only what depends on x is kept track of."""

    def __init__(self, n: int) -> None:
        from scipy import sparse

        self.linear = np.zeros(n)
        self.products = sparse.csr_array((n, n))

    def add_affine(self, form: _Affine, factor: float) -> None:
        """Add factor * sum over parts of fixed + slope x."""
        self.linear += factor * form.slope.sum(axis=0)

    def add_product(self, one: _Affine, other: _Affine, factor: float) -> None:
        """Add factor * sum over parts of (fixed + slope x)(fixed' + slope' x)."""
        self.linear += factor * (one.slope.T @ other.fixed + other.slope.T @ one.fixed)
        self.products = self.products + factor * (one.slope.T @ other.slope)

    def cost(self, dense: int) -> Cost:
        """The collected function, with the constant that makes it `dense` where everything is kept."""
        from scipy import sparse

        linear = self.linear + self.products.diagonal()
        upper = sparse.triu(self.products + self.products.T, 1, format="csr")
        upper.eliminate_zeros()
        pair = sparse.csr_array(upper + upper.T)
        return Cost(float(dense - linear.sum() - upper.sum()), linear, pair)


def _head_paths(model: nn.Module, groups: Sequence[Group]) -> dict[str, np.ndarray[Any, Any]]:
    """{path of an attention module: the units that are its heads}."""
    modules, starts = layers_of(model), offsets(groups)
    found = {}
    for group, start in zip(groups, starts, strict=False):
        if (heads := heads_of(group, modules)) is not None:
            found[heads[0]] = start + np.arange(group.size)
    return found


def _positions(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Positions at which each linear layer is applied in a forward pass of one sample, over all its calls."""
    seen: dict[str, int] = {}

    def watch(path: str, module: Any) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # the kernel of a transposed convolution is applied at input positions
            reads, makes = widths(module)
            positions = inputs[0].numel() // reads if isinstance(module, TRANSPOSED) else output.numel() // makes
            seen[path] = seen.get(path, 0) + positions

        return module.register_forward_hook(note)

    handles = [watch(path, m) for path, m in model.named_modules() if isinstance(m, LINEAR_LAYERS)]
    try:
        with evaluating(model):
            call(model, slice_of(example, slice(1)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _products(
    model: nn.Module, attentions: Collection[str], positions: Mapping[str, int], example: Inputs
) -> dict[str, float]:
    """{path of an attention module: MACs of one sample outside of its linear layers}."""
    found = dict.fromkeys(attentions, 0.0)
    if not found:
        return found
    counter = FlopCounterMode(display=False)

    def adding(path: str, sign: float) -> Any:
        def note(*_: Any) -> None:
            found[path] += sign * counter.get_total_flops() / 2

        return note

    handles = []
    for path in found:
        module = model.get_submodule(path)
        handles += [module.register_forward_pre_hook(adding(path, -1.0))]
        handles += [module.register_forward_hook(adding(path, 1.0))]
        for inner, layer in module.named_modules(prefix=path):
            if isinstance(layer, LINEAR_LAYERS):
                found[path] -= positions.get(inner, 0) * layer.weight.numel()
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), counter:
            call(model, slice_of(example, slice(1)))
    finally:
        for handle in handles:
            handle.remove()
    return found
