"""Which torch operation of one forward pass reads what another made, and inside which modules it runs.

Tensors are told apart by identity and, where something works on them in place, by storage: what reads a tensor also
reads every operation that wrote to its storage since it was made. What the network does outside of torch is not seen.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._forward import run, tensors

_ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}
_SUBTRACTIONS = {torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__}
_REVERSED = {Tensor.__rsub__, torch.rsub}
# what turns a tensor into numbers that Python code then goes by
_ESCAPES = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "is_nonzero"}


class Term(NamedTuple):
    """One side of a sum: what made it, its shape, and the sign it enters with."""

    reads: frozenset[int]
    shape: tuple[int, ...]
    sign: int


@dataclass(frozen=True, eq=False)
class Operation:
    """One torch function as a forward pass calls it.

    Attributes
    ----------
    reads : the operations whose results it reads
    weights : identities of the parameters it reads
    inside : paths of the modules that are running, outermost first
    terms : the two sides where it adds or subtracts tensors of one shape
    depends : whether the network's input has any part in it
    part : whether it stands for one of several results of the operation it reads
    """

    reads: frozenset[int]
    weights: frozenset[int] = frozenset()
    inside: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    depends: bool = True
    part: bool = False


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module: its operations are `start` to `stop`; `given` and `made` are None unless single tensors."""

    path: str
    start: int
    stop: int
    given: Tensor | None
    made: Tensor | None


@dataclass(eq=False)
class Dataflow:
    """The operations of a forward pass, who reads each, and the modules' calls in the order they end."""

    operations: list[Operation] = field(default_factory=list)
    readers: list[set[int]] = field(default_factory=list)
    calls: dict[str, list[ModuleCall]] = field(default_factory=lambda: defaultdict(list))

    def within(self, path: str) -> set[int]:
        """The operations that run inside a module."""
        return {i for call in self.calls.get(path, ()) for i in range(call.start, call.stop)}

    def reaches(self, source: int, targets: frozenset[int]) -> bool:
        """Whether any of `targets` is `source` or reads it through others."""
        known = {source}
        for i in range(source + 1, max(targets, default=-1) + 1):
            if not known.isdisjoint(self.operations[i].reads):
                known.add(i)
        return not known.isdisjoint(targets)


def is_seen(func: Any, result: Any) -> bool:
    """Whether a torch function counts as an operation: it gives tensors, or numbers made of their values."""
    return bool(tensors(result)) or getattr(func, "__name__", "") in _ESCAPES


def added(func: Any, args: Any, kwargs: Any) -> tuple[tuple[Tensor, int], ...]:
    """The two (tensor, sign) of a sum or difference of tensors of one shape, else nothing."""
    pair = [*args, *(kwargs or {}).values()]
    if len(pair) != 2 or not all(isinstance(term, Tensor) for term in pair) or pair[0].shape != pair[1].shape:
        return ()
    if func in _ADDITIONS:
        return (pair[0], 1), (pair[1], 1)
    if func in _SUBTRACTIONS:
        return (pair[0], 1), (pair[1], -1)
    return ((pair[0], -1), (pair[1], 1)) if func in _REVERSED else ()


def dataflow(model: nn.Module, inputs: tuple[Tensor, ...]) -> Dataflow:
    """Run the model once, in the mode it is in, and tell who read what."""
    return _Recorder(model, inputs).run()


class _Recorder(TorchFunctionMode):
    """Fills a `Dataflow` while the model runs."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.found = Dataflow()
        self.running: list[tuple[str, int]] = []
        # everything seen is held, so that no identity is given twice
        self.held: list[Any] = []
        self.makers: dict[int, int] = {}
        self.writers: dict[int, list[int]] = defaultdict(list)
        # results of operations with several, until they are read
        self.parted: set[int] = set()
        self.weights = {id(p) for p in model.parameters()}
        kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        self.constants = {id(t) for t in (*model.parameters(), *model.buffers(), *kept)}

    def run(self) -> Dataflow:
        """One forward pass."""
        for tensor in self.inputs:
            self.makers[id(tensor)] = self._add(Operation(frozenset()))
        handles = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda m, args, path=path: self._enter(path)))
            handles.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, made, path=path: self._leave(path, args, kwargs, made), with_kwargs=True
                )
            )
        try:
            with self:
                answer = run(self.model, self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        self._add(self._operation(tensors(answer)))
        return self.found

    def _enter(self, path: str) -> None:
        self.running.append((path, len(self.found.operations)))

    def _leave(self, path: str, args: Any, kwargs: Any, made: Any) -> None:
        _, start = self.running[-1]
        given = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
        unseen = [t for t in tensors(made) if id(t) not in self.makers and id(t) not in self.constants]
        if unseen:
            # compiled code, which no mode sees into
            self._note(self._operation(tensors((args, kwargs))), unseen)
        self.running.pop()
        stop = len(self.found.operations)
        single = made if isinstance(made, Tensor) else None
        self.found.calls[path].append(ModuleCall(path, start, stop, given, single))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = tensors((args, kwargs or {}))
        versions = [_version(tensor) for tensor in read]
        terms = tuple(
            Term(frozenset(self._origins(term)), tuple(term.shape), sign) for term, sign in added(func, args, kwargs)
        )
        operation = self._operation(read, terms)
        result = func(*args, **(kwargs or {}))
        if is_seen(func, result):
            written = [t for t, version in zip(read, versions, strict=True) if _version(t) != version]
            index = self._note(operation, tensors(result))
            self.held.append(read)
            for tensor in written:
                self.makers[id(tensor)] = index
                self.writers[tensor.untyped_storage().data_ptr()].append(index)
        return result

    def _operation(self, read: list[Tensor], terms: tuple[Term, ...] = ()) -> Operation:
        reads = frozenset(i for tensor in read for i in self._origins(tensor))
        depends = any(self.found.operations[i].depends for i in reads)
        inside = tuple(path for path, _ in self.running)
        return Operation(reads, frozenset(id(t) for t in read if id(t) in self.weights), inside, terms, depends)

    def _origins(self, tensor: Tensor) -> list[int]:
        """The operations that made the tensor or wrote to its storage since."""
        if id(tensor) in self.constants:
            return []
        if id(tensor) not in self.makers:
            # of unknown origin: taken for an input of its own
            self.makers[id(tensor)] = self._add(Operation(frozenset()))
            self.held.append(tensor)
        maker = self.makers[id(tensor)]
        if id(tensor) in self.parted:
            self.parted.remove(id(tensor))
            whole = self.found.operations[maker]
            maker = self._add(replace(whole, reads=frozenset([maker]), weights=frozenset(), terms=(), part=True))
            self.makers[id(tensor)] = maker
        return [maker, *(i for i in self.writers.get(tensor.untyped_storage().data_ptr(), ()) if i > maker)]

    def _note(self, operation: Operation, made: list[Tensor]) -> int:
        index = self._add(operation)
        self.held.append(made)
        for tensor in made:
            self.makers[id(tensor)] = index
            self.parted.discard(id(tensor))
        if len(made) > 1:
            self.parted |= {id(tensor) for tensor in made}
        return index

    def _add(self, operation: Operation) -> int:
        index = len(self.found.operations)
        self.found.operations.append(operation)
        self.found.readers.append(set())
        for i in operation.reads:
            self.found.readers[i].add(index)
        return index


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
