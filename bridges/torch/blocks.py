r"""A layer of a fused network, stored without the weights between parts that never meet.

    [A alone | fused | B alone]   ->   [A alone' | fused' | B alone']

    A alone' reads A alone and fused, fused' reads all, B alone' reads fused and B alone.

Of f fused and a alone on each side that is f (f + 2 a) + 2 a (f + a) weights against (f + 2 a)^2: with f + a = n and
a = alpha n, 1 + 2 alpha - alpha^2 layers of width n against (1 + alpha)^2. Each part reads one range of channels, so
a linear layer copies nothing before its products. Convolutions of few channels are slow in parts: where that costs few
multiplications more they run as one, on the same stored weights with zeros between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunesolve.problems import InvalidProblem
from prunesolve.problems._arrays import Bits, Floats, Indices

Segment = tuple[Any, int]  # whose channels, how many
Range = tuple[int, int]

MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d)
# (channels, all weights to the stored ones): up to both, one convolution beats its parts; measured on CPU
_JOINED = ((64, 1.8), (192, 1.4))
# pixels of a batch: with fewer, laying the weights out costs more than it saves
_PIXELS = 512


class Blocks(nn.Module):
    """Layers side by side on ranges of the input channels; their outputs follow each other.

    Parameters
    ----------
    layers : sequence of Linear, Conv1d or Conv2d
        One for each run of outputs, all of one kind and geometry.
    ranges : sequence of sequences of (start, stop)
        Input channels that each reads.
    inputs, outputs : sequence of (key, channels)
        The segments of the axes, in order; a fused network that is fused again keeps them apart.

    Examples
    --------
    >>> layers, ranges = [nn.Linear(1, 2), nn.Linear(2, 1)], [[(0, 1)], [(0, 2)]]
    >>> both = Blocks(layers, ranges, inputs=[("a", 1), ("b", 1)], outputs=[("a", 2), ("b", 1)])
    >>> both(torch.zeros(5, 2)).shape, [dense_weight(both)[:, 1, 0].nonzero()[0].tolist()]
    (torch.Size([5, 3]), [[2]])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        ranges: Sequence[Sequence[Range]],
        inputs: Sequence[Segment],
        outputs: Sequence[Segment],
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.ranges = tuple(tuple((int(a), int(b)) for a, b in of) for of in ranges)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        # from the end, so that a sample without a batch axis works too
        first: Any = layers[0]
        self.axis = -1 if isinstance(first, nn.Linear) else 1 - int(first.weight.ndim)
        self.joins = self._pays()

    def forward(self, x: Tensor) -> Tensor:
        """The layers' outputs, one after the other on the channel axis."""
        if self.joins and x.numel() >= _PIXELS * x.shape[self.axis]:
            first: Any = self.layers[0]
            return first._conv_forward(x, self._joined(), self.bias)
        # many channels are slow where a joined layer before has laid them out together
        x = x.contiguous()
        made = [layer(self._read(x, of)) for layer, of in zip(self.layers, self.ranges, strict=True)]
        return torch.cat(made, self.axis)

    def _pays(self) -> bool:
        """Whether one convolution on a batch of some size beats its parts."""
        reads, makes = layer_widths(self)
        stored = sum(len(columns) * (rows.stop - rows.start) for _, columns, rows in self.parts())
        wide = max(reads, makes)
        most = next((ratio for channels, ratio in _JOINED if wide <= channels), 0.0)
        return not isinstance(self.layers[0], nn.Linear) and reads * makes <= most * stored

    def _joined(self) -> Tensor:
        """(out, in, *kernel) all weights with zeros between."""
        first: Any = self.layers[0]
        reads, makes = layer_widths(self)
        whole = first.weight.new_zeros(makes, reads, *first.kernel_size)
        if whole.ndim == 4:
            # what it reads and makes then keeps channels together, which is faster where they are few
            whole = whole.contiguous(memory_format=torch.channels_last)
        row = 0
        for layer, ranges in zip(self.layers, self.ranges, strict=True):
            weight: Any = layer.weight
            for (start, stop), piece in zip(ranges, weight.split([b - a for a, b in ranges], 1), strict=True):
                whole[row : row + len(weight), start:stop] = piece
            row += len(weight)
        return whole

    def _read(self, x: Tensor, ranges: Sequence[Range]) -> Tensor:
        parts = [x.narrow(self.axis, start, stop - start) for start, stop in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.axis)

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""
        held: list[Any] = [layer.bias for layer in self.layers]
        return None if any(bias is None for bias in held) else torch.cat(held)

    def parts(self) -> list[tuple[Any, Indices, slice]]:
        """(layer, input channels it reads, output channels it makes) of each part."""
        ends = np.cumsum([0, *(layer_widths(layer)[1] for layer in self.layers)]).tolist()
        columns = [np.concatenate([np.arange(*r) for r in of]) for of in self.ranges]
        spans = [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]
        return list(zip(self.layers, columns, spans, strict=True))

    def extra_repr(self) -> str:
        """The ranges in short."""
        return ", ".join("+".join(f"{a}:{b}" for a, b in of) for of in self.ranges)


