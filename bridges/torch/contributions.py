r"""The Gram matrix of what each unit contributes to a layer's outputs, exactly, from its inputs alone.

A linear layer's output is the sum of its input channels' contributions u_c = W_c X_c (plus the bias), so

    H_cd = sum over columns <u_c, u_d> = tr(W_c' C_cd W_d) = sum_{p,q} (C * W'W)[(c, p), (d, q)]        C = X X'

with p, q over kernel taps. Units that own several channels add them: G = S H S', S (units, channels) the ownership.
No output is formed or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunesolve.problems import InvalidProblem

from ._layers import conv_groups
from .unfold import LINEAR_LAYERS, columns, taps, weight_matrix

# above this many inputs the (d, d) Gram of a Linear is larger than its units' contributions
_WIDE = 4096
_PIECE = 2**24


class Contributions:
    """Streams one consumer's inputs into the Gram of its units' contributions.

    Parameters
    ----------
    path : str
        The consumer's name, for messages.
    module : Linear, Conv or ConvTranspose
        The consumer.
    owned : sequence of (size, m) int arrays
        For each group it reads, the input channels of each unit.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> seen = Contributions("layer", layer, [np.array([[0], [1]])])
    >>> seen.add(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    >>> seen.gram, seen.energy
    (array([[1., 2.],
           [2., 8.]]), 13.0)
    """

    def __init__(self, path: str, module: Any, owned: Sequence[Any]) -> None:
        if not isinstance(module, LINEAR_LAYERS):
            raise InvalidProblem(
                f"{path}: expected a Linear, Conv or ConvTranspose to read units, got {type(module).__name__}; "
                "leave its group out"
            )
        self.module = module
        self.owned = list(owned)
        units = sum(len(o) for o in owned)
        self.gram = np.zeros((units, units))
        self.energy = 0.0

    def add(self, inputs: Tensor) -> None:
        """Add one call's inputs."""
        wide = isinstance(self.module, torch.nn.Linear) and self.module.in_features > _WIDE
        if wide:
            self._add_directly(inputs)
            return
        # (channels, channels) in float64 on the host: sums over batches stay exact, on any device
        channels = _channel_gram(self.module, inputs).cpu().double().numpy()
        self.energy += float(channels.sum())
        ownership = _ownership(self.owned, len(channels))
        self.gram += ownership @ channels @ ownership.T

    def _add_directly(self, inputs: Tensor) -> None:
        """A wide Linear: form u (units, rows x outputs) in pieces instead of the (d, d) Gram."""
        weight = self.module.weight.detach()
        rows = inputs.reshape(-1, inputs.shape[-1])
        step = max(1, _PIECE // max(1, len(self.gram) * len(weight)))
        for piece in rows.split(step):
            each = [
                torch.einsum("nsm,osm->sno", piece[:, torch.tensor(o)], weight[:, torch.tensor(o)]).flatten(1)
                for o in self.owned
            ]
            units = torch.cat(each)
            self.gram += (units @ units.T).cpu().double().numpy()
            self.energy += float((piece @ weight.T).double().square().sum())


def _channel_gram(module: Any, inputs: Tensor) -> Tensor:
    """H (channels, channels) summed over the columns of one call; zero between a convolution's groups."""
    weight = weight_matrix(module)
    norms = weight.transpose(1, 2) @ weight
    gram = torch.zeros_like(norms)
    for x, _ in columns(module, inputs):
        gram.baddbmm_(x, x.transpose(1, 2))
    width = gram.shape[1] // taps(module)
    shape = (conv_groups(module), width, taps(module), width, taps(module))
    return torch.block_diag(*(gram * norms).reshape(shape).sum((2, 4)))


def _ownership(owned: Sequence[Any], channels: int) -> np.ndarray[Any, Any]:
    """S (units, channels): 1 where the unit owns the channel."""
    matrix = np.zeros((sum(len(o) for o in owned), channels))
    start = 0
    for each in owned:
        matrix[start + np.arange(len(each))[:, None], each] = 1.0
        start += len(each)
    return matrix
