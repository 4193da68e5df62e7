"""Two networks go through all calibration batches together and stop at one layer after the other.

What a layer reads can be gathered, the layer changed and the passes carried on from there: one pass over the data in
all, where starting anew for each layer takes as many as there are layers. Every batch's pass is a thread of its own
that runs only while the others rest, so that nothing happens at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunesolve.problems import InvalidProblem

from ._forward import tensors
from .batchnorm import BATCH_NORMS
from .data import Batches, Inputs, call
from .refit import _ADDITIONS, _is_as_made, _Layer, _other_term, _Watch

# bytes of activations that may rest at a time, or that share of free memory where it is more; beyond it every layer
# takes passes of its own
_RESTING, _FREE = 3 * 2**30, 0.5


class Stop(NamedTuple):
    """One call of a layer: what the changed network gives it, what the dense one makes of its own inputs.

    Of layers whose outputs are added to a shortcut also the two shortcuts, None where there is none.
    """

    inputs: Tensor
    wanted: Tensor
    wanted_shortcut: Tensor | None
    given_shortcut: Tensor | None


class Lockstep:
    """The passes of a dense and of a changed network; a context manager, in eval mode (`evaluating`) around it.

    Parameters
    ----------
    dense, changed : Module
        The same layers in the same order.
    batches : Batches
    layers : sequence of _Layer
        Where to stop, in execution order, as `trace` tells them.
    """

    def __init__(self, dense: nn.Module, changed: nn.Module, batches: Batches, layers: Sequence[_Layer]) -> None:
        self.dense, self.changed, self.batches = dense, changed, batches
        self.together = all(layer.calls == 1 for layer in layers) and _resting(dense, batches) <= _room()
        self.walks: list[tuple[_Walk, _Walk]] = []
        if self.together:
            here = threading.local()
            self.hooks = [*_hooks(dense, layers, here, _Walk.dense), *_hooks(changed, layers, here, _Walk.changed)]
            stops = {layer.path: layer for layer in layers}
            self.walks = [(_Walk(dense, x, stops, here), _Walk(changed, x, stops, here)) for x, _ in batches]

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.together:
            for walk in (w for pair in self.walks for w in pair):
                walk.end()
            for hook in self.hooks:
                hook.remove()

    def at(self, layer: _Layer) -> Iterator[Stop]:
        """What each batch brings to the layer; the changed network goes on with the weights it has afterwards."""
        if not self.together:
            yield from self._anew(layer)
            return
        for wanted, given in self.walks:
            wanted.go_to(layer)
            given.go_to(layer)
            assert given.inputs is not None
            assert wanted.output is not None
            yield Stop(given.inputs, wanted.output, wanted.shortcut, given.shortcut)

    def _anew(self, layer: _Layer) -> Iterator[Stop]:
        for inputs, _ in self.batches:
            wanted, given = _Watch(self.dense, layer).run(inputs), _Watch(self.changed, layer).run(inputs)
            for x, y in zip(given.inputs, wanted.outputs, strict=True):
                yield Stop(x, y, wanted.shortcut, given.shortcut)


def _room() -> float:
    import psutil

    return max(_RESTING, _FREE * psutil.virtual_memory().available)


def _resting(model: nn.Module, batches: Batches) -> float:
    """About how many bytes of activations rest while the passes of both networks wait at the widest place."""
    largest = 0

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        largest = max([largest, *(t.nbytes for t in tensors(output))])

    handles = [m.register_forward_hook(note) for m in model.modules() if next(m.children(), None) is None]
    example = batches.example()
    try:
        call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    count = sum(len(x if isinstance(x, Tensor) else x[0]) for x, _ in batches)
    taken = len(example if isinstance(example, Tensor) else example[0])
    # a layer's input, its output, a shortcut and a copy of one of them
    return 2 * 4 * largest * count / taken


def _hooks(model: nn.Module, layers: Sequence[_Layer], here: Any, side: Any) -> list[Any]:
    """Hooks that hand each call to the walk whose thread makes it; a call from outside passes by."""
    before, *others = side
    read = None if before is None else _for_walks(here, before)
    made, normed = (_for_walks(here, method) for method in others)
    modules = dict(model.named_modules())
    hooks = []
    for layer in layers:
        module = modules[layer.path]
        if read is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, x, p=layer.path: read(p, x[0])))
        hooks.append(module.register_forward_hook(lambda m, x, y, p=layer.path: made(p, x[0], y)))
    hooks += [
        m.register_forward_hook(lambda m, x, y: normed(m, x[0], y))
        for m in modules.values()
        if isinstance(m, BATCH_NORMS)
    ]
    return hooks


def _for_walks(here: Any, method: Any) -> Any:
    def handed(*args: Any) -> None:
        walk = getattr(here, "walk", None)
        if walk is not None:
            method(walk, *args)

    return handed


class _End(BaseException):
    """Raised in a resting pass to end it; no Exception, which a network's own code may catch."""


