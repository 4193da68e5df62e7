r"""What a linear layer multiplies: its inputs as columns, its weights as a matrix.

For a Linear, Conv or ConvTranspose module of `groups` independent parts,

    y[q] = W[q] X[q] + b        W (groups, o, d), X (groups, d, columns), d = (inputs a group) x (kernel taps)

A transposed convolution is the convolution of its zero-stuffed input with the flipped kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._layers import conv_groups

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)

# floats of one piece of columns: 64 MiB in float32
_PIECE = 2**24


def taps(module: Any) -> int:
    """Kernel positions: what one input channel is multiplied with, for each output channel."""
    return 1 if isinstance(module, nn.Linear) else prod(module.kernel_size)


def weight_matrix(module: Any) -> Tensor:
    """W (groups, outputs a group, inputs a group x taps).

    Examples
    --------
    >>> weight_matrix(nn.Conv2d(4, 6, 3, groups=2)).shape
    torch.Size([2, 3, 18])
    """
    weight, groups = module.weight.detach(), conv_groups(module)
    if isinstance(module, TRANSPOSED):
        # (in, out / groups, taps...) -> (groups, out / groups, in / groups, flipped taps...)
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flip(tuple(range(3, 3 + len(module.kernel_size))))
        return weight.flatten(2)
    return weight.unflatten(0, (groups, -1)).flatten(2)


def set_weight(module: Any, matrix: Tensor) -> None:
    """Write W (groups, outputs a group, inputs a group x taps) into the module: the inverse of `weight_matrix`."""
    with torch.no_grad():
        module.weight.copy_(shaped(module, matrix))


def shaped(module: Any, matrix: Tensor) -> Tensor:
    """W (groups, outputs a group, inputs a group x taps) in the shape of the module's weight."""
    if isinstance(module, TRANSPOSED):
        spread = matrix.unflatten(2, (-1, *module.kernel_size)).transpose(1, 2)
        matrix = spread.flip(tuple(range(3, 3 + len(module.kernel_size))))
    return matrix.reshape(module.weight.shape)


def columns(module: Any, inputs: Tensor) -> Iterator[tuple[Tensor, tuple[slice, slice]]]:
    """Pieces X (groups, d, columns) of the unfolded inputs, each with what of the outputs it belongs to.

    Parameters
    ----------
    module : Linear, Conv or ConvTranspose
        Any stride, dilation, padding and number of groups.
    inputs : (B, ..., in) for Linear, (B, in, *positions) for convolutions
        One call's input.

    Yields
    ------
    X, (rows, positions)
        `output_columns(module, outputs, span)` of the same span lines up with X.
    """
    if isinstance(module, nn.Linear):
        flat = inputs.reshape(-1, inputs.shape[-1])
        step = max(1, _PIECE // flat.shape[1])
        for start in range(0, len(flat), step):
            span = slice(start, start + step)
            yield flat[span].T.unsqueeze(0), (span, slice(None))
        return
    windows = _windows(module, inputs)
    for rows, first in _spans(windows):
        # (b, C, *positions, *taps) -> (C, *taps, b, *positions)
        piece = windows[rows, :, first]
        dims = len(module.kernel_size)
        order = (1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
        size = prod(piece.shape[2 : 2 + dims]) * len(piece)
        yield piece.permute(order).reshape(module.groups, -1, size), (rows, first)


def output_columns(module: Any, outputs: Tensor, span: tuple[slice, slice]) -> Tensor:
    """(groups, outputs a group, columns) of a span that `columns` yielded."""
    rows, first = span
    if isinstance(module, nn.Linear):
        return outputs.reshape(-1, outputs.shape[-1])[rows].T.unsqueeze(0)
    if outputs.ndim == 1 + len(module.kernel_size):
        outputs = outputs.unsqueeze(0)
    piece = outputs[rows, :, first].movedim(1, 0)
    return piece.reshape(module.groups, -1, piece[0].numel())


def _windows(module: Any, inputs: Tensor) -> Tensor:
    """(B, C, *positions, *taps): what the kernel sees at each position, as a view of the padded input."""
    dims = len(module.kernel_size)
    batch = inputs if inputs.ndim == 2 + dims else inputs.unsqueeze(0)
    stride = module.stride
    if isinstance(module, TRANSPOSED):
        padded, stride = _stuffed(module, batch), (1,) * dims
    else:
        padded = _padded(module, batch)
    for d in range(dims):
        reach = module.dilation[d] * (module.kernel_size[d] - 1) + 1
        padded = padded.unfold(2 + d, reach, stride[d])[..., :: module.dilation[d]]
    return padded


def _padded(module: Any, batch: Tensor) -> Tensor:
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        edges = [(total // 2, total - total // 2) for total in totals]
    elif module.padding == "valid":
        return batch
    else:
        edges = [(p, p) for p in module.padding]
    if not any(p for edge in edges for p in edge):
        return batch
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(batch, [p for edge in reversed(edges) for p in edge], mode=mode)


def _stuffed(module: Any, batch: Tensor) -> Tensor:
    """The input of a transposed convolution with stride - 1 zeros between entries, padded for a stride-1 kernel."""
    shape = [(n - 1) * s + 1 for n, s in zip(batch.shape[2:], module.stride, strict=True)]
    stuffed = batch.new_zeros(*batch.shape[:2], *shape)
    every = tuple(slice(None, None, int(s)) for s in module.stride)
    stuffed[(slice(None), slice(None), *every)] = batch
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    edges = [(r - p, r - p + o) for r, p, o in zip(reach, module.padding, module.output_padding, strict=True)]
    return F.pad(stuffed, [p for edge in reversed(edges) for p in edge])


def _spans(windows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of samples, and of first positions where one sample is too large, of at most a piece each."""
    line = prod(windows.shape[3:]) * windows.shape[1]
    lines = windows.shape[2]
    step = max(1, _PIECE // max(1, line * lines))
    height = max(1, min(lines, _PIECE // max(1, line)))
    for row in range(0, len(windows), step):
        for first in range(0, lines, height):
            yield slice(row, row + step), slice(first, first + height)
