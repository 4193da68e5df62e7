"""Where each channel of a network goes, found by perturbing it and looking where the change arrives.

Every layer that mixes channels is cut: its forward is replaced by one that returns a fixed random answer, so a change
made to it travels to the next layers' inputs and no further. Two passes over the sources:

    reach    every source as a whole, moved up and down in copies of its own: which input channels of which layer does
             it reach?
    code     channel c of a layer carries c in binary; for every bit, the channels that have it set are moved in one
             copy and the others in the next. An entry that a single channel reaches moves in exactly one of the two
             for every bit and so spells that channel; an entry that moves in both depends on several, and its layer
             is moved again channel by channel.

Layers that never meet at one input channel share their copies in the second pass. No rule about any operation enters:
addition, concatenation, slicing, padding, flattening and gating come out of what is seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from prunesolve.problems import InvalidProblem

from ._forward import reseed, run, tensors
from ._layers import channel_axis, role, widths
from .attention import projections

Node = tuple[str, str]  # module path, "in" | "out"
_Spelt = tuple[torch.Tensor, torch.Tensor, bool]
Call = tuple[str, int]  # module path, how often it ran before in this forward pass

OUTPUT, INPUT = "it is part of the network's output", "the network's own input also feeds it"

_LARGE = 10.0  # a change to answers of size one: large enough to open a ReLU and to saturate a gate
_COPIES = 64
_NARROW = 32  # fewer channels than this are always told apart one by one
_ELEMENTS = 2**25  # of the largest answer over all copies; 128 MiB in single precision


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
    """One call of a layer, or a network input, whose answer can be moved."""

    path: str
    answer: Any  # what is returned when nothing moves: a tensor, or a nest of them
    change: Any  # how far each entry moves, of the same form
    axis: int = 0
    width: int = 0
    reason: str = ""  # why what it reaches cannot go; empty for layers that can be cut


@dataclass(eq=False)
class _Reader:
    """One call of a layer, or a network output, whose input is watched."""

    path: str
    clean: torch.Tensor
    tolerance: float
    node: Node
    axis: int | None  # None: only what arrives matters, not where
    reason: str = ""  # why what it reads cannot go; empty for layers that can be cut


class _UnevenCopies(Exception):
    """The first dimension is not copies x samples everywhere: the copies have to be run one by one."""


def probe(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Flow:
    """Find where every channel goes. Hand in a copy of the model in eval mode: its layers stay cut."""
    bench = _Bench(model, inputs)
    try:
        return bench.flow()
    except _UnevenCopies:
        bench.copies = 1
        return bench.flow()


class _Bench:
    """The cut network, its sources and its readers."""

    def __init__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(0)
        self.projections = projections(model)
        self.roles = {path: role(module) for path, module in model.named_modules()}
        self.sources: dict[Call, _Source] = {}
        self.readers: dict[Call, _Reader] = {}
        self.listen: Callable[[Call, _Reader, torch.Tensor], None] | None = None
        self.moved: dict[Call, torch.Tensor] = {}
        self.size = 1
        self.inputs = inputs
        self.order = self._record()
        largest = max((t.numel() for s in self.sources.values() for t in tensors(s.answer)), default=1)
        unbatched = any(not s.reason and s.axis == 0 for s in self.sources.values())
        self.copies = 1 if unbatched else max(1, min(_COPIES, _ELEMENTS // max(1, largest)))
        self._cut()

    def flow(self) -> Flow:
        """Both passes, and what parameters outside any layer reach."""
        self.readers.clear()
        self.listen = None
        self.arrivals: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)
        self.fixed: dict[Node, dict[int, str]] = defaultdict(dict)
        self._forward()
        self._check_copies()
        reached = self._reach()
        self.unclear: dict[Call, None] = {}
        for colour in self._colours(reached):
            self._code(colour, reached)
        for call in self.unclear:
            self._one_by_one(call)
        self._fix_what_fixed_sources_reach(reached)
        self._fix_what_parameters_reach()
        self._fix_shared_parameters()
        cuttable = [path for path in self.order if self.roles[path] != "sealed"]
        found = {ends: torch.cat(pairs).unique(dim=0).numpy() for ends, pairs in self.arrivals.items()}
        return Flow(tuple(cuttable), found, dict(self.fixed))

    # -- the cut network

    def _record(self) -> list[str]:
        """Run once as it is: who runs, in which order, and with answers of which shape."""
        order: list[str] = []
        depth = [0]

        def enter(module: nn.Module, args: Any) -> None:
            depth[0] += 1

        def leave(path: str, module: nn.Module, answer: Any) -> None:
            depth[0] -= 1
            if depth[0] or self.roles[path] == "plain":
                return
            if self.roles[path] != "channelwise":
                self._add_source(path, sum(p == path for p, _ in self.sources), module, answer)
            if path not in order:
                order.append(path)

        hooks = []
        for path, module in self.model.named_modules():
            if self.roles[path] != "plain":
                hooks.append(module.register_forward_pre_hook(enter))
                hooks.append(module.register_forward_hook(lambda m, a, answer, path=path: leave(path, m, answer)))
        try:
            run(self.model, self.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for k, tensor in enumerate(self.inputs):
            if tensor.is_floating_point():
                source = _Source("", tensor, self._change(tensor), reason=INPUT)
                self.sources["", k] = source
        return order

    def _add_source(self, path: str, call: int, module: nn.Module, answer: Any) -> None:
        if self.roles[path] == "sealed":
            answer = _pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, answer)
            reason = f"{path} ({type(module).__name__}), which is not cut, also feeds it"
            self.sources[path, call] = _Source(path, answer, _pytree.tree_map(self._change, answer), reason=reason)
            return
        # away from zero, where a dead ReLU or a gated zero would hide what comes after
        alive = torch.randn(answer.shape, generator=self.generator).abs().add(0.5).to(answer)
        self.sources[path, call] = _Source(
            path, alive, self._change(answer), channel_axis(module) % answer.ndim, widths(module)[1]
        )

    def _change(self, answer: Any) -> Any:
        if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
            return None
        # a different step at every entry: equal steps would cancel in differences and normalisations
        return torch.rand(answer.shape, generator=self.generator).add(1).mul(_LARGE).to(answer)

    def _cut(self) -> None:
        for path in self.order:
            module = self.model.get_submodule(path)
            replaced = self._pass_on if self.roles[path] == "channelwise" else self._answer
            module.forward = lambda *args, path=path, replaced=replaced, **kwargs: replaced(path, args, kwargs)

    def _pass_on(self, path: str, args: Any, kwargs: Any) -> torch.Tensor:
        read = _first(args, kwargs)
        self._watch(path, [read])
        return read.clone()  # the caller may change it in place

    def _answer(self, path: str, args: Any, kwargs: Any) -> Any:
        sealed = self.roles[path] == "sealed"
        self._watch(path, tensors((args, kwargs)) if sealed else [_first(args, kwargs)])
        call = self.runs[path]
        self.runs[path] += 1
        if (path, call) not in self.sources:
            raise InvalidProblem(f"{path} runs more often the second time: the network's path depends on its values")
        return self._emit((path, call))

    def _emit(self, call: Call) -> Any:
        source = self.sources[call]
        moved = self.moved.get(call)

        def copied(answer: Any, change: Any) -> Any:
            if not isinstance(answer, torch.Tensor):
                return answer
            if self.size > 1 and not answer.ndim:
                raise _UnevenCopies
            many = answer.unsqueeze(0).expand(self.size, *answer.shape)
            if moved is not None and change is not None:
                shape = [self.size] + [1] * answer.ndim
                if moved.shape[1] > 1:
                    shape[1 + source.axis] = moved.shape[1]
                many = many + moved.to(answer).reshape(shape) * change
            return many.flatten(0, 1).clone() if answer.ndim else many[0].clone()

        return _pytree.tree_map(copied, source.answer, source.change)

    def _watch(self, path: str, read: Iterable[torch.Tensor]) -> None:
        for tensor in read:
            call = (path, self.reads[path])
            self.reads[path] += 1
            if self.listen is None:
                self.readers[call] = self._reader(path, tensor)
            elif call not in self.readers:
                raise InvalidProblem(f"{path} reads more often the second time: the path depends on its values")
            else:
                reader = self.readers[call]
                self.listen(call, reader, self._changed(reader, tensor))

    def _reader(self, path: str, tensor: torch.Tensor) -> _Reader:
        clean = tensor.detach().clone() if tensor.is_floating_point() else tensor.detach().float()
        finite = clean[clean.isfinite()].abs()
        tolerance = 16 * torch.finfo(clean.dtype).eps * (float(finite.max()) if finite.numel() else 0.0)
        if not path:
            return _Reader(path, clean, tolerance, ("", "in"), None, OUTPUT)
        module = self.model.get_submodule(path)
        if self.roles[path] == "sealed":
            return _Reader(path, clean, tolerance, (path, "in"), None, _why_sealed(path, module))
        side = "out" if self.roles[path] == "channelwise" else "in"
        return _Reader(path, clean, tolerance, (path, side), channel_axis(module) % tensor.ndim)

    def _changed(self, reader: _Reader, tensor: torch.Tensor) -> torch.Tensor:
        """(copies, channels, entries) bool; one channel where it does not matter which."""
        clean = reader.clean
        if tensor.numel() != self.size * clean.numel() or tensor.shape[1:] != clean.shape[1:]:
            if self.size > 1:
                raise _UnevenCopies
            raise InvalidProblem(f"{reader.path or 'the output'}: its shape depends on the network's values")
        seen = tensor.reshape(self.size, *clean.shape).to(clean.dtype)
        same = (seen == clean) | ((seen - clean).abs() <= reader.tolerance) | (seen.isnan() & clean.isnan())
        if reader.axis is None:
            return ~same.reshape(self.size, 1, -1)
        return ~same.movedim(1 + reader.axis, 1).reshape(self.size, clean.shape[reader.axis], -1)

    def _forward(self) -> None:
        self.runs: dict[str, int] = defaultdict(int)
        self.reads: dict[str, int] = defaultdict(int)
        reseed(self.model)
        inputs = [
            self._emit(("", k)) if ("", k) in self.sources else self._repeat(x) for k, x in enumerate(self.inputs)
        ]
        try:
            answer = run(self.model, tuple(inputs))
        except InvalidProblem as error:
            cause = error.__cause__
            if self.size > 1:
                raise _UnevenCopies from error
            raise (cause if isinstance(cause, InvalidProblem) else error) from None
        found = tensors(answer)
        if not found:
            raise InvalidProblem(
                f"the model's output: expected a tensor or a nest of tensors, got {type(answer).__name__}; wrap the "
                "model so that it returns them"
            )
        self._watch("", found)

    def _repeat(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(self.size, *[1] * (x.ndim - 1)) if x.ndim else x

    def _play(
        self, moved: dict[Call, torch.Tensor], listen: Callable[[_Reader, Call, int, torch.Tensor], None]
    ) -> None:
        """Run copies; `moved` says by how much each source moves in each of them, (copies, channels or 1)."""
        total = max((len(rows) for rows in moved.values()), default=0)
        for start in range(0, total, self.copies):
            self.size = min(self.copies, total - start)
            self.moved = {call: rows[start : start + self.size] for call, rows in moved.items()}
            self.listen = lambda call, reader, changed, start=start: listen(reader, call, start, changed)
            try:
                self._forward()
            finally:
                self.size, self.moved = 1, {}

    def _check_copies(self) -> None:
        """A copy in which nothing moves must stay as it is while everything moves in its neighbour."""
        for still in (0, 1):

            def quiet(reader: _Reader, call: Call, start: int, changed: torch.Tensor, still: int = still) -> None:
                rows = changed[still - start : still - start + 1] if still >= start else changed[:0]
                if rows.any() and self.copies > 1:
                    raise _UnevenCopies
                if rows.any():
                    raise InvalidProblem(
                        f"{reader.path or 'the output'}: the model gives a different answer every time, in eval mode "
                        "and with the same seed; make it deterministic"
                    )

            moves = torch.tensor([[0.0], [1.0]]) if still == 0 else torch.tensor([[1.0], [0.0]])
            self._play(dict.fromkeys(self.sources, moves), quiet)

    # -- the two passes

    def _reach(self) -> dict[Call, torch.Tensor]:
        """{reader: (sources, channels) bool}."""
        calls = list(self.sources)
        moved = {}
        for s, call in enumerate(calls):
            moved[call] = torch.zeros(2 * len(calls), 1)
            moved[call][2 * s], moved[call][2 * s + 1] = 1, -1
        rows: dict[Call, list[torch.Tensor]] = defaultdict(list)
        self._play(moved, lambda reader, call, start, changed: rows[call].append(changed.any(dim=2).cpu()))
        return {call: torch.cat(parts).unflatten(0, (-1, 2)).any(dim=1) for call, parts in rows.items()}

    def _colours(self, reached: dict[Call, torch.Tensor]) -> list[list[int]]:
        """Sources that can be cut, split so that no two of one part meet at an input channel."""
        cuttable = [s for s, source in enumerate(self.sources.values()) if not source.reason]
        meet = torch.zeros(len(self.sources), len(self.sources))
        for rows in reached.values():
            meet += rows.float() @ rows.float().T
        colours: list[list[int]] = []
        for s in cuttable:
            free = next((colour for colour in colours if not meet[s, colour].any()), None)
            if free is None:
                colours.append([s])
            else:
                free.append(s)
        return colours

    def _code(self, colour: list[int], reached: dict[Call, torch.Tensor]) -> None:
        calls = list(self.sources)
        width = max(self.sources[calls[s]].width for s in colour)
        bits = max(1, (width - 1).bit_length())
        moved = {calls[s]: _code_rows(self.sources[calls[s]].width, bits) for s in colour}
        spelt: dict[Call, tuple[torch.Tensor, torch.Tensor]] = {}

        def collect(reader: _Reader, call: Call, start: int, changed: torch.Tensor) -> None:
            if not reached[call][colour].any():
                return
            if call not in spelt:
                zeros = torch.zeros(changed.shape[1:], dtype=torch.int32, device=changed.device)
                spelt[call] = (zeros, zeros.clone())
            for row, entries in enumerate(changed, start):
                spelt[call][row % 4 // 2].bitwise_or_(entries.to(torch.int32) << row // 4)

        self._play(moved, collect)
        for call, (with_bit, without) in spelt.items():
            for s in colour:
                at = reached[call][s].nonzero().flatten()
                if len(at):
                    self._decode(calls[s], self.readers[call], at, _spelt(with_bit[at].cpu(), without[at].cpu(), bits))

    def _decode(self, call: Call, reader: _Reader, at: torch.Tensor, spelt: _Spelt) -> None:
        source = self.sources[call]
        pairs, unclear, anything = spelt
        foreign = bool((pairs[:, 0] >= source.width).any())
        # the features of a head of 12, say, have every bit open though they are not all of the layer's
        several = source.width <= _NARROW or not anything or source.path in self.projections
        if foreign or (len(unclear) and several):
            self.unclear[call] = None
            return
        self._note(source, reader, torch.stack([pairs[:, 0], at[pairs[:, 1]]], dim=1))
        if len(unclear):
            reason = f"all its channels are mixed before {reader.path or 'the output'} reads them"
            self.fixed[source.path, "out"].update(dict.fromkeys(range(source.width), reason))
            self._fix(reader, at[unclear], reason)

    def _one_by_one(self, call: Call) -> None:
        """Move each channel alone: what couples few channels (a gate on the other half, say) is told exactly."""
        source = self.sources[call]
        alone = torch.eye(source.width)
        moved = torch.stack([alone, -alone], dim=1).flatten(0, 1)

        def collect(reader: _Reader, call: Call, start: int, changed: torch.Tensor) -> None:
            row, channel = changed.any(dim=2).cpu().nonzero().T
            self._note(source, reader, torch.stack([(row + start) // 2, channel], dim=1))

        self._play({call: moved}, collect)

    def _note(self, source: _Source, reader: _Reader, pairs: torch.Tensor) -> None:
        if reader.axis is None:
            self.fixed[source.path, "out"].update(dict.fromkeys(pairs[:, 0].tolist(), reader.reason))
        elif len(pairs):
            self.arrivals[source.path, reader.path].append(pairs)

    def _fix(self, reader: _Reader, channels: torch.Tensor, reason: str) -> None:
        if reader.axis is not None:
            self.fixed[reader.node].update(dict.fromkeys(channels.tolist(), reason))

    # -- what cannot go

    def _fix_what_fixed_sources_reach(self, reached: dict[Call, torch.Tensor]) -> None:
        for call, rows in reached.items():
            reader = self.readers[call]
            for source, row in zip(self.sources.values(), rows, strict=True):
                if source.reason:
                    self._fix(reader, row.nonzero().flatten(), source.reason)

    def _fix_what_parameters_reach(self) -> None:
        """A parameter used outside the forward of the layer that owns it has a width of its own."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.numel() > 1 and p.is_floating_point()}
        self._fix_reached_by(list(parameters.values()), "")
        if not self._reached_by_parameters:
            return
        for name, parameter in parameters.items():
            owner = name.rpartition(".")[0]
            self._fix_reached_by([parameter], f"parameter {name!r} acts on it directly")
            if self._reached_by_parameters and owner in self.order and self.roles[owner] != "sealed":
                self._fix_whole(owner, f"parameter {name!r} is also used outside {owner}")

    def _fix_reached_by(self, parameters: list[nn.Parameter], reason: str) -> None:
        self._reached_by_parameters = False

        def fix(reader: _Reader, call: Call, start: int, changed: torch.Tensor) -> None:
            hit = changed.any(dim=2)[0].nonzero().flatten()
            self._reached_by_parameters |= bool(len(hit))
            if reason:
                self._fix(reader, hit, reason)

        for sign in (1.0, -1.0):
            saved = [p.detach().clone() for p in parameters]
            for p in parameters:
                p.add_(self._change(p), alpha=sign)
            self.listen = lambda call, reader, changed: fix(reader, call, 0, changed)
            self._forward()
            for p, old in zip(parameters, saved, strict=True):
                p.copy_(old)

    def _fix_shared_parameters(self) -> None:
        owners: dict[int, list[str]] = defaultdict(list)
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            owner = name.rpartition(".")[0]
            if owner in self.order:
                owners[id(parameter)].append(owner)
        for paths in owners.values():
            for path in paths if len(paths) > 1 else ():
                others = ", ".join(p for p in paths if p != path)
                self._fix_whole(path, f"{path} shares its weight with {others}")

    def _fix_whole(self, path: str, reason: str) -> None:
        module = self.model.get_submodule(path)
        if self.roles[path] != "sealed":
            for side, width in zip(("in", "out"), widths(module), strict=True):
                self.fixed[path, side].update(dict.fromkeys(range(width), reason))


