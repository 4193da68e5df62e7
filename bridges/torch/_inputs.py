"""Networks whose data were normalised differently, fed with one normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem

from .data import Batches, Inputs


class SideBySide(nn.Module):
    r"""x as the first network reads it, and beside it, on the channel axis, as the second does.

    [x, (x std_1 + mean_1 - mean_2) / std_2]        (N, c, ...) -> (N, 2 c, ...)

    Zero padding comes after it in both networks, so both see the borders that they were trained with.

    Parameters
    ----------
    first, second : (mean, std)
        Numbers, or one number a channel.

    Examples
    --------
    >>> SideBySide((0.5, 0.5), (0.0, 1.0))(torch.tensor([[-1.0], [1.0]])).tolist()
    [[-1.0, 0.0], [1.0, 1.0]]
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        (mean_1, std_1), (mean_2, std_2) = normalisation(first), normalisation(second)
        self.register_buffer("scale", (std_1 / std_2).float())
        self.register_buffer("shift", ((mean_1 - mean_2) / std_2).float())

    def forward(self, x: Tensor) -> Tensor:
        """Both, one after the other on the channel axis."""
        return torch.cat([x, self.second(x)], 1)

    def second(self, x: Tensor) -> Tensor:
        """What the second network reads where the first reads x."""
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return x * self.scale.to(x).reshape(shape) + self.shift.to(x).reshape(shape)


class Renormalised:
    """Batches as another network reads them.

    Parameters
    ----------
    batches : Batches
        As the first network reads them, one tensor each.
    inputs : SideBySide
        To the other network's normalisation.
    """

    def __init__(self, batches: Batches, inputs: SideBySide) -> None:
        self.batches, self.inputs = batches, inputs

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor | None]]:
        for inputs, targets in self.batches:
            if not isinstance(inputs, Tensor):
                raise InvalidProblem(
                    "inputs: expected networks of one input where their normalisations differ, got several inputs; "
                    "normalise inside the networks"
                )
            yield self.inputs.second(inputs), targets


def normalisation(given: Any) -> tuple[Tensor, Tensor]:
    """(mean, std), each (1,) or (channels,) float64, checked."""
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float64).reshape(-1) for part in given)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidProblem(f"inputs: expected (mean, std) for each model, got {given!r}") from None
    lengths = {len(mean), len(std)} - {1}
    if len(lengths) > 1 or not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
        raise InvalidProblem(
            f"inputs: expected finite means and positive deviations, numbers or one a channel, got {given!r}"
        )
    return mean, std


def differ(first: Any, second: Any) -> bool:
    """Whether two normalisations are not the same."""
    return any(
        not torch.equal(*torch.broadcast_tensors(a, b))
        for a, b in zip(*map(normalisation, (first, second)), strict=True)
    )
