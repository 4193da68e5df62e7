r"""One network made of two, by what is coupled.

    W = M'_a W_a R_a' + M'_b W_b R_b'

R_a (units of A, units of the fused layer) says how a value of A is read off the fused layer, M_a (units of the fused
layer, units of A) how much of A is in each of its units; M' is of the layer's output axis, R of its input axis. Rows
that stay alone hold their network's own weights, fused rows the mean (1 - lam) A + lam B. The network's output is fused
as a whole, so that with nothing else fused it is the mean of both outputs, exactly.

Reference: Morelli and Eckstein, 2026 (partial fusion, residual connections); the block order, tied groups with explicit
channel maps and the kernels for split units are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from prunesolve.formulations.partial_fusion import Coupling
from prunesolve.problems import InvalidProblem
from prunesolve.problems._arrays import Floats, Indices

from ._layers import role
from ._layouts import INPUT, OUTPUT, ChannelMap, FrontInputs, Layout, Step, Traced, padding, shape, step
from .axes import Axes
from .blocks import MIXING, Blocks, Segment, blocks, dense_weight, structure

_ALONE_A, _FUSED, _ALONE_B = 0, 1, 2


class Assembled(NamedTuple):
    """A fused network.

    Parameters
    ----------
    model : GraphModule
        Paths of the layers are those of the first network.
    maps : {path: (from_a (c, c_a), from_b (c, c_b))}
        For every layer, norms too, CSR: the channels of both networks that its output channels stand for; 1 for what is
        alone, means of weight 1 - lam and lam for what is fused.
    """

    model: nn.Module
    maps: dict[str, tuple[Any, Any]]


def assemble(
    model_a: nn.Module,
    model_b: nn.Module,
    axes_a: Axes,
    axes_b: Axes,
    couplings: Mapping[str, Coupling],
    example: Any,
    *,
    lam: float = 0.5,
    inputs: nn.Module | None = None,
) -> Assembled:
    """Build the network in which coupled units are one and all others stay apart.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Two networks of one architecture, their widths aside. They stay as they are. `model_a` may be a fused one.
    axes_a, axes_b : Axes
        Of the two.
    couplings : {group: Coupling}
        One for each group of the axes.
    example : tensor
        What both are called with.
    lam : float in [0, 1]
        Weight of the second network where both meet.
    inputs : nn.Module, optional
        (N, c, ...) -> (N, 2 c, ...): the input as the first network reads it, then as the second does. Put in front;
        the first layers then read each with its own weights.

    Returns
    -------
    Assembled
        In the mode (train or eval) of `model_a`.

    Raises
    ------
    InvalidProblem
        If the networks differ in more than widths, a group lacks a coupling that fits, or a step between layers is not
        known to keep channels apart; names it.

    Examples
    --------
    >>> from prunesolve.formulations.partial_fusion import Coupling
    >>> one, other, x = nn.Linear(2, 3), nn.Linear(2, 3), torch.ones(1, 2)
    >>> nets = [nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 1)) for layer in (one, other)]
    >>> both = assemble(*nets, *(Axes.of(net, x) for net in nets), {"0": Coupling.apart(3, 3)}, x)
    >>> both.model.get_submodule("0").out_features, torch.allclose(both.model(x), (nets[0](x) + nets[1](x)) / 2)
    (6, True)
    """
    if isinstance(lam, bool) or not isinstance(lam, (int, float)) or not 0.0 <= lam <= 1.0:
        raise InvalidProblem(f"lam: expected a number from 0 to 1, got {lam!r}")
    _check_couplings(axes_a, axes_b, couplings)
    sides = (_Network.of(model_a, axes_a, example), _Network.of(model_b, axes_b, example))
    return _Assembly(sides, couplings, float(lam), inputs).built()


def _check_couplings(axes_a: Axes, axes_b: Axes, couplings: Mapping[str, Coupling]) -> None:
    names = [[group.name for group in axes.groups] for axes in (axes_a, axes_b)]
    if names[0] != names[1]:
        raise InvalidProblem(
            f"expected networks of one architecture, got groups {names[0]} and {names[1]}; fuse networks that "
            "differ in widths alone"
        )
    if set(couplings) != set(names[0]):
        raise InvalidProblem(f"couplings: expected one for each of {names[0]}, got {list(couplings)}")
    for a, b in zip(axes_a.groups, axes_b.groups, strict=True):
        found = couplings[a.name]
        if (found.n_a, found.n_b) != (a.size, b.size):
            raise InvalidProblem(
                f"coupling of {a.name}: expected {a.size} and {b.size} units, got {found.n_a} and {found.n_b}"
            )


@dataclass(frozen=True, eq=False)
class _Network:
    """One of the two."""

    model: nn.Module
    axes: Axes
    traced: Traced
    # (units,) of each group: which segment of a fused network each unit is in; () for a network as trained
    streams: tuple[list[tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: nn.Module, axes: Axes, example: Any) -> _Network:
        streams = tuple(_streams(model, axes, index) for index in range(len(axes.groups)))
        return cls(model, axes, Traced.of(model, axes, example), streams)


def _streams(model: nn.Module, axes: Axes, index: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()] * axes.groups[index].size
    for member in axes.groups[index].members:
        module = model.get_submodule(member.path)
        if isinstance(module, Blocks):
            segments = module.outputs if member.axis == "out" else module.inputs
            keys = [key for key, size in segments for _ in range(size)]
            return [keys[channels[0]] for channels in member.channels]
    return found


@dataclass(frozen=True, eq=False)
class _FusedAxis:
    """The channels of one axis of the fused network, c of them.

    Attributes
    ----------
    read : (c_a, c) and (c_b, c) CSR
    make : (c, c_a) and (c, c_b) CSR
    segments : ((key, channels), ...)
    group, place : (c,)
        Which unit of which fused group each channel is.
    """

    read: tuple[Any, Any]
    make: tuple[Any, Any]
    segments: tuple[Segment, ...]
    group: Indices
    place: Indices

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.group)


class _Assembly:
    """Walks both graphs, step by step, and writes the fused one."""

    def __init__(
        self,
        networks: tuple[_Network, _Network],
        couplings: Mapping[str, Coupling],
        lam: float,
        inputs: nn.Module | None,
    ) -> None:
        self.networks, self.lam, self.inputs = networks, lam, inputs
        self.couplings = [couplings[group.name] for group in networks[0].axes.groups]
        self.keys = [self._keys(g) for g in range(len(self.couplings))]
        self.modules: dict[str, Any] = {}
        self.maps: dict[str, tuple[Any, Any]] = {}
        self.axes: dict[bytes, _FusedAxis] = {}
        self.graph = fx.Graph()
        self.made: dict[Step, Step] = {}

    def built(self) -> Assembled:
        """The fused network."""
        one, other = (network.traced for network in self.networks)
        if other.front is not None:
            raise InvalidProblem("model_b: it was fused with inputs of its own; put it first")
        if len(one.nodes) != len(other.nodes):
            raise InvalidProblem(
                f"expected networks of one architecture, got {len(one.nodes)} and {len(other.nodes)} steps; fuse "
                "networks that differ in widths alone"
            )
        self.pairs = dict(zip(one.nodes, other.nodes, strict=True))
        for a, b in self.pairs.items():
            self._check_alike(a, b)
            self.made[a] = self._written(a, b)
            # annotations of the original code are names that the written one may not know
            self.made[a].type = None
        name = type(self.networks[0].model).__name__
        model = fx.GraphModule(self.modules, self.graph, name if name.endswith("Fused") else f"{name}Fused")
        model.train(self.networks[0].model.training)
        return Assembled(model, self.maps)

    # -- axes

    def _keys(self, g: int) -> list[tuple[int, ...]]:
        """Segment of each unit of a fused group."""
        coupling = self.couplings[g]
        one, other = (network.streams[g] for network in self.networks)
        alone_a = [(_ALONE_A, *one[u]) for u in coupling.alone_a]
        alone_b = [(_ALONE_B, *other[u]) for u in coupling.alone_b]
        return [*alone_a, *[(_FUSED,)] * len(coupling.fused_b), *alone_b]

    def _axis(self, a: Layout, b: Layout) -> _FusedAxis:
        """The fused channels of a tensor whose channels are `a` in one network and `b` in the other."""
        key = b"|".join(part.tobytes() for part in (a.group, a.unit, b.group, b.unit))
        if key not in self.axes:
            self.axes[key] = self._new_axis(a, b)
        return self.axes[key]

    def _new_axis(self, a: Layout, b: Layout) -> _FusedAxis:
        if a.is_all(INPUT) and b.is_all(INPUT):
            return self._input_axis(len(a.group), len(b.group))
        if a.is_all(OUTPUT) and b.is_all(OUTPUT):
            if len(a.group) != len(b.group):
                raise InvalidProblem(f"expected networks of one output, got {len(a.group)} and {len(b.group)} channels")
            return _same(len(a.group), len(b.group), self.lam)
        groups = np.unique(a.group)
        if groups[0] < 0 or not np.array_equal(groups, np.unique(b.group)):
            raise InvalidProblem("expected networks of one architecture, got one that widens its streams elsewhere")
        units = [(self.keys[g][p], g, p) for g in groups.tolist() for p in range(len(self.keys[g]))]
        order = sorted(range(len(units)), key=units.__getitem__)
        read = tuple(self._read(layout, side, groups)[:, order] for side, layout in enumerate((a, b)))
        make = tuple(self._make(layout, side, groups)[order] for side, layout in enumerate((a, b)))
        sizes: dict[Any, int] = {}
        for i in order:
            sizes[units[i][0]] = sizes.get(units[i][0], 0) + 1
        places = np.array([units[i][1:] for i in order], dtype=np.int64).reshape(-1, 2)
        return _FusedAxis(read, make, tuple(sizes.items()), places[:, 0], places[:, 1])

    def _read(self, layout: Layout, side: int, groups: Indices) -> Any:
        """(channels of one network, fused units group after group)."""
        from scipy import sparse

        parts = []
        for g in groups.tolist():
            table = self.couplings[g].read_b if side else self.couplings[g].read_a
            rows = np.flatnonzero(layout.group == g)
            _check_whole(self.networks[side].axes, g, layout.unit[rows])
            chosen = sparse.csr_array(
                (np.ones(len(rows)), (rows, layout.unit[rows])), (len(layout.group), table.shape[0])
            )
            parts.append(chosen @ table)
        return sparse.csr_array(sparse.hstack(parts, format="csr"))

    def _make(self, layout: Layout, side: int, groups: Indices) -> Any:
        """(fused units group after group, channels of one network)."""
        from scipy import sparse

        parts = []
        for g in groups.tolist():
            coupling = self.couplings[g]
            table = coupling.make_b(self.lam) if side else coupling.make_a(1 - self.lam)
            columns = np.flatnonzero(layout.group == g)
            chosen = sparse.csr_array(
                (np.ones(len(columns)), (layout.unit[columns], columns)), (table.shape[1], len(layout.group))
            )
            parts.append(table @ chosen)
        return sparse.csr_array(sparse.vstack(parts, format="csr"))

    def _input_axis(self, c_a: int, c_b: int) -> _FusedAxis:
        from scipy import sparse

        if self.inputs is None:
            if c_a < c_b or (c_a > c_b and self.networks[0].traced.front is None):
                raise InvalidProblem(f"inputs: expected networks of one input, got {c_a} and {c_b} channels")
            # what a fused network's own front gives begins with the input itself
            return _same(c_a, c_b, self.lam)
        eye = sparse.eye_array(c_a + c_b, format="csr")
        segments = (((_ALONE_A,), c_a), ((_ALONE_B,), c_b))
        read = eye[:c_a], eye[c_a:]
        return _FusedAxis(
            read, tuple(r.T.tocsr() for r in read), segments, np.full(c_a + c_b, INPUT), np.arange(c_a + c_b)
        )

    # -- steps

    def _layouts(self, a: Step) -> tuple[Layout, Layout]:
        one, other = self.networks
        return one.traced.layouts[a], other.traced.layouts[self.pairs[a]]

    def _axis_of(self, a: Step) -> _FusedAxis:
        return self._axis(*self._layouts(a))

    def _check_alike(self, a: Step, b: Step) -> None:
        same = a.op == b.op and (a.op == "placeholder" or step(a) == step(b))
        if not same and not ("completed" in a.meta and "completed" in b.meta):
            raise InvalidProblem(
                f"expected networks of one architecture, got {a.format_node()} where the other has {b.format_node()}"
            )
        one, other = (network.traced.layouts for network in self.networks)
        if (a in one) != (b in other):
            raise InvalidProblem(f"expected networks of one architecture, which part at {a.name} and {b.name}")
        if a.op in ("call_function", "call_method") and a in one and step(a) not in ("pad", "reshape"):
            arguments = [fx.node.map_arg((node.args, dict(node.kwargs)), lambda _: None) for node in (a, b)]
            if arguments[0] != arguments[1]:
                raise InvalidProblem(f"{step(a)}: expected the same arguments in both networks, got {arguments}")

    def _written(self, a: Step, b: Step) -> Step:
        known = a in self.networks[0].traced.layouts
        if a.op == "placeholder":
            return self._placeholder(a)
        self._check_own_input(a)
        if a.op == "get_attr":
            return self._constant(a, b)
        if "completed" in a.meta:
            return self._spread(a, b)
        if a.op == "call_module" and known:
            self._module(a, b)
        elif known and step(a) == "reshape":
            return self._reshaped(a)
        return self.graph.node_copy(a, self.made.__getitem__)

    def _placeholder(self, a: Step) -> Step:
        node = self.graph.node_copy(a)
        front = self.networks[0].traced.front
        own = front if isinstance(front, FrontInputs) else None
        if a not in self.networks[0].traced.layouts or (self.inputs is None and own is None):
            return node
        if own is None and any(path.split(".")[0] == "inputs" for path, _ in self.networks[0].model.named_modules()):
            raise InvalidProblem(
                "inputs: the network has a part of that name, which what is put in front needs; rename it"
            )
        self.modules["inputs"] = copy.deepcopy(FrontInputs(self.inputs, own))
        return self.graph.call_module("inputs", (node,))

    def _check_own_input(self, a: Step) -> None:
        """Where the input comes twice, only layers may read it."""
        layouts = self.networks[0].traced.layouts
        read = [layouts[node].is_all(INPUT) for node in a.all_input_nodes if node in layouts]
        if "inputs" in self.modules and a.op != "output" and len(a.all_input_nodes) > 1 and any(read):
            raise InvalidProblem(
                f"{step(a)}: it reads the network's own input, which networks of different inputs do not share; "
                "normalise inside the networks"
            )

    def _constant(self, a: Step, b: Step) -> Step:
        one, other = (_attribute(n.traced.module, node.target) for n, node in zip(self.networks, (a, b), strict=True))
        if isinstance(one, torch.Tensor) and not torch.equal(one, other):
            raise InvalidProblem(f"{a.target}: expected the same values in both networks, as they act on all channels")
        self.modules[str(a.target)] = copy.deepcopy(one)
        return self.graph.get_attr(str(a.target))

    def _spread(self, a: Step, b: Step) -> Step:
        """Channels put among zeros, and what padding there is beside."""
        wanted = self._axis(a.meta["completed"], b.meta["completed"])
        source = a.args[0]
        given = self._axis_of(source)
        at = {(g, p): i for i, (g, p) in enumerate(zip(wanted.group.tolist(), wanted.place.tolist(), strict=True))}
        places = [at[pair] for pair in zip(given.group.tolist(), given.place.tolist(), strict=True)]
        node = self.made[source]
        if a.op == "call_function":
            amounts = padding(a)[0][: 2 * (len(shape(a) or ()) - 2)]
            if any(amounts):
                node = self.graph.call_function(F.pad, (node, tuple(amounts)))
        placed = next(self.networks[0].model.parameters()).device
        self.modules[a.name] = ChannelMap(places, wanted.width).to(placed)
        return self.graph.call_module(a.name, (node,))

    def _reshaped(self, a: Step) -> Step:
        """A view that keeps the channels apart, its width taken from the tensor."""
        node = self.graph.node_copy(a, self.made.__getitem__)
        sizes = a.args[1:] if not isinstance(a.args[1], (tuple, list)) else tuple(a.args[1])
        if len(sizes) > 1 and isinstance(sizes[1], int) and sizes[1] > 0:
            with self.graph.inserting_before(node):
                width = self.graph.call_method("size", (node.args[0], 1))
            node.args = (node.args[0], sizes[0], width, *sizes[2:])
        return node

    # -- modules

    def _module(self, a: Step, b: Step) -> None:
        path = str(a.target)
        if path in self.modules:
            return
        one, other = (network.traced.module.get_submodule(path) for network in self.networks)
        kind = self.networks[0].axes.roles.get(path)
        if kind == "mixing":
            self._check_geometry(path, one, other)
            self.modules[path] = self._mixing(a, path, one, other)
        elif kind is not None or isinstance(one, nn.PReLU):
            self.modules[path] = self._channelwise(a, path, one, other)
        else:
            if repr(one) != repr(other):
                raise InvalidProblem(f"{path}: expected the same in both networks, got {one} and {other}")
            self.modules[path] = copy.deepcopy(one)

    def _check_geometry(self, path: str, one: Any, other: Any) -> None:
        first, second = (m.layers[0] if isinstance(m, Blocks) else m for m in (one, other))
        if not isinstance(first, MIXING) or role(first) != "mixing" or getattr(first, "groups", 1) != 1:
            raise InvalidProblem(
                f"{path}: {type(first).__name__} is not fused; expected Linear, Conv1d or Conv2d without groups"
            )
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "groups")
        held = [[type(m).__name__, *(getattr(m, name, None) for name in names)] for m in (first, second)]
        if held[0] != held[1]:
            raise InvalidProblem(f"{path}: expected the same geometry in both networks, got {first} and {second}")

    def _mixing(self, a: Step, path: str, one: Any, other: Any) -> nn.Module:
        into, out = self._axis_of(a.args[0]), self._axis_of(a)
        self.maps[path] = out.make
        source = self._layouts(a.args[0])
        weights = [_columns(dense_weight(m), layout.taps) for m, layout in zip((one, other), source, strict=True)]
        stored = [
            _columns(structure(m)[..., None], s.taps).any(axis=2) for m, s in zip((one, other), source, strict=True)
        ]
        weight = _product(out.make[0], weights[0], into.read[0]) + _product(out.make[1], weights[1], into.read[1])
        meets = sum(abs(out.make[s]) @ stored[s].astype(np.float64) @ abs(into.read[s]) for s in (0, 1)) > 0
        reads = [[bool(meets[r][:, c].any()) for c in _spans(into.segments)] for r in _spans(out.segments)]
        taps = source[0].taps
        if taps != source[1].taps:
            raise InvalidProblem(f"{path}: expected maps of one size in both networks")
        weight = weight.reshape(out.width, into.width * taps, -1)
        columns = tuple((key, size * taps) for key, size in into.segments)
        return blocks(one, weight, _vectors(out, one.bias, other.bias), columns, out.segments, reads)

    def _channelwise(self, a: Step, path: str, one: Any, other: Any) -> nn.Module:
        axis = self._axis_of(a)
        self.maps[path] = axis.make
        taps = self._layouts(a)[0].taps
        joined = copy.deepcopy(one)
        if _settings(one) != _settings(other):
            raise InvalidProblem(f"{path}: expected the same settings in both networks, got {one} and {other}")
        for name in ("weight", "bias", "running_mean", "running_var"):
            held: Any = getattr(one, name, None)
            if held is None:
                continue
            tables = [_table(getattr(m, name), of) for m, of in zip((one, other), self._layouts(a), strict=True)]
            rows = sum(axis.make[s] @ tables[s].reshape(axis.make[s].shape[1], -1) for s in (0, 1))
            value = torch.from_numpy(rows.reshape(axis.width * taps, *held.shape[1:])).to(held)
            setattr(joined, name, nn.Parameter(value, held.requires_grad) if isinstance(held, nn.Parameter) else value)
        _set_width(joined, axis.width * taps)
        return joined


def _same(c_a: int, c_b: int, lam: float) -> _FusedAxis:
    """Channel j of one is channel j of the other: the network's own input and output. A may hold more."""
    from scipy import sparse

    eye = sparse.eye_array(c_a, format="csr")
    read = eye, eye[:c_b]
    make = (1 - lam) * eye, lam * eye[:, :c_b]
    return _FusedAxis(read, make, (((_FUSED,), c_a),), np.full(c_a, OUTPUT), np.arange(c_a))


