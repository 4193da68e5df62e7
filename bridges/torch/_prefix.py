"""Layers before the first changed one are not computed again, whatever the network.

A call of a module without children returns the output it gave for a reference selection as long as no layer called
so far has changed; from the first changed one on everything is computed. What the network's own code does between the
calls runs each time, on outputs that are the same. One trial run tells which outputs somebody still reads behind a
point of resumption; only these are kept, as copies where the network works on them in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from prunesolve.problems import Group

from ._forward import tensors
from .data import Inputs, call
from .unfold import LINEAR_LAYERS

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Handler = Callable[[str, Callable[..., Any], Any, Any], Any]

# share of a row by which one more evaluated selection moves the running mean of each bit
_RECENT = 1 / 4
_log = logging.getLogger("prunesolve")


class Varies(BaseException):
    """The network's calls are not those of the trial run; no Exception, which its own code may catch."""


class Leaves:
    """The modules without children of a network, each call of which goes through `handler` where there is one."""

    def __init__(self, model: nn.Module) -> None:
        self.handler: Handler | None = None
        for path, module in model.named_modules():
            if next(module.children(), None) is None:
                module.forward = partial(self._call, path, module.forward)

    def _call(self, path: str, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.handler is None else self.handler(path, forward, args, kwargs)

    def run(self, model: nn.Module, inputs: Inputs, handler: Handler | None) -> Any:
        """The model's answer with that handler."""
        self.handler = handler
        try:
            return call(model, inputs)
        finally:
            self.handler = None


@dataclass
class Call:
    """One call of a leaf, as the trial run saw it.

    Attributes
    ----------
    work : about how many multiply-adds it takes
    last : the last call that reads its output
    by_code : whether the network's own code reads its output
    modified : whether its output is worked on in place later
    overwritten : the last call that does so, -1 for none
    """

    path: str
    work: float = 0.0
    last: int = -1
    by_code: bool = False
    modified: bool = False
    overwritten: int = -1


class Study(TorchFunctionMode):
    """One forward pass that tells who reads which call's output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        # tensors are told apart by identity; `held` keeps them, so that no number is given twice
        self.makers: dict[int, list[int]] = {}
        self.held: list[list[tuple[Tensor, int]]] = []
        self.inside = 0

    def of(self, leaves: Leaves, model: nn.Module, inputs: Inputs) -> tuple[list[Call], Any]:
        """The calls and the model's answer."""
        with self:
            answer = leaves.run(model, inputs, self._at)
        for index in self._made(answer):
            self.calls[index].by_code = True
        for made, seen in zip(self.held, self.calls, strict=True):
            seen.modified = any(tensor._version != version for tensor, version in made)
        return self.calls, answer

    def _made(self, value: Any) -> list[int]:
        return [index for tensor in tensors(value) for index in self.makers.get(id(tensor), ())]

    def _at(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        index, self.inside = len(self.calls), self.inside + 1
        try:
            read = tensors((args, kwargs))
            versions = [tensor._version for tensor in read]
            self.calls.append(Call(path))
            self.held.append([])
            for reads in self._made(read):
                self.calls[reads].last = index
            output = forward(*args, **kwargs)
            for tensor, version in zip(read, versions, strict=True):
                for maker in self._made(tensor) if tensor._version != version else ():
                    self.calls[maker].overwritten = index
            made = tensors(output)
            self.held[index] = [(tensor, tensor._version) for tensor in made]
            for tensor in made:
                self.makers.setdefault(id(tensor), []).append(index)
            # the parts of a nested output are taken by code that no one sees
            self.calls[index].by_code = not isinstance(output, Tensor)
            self.calls[index].work = _work(getattr(forward, "__self__", None), made)
            return output
        finally:
            self.inside -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            for index in self._made((args, kwargs or {})):
                self.calls[index].by_code = True
        return func(*args, **(kwargs or {}))


def _work(module: Any, made: Sequence[Tensor]) -> float:
    size = float(sum(tensor.numel() for tensor in made))
    if not isinstance(module, LINEAR_LAYERS):
        return size
    return size * module.weight.numel() / max(1, module.weight.shape[0])


@dataclass
class Tape:
    """One batch's outputs for a reference selection (n,), and which selections came lately."""

    recent: np.ndarray[Any, np.dtype[np.float64]]
    reference: Bits | None = None
    outputs: list[Any] = field(default_factory=list)
    regret: float = 0.0

    @property
    def nbytes(self) -> int:
        """Memory of the outputs; tensors that share theirs count once."""
        stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(self.outputs)}
        return sum(stores.values())


class Prefix:
    """Runs a network that changes with selections, resuming where they part from a reference.

    The reference of a batch is the majority, bit by bit, of the selections evaluated lately: in a local search the
    incumbent, of which no one tells us. It moves when the work that it would have saved exceeds that of a run.

    Parameters
    ----------
    leaves : Leaves
    calls : list of Call
        The trial run's.
    groups : sequence of Group
        The units.
    batches : int
        Number of batches.
    memory : int
        Bytes that all tapes together may hold; batches beyond run without.
    """

    def __init__(self, leaves: Leaves, calls: list[Call], groups: Sequence[Group], batches: int, memory: int) -> None:
        self.leaves, self.calls, self.memory = leaves, calls, memory
        self.first = _first_calls(calls, groups)
        points = sorted(set(self.first.tolist()))
        self.resume = {point: _safe(calls, point) for point in points}
        self.kept = [
            c.by_code or any(i < point <= c.last for point in self.resume.values()) for i, c in enumerate(calls)
        ]
        self.copied = [c.modified and (c.by_code or c.overwritten < 0) for c in calls]
        spent = np.concatenate([[0.0], np.cumsum([c.work for c in calls])])
        self.share = spent / max(spent[-1], 1.0)
        self.tapes: dict[int, Tape | None] = {b: Tape(np.full(len(self.first), 0.5)) for b in range(batches)}
        self.checked: set[int] = set()

    def start(self, keep: Bits, b: int) -> int:
        """The call from which on `keep` differs from the reference of batch b."""
        tape = self.tapes[b]
        if tape is None or tape.reference is None:
            return 0
        return self._parting(keep, tape.reference)

    def _parting(self, one: Bits, other: Bits) -> int:
        differ = one != other
        return self.resume[int(self.first[differ].min())] if differ.any() else len(self.calls)

    def wanted(self, X: Bits, b: int) -> Bits | None:
        """The reference to record before the rows of X (m, n) are evaluated on batch b, None to leave it."""
        tape = self.tapes[b]
        if tape is None:
            return None
        for row in X:
            tape.recent += _RECENT * (row - tape.recent)
        centre = tape.recent > 0.5
        price = 1.0 - (0.0 if tape.reference is None else self.share[self._parting(centre, tape.reference)])
        for row in X:
            saved = self.share[self._parting(row, centre)] - self.share[self.start(row, b)]
            tape.regret = max(0.0, tape.regret + saved)
        return centre if tape.regret > price else None

    def record(self, model: nn.Module, inputs: Inputs, reference: Bits, b: int) -> None:
        """Run the network, which is that of `reference`, and keep what later runs resume from."""
        tape = self.tapes[b]
        assert tape is not None
        upto = self.start(reference, b)
        outputs = tape.outputs[:upto]
        self._run(model, inputs, tape.outputs, upto, outputs)
        tape.outputs, tape.reference, tape.regret = outputs, reference, 0.0
        if sum(t.nbytes for t in self.tapes.values() if t is not None) > self.memory:
            _log.info("evaluator: batch %d runs without prefix caching, its outputs are beyond the memory given", b)
            self.tapes[b] = None

    def run(self, model: nn.Module, inputs: Inputs, b: int, upto: int) -> Any:
        """The network's answer, its calls before `upto` as in the reference."""
        tape = self.tapes[b]
        return self._run(model, inputs, tape.outputs if tape is not None else [], upto, None)

    def _run(self, model: nn.Module, inputs: Inputs, known: list[Any], upto: int, into: list[Any] | None) -> Any:
        index = 0

        def at(path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            nonlocal index
            i, index = index, index + 1
            if (i < upto or into is not None) and (i >= len(self.calls) or self.calls[i].path != path):
                raise Varies
            if i < upto:
                return _clone(known[i]) if self.copied[i] else known[i]
            output = forward(*args, **kwargs)
            if into is not None:
                into.append((_clone(output) if self.copied[i] else output) if self.kept[i] else _ABSENT)
            return output

        return self.leaves.run(model, inputs, at if upto or into is not None else None)


# what a skipped call returns where nobody reads it
_ABSENT = torch.empty(0)


def _clone(value: Any) -> Any:
    return _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _first_calls(calls: Sequence[Call], groups: Sequence[Group]) -> Any:
    """(n,) the first call that changes with each unit; 0 where a layer's weights are read past its calls."""
    at: dict[str, int] = {}
    for index, made in enumerate(calls):
        at.setdefault(made.path, index)
    firsts = [min((at.get(member.path, 0) for member in group.members), default=0) for group in groups]
    return np.repeat(firsts, [group.size for group in groups]).astype(np.int64)


def _safe(calls: Sequence[Call], point: int) -> int:
    """The last point up to `point` before which no output is kept that a later call works on in place."""
    while True:
        crossed = [i for i, c in enumerate(calls[:point]) if point <= c.overwritten and not c.by_code]
        if not crossed:
            return point
        point = crossed[0]
