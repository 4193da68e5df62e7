r"""How long each layer takes at each width, measured on this device.

seconds(s) = rest + sum over layers t_l(kept inputs, kept outputs)

Every layer whose width may change is timed by itself on a coarse grid of (kept in, kept out) together, since neither
side alone tells: kernels work in blocks. Between the grid's points tables are interpolated. `rest` is what the dense
network takes beyond its layers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem
from prunesolve.problems._arrays import Floats, Indices

from ._forward import as_inputs, evaluating, run
from ._layers import channel_axis, constructor_numbers, cut, widths
from ._level_costs import CostTable, Terms
from .attention import opened
from .data import Inputs
from .evaluate import placed

# points of the grid that the dense network gets the time of
_WHOLE = 10
# (layers timed, of how many)
Told = Callable[[int, int], None]


def latency(
    model: nn.Module,
    groups: Sequence[Group],
    counts: Sequence[Indices],
    example: Inputs,
    *,
    grid: int = 4,
    seconds: float = 0.02,
    device: Any = None,
    told: Told | None = None,
) -> CostTable:
    """Seconds of one forward pass of `example` as a table of levels.

    Parameters
    ----------
    model : Module
        The dense network; it stays as it is.
    groups : sequence of Group
        The units.
    counts : sequence of (S_l,) int
        Units kept at each level, ascending.
    example : Inputs
        A batch of the size that the network is to be fast on.
    grid : int
        Widths timed on each side of a layer, the smallest and the dense one among them.
    seconds : float
        Time spent on each point of the grid.
    device : torch device, optional
        Default where the model lies.
    told : callable (layers timed, of how many), optional
        Called after each layer.

    Returns
    -------
    CostTable
        In seconds. A layer that reads or makes channels of several groups gets c + a in + b out + d in out, fitted to
        its points with coefficients >= 0, so that its time still splits into pairs; `notes["fitted"]` names these.
        Layers run alone find their inputs in the cache and pay for no thread that waits: compare with the network.

    Raises
    ------
    InvalidProblem
        If grid < 2 or seconds <= 0.

    References
    ----------
    Shen et al., HALP, NeurIPS 2021 (latency tables over input and output channels together).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> units = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("1", "in", [[0], [1], [2]])])
    >>> table = latency(net, [units], [np.array([1, 3])], torch.zeros(1, 2), seconds=1e-4)
    >>> table.cost[0].shape, table.total
    ((2,), 'sum')
    """
    if grid < 2 or not seconds > 0:
        raise InvalidProblem(f"latency: expected grid >= 2 and seconds > 0, got {grid} and {seconds}")
    work = placed(model, device)
    inputs = as_inputs(work, example)
    stopwatch = _Stopwatch(seconds)
    terms, dense, fitted = Terms(counts), 0.0, []
    with evaluating(work), torch.inference_mode():
        layers = _layers(work, groups, inputs)
        for done, layer in enumerate(layers):
            points = _points(layer, terms.counts, grid)
            times = np.array([stopwatch(layer, point) for point in points])
            dense += float(times[-1])
            if _is_pair(layer):
                _interpolate(terms, layer, points, times)
            else:
                fitted.append(layer.path)
                _fit(terms, layer, points, times)
            if told is not None:
                told(done + 1, len(layers))
        whole = stopwatch.of(work, inputs, _WHOLE)
    terms.constant(max(0.0, whole - dense))
    return terms.table(unit="seconds", device=str(next(iter(inputs)).device), whole=whole, layers=dense, fitted=fitted)


class _Layer(NamedTuple):
    """One call of a layer: the shape it reads and, for both sides, (group, (size, m) channels)."""

    path: str
    module: Any
    shape: tuple[int, ...]
    like: Tensor
    reads: list[tuple[int, Any]]
    makes: list[tuple[int, Any]]

    @property
    def groups(self) -> list[int]:
        """The groups on both sides."""
        return sorted({g for g, _ in (*self.reads, *self.makes)})


def _is_pair(layer: _Layer) -> bool:
    """Whether each side belongs to one group at most."""
    return len({g for g, _ in layer.reads}) <= 1 and len({g for g, _ in layer.makes}) <= 1


def _layers(model: nn.Module, groups: Sequence[Group], inputs: Any) -> list[_Layer]:
    """The calls of layers that lose channels, in order."""
    owners: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            owners.setdefault(member.path, {"in": [], "out": []})[member.axis].append((g, member.channels))
    found: list[_Layer] = []

    def watch(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            sides = owners[path]
            found.append(_Layer(path, module, tuple(args[0].shape), args[0].new_empty(0), sides["in"], sides["out"]))

        return note

    with opened({path.rpartition(".")[0] for path in owners}, model):
        handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in owners]
        try:
            run(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _points(layer: _Layer, counts: Sequence[Any], grid: int) -> list[dict[int, int]]:
    """Units kept of each group at each point of the grid, the dense one last."""
    sides = [sorted({g for g, _ in side}) for side in (layer.reads, layer.makes)]
    if sides[0] == sides[1] or not sides[0] or not sides[1]:
        sides = [sides[0] or sides[1]]
    shares = np.linspace(0.0, 1.0, grid)
    points: dict[tuple[Any, ...], dict[int, int]] = {}
    for chosen in itertools.product(shares, repeat=len(sides)):
        point = {}
        for side, share in zip(sides, chosen, strict=True):
            for g in side:
                least, most = max(1, int(counts[g].min())), int(counts[g].max())
                point[g] = round(least + share * (most - least))
        points[tuple(point.items())] = point
    return list(points.values())


class _Stopwatch:
    """Times layers of given widths; the same layer on the same shape is timed once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.known: dict[Any, float] = {}

    def __call__(self, layer: _Layer, units: dict[int, int]) -> float:
        """Seconds of the layer with so many units of each group."""
        narrow = copy.deepcopy(layer.module)
        reads, makes = widths(narrow)
        kept_in, kept_out = _first(layer.reads, reads, units), _first(layer.makes, makes, units)
        cut(narrow, layer.path, kept_in, kept_out)
        shape = list(layer.shape)
        shape[channel_axis(layer.module)] = widths(narrow)[0]
        key = (str(narrow), *sorted(constructor_numbers(narrow).items()), *shape)
        if key not in self.known:
            example = torch.randn(shape, device=layer.like.device, dtype=layer.like.dtype)
            self.known[key] = self.of(narrow, (example,))
        return self.known[key]

    def of(self, module: nn.Module, inputs: tuple[Tensor, ...], times: int = 1) -> float:
        """Seconds of a call: the least of many, since what else runs on the machine only adds to them."""
        from torch.utils.benchmark import Timer

        # the first calls compile kernels
        for _ in range(2):
            module(*inputs)
        timer = Timer("f(*x)", globals={"f": module, "x": inputs}, num_threads=torch.get_num_threads())
        return float(min(timer.blocked_autorange(min_run_time=times * self.seconds).times))


