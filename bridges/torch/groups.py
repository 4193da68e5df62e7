"""Which channels of a network go together.

`_probe` sees where each channel arrives; channels that meet are coupled, by connected components. Components with the
same members form one `Group`. Every group is then tried: about half of its units are removed from a copy with random
weights, and the result must equal the masked network. torch-pruning's dependency graph is asked as a second opinion.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from prunesolve.problems import Group, InvalidProblem, Member, Selection, unknown

from ._forward import as_inputs, evaluating, run, tensors
from ._layers import conv_groups, role, widths
from ._probe import Flow, Node, probe
from .masks import apply_masks, masks
from .shrink import cut_out
from .verify import kept_channels, verify


@dataclass(frozen=True)
class Found:
    """The groups of a network.

    Parameters
    ----------
    groups : tuple of Group
        Channels that can go, in the order the layers run.
    excluded : {name: reason}
        What cannot go, and why.
    notes : {group name: str}
        Whether torch-pruning's index map agrees.
    """

    groups: tuple[Group, ...]
    excluded: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def find_groups(model: nn.Module, example: Any, *, layers: Iterable[str] | None = None) -> Found:
    """The coupled channels of a network: found by perturbation, proved by removal.

    Parameters
    ----------
    model : nn.Module
        Any network; it is copied and stays as it is.
    example : tensor or tuple of tensors
        What the model is called with, batch first; one sample is enough.
    layers : iterable of str, optional
        Paths of the modules whose outputs may go; default all. A group counts if all its producers are named.

    Returns
    -------
    Found

    Raises
    ------
    InvalidProblem
        If the model does not run on the example (names the layer) or a layer name is unknown.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> found = find_groups(net, torch.zeros(1, 1, 4, 4))
    >>> [(m.path, m.axis, m.channels.shape) for m in found.groups[0].members]
    [('0', 'out', (4, 1)), ('1', 'out', (4, 1)), ('4', 'in', (4, 4))]
    >>> found.excluded
    {'4': "it is part of the network's output"}
    """
    wanted = _wanted(model, layers)
    probed, inputs = _prepared(model, example)
    with evaluating(probed):
        flow = probe(probed, inputs)
    candidates, excluded = _candidates(model, flow)
    candidates, excluded = _named(candidates, excluded, wanted, model)
    groups, failures = _proved(model, inputs, [c.group for c in candidates])
    order = {group.name: None for group in groups}
    return Found(tuple(groups), {**excluded, **failures}, _second_opinion(model, inputs, groups) if order else {})
