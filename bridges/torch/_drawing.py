"""Training samples: drawn anew in every epoch where they are in memory, photographs flipped and moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunesolve.problems import InvalidProblem

from .data import Batches, Inputs, samples, slice_of

Batch = tuple[Inputs, Tensor | None]
# pixels that a photograph is moved by at most, as a share of its height: 4 of 32
_REACH = 8


class Drawing:
    """The batches of one epoch after another.

    Tensors and lists of batches are in memory: their samples are drawn in a new order in every epoch, in batches as
    large as the first (batches of unlike shapes stay whole and come in a new order). A DataLoader and any other source
    give their batches as they like.

    Parameters
    ----------
    batches : Batches
        The samples.
    augment : bool or None
        See `finetune`.
    seed : int
        Of order, flips and moves.

    Examples
    --------
    >>> drawing = Drawing(Batches(torch.arange(6.0), size=3), augment=False, seed=0)
    >>> epochs = [torch.cat([inputs for inputs, _ in drawing.epoch()]) for _ in range(2)]
    >>> [sorted(e.tolist()) == [0, 1, 2, 3, 4, 5] for e in epochs], bool((epochs[0] == epochs[1]).all())
    ([True, True], False)
    """

    def __init__(self, batches: Batches, augment: bool | None, seed: int) -> None:
        self._batches = batches
        self._generator = torch.Generator().manual_seed(seed)
        first = next(iter(batches))
        self.moves = _photographs(*first) if augment is None else bool(augment)
        if self.moves and not _images(first[0]):
            raise InvalidProblem(
                "augment: expected images, one tensor (batch, channels, height, width), to flip and move; got something"
                " else; leave it out"
            )
        held = list(batches) if batches.in_memory else None
        self._whole = None if held is None else _joined(held)
        self._held = held if self._whole is None else None
        self._size = samples(first[0])

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch."""
        for inputs, targets in self._drawn():
            yield self._moved(inputs, targets) if self.moves else (inputs, targets)

    def __len__(self) -> int:
        """Batches an epoch, where the source knows it (TypeError otherwise)."""
        if self._whole is None:
            return len(self._batches)
        return len(self._spans(torch.arange(samples(self._whole[0]))))

    def _drawn(self) -> Iterator[Batch]:
        if self._whole is not None:
            inputs, targets = self._whole
            for rows in self._spans(torch.randperm(samples(inputs), generator=self._generator)):
                yield slice_of(inputs, rows), None if targets is None else targets[rows]
        elif self._held is not None:
            for at in torch.randperm(len(self._held), generator=self._generator).tolist():
                yield self._held[at]
        else:
            yield from self._batches

    def _spans(self, order: Tensor) -> list[Tensor]:
        spans = list(order.split(self._size))
        # one sample alone has no variance for BatchNorm; another epoch draws it
        return spans[:-1] if len(spans) > 1 and len(spans[-1]) == 1 else spans

    def _moved(self, inputs: Inputs, targets: Tensor | None) -> Batch:
        if not isinstance(inputs, Tensor):
            raise InvalidProblem("augment: expected one tensor of images in every batch, got several tensors")
        move = _Move(inputs, self._generator)
        wanted = targets
        if targets is not None and targets.ndim == 4 and targets.shape[2:] == inputs.shape[2:]:
            wanted = move(targets)  # an image to be restored moves with the one that is read
        return move(inputs), wanted


class _Move:
    """Every second image flipped, each moved by a few pixels; zeros come in at the edges."""

    def __init__(self, images: Tensor, generator: torch.Generator) -> None:
        count, _, height, width = images.shape
        self._flips = torch.rand(count, generator=generator) < 0.5
        self._reach = max(1, height // _REACH), max(1, width // _REACH)
        self._at = [torch.randint(0, 2 * r + 1, (count,), generator=generator) for r in self._reach]

    def __call__(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        flips = self._flips.to(images.device)[:, None, None, None]
        down, right = self._reach
        padded = F.pad(torch.where(flips, images.flip(3), images), (right, right, down, down))
        rows, across = (
            start.to(images.device)[:, None] + torch.arange(size, device=images.device)
            for start, size in zip(self._at, (height, width), strict=True)
        )
        each = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[:, None, None]
        return padded[each, channel, rows[:, None, :, None], across[:, None, None, :]]


def _images(inputs: Inputs) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()


def _photographs(inputs: Inputs, targets: Tensor | None) -> bool:
    """Colour images with a class each, or with nothing: a mirrored digit may be another one."""
    classes = targets is None or (targets.ndim == 1 and not targets.is_floating_point())
    return isinstance(inputs, Tensor) and _images(inputs) and inputs.shape[1] == 3 and classes


def _joined(batches: Sequence[Batch]) -> Batch | None:
    """All samples as one batch; None where their shapes differ or some have no targets."""
    parts = [(x,) if isinstance(x, Tensor) else x for x, _ in batches]
    wanted = [y for _, y in batches]
    columns = [*zip(*parts, strict=True)] if len({len(p) for p in parts}) == 1 else []
    alike = columns and all(len({(t.shape[1:], t.dtype, t.device) for t in column}) == 1 for column in columns)
    given = [y for y in wanted if y is not None]
    if not alike or len(given) not in (0, len(wanted)) or len({(y.shape[1:], y.dtype) for y in given}) > 1:
        return None
    joined = tuple(torch.cat(column) for column in columns)
    inputs = joined[0] if isinstance(batches[0][0], Tensor) else joined
    return inputs, torch.cat(given) if given else None