def layer_widths(layer: Any) -> tuple[int, int]:
    """(input channels, output channels) of a layer or of `Blocks`."""
    if isinstance(layer, Blocks):
        return sum(size for _, size in layer.inputs), sum(size for _, size in layer.outputs)
    return (
        (layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else (layer.in_channels, layer.out_channels)
    )


def dense_weight(layer: Any) -> Floats:
    """(out, in, taps) float64 weights of a layer or of `Blocks`, zero where nothing is stored."""
    if not isinstance(layer, Blocks):
        weight = layer.weight.detach().double().cpu().numpy()
        return weight.reshape(*weight.shape[:2], -1)
    reads, makes = layer_widths(layer)
    taps = dense_weight(layer.layers[0]).shape[2]
    whole = np.zeros((makes, reads, taps))
    for part, columns, rows in layer.parts():
        whole[rows, columns] = dense_weight(part)
    return whole


def structure(layer: Any) -> Bits:
    """(out, in) bool: which weights are stored."""
    reads, makes = layer_widths(layer)
    stored = np.ones((makes, reads), dtype=bool)
    if isinstance(layer, Blocks):
        stored[:] = False
        for _, columns, rows in layer.parts():
            stored[rows, columns] = True
    return stored


def blocks(
    like: Any, weight: Floats, bias: Floats | None, inputs: Sequence[Segment], outputs: Sequence[Segment], reads: Any
) -> nn.Module:
    """A dense weight as `Blocks`, or as one plain layer where every output reads everything.

    Parameters
    ----------
    like : Linear, Conv1d, Conv2d or Blocks
        Says the kind, the geometry, the dtype and the device.
    weight : (out, in, taps)
    bias : (out,) or None
    inputs, outputs : sequence of (key, channels)
        Segments of the axes, in order; empty ones are left out.
    reads : (len(outputs), len(inputs)) bool
        Entries of `weight` where it is False are not stored.
    """
    rows, columns = (np.array([size > 0 for _, size in segments], dtype=bool) for segments in (outputs, inputs))
    used = np.asarray(reads, dtype=bool)[rows][:, columns]
    outputs, inputs = [s for s in outputs if s[1]], [s for s in inputs if s[1]]
    starts = np.cumsum([0, *(size for _, size in inputs)]).tolist()
    parts, ranges, row = [], [], 0
    for first, last in _runs(used):
        height = sum(size for _, size in outputs[first:last])
        of = _ranges(used[first], starts)
        which = np.concatenate([np.arange(a, b) for a, b in of])
        span = slice(row, row + height)
        parts.append(_plain(like, weight[span][:, which], None if bias is None else bias[span]))
        ranges.append(of)
        row += height
    if len(parts) == 1 and used[0].all():
        return parts[0]
    return Blocks(parts, ranges, inputs, outputs)


def plain_layers(model: nn.Module) -> nn.Module:
    """The model with every `Blocks` replaced by the plain layer that computes the same, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Blocks):
            bias = None if module.bias is None else module.bias.detach().double().cpu().numpy()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _plain(module, dense_weight(module), bias))
    return model


def _runs(reads: Bits) -> list[tuple[int, int]]:
    """(first, last) of rows in a row that are equal."""
    cuts = [0, *(r for r in range(1, len(reads)) if not np.array_equal(reads[r], reads[r - 1])), len(reads)]
    return list(zip(cuts, cuts[1:], strict=False))


def _ranges(reads: Bits, starts: Sequence[int]) -> list[Range]:
    """Channel ranges of the segments that are read, neighbours joined; the first where none is, to give zeros."""
    found: list[Range] = []
    for segment in np.flatnonzero(reads).tolist():
        start, stop = starts[segment], starts[segment + 1]
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found or [(0, starts[1])]


def _plain(like: Any, weight: Floats, bias: Floats | None) -> nn.Module:
    """One layer of the kind and geometry of `like` with these weights (out, in, taps)."""
    like = like.layers[0] if isinstance(like, Blocks) else like
    makes, reads = weight.shape[:2]
    placed = {"dtype": like.weight.dtype, "device": like.weight.device}
    if isinstance(like, nn.Linear):
        layer: Any = nn.utils.skip_init(nn.Linear, reads, makes, bias is not None, **placed)
    elif isinstance(like, _ConvNd) and like.groups == 1 and isinstance(like, MIXING):
        layer = nn.utils.skip_init(
            type(like), reads, makes, like.kernel_size, like.stride, like.padding, like.dilation, 1, bias is not None,
            like.padding_mode, **placed,
        )  # fmt: skip
    else:
        raise InvalidProblem(f"{type(like).__name__}: expected Linear, Conv1d or Conv2d without groups")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.reshape(layer.weight.shape)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return layer.train(like.training)
