"""Where each channel of a network goes, found by perturbing it and looking where the change arrives.

Every layer that mixes channels is cut: its forward is replaced by one that returns a fixed random answer, so a change
made to it travels to the next layers' inputs and no further. Two passes over the sources of change:

    reach    every source at once moved up and down, one copy of the example each: which input channels of which
             layer does it reach?
    code     channel c of a layer carries c in binary; for every bit, the channels that have it set are moved in one
             copy and the others in the next. An entry that a single channel reaches moves in exactly one of the two
             for every bit and spells that channel; an entry that moves in both depends on several.

Layers that never meet at one input channel share their copies in the second pass. No rule about any operation enters:
addition, concatenation, slicing, padding, flattening and gating come out of what is seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from prunesolve.problems import InvalidProblem

from ._forward import float_tensors, run
from ._layers import channel_axis, role, widths

Node = tuple[str, str]  # module path, "in" | "out"

_OUTPUT = "the network's output"
_INPUT = "the network's input"
_LARGE = 10.0  # a change against answers of size one: large enough to open a ReLU and to saturate a gate
_COPIES = 64
_ELEMENTS = 2**25  # of the largest layer's answers over all copies, 128 MiB in single precision


@dataclass(frozen=True)
class Flow:
    """Where channels go.

    Parameters
    ----------
    order : tuple of str
        Paths of the layers whose channels can be cut, in the order they first run.
    arrivals : {(producer path, reader path): (e, 2) int}
        Output channel of the producer, input channel of the reader.
    fixed : {(path, "in" | "out"): {channel: reason}}
        Channels that cannot go, and why.
    """

    order: tuple[str, ...]
    arrivals: dict[tuple[str, str], np.ndarray[Any, Any]]
    fixed: dict[Node, dict[int, str]]


@dataclass(eq=False)
class _Source:
    """One call of a layer whose answer is moved; `width` channels, or 1 where it is moved as a whole."""

    path: str
    width: int
    reason: str = ""  # why what it reaches cannot go; empty for layers that can be cut


@dataclass(eq=False)
class _Reader:
    """One call of a layer (or the network's output) whose input is watched."""

    path: str
    clean: torch.Tensor
    axis: int | None  # None: only whether anything arrives matters
    reason: str = ""  # why what it reads cannot go; empty for layers that can be cut
    reached: list[torch.Tensor] = field(default_factory=list)
    up: torch.Tensor | None = None
    down: torch.Tensor | None = None


class _UnevenCopies(Exception):
    """The first dimension is not (copies x samples) everywhere: the copies have to be run one by one."""


def probe(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Flow:
    """Find where every channel of `model` goes; the model is left cut (hand in a copy), in eval mode."""
    bench = _Bench(model, inputs)
    try:
        return bench.flow()
    except _UnevenCopies:
        return _Bench(model, inputs, copies=1).flow()