class _Walk:
    """One batch's pass, resting at each stop."""

    def __init__(self, model: nn.Module, inputs: Inputs, stops: dict[str, _Layer], here: Any) -> None:
        self.model, self.batch, self.stops, self.here = model, inputs, stops, here
        self.at: str | None = None
        self.inputs: Tensor | None = None
        self.output: Tensor | None = None
        self.shortcut: Tensor | None = None
        # the stop's layer, its input, output and normed output while an addition is awaited
        self.awaited: _Layer | None = None
        self.tracked: tuple[Tensor, int] | None = None
        self.chain: list[tuple[nn.Module, Tensor]] = []
        self.error: BaseException | None = None
        self.ending = self.finished = False
        self.resumed, self.rested = threading.Semaphore(0), threading.Semaphore(0)
        self.thread: threading.Thread | None = None

    def go_to(self, layer: _Layer) -> None:
        """Run on to the next stop, which has to be this layer."""
        self._advance()
        if self.error is not None:
            raise self.error
        if self.finished or self.at != layer.path:
            raise InvalidProblem(
                f"model: expected every batch to come to layer {layer.path!r} as the first one did, got "
                f"{self.at or 'the end'!r}; networks whose path depends on the data cannot be fitted layer by layer"
            )

    def end(self) -> None:
        """End the pass wherever it rests."""
        self.ending = True
        if self.thread is not None and not self.finished:
            self._advance()
            self.thread.join()

    def _advance(self) -> None:
        if self.finished:
            return
        self.at = self.inputs = self.output = self.shortcut = None
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
        else:
            self.resumed.release()
        self.rested.acquire()

    def _run(self) -> None:
        self.here.walk = self
        try:
            # gradients and modes are a thread's own
            with torch.no_grad(), _Additions(self):
                call(self.model, self.batch)
        except _End:
            pass
        except BaseException as error:
            self.error = error
        self.finished = True
        self.rested.release()

    def _rest(self, path: str) -> None:
        self.at = path
        self.rested.release()
        self.resumed.acquire()
        if self.ending:
            raise _End

    # the dense network: outputs are noted

    def _dense_made(self, path: str, x: Tensor, output: Tensor) -> None:
        # clones, because what follows may work in place
        self.output = output.clone()
        if not self._await(path, x, output):
            self._rest(path)

    # the changed network: a layer is called after it has been changed

    def _changed_read(self, path: str, x: Tensor) -> None:
        if not self.stops[path].added:
            self.inputs = x
            self._rest(path)

    def _changed_made(self, path: str, x: Tensor, output: Tensor) -> None:
        if self.stops[path].added:
            self.inputs = x.clone()
            self._await(path, x, output)
            self.chain = [(self.model.get_submodule(path), output)]

    def _normed(self, norm: nn.Module, x: Tensor, output: Tensor) -> None:
        if self.awaited is not None and self.tracked is not None and _is_as_made(x, self.tracked):
            self.tracked = output, output._version
            if self.chain:
                self.chain.append((norm, output))

    def _await(self, path: str, x: Tensor, output: Tensor) -> bool:
        layer = self.stops[path]
        if layer.added:
            self.awaited, self.tracked = layer, (output, output._version)
        return layer.added

    def added(self, terms: Any) -> None:
        """At an addition: if it is the awaited one, rest, then do over what led to it from the changed layer."""
        other = None if self.awaited is None else _other_term(terms, self.tracked)
        if self.awaited is None or other is None:
            return
        self.shortcut = other.clone()
        layer, x, chain = self.awaited, self.inputs, self.chain
        self.awaited, self.tracked, self.chain = None, None, []
        self._rest(layer.path)
        for module, output in chain:
            # module.forward: the hooks have had this call
            x = output.copy_(module.forward(x))

    dense = (None, _dense_made, _normed)
    changed = (_changed_read, _changed_made, _normed)


class _Additions(TorchFunctionMode):
    """Shows a walk the additions of its network."""

    def __init__(self, walk: _Walk) -> None:
        super().__init__()
        self.walk = walk

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS:
            self.walk.added(args)
        return func(*args, **(kwargs or {}))