def _first(side: list[tuple[int, Any]], width: int, units: dict[int, int]) -> Tensor | None:
    """(width,) the channels of the first units of each group, and those of no group."""
    if not side:
        return None
    kept = torch.ones(width, dtype=torch.bool)
    for g, channels in side:
        kept[torch.from_numpy(np.array(channels[units[g] :].ravel()))] = False
    return kept


def _interpolate(terms: Terms, layer: _Layer, points: list[dict[int, int]], times: Floats) -> None:
    """A table of one group's levels, or of two groups', linear between the points."""
    from scipy.interpolate import RegularGridInterpolator

    groups = layer.groups
    axes = [sorted({point[g] for point in points}) for g in groups]
    held = np.zeros([len(axis) for axis in axes])
    for point, time in zip(points, times, strict=True):
        held[tuple(axis.index(point[g]) for g, axis in zip(groups, axes, strict=True))] = time
    # an axis of one point cannot be interpolated along: all levels of that group are the same
    wide = [np.array([*axis, axis[-1] + 1]) if len(axis) == 1 else np.array(axis) for axis in axes]
    for k, axis in enumerate(axes):
        held = np.repeat(held, 2, axis=k) if len(axis) == 1 else held
    kept = [np.maximum(terms.counts[g], axis[0]) for g, axis in zip(groups, axes, strict=True)]
    at = np.meshgrid(*kept, indexing="ij")
    values = RegularGridInterpolator(wide, held)(np.stack(at, axis=-1))
    units = np.meshgrid(*[terms.counts[g] for g in groups], indexing="ij")
    values[np.min(units, axis=0) == 0] = 0.0
    if len(groups) == 1:
        terms.single(groups[0], values)
    else:
        terms.double(groups[0], groups[1], values)


def _fit(terms: Terms, layer: _Layer, points: list[dict[int, int]], times: Floats) -> None:
    """Fit c + a in + b out + d in out with coefficients >= 0, split into terms of one group and of two."""
    from scipy.optimize import nnls

    sides = [_affine(layer.reads, widths(layer.module)[0]), _affine(layer.makes, widths(layer.module)[1])]
    into, out = (np.array([side.at(point) for point in points]) for side in sides)
    (c, a, b, d), _ = nnls(np.column_stack([np.ones(len(times)), into, out, into * out]), times)
    (one, reads), (other, makes) = sides
    terms.constant(c + a * one + b * other + d * one * other)
    for g, m in reads.items():
        terms.single(g, (a + d * other) * m * terms.counts[g])
    for h, m in makes.items():
        terms.single(h, (b + d * one) * m * terms.counts[h])
    for (g, m), (h, n) in itertools.product(reads.items(), makes.items()):
        if g == h:
            terms.single(g, d * m * n * terms.counts[g] ** 2)
        else:
            terms.double(g, h, d * m * n * np.outer(terms.counts[g], terms.counts[h]))


class _Width(NamedTuple):
    """Channels of one side: fixed + sum of (channels a unit) x (units kept)."""

    fixed: int
    each: dict[int, int]

    def at(self, units: dict[int, int]) -> int:
        """Channels with so many units of each group."""
        return self.fixed + sum(m * units[g] for g, m in self.each.items())


def _affine(side: list[tuple[int, Any]], width: int) -> _Width:
    each: dict[int, int] = {}
    for g, channels in side:
        each[g] = each.get(g, 0) + channels.shape[1]
    return _Width(width - sum(channels.size for _, channels in side), each)
