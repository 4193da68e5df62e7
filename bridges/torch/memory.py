r"""The peak memory of a network's activations at each choice of levels.

At step t of a forward pass, with k_l units of layer l kept,

    bytes_t = c_t + sum_l a_tl k_l        peak = max_t bytes_t

Sizes are affine in the widths, so c and a come from a few traces: the dense network's, and one with each layer cut.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunesolve.problems import Group, InvalidProblem, Selection
from prunesolve.problems._arrays import Floats, Indices

from ._forward import as_inputs, evaluating, run
from ._level_costs import CostTable, Terms
from .attention import open_attention, owners
from .data import Inputs, slice_of
from .masks import masks
from .shrink import cut_out

# relative to the largest step
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class PeakMemory:
    """Bytes of activations alive, step by step, for one sample.

    Parameters
    ----------
    constant : (T,)
        Bytes that no layer's width changes.
    slope : (T, L)
        Bytes a unit of each layer. Steps that others always exceed are left out.
    """

    constant: Floats
    slope: Floats

    def peak(self, counts: Any) -> Any:
        """Bytes at the highest point for units kept (L,) as a float, or for each row (m, L)."""
        kept = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        found = (self.constant + kept @ self.slope.T).max(1)
        return float(found[0]) if np.ndim(counts) == 1 else found

    def table(self, counts: Sequence[Indices]) -> CostTable:
        """As terms of one layer and of two, of which the largest counts.

        Exact where no step holds tensors of more than two layers; of others only the two largest shares vary, the rest
        counts as dense, so that the true peak is never above the table's. `notes["exact"]` says which.
        """
        terms, exact = Terms(counts, "max"), True
        dense = np.array([float(c[-1]) for c in counts])
        for constant, slope in zip(self.constant, self.slope, strict=True):
            order = np.argsort(-slope * dense, kind="stable")
            used = [int(i) for i in order[:2] if slope[i] > 0]
            rest = constant + float((slope * dense).sum() - (slope * dense)[used].sum())
            exact = exact and bool(rest <= constant)
            each = [slope[i] * terms.counts[i] for i in used]
            if not used:
                terms.constant(rest)
            elif len(used) == 1:
                terms.single(used[0], rest + each[0])
            else:
                terms.double(used[0], used[1], rest + each[0][:, None] + each[1])
        return terms.table(exact=exact, unit="bytes")


def peak_memory(model: nn.Module, groups: Sequence[Group], example: Inputs) -> PeakMemory:
    """Where the activations of one sample peak, as a function of the units kept.

    Counts every tensor that the network holds at a time, views once, weights not; what a library needs inside an
    operation is not seen.

    Parameters
    ----------
    model : Module
        The dense network; it stays as it is.
    groups : sequence of Group
        The units.
    example : Inputs
        The first sample is run.

    Returns
    -------
    PeakMemory

    Raises
    ------
    InvalidProblem
        If the sizes are not affine in the widths, or the network does something else when it is smaller.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> units = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("1", "in", [[0], [1], [2]])])
    >>> peak_memory(net, [units], torch.zeros(1, 2)).peak([[3], [1]])  # the input, the hidden units and the output
    array([24., 16.])
    """
    model = open_attention(copy.deepcopy(model), owners(groups))
    # clones: a slice holds on to the whole batch
    inputs = tuple(x.clone() for x in as_inputs(model, slice_of(example, slice(1))))
    sizes = np.array([group.size for group in groups])
    # one unit stays at least
    halves = np.maximum(1, sizes // 2)
    dense = _live(model, inputs)
    slope = np.zeros((len(dense), len(groups)))
    for g in np.flatnonzero(halves < sizes):
        counts = np.where(np.arange(len(sizes)) == g, halves, sizes)
        slope[:, g] = (dense - _cut(model, groups, counts, inputs, len(dense))) / (sizes[g] - halves[g])
    constant = dense - slope @ sizes
    # a third width of each, all at once
    most = sizes - sizes // 4
    found = _cut(model, groups, most, inputs, len(dense))
    if np.abs(found - constant - slope @ most).max() > _TOLERANCE * dense.max():
        raise InvalidProblem("memory: the sizes of the network's tensors are no affine functions of its layers' widths")
    return _needed(constant, slope)


def _cut(model: nn.Module, groups: Sequence[Group], counts: Any, inputs: Any, steps: int) -> Floats:
    """(T,) of the network with the first `counts` (L,) units of each layer."""
    keep = np.concatenate([np.arange(g.size) < c for g, c in zip(groups, counts, strict=True)])
    found = _live(cut_out(model, masks(Selection(groups, keep), model), inputs), inputs)
    if len(found) != steps:
        raise InvalidProblem("memory: a smaller network runs other operations; its memory cannot be told from widths")
    return found


def _needed(constant: Floats, slope: Floats) -> PeakMemory:
    """The steps that no other exceeds whatever is kept."""
    forms = np.unique(np.column_stack([constant, slope]), axis=0)
    # each form is at least itself
    needed = [int((forms >= form).all(1).sum()) == 1 for form in forms]
    return PeakMemory(forms[needed, 0], forms[needed, 1:])


def _live(model: nn.Module, inputs: tuple[Tensor, ...]) -> Floats:
    """(T,) bytes of tensors alive after each operation of a forward pass, the inputs among them."""
    watch = _Watch([*model.parameters(), *model.buffers()], inputs)
    with evaluating(model), watch:
        run(model, inputs)
    return np.array(watch.steps, dtype=np.float64)


class _Watch(TorchDispatchMode):
    """Follows storages from their making to their end."""

    def __init__(self, weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in (*weights, *inputs)}
        self.live = sum(t.untyped_storage().nbytes() for t in inputs)
        self.steps: list[int] = [self.live]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.steps.append(self.live)
        return output

    def _add(self, storage: Any) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.live += storage.nbytes()
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size
