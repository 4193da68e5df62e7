"""BatchNorm statistics measured anew on the network as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunesolve.problems import InvalidProblem

from ._forward import evaluating
from .data import Batches, call, samples

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def recalibrate_batchnorm(model: nn.Module, data: Any) -> nn.Module:
    r"""Replace the running statistics of every BatchNorm by their averages over `data`, in place.

        mean = sum_b (B_b / N) mean_b        var = sum_b (B_b / N) var_b        over batches b of B_b samples

    Parameters
    ----------
    model : Module
        Changed in place: running statistics only. Only BatchNorm is in train mode while the data pass, so dropout
        stays off; training flags and momenta are put back.
    data : see `Batches`
        Targets are not used. Every batch needs more than one value a channel.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    InvalidProblem
        If a batch leaves a BatchNorm a single value a channel.

    References
    ----------
    Sun et al., Hybrid 8-bit floating point training and inference, NeurIPS 2019 (BatchNorm re-tuning).

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrate_batchnorm(net, torch.tensor([[1.0], [3.0]]))[0].running_mean
    tensor([2.])
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        with evaluating(model):
            for norm in norms:
                norm.train()
            for inputs, _ in Batches(data):
                count = samples(inputs)
                seen += count
                for norm in norms:
                    # a momentum of B/N makes the running value the average over the samples so far
                    norm.momentum = count / seen
                _run(model, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def _run(model: nn.Module, inputs: Any) -> None:
    try:
        call(model, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InvalidProblem("data: a batch of one sample gives BatchNorm no variance; use larger batches") from None