def _check_whole(axes: Axes, g: int, units: Indices) -> None:
    if not np.array_equal(np.sort(units), np.arange(axes.groups[g].size)):
        raise InvalidProblem(f"group {axes.groups[g].name}: a tensor holds some of its units only, or one twice")


def _columns(weight: Any, taps: int) -> Any:
    """(out, in, rest) of (out, in * taps, rest'), as where a map was flattened."""
    return weight.reshape(len(weight), weight.shape[1] // taps, -1)


def _product(make: Any, weight: Floats, read: Any) -> Floats:
    """(out', in', taps) make (out', out) on rows, read (in, in') on columns of (out, in, taps)."""
    out, into, taps = weight.shape
    rows = (make @ weight.reshape(out, -1)).reshape(-1, into, taps)
    moved = read.T @ np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(into, -1)
    return moved.reshape(-1, len(rows), taps).transpose(1, 0, 2)


def _spans(segments: tuple[Segment, ...]) -> list[slice]:
    ends = np.cumsum([0, *(size for _, size in segments)]).tolist()
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def _vectors(axis: _FusedAxis, *held: Any) -> Floats | None:
    """The biases joined; a layer without one has zeros."""
    if all(bias is None for bias in held):
        return None
    pairs = zip(axis.make, held, strict=True)
    return sum(
        (make @ bias.detach().double().cpu().numpy() for make, bias in pairs if bias is not None),
        start=np.zeros(axis.width),
    )


def _table(held: torch.Tensor, layout: Layout) -> Floats:
    """(channels, columns) of one entry for each column, or of one for all."""
    values = held.detach().double().cpu().numpy()
    return np.repeat(values, len(layout.group) * layout.taps) if values.shape == (1,) else values


def _settings(module: Any) -> tuple[Any, ...]:
    names = ("eps", "momentum", "affine", "track_running_stats", "kernel_size", "stride", "padding", "dilation")
    kept = [getattr(module, name, None) for name in (*names, "padding_mode")]
    held = [getattr(module, name, None) is None for name in ("weight", "bias", "running_mean")]
    return type(module), *kept, *held


def _set_width(module: Any, width: int) -> None:
    for name in ("num_features", "num_parameters", "in_channels", "out_channels", "groups"):
        if hasattr(module, name):
            setattr(module, name, width)


def _attribute(module: nn.Module, path: Any) -> Any:
    for name in str(path).split("."):
        module = getattr(module, name)
    return module
