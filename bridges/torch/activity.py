r"""How much of each unit every sample switches on: what informed mutations choose by.

activity_si = mean over consumers' calls, the unit's channels and positions of what they read of unit i for sample s
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem, unknown
from prunesolve.problems.units import offsets

from ._forward import evaluating
from ._layers import channel_axis
from .attention import layers_of, opened, owners
from .data import Batches, call, samples
from .evaluate import placed

Floats = np.ndarray[Any, np.dtype[np.float64]]


def activity(model: nn.Module, data: Any, groups: Sequence[Group], *, device: Any = None) -> Floats:
    r"""Mean activation of every unit on every sample, as its consumers read it.

        activity_si = 1/K_i sum_k mean over channels and positions of a_sk        k the calls that read unit i

    Parameters
    ----------
    model : Module
        The trained network; run in eval mode and left as it was.
    data : see `Batches`
        Samples on the first axis of every consumer's input; targets are not used.
    groups : sequence of Group
        The units, as in `Statistics.groups`.
    device : torch device, optional
        Where to compute; default where the model lies.

    Returns
    -------
    (samples, n) float
        In the order of the data and of the groups; 0 for a unit that nothing reads.

    Raises
    ------
    InvalidProblem
        If a group does not belong to the model, a consumer reads something else than the samples on its first axis or
        an activation is not finite.

    References
    ----------
    Reconstruction, after the activations that evolved autoencoders are pruned by in arXiv 2505.05138 (GECCO 2025).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.eye(2)), net[0].bias.zero_()
    >>> units = Group("0", 2, [("0", "out", [[0], [1]]), ("2", "in", [[0], [1]])])
    >>> activity(net, torch.tensor([[1.0, -1.0], [3.0, 2.0]]), [units])
    array([[1., 0.],
           [3., 2.]])
    """
    work = placed(model, device)
    reads = _reads(work, groups)
    found = []
    with opened(owners(groups), work), evaluating(work), torch.inference_mode(), _watched(work, reads) as calls:
        for inputs, _ in Batches(data):
            calls.clear()
            call(work, inputs)
            found.append(_means(calls, reads, samples(inputs), int(offsets(groups)[-1])))
    rows = np.concatenate(found)
    if not np.isfinite(rows).all():
        raise InvalidProblem("the activations on the data are not finite; check the inputs' scaling and the weights")
    return rows


Reads = dict[str, list[tuple[slice, Any]]]


def _reads(model: nn.Module, groups: Sequence[Group]) -> Reads:
    """{consumer: the units it reads and their channels of its input}."""
    modules = layers_of(model)
    reads: Reads = {}
    for group, start in zip(groups, offsets(groups), strict=False):
        for member in group.members:
            if member.path not in modules:
                raise unknown("module", member.path, modules)
            if member.axis == "in":
                units = slice(int(start), int(start) + group.size)
                reads.setdefault(member.path, []).append((units, member.channels))
    return reads


@contextmanager
def _watched(model: nn.Module, reads: Reads) -> Iterator[list[tuple[str, Tensor]]]:
    """Hooks that collect (consumer, (samples, channels) means over positions) call by call."""
    calls: list[tuple[str, Tensor]] = []

    def hook(path: str) -> Any:
        def read(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen = inputs[0].movedim(channel_axis(module), 1)
            calls.append((path, seen.reshape(*seen.shape[:2], -1).mean(2).cpu().double()))

        return read

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in reads]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _means(calls: list[tuple[str, Tensor]], reads: Reads, count: int, n: int) -> Floats:
    """(count, n) of one batch."""
    total, times = np.zeros((count, n)), np.zeros(n)
    for path, seen in calls:
        if len(seen) != count:
            raise InvalidProblem(
                f"{path}: expected the {count} samples on the first axis of its input, got {len(seen)} rows"
            )
        for units, channels in reads[path]:
            total[:, units] += seen.numpy()[:, channels].mean(2)
            times[units] += 1
    return total / np.maximum(times, 1)
