r"""For those who allow training: some epochs of a pruned network, on targets and on the dense network's answers.

minimise over the weights    (1 - s) loss(f(x), y) + s T^2 KL(softmax(g(x) / T) || softmax(f(x) / T))

f the network, g the teacher; without targets s = 1, without a teacher s = 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem, unknown
from prunesolve.problems._arrays import number, whole

from ._drawing import Drawing
from ._forward import evaluating
from .batchnorm import BATCH_NORMS
from .data import Batches, Inputs, call, device_of, samples
from .evaluate import Loss, _classes_second, _is_classes, per_sample, placed
from .masks import apply_masks

SCHEDULES = ("cosine", "constant")


def finetune(
    network: nn.Module,
    data: Any,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 1,
    lr: float = 0.005,
    masks: Mapping[str, Any] | None = None,
    frozen: Collection[str] = (),
    loss: Loss | None = None,
    distance: Loss | None = None,
    share: float = 0.5,
    temperature: float = 2.0,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    augment: bool | None = None,
    batchnorm: Literal["train", "eval"] = "train",
    device: Any = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> nn.Module:
    r"""A copy of the network after some epochs of SGD, on targets, on a teacher's answers or on both.

    Parameters
    ----------
    network : Module
        What is trained; it stays as it is.
    data : see `Batches`
        Training samples; targets may be missing where there is a teacher. Tensors and lists of batches are drawn in a
        new order in every epoch; a DataLoader gives its batches as it likes.
    teacher : Module, optional
        Whose answers are learned, such as the dense network; in eval mode, untouched.
    epochs : int
    lr : float
        At the start.
    masks : Masks or {module path or parameter name: bool tensor}, optional
        What stays zero throughout, as in `apply_masks`.
    frozen : collection of str
        Modules that keep parameters and running statistics bit by bit, all below them included.
    loss : callable (outputs, targets), optional
        See `evaluate`.
    distance : callable (outputs, teacher's outputs), optional
        A mean or one value a sample. Default: T^2 KL for classes, which are integer targets or, without targets,
        outputs (batch, classes); mean squared error for anything else.
    share : float in [0, 1]
        Weight s of the teacher against the targets, where there are both.
    temperature : float > 0
        T of the default distance.
    momentum, weight_decay : float
        Of SGD.
    schedule : "cosine" or "constant"
        The learning rate from `lr` to zero along half a cosine, or `lr` throughout.
    augment : bool, optional
        Whether images (batch, channels, height, width) are flipped at random and moved by up to an eighth of their
        height and width; targets that are images move along. Default: colour images with a class each or without
        targets, and nothing else.
    batchnorm : "train" or "eval"
        Whether BatchNorm normalises by the batch and follows it, or keeps its running statistics.
    device : torch device, optional
        Where to compute, and where the copy lies; default where the network lies.
    dtype : torch dtype, optional
        Of the forward passes, by autocast; torch.bfloat16 is faster where the processor has units for it.
    seed : int
        Of order, augmentation and dropout. torch's own random state is left alone.

    Returns
    -------
    Module
        The trained copy; training flags as the network's.

    Raises
    ------
    InvalidProblem
        If there is nothing to learn from or nothing to train, an option is not what is expected above, or the loss
        becomes infinite.

    References
    ----------
    Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015.

    Examples
    --------
    >>> inputs = torch.linspace(-1, 1, 64)[:, None]
    >>> teacher, network = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> trained = finetune(network, (inputs, None), teacher=teacher, epochs=300, lr=0.1)
    >>> bool((trained(inputs) - teacher(inputs)).abs().max() < 0.01), trained is network
    (True, False)
    """
    recipe = _Recipe(loss, distance, number("share", share), number("temperature", temperature))
    numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    for name, value in numbers.items():
        if not number(name, value) >= 0.0:
            raise InvalidProblem(f"{name}: expected a number >= 0, got {value!r}")
    if schedule not in SCHEDULES:
        raise unknown("schedule", str(schedule), SCHEDULES)
    if batchnorm not in ("train", "eval"):
        raise unknown("batchnorm", str(batchnorm), ("train", "eval"))
    if whole("epochs", epochs) < 0:
        raise InvalidProblem(f"epochs: expected a whole number >= 0, got {epochs}")
    batches = Batches(data)
    with torch.inference_mode(False):
        work = _copy(network, device)
        held = _held_at_zero(work, masks)
        drawing = Drawing(batches, augment, seed)
        with _training(work, frozen, batchnorm, seed) as trained:
            optimiser = torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
            learn = _Learning(work, None if teacher is None else placed(teacher, device_of(work)), recipe, dtype)
            for epoch in range(epochs):
                for step, (inputs, targets) in enumerate(drawing.epoch()):
                    rate = lr if schedule == "constant" else _cosine(lr, epoch, step, drawing, epochs)
                    optimiser.param_groups[0]["lr"] = rate
                    optimiser.zero_grad()
                    learn(inputs, targets).backward()
                    optimiser.step()
                    for parameter, gone in held:
                        parameter.data.masked_fill_(gone, 0)
    return work


def _copy(network: nn.Module, device: Any) -> nn.Module:
    there = placed(network, device)
    try:
        return copy.deepcopy(network) if there is network else there
    except RuntimeError as error:
        raise InvalidProblem(
            f"network: it cannot be copied ({str(error).splitlines()[0]:.120}); fold reparametrisations in first "
            "(torch.nn.utils.prune.remove) and hand in masks="
        ) from error


@dataclass(frozen=True)
class _Recipe:
    """What is minimised."""

    loss: Loss | None
    distance: Loss | None
    share: float
    temperature: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InvalidProblem(f"share: expected a number from 0 to 1, got {self.share!r}")
        if not self.temperature > 0.0:
            raise InvalidProblem(f"temperature: expected a number above 0, got {self.temperature!r}")

    def value(self, outputs: Any, targets: Tensor | None, answers: Any) -> Tensor:
        """The mean over a batch; `answers` is None without a teacher."""
        size = samples(outputs) if isinstance(outputs, Tensor) else len(targets if targets is not None else answers)
        share = 0.0 if answers is None else 1.0 if targets is None else self.share
        total = torch.zeros(())
        if share < 1.0 and targets is not None:
            total = total + (1.0 - share) * per_sample(self.loss, outputs, targets, size).mean()
        if share > 0.0:
            total = total + share * self._distance(outputs, targets, answers)
        return total

    def _distance(self, outputs: Any, targets: Tensor | None, answers: Any) -> Tensor:
        if self.distance is not None:
            return torch.as_tensor(self.distance(outputs, answers)).mean()
        if not isinstance(outputs, Tensor) or not isinstance(answers, Tensor) or outputs.shape != answers.shape:
            told = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (outputs, answers)]
            raise InvalidProblem(
                f"teacher: expected answers like the network's, {told[0]}, got {told[1]}; give distance="
            )
        if targets is None:
            classes = outputs.ndim == 2 and outputs.shape[1] > 1
        else:
            classes = _is_classes(targets) and outputs.ndim == targets.ndim + 1
        if not classes:
            return F.mse_loss(outputs, answers)
        pair = (outputs, answers) if targets is None else [_classes_second(t, targets) for t in (outputs, answers)]
        own, other = ((t / self.temperature).log_softmax(1) for t in pair)
        return self.temperature**2 * (other.exp() * (other - own)).sum(1).mean()


class _Learning:
    """The recipe's value on a batch, to differentiate."""

    def __init__(self, work: nn.Module, teacher: nn.Module | None, recipe: _Recipe, dtype: torch.dtype | None) -> None:
        self._work, self._teacher, self._recipe, self._dtype = work, teacher, recipe, dtype

    def __call__(self, inputs: Inputs, targets: Tensor | None) -> Tensor:
        if targets is None and self._teacher is None:
            raise InvalidProblem("data: expected targets to learn, or a teacher to learn from, got neither")
        with torch.autocast(device_of(self._work).type, self._dtype, enabled=self._dtype is not None):
            answers = None
            if self._teacher is not None and (targets is None or self._recipe.share > 0.0):
                with evaluating(self._teacher):
                    answers = call(self._teacher, inputs)
            outputs = call(self._work, inputs)
        wanted = None if targets is None else targets.to(device_of(self._work))
        value = self._recipe.value(_full(outputs), wanted, _full(answers))
        if not bool(value.isfinite()):
            raise InvalidProblem("finetune: the loss is not finite; give a smaller lr, or check the inputs' scaling")
        return value


def _full(outputs: Any) -> Any:
    """Half precision would lose what the loss is made of."""
    return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype in _HALVES else outputs


_HALVES = (torch.float16, torch.bfloat16)


def _cosine(lr: float, epoch: int, step: int, drawing: Drawing, epochs: int) -> float:
    try:
        steps = len(drawing)
    except TypeError:  # a source that does not know its length: one rate an epoch
        return lr * (1.0 + math.cos(math.pi * epoch / epochs)) / 2
    return lr * (1.0 + math.cos(math.pi * min(1.0, (epoch + step / steps) / epochs))) / 2


def _held_at_zero(work: nn.Module, masks: Mapping[str, Any] | None) -> list[tuple[nn.Parameter, Tensor]]:
    """Zero what is masked, in place; (parameter, what of it stays zero)."""
    if masks is None:
        return []
    ones = copy.deepcopy(work)
    for parameter in ones.parameters():
        parameter.data.fill_(1)
    apply_masks(ones, masks)
    apply_masks(work, masks)
    pairs = zip(work.parameters(), ones.parameters(), strict=True)
    return [(parameter, mask.data == 0) for parameter, mask in pairs if bool((mask.data == 0).any())]


@contextmanager
def _training(work: nn.Module, frozen: Collection[str], batchnorm: str, seed: int) -> Iterator[list[nn.Parameter]]:
    """Train mode but for what is frozen, gradients, random numbers of our own; yields what is trained."""
    modules = dict(work.named_modules())
    for path in frozen:
        if path not in modules:
            raise unknown("frozen layer", path, (p for p in modules if p))
    still = {module for path in frozen for module in modules[path].modules()}
    wished = {p: p.requires_grad for p in work.parameters()}
    flags = [(module, module.training) for module in modules.values()]
    for parameter in {p for module in still for p in module.parameters(recurse=False)}:
        parameter.requires_grad_(False)
    trained = [p for p in work.parameters() if p.requires_grad]
    if not trained:
        raise InvalidProblem("finetune: nothing is left to train, everything is frozen; leave out some of frozen")
    work.train()
    for module in modules.values():
        if module in still or (batchnorm == "eval" and isinstance(module, BATCH_NORMS)):
            module.training = False
    device = device_of(work)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.default_generators[device.index].manual_seed(seed)
            yield trained
    finally:
        for parameter, wanted in wished.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None
        for module, flag in flags:
            module.training = flag