def _first(args: Any, kwargs: Any) -> torch.Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _why_sealed(path: str, module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        return (
            f"{path} ({kind}) reads it and computes its weight at each call (a pruning mask, a parametrisation); make "
            "that permanent first"
        )
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return f"{path} ({kind}) reads it and takes moments over several channels, so that one less changes the others"
    return f"{path} ({kind}) reads it, which is not a layer that can be cut"


def _code_rows(width: int, bits: int) -> torch.Tensor:
    """(4 bits, width): for every bit, the channels with it up, down, the channels without it up, down."""
    channel = torch.arange(width)
    rows = []
    for b in range(bits):
        has = (channel >> b & 1).float()
        rows += [has, -has, 1 - has, has - 1]
    return torch.stack(rows)


def _spelt(with_bit: torch.Tensor, without: torch.Tensor, bits: int) -> _Spelt:
    """Read the codes that arrived.

    Parameters
    ----------
    with_bit, without : (channels, entries) int
        Bits b for which the entry moved with the channels that have b, with those that have not.
    bits : int
        Length of a code.

    Returns
    -------
    pairs : (e, 2) int
        Source channel, row it reaches alone.
    unclear : (r,) int
        Rows with an entry that several channels reach.
    anything : bool
        Whether at all such entries every bit is open, as it is where all channels are mixed.
    """
    full = (1 << bits) - 1
    single = (with_bit ^ without) == full
    several = ((with_bit | without) != 0) & ~single
    low = torch.where(single, with_bit, full + 1).amin(dim=1)
    high = torch.where(single, with_bit, -1).amax(dim=1)
    rows = torch.arange(len(low))
    pairs = [torch.stack([low.long(), rows], dim=1)[low == high]]
    for row in rows[low < high].tolist():
        codes = with_bit[row][single[row]].unique().long()
        pairs.append(torch.stack([codes, torch.full_like(codes, row)], dim=1))
    anything = bool(((with_bit & without)[several] == full).all())
    return torch.cat(pairs), several.any(dim=1).nonzero().flatten(), anything
