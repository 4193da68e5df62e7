r"""Nonlinear reconstruction of a pruned network, block by block and then as a whole: gradients, but no labels.

Block by block in execution order, x what a block reads in the network mended so far, y what it gives in the dense one,

    minimise over the block's weights    E||f(x) - y||^2 / Var y

then all blocks and the answers together. Adam steps on V of W = V H^(-1/2), H the damped second moments of a layer's
inputs: neighbouring pixels and channels are so alike that steps on W itself crawl; of masked weights its diagonal.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunesolve.problems import InvalidProblem, Selection

from ._drawing import Drawing
from ._forward import evaluating, tensors
from ._layers import channel_axis, conv_groups
from ._weight_moments import sampled
from .attention import opened
from .data import Batches, Inputs, call, samples, slice_of
from .evaluate import placed
from .refit import _check_weights, _dropped_outputs, _is_as_made, _kept, _Layer, _Reached, trace
from .sequential import rectified_layers
from .unfold import LINEAR_LAYERS, weight_matrix

# samples whose answers judge each stage, and from which a layer's input moments are taken
_JUDGES, _SEEN = 256, 64
_COLUMNS = 20000
# wider layers are trained as they are: their moments are not worth an eigendecomposition
_WIDE = 4096
# share of the learning rate that masked weights get
_CALM = 0.5
# views of each image that the blocks are trained on, itself among them
_VIEWS = 4
_log = logging.getLogger("prunesolve")


def reconstruct(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    selection: Selection | None = None,
    *,
    masks: Mapping[str, Any] | None = None,
    block_steps: int = 120,
    joint_steps: int = 480,
    batch: int = 64,
    lr: tuple[float, float] = (1e-2, 3e-3),
    damping: float = 1e-2,
    augment: bool | None = None,
    device: Any = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of the pruned network trained to give what the dense one gives.

    Parameters
    ----------
    dense : Module
        The network before anything went; untouched.
    pruned : Module
        The smaller network of `shrink`, or one with single weights masked; best refitted already. Untouched.
    data : see `Batches`
        Calibration samples; targets are not used. Kept in memory.
    selection : Selection, optional
        What was kept of the smaller network's units.
    masks : {"path.weight": bool tensor}, optional
        Single weights that stay zero.
    block_steps, joint_steps : int
        Steps of Adam for each block, and for the whole; 0 leaves a stage out. Blocks are the innermost modules of one
        tensor in and one out around layers that changed; a network without any has the second stage alone.
    batch : int
        Samples a step.
    lr : (float, float)
        Of the two stages, down to zero along half a cosine.
    damping : float > 0
        Of H, relative to its mean eigenvalue.
    augment : bool, optional
        As in `finetune`: whether images are flipped and moved. Targets are the dense network's answers to the same
        view, so no view is wrong. Default: colour images alone.
    device : torch device, optional
        Where to compute; default where the models lie.
    seed : int
        Order and views.

    Returns
    -------
    Module
        A new network. Training that does not bring the answers on the calibration data nearer is undone; the second
        stage is then tried alone.

    Raises
    ------
    InvalidProblem
        If an option makes no sense or the networks do not belong together.

    References
    ----------
    Luo, Wu, Lin, ThiNet, ICCV 2017; Li et al., BRECQ, ICLR 2021 (block after block); Lucas and Mazumder, SNOWS, 2024
    (nonlinear, without labels). The whitened steps are ours.

    Examples
    --------
    >>> dense, small = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> x = torch.linspace(-1, 1, 32).reshape(16, 2)
    >>> mended = reconstruct(dense, small, x, joint_steps=300, lr=(0.1, 0.1))
    >>> bool((mended(x) - dense(x)).abs().max() < 0.05)
    True
    """
    if min(block_steps, joint_steps) < 0 or batch < 1 or not damping > 0.0 or not min(lr) > 0.0:
        raise InvalidProblem(
            "expected steps >= 0, batch >= 1, lr > 0 and damping > 0, got "
            f"{block_steps}, {joint_steps}, {batch}, {lr} and {damping}"
        )
    _check_weights(pruned)
    with torch.inference_mode(False):
        full = copy.deepcopy(placed(dense, device)).requires_grad_(False)
        work = copy.deepcopy(pruned) if device is None else copy.deepcopy(pruned).to(device)
        flags = [p.requires_grad for p in work.parameters()]
        work.requires_grad_(False)
        with opened(None, full, work), evaluating(full), evaluating(work):
            stage = _Stages(full, work, Batches(data), selection, masks, batch, damping, augment, seed)
            both = [partial(stage.blocks, block_steps, lr[0])] if block_steps and stage.found else []
            joint = [partial(stage.together, joint_steps, lr[1])] if joint_steps else []
            # blocks alone may leave the head behind them fitted to features that are gone: both are judged together
            if not stage.kept_if_better([*both, *joint]) and both and joint:
                stage.kept_if_better(joint)
        for parameter, flag in zip(work.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return work


class _Point(NamedTuple):
    """A module whose outputs are compared: the dense one's channels that are left, whether a ReLU follows."""

    path: str
    kept: Tensor | None
    axis: int
    bent: bool


class _Block(NamedTuple):
    """A module of one tensor in and one out, and whether its input is the block before's output as it was."""

    path: str
    chained: bool


class _Stages:
    """The two stages on one network, in place."""

    def __init__(
        self,
        full: nn.Module,
        work: nn.Module,
        batches: Batches,
        selection: Selection | None,
        masks: Mapping[str, Any] | None,
        batch: int,
        damping: float,
        augment: bool | None,
        seed: int,
    ) -> None:
        self.full, self.work, self.batches, self.masks = full, work, batches, dict(masks or {})
        self.batch, self.damping, self.augment, self.seed = batch, damping, augment, seed
        self.generator = torch.Generator().manual_seed(seed)
        example = batches.example()
        order = trace(work, example)
        self.order = _from_change(order, selection, self.masks)
        bent = rectified_layers(work, order, example)
        found = _blocks(full, work, example, {layer.path for layer in self.order})
        # samples of unlike shapes are no one tensor to draw from
        self.found = found if _alike(batches) else []
        inside = [block.path for block in found]
        loose = [layer for layer in self.order if not any(layer.path.startswith(f"{p}.") for p in inside)]
        dropped = {} if selection is None else _dropped_outputs(selection)
        self.points = [_Point(path, None, 1, False) for path in inside]
        self.points += [_layer_point(full, layer, dropped, bent) for layer in loose if layer.calls == 1]
        self.judges = batches.first(_JUDGES)

    # -- the stages

    def blocks(self, steps: int, lr: float) -> None:
        """One block after the other on what the mended network feeds it."""
        views = list(self._views())
        wanted: list[Tensor] = []
        given: list[Tensor] = []
        for block in self.found:
            if not block.chained or not given:
                wanted = [_reaching(self.full, block.path, x) for x in views]
                given = [_reaching(self.work, block.path, x) for x in views]
            old, new = self.full.get_submodule(block.path), self.work.get_submodule(block.path)
            wanted = [old(x) for x in wanted]
            x, y = torch.cat(given), torch.cat(wanted)
            scale = y.var().clamp_min(1e-12)

            def loss(rows: Tensor, new: Any = new, x: Tensor = x, y: Tensor = y, scale: Tensor = scale) -> Tensor:
                return (new(x[rows]) - y[rows]).square().mean() / scale

            drawn = (torch.randint(len(x), (self.batch,), generator=self.generator).to(x.device) for _ in range(steps))
            layers = [layer.path for layer in self.order if layer.path.startswith(f"{block.path}.")]
            seen = x[torch.randperm(len(x), generator=self.generator)[:_SEEN].to(x.device)]
            self._descend(new, layers, partial(new, seen), drawn, loss, steps, lr)
            given = [new(x) for x in given]

    def together(self, steps: int, lr: float) -> None:
        """All blocks, all other layers and the answers at once."""
        layers = [layer.path for layer in self.order]
        seen = slice_of(self.batches.example(_SEEN), slice(_SEEN))
        self._descend(self.work, layers, lambda: call(self.work, seen), self._drawn(steps), self._distance, steps, lr)

    def kept_if_better(self, stages: Sequence[Callable[[], None]]) -> bool:
        """Run stages; put the network back where its answers are no nearer, and say whether they are."""
        if not stages:
            return True
        before, state = self._error(), copy.deepcopy(self.work.state_dict())
        for stage in stages:
            stage()
        after = self._error()
        if not after < before:
            _log.warning("reconstruct: an error of %.4g became %.4g, which is undone; try a smaller lr", before, after)
            self.work.load_state_dict(state)
        return after < before

    # -- what they are made of

    def _descend(
        self,
        module: nn.Module,
        layers: Sequence[str],
        run: Callable[[], Any],
        drawn: Iterator[Any],
        loss: Callable[[Any], Tensor],
        steps: int,
        lr: float,
    ) -> None:
        with self._whitened(layers, run), torch.enable_grad():
            trained = [p for p in self._parameters(layers) if p.is_floating_point()]
            for parameter in trained:
                parameter.requires_grad_(True)
            optimiser = torch.optim.Adam(trained, lr=lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
            for batch in drawn:
                optimiser.zero_grad()
                loss(batch).backward()
                optimiser.step()
                schedule.step()
            for parameter in trained:
                parameter.requires_grad_(False)
                parameter.grad = None

    def _parameters(self, layers: Sequence[str]) -> list[nn.Parameter]:
        """Those of the layers and of the norms that they alone feed."""
        norms = [layer.norm for layer in self.order if layer.path in layers and layer.norm is not None]
        found = {id(p): p for path in [*layers, *norms] for p in self.work.get_submodule(path).parameters()}
        return list(found.values())

    @contextmanager
    def _whitened(self, layers: Sequence[str], run: Callable[[], Any]) -> Iterator[None]:
        """The layers' weights as V H^(-1/2); masked weights stay zero."""
        modules: dict[str, Any] = {path: self.work.get_submodule(path) for path in layers}
        inputs = _read(modules, run)
        changed: list[tuple[Any, dict[str, Any]]] = []
        for path, module in modules.items():
            weight = module.weight
            mask = self.masks.get(f"{path}.weight")
            mask = None if mask is None else torch.as_tensor(mask).to(weight.device)
            if path in inputs and conv_groups(module) == 1 and weight_matrix(module).shape[2] <= _WIDE:
                root = _roots(module, inputs[path], self.damping, self.generator, whole=mask is None)
            elif mask is not None:
                root = None
            else:
                continue
            changed.append((module, dict(module._parameters)))
            # a copy: the weight may be a part of a larger one, as in attention, or another layer's too
            module.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            parametrize.register_parametrization(module, "weight", _White(root, mask))
        try:
            yield
        finally:
            for module, held in changed:
                weight = module.weight
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                module._parameters.clear()
                module._parameters.update(held)
                held["weight"].data.copy_(weight.detach())

    def _views(self) -> Iterator[Inputs]:
        """The calibration samples and, of images that may be moved, other views of them."""
        yield from (inputs for inputs, _ in self.batches)
        drawing = Drawing(Batches(_unlabelled(self.batches)), self.augment, self.seed)
        if drawing.moves:
            for _ in range(_VIEWS - 1):
                yield from (inputs for inputs, _ in drawing.epoch())

    def _drawn(self, steps: int) -> Iterator[Inputs]:
        drawing = Drawing(Batches(_unlabelled(self.batches)), self.augment, self.seed + 1)
        left = steps
        while left:
            for inputs, _ in drawing.epoch():
                for start in range(0, samples(inputs), self.batch):
                    if left == 0:
                        return
                    # a few samples have next to no variance to measure errors by
                    if start and 2 * (samples(inputs) - start) < self.batch:
                        continue
                    yield slice_of(inputs, slice(start, start + self.batch))
                    left -= 1

    def _distance(self, inputs: Inputs) -> Tensor:
        """The squared errors of all points and of the answers, each as a share of the variance."""
        with torch.no_grad(), _noted(self.full, self.points) as wanted:
            answers = call(self.full, inputs)
        with _noted(self.work, self.points) as given:
            total = _share(call(self.work, inputs), answers)
        for point in self.points:
            if point.path in wanted and point.path in given:
                y = wanted[point.path]
                y = y if point.kept is None else y.index_select(point.axis, point.kept)
                z = given[point.path]
                if y.shape != z.shape:
                    raise InvalidProblem(
                        f"reconstruct: expected {point.path} to give {tuple(y.shape)}, got {tuple(z.shape)}; hand in "
                        "the network that was shrunk and the selection that shrank it"
                    )
                total = total + (_share(F.relu(z), F.relu(y)) if point.bent else _share(z, y))
        return total

    def _error(self) -> float:
        """How far the answers are from the dense ones."""
        total, count = 0.0, 0
        for inputs, _ in self.judges:
            given, wanted = call(self.work, inputs), call(self.full, inputs)
            if not isinstance(given, Tensor) or not isinstance(wanted, Tensor) or given.shape != wanted.shape:
                raise InvalidProblem(
                    "reconstruct: expected both networks to answer with one tensor of the same shape, got "
                    f"{_shape(given)} and {_shape(wanted)}"
                )
            total += float((given - wanted).square().double().sum())
            count += wanted.numel()
        return total / max(1, count)


def _alike(batches: Batches) -> bool:
    return len({tuple(t.shape[1:] for t in tensors(inputs)) for inputs, _ in batches}) == 1


def _unlabelled(batches: Batches) -> list[tuple[Inputs, None]]:
    return [(inputs, None) for inputs, _ in batches]


def _reads_first(module: Any) -> bool:
    """Whether the weight's rows are inputs."""
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


class _White(nn.Module):
    """W = mask * V H^(-1/2), in the shape of the weight."""

    def __init__(self, roots: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> None:
        super().__init__()
        self.root: Tensor | None = None if roots is None else roots[0]
        self.back: Tensor | None = None if roots is None else roots[1]
        self.mask = mask

    def forward(self, v: Tensor) -> Tensor:
        """W of V."""
        w = v if self.root is None else _times(v, self.root)
        return w if self.mask is None else w * self.mask

    def right_inverse(self, w: Tensor) -> Tensor:
        """A V of W."""
        return w if self.back is None else _times(w, self.back)


def _times(weight: Tensor, root: Tensor) -> Tensor:
    """The weight, one row an output, times a matrix (d, d) or the diagonal (d,) of one."""
    rows = weight.flatten(1)
    return (rows * root if root.ndim == 1 else rows @ root).view_as(weight)


def _roots(
    module: Any, inputs: Tensor, damping: float, generator: torch.Generator, whole: bool
) -> tuple[Tensor, Tensor] | None:
    """H^(-1/2) and H^(1/2) (d, d), H of mean eigenvalue 1; (d,) of its diagonal, and smaller, where not the whole."""
    if _reads_first(module):
        return None
    outputs = module(inputs)
    x, _ = sampled(module, inputs, outputs, _COLUMNS, generator)
    moments = (x[0].double() @ x[0].double().T) / x.shape[2]
    if not whole:
        # a mask undoes what makes steps along the eigenvectors small for the outputs
        scale = (moments.diagonal() / moments.diagonal().mean().clamp_min(1e-30) + damping).sqrt() / _CALM
        return (1.0 / scale).to(module.weight), scale.to(module.weight)
    values, vectors = torch.linalg.eigh(moments)
    mean = values.mean().clamp_min(1e-30)
    values = values.clamp_min(0.0) / mean + damping
    back = (vectors * values.sqrt()) @ vectors.T
    root = (vectors * values.rsqrt()) @ vectors.T
    return root.to(module.weight), back.to(module.weight)


def _read(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, Tensor]:
    """{path: what the layer reads in a run}."""
    found: dict[str, Tensor] = {}
    handles = [
        m.register_forward_pre_hook(lambda _, x, path=path: found.__setitem__(path, x[0].detach().clone()))
        for path, m in modules.items()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _share(given: Any, wanted: Any) -> Tensor:
    return (given - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12)


def _shape(answer: Any) -> Any:
    return tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__


@contextmanager
def _noted(model: nn.Module, points: Sequence[_Point]) -> Iterator[dict[str, Tensor]]:
    """{path: output} of the points, filled while the model runs."""
    found: dict[str, Tensor] = {}
    # a clone where something in place may follow; autograd needs the original otherwise
    handles = [
        model.get_submodule(p.path).register_forward_hook(
            lambda _, __, y, path=p.path: found.__setitem__(path, y.clone())
        )
        for p in points
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _reaching(model: nn.Module, path: str, inputs: Inputs) -> Tensor:
    """What a module reads."""
    found: list[Tensor] = []

    def stop(_: nn.Module, x: tuple[Any, ...]) -> None:
        found.append(x[0].clone())
        raise _Reached

    handle = model.get_submodule(path).register_forward_pre_hook(stop)
    try:
        call(model, inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _from_change(order: Sequence[_Layer], selection: Selection | None, masks: Mapping[str, Any]) -> list[_Layer]:
    """The layers from the first that changed; all where that is not known."""
    changed = {key.removesuffix(".weight") for key in masks}
    if selection is not None:
        changed |= {m.path for group, keep in selection if not keep.all() for m in group.members}
    first = next((i for i, layer in enumerate(order) if layer.path in changed), 0)
    return list(order[first:])


def _layer_point(full: nn.Module, layer: _Layer, dropped: Mapping[str, Any], bent: Any) -> _Point:
    module = full.get_submodule(layer.path)
    kept = _kept(full, layer.path, dict(dropped)) if layer.path in dropped else None
    axis = channel_axis(module)
    return _Point(layer.norm or layer.path, kept, axis, layer.path in bent)


def _blocks(full: nn.Module, work: nn.Module, example: Inputs, layers: set[str]) -> list[_Block]:
    """The innermost modules of one tensor in and one out, called once, around two or more of the layers."""
    candidates = [
        path
        for path, module in work.named_modules()
        if path
        and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, *LINEAR_LAYERS))
        and sum(layer.startswith(f"{path}.") for layer in layers) > 1
    ]
    candidates = [p for p in candidates if not any(q.startswith(f"{p}.") for q in candidates)]
    ours, theirs = _passing(work, candidates, example), _passing(full, candidates, example)
    found: list[_Block] = []
    last: tuple[Tensor, int] | None = None
    for path, calls in ours.items():
        other = theirs.get(path, [])
        own, dense = (calls[0], other[0]) if len(calls) == len(other) == 1 else (None, None)
        if own is None or dense is None:
            continue
        (read, gave, version), (_, wanted, _) = own, dense
        if gave.shape != wanted.shape:
            continue
        found.append(_Block(path, last is not None and _is_as_made(read, last)))
        last = gave, version
    return found


def _passing(
    model: nn.Module, paths: Sequence[str], example: Inputs
) -> dict[str, list[tuple[Tensor, Tensor, int] | None]]:
    """{path: for each call what goes in and out, and the latter's version; None where that is not one tensor each}.

    In execution order.
    """
    found: dict[str, list[tuple[Tensor, Tensor, int] | None]] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            found.setdefault(path, []).append((args[0], output, output._version) if plain else None)

        return hook

    handles = [model.get_submodule(p).register_forward_hook(note(p), with_kwargs=True) for p in paths]
    try:
        call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found
