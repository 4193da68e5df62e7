r"""What biases can make good of weights that go, and how much of each weight they cannot.

Removing the weight w_ij that reads a_j and adding d to the bias of output i changes z_i by d - w_ij a_j. Seen from the
network's outputs f, with J = df / dz_i and sums over the places p where a convolution uses the weight,

    H_i = sum_p J_p                      G_ij = sum_p J_p a_jp
    d* = w_ij E<H, G> / E|H|^2           I_ij = w_ij^2 (E|G|^2 - E<H, G>^2 / E|H|^2)

and with J = 1 at every place on its own

    d* = w_ij mean(a_j)        I_ij = w_ij^2 var(a_j)

The bias answers linearly: what several weights of one output call for adds up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem, Selection

from ._forward import evaluating, tensors
from ._layers import role, weight_mask
from ._sites import Site, copy_of, sites_of
from .data import Batches, Inputs, call
from .masks import Masks, masks
from .refit import trace
from .unfold import columns, output_columns, set_weight, weight_matrix

# outputs up to which each has a backward pass of its own; beyond it as many random signs stand for them
_PROBES = 16


def bias(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    selection: Selection | None = None,
    *,
    weighted: bool = False,
) -> nn.Module:
    """The pruned network with what its pruned weights and channels gave on average put into the biases.

    Pruned are the weights that are zero in the pruned network and not in the dense one, and those that read a channel
    that went. Means are those of the dense network's inputs as the layer multiplies them, padding included. Where a
    layer has no bias, they go into the running mean of the BatchNorm that it alone feeds; recalibrating that afterwards
    comes to the same with or without them. Without either the layer stays as it is.

    Parameters
    ----------
    dense, pruned : Module
        Untouched.
    data : see `Batches`
        Calibration samples; targets are not used.
    selection : Selection, optional
        What was kept; needed where layers are smaller.
    weighted : bool
        Weigh each place and sample by what the outputs make of it (first order, backward passes).

    Returns
    -------
    Module
        A new network of the same parameters and state.

    References
    ----------
    Ballini et al., arXiv 2602.20467, 2026 (elimination-compensation; reconstruction, convolutions ours); unweighted
    it is the classic replacement of what goes by its mean.

    Examples
    --------
    >>> dense, pruned = nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1))
    >>> _ = pruned.load_state_dict({"0.weight": torch.zeros(1, 1), "0.bias": dense[0].bias.detach()})
    >>> x = torch.ones(4, 1)  # constant: the bias says it all
    >>> torch.allclose(bias(dense, pruned, x)(x), dense(x))
    True
    """
    with torch.inference_mode(False):
        work = copy_of(pruned)
        batches = Batches(data)
        with evaluating(dense), evaluating(work):
            sites = sites_of(dense, work, trace(work, batches.example()), selection)
            kept = Masks() if selection is None else masks(selection, dense)
        moments = _moments(dense, batches, list(sites), weighted)
        for path, site in sites.items():
            lost = _lost(site, kept.inputs.get(path), kept.get(path))
            # (groups, o, d) times means (groups, 1 or o, d)
            shift = (lost.cpu().double() * moments[path].mean).sum(dim=2).flatten()
            site.write(None, shift[site.dense_rows.cpu()].to(site.module.weight.device))
    return work


def bias_importance(model: nn.Module, data: Any, *, weighted: bool = False) -> dict[str, Tensor]:
    """How much of each weight its output's bias cannot make good: the mean squared change that is left.

    Parameters
    ----------
    model : Module
        The dense network; untouched.
    data : see `Batches`
        Targets are not used.
    weighted : bool
        False: the change of the layer's own outputs, w^2 var(a), one pass. True: that of the network's outputs to first
        order, with a backward pass for each of them (for 16 random sign vectors where there are more).

    Returns
    -------
    dict of str to tensor
        {"path.weight": of the weight's shape}, for every linear and convolution layer that runs.

    References
    ----------
    Ballini et al., arXiv 2602.20467, 2026; reconstruction.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> x = torch.tensor([[1.0, 3.0], [1.0, -3.0]])
    >>> bias_importance(net, x)["0.weight"][0, 0].item()  # a constant input: the bias replaces its weight wholly
    0.0
    """
    batches = Batches(data)
    with torch.inference_mode(False):
        with evaluating(model):
            paths = [layer.path for layer in trace(model, batches.example())]
        found = {}
        for path, moments in _moments(model, batches, paths, weighted).items():
            layer: Any = copy.deepcopy(model.get_submodule(path)).double().cpu()
            set_weight(layer, weight_matrix(layer).square() * moments.variance)
            found[f"{path}.weight"] = layer.weight.detach().to(model.get_submodule(path).weight)
    return found


def _lost(site: Site, kept_in: Tensor | None, kept_out: Tensor | None) -> Tensor:
    """The dense weights that the pruned layer has not, (groups, o, d), zeros elsewhere."""
    full: Any = site.dense
    held = site.module.weight.detach() != 0
    if role(full) == "depthwise":
        # its input channels go with its outputs, whose rows are not written
        kept_in = None if kept_out is None else kept_out.reshape(full.in_channels, -1).any(dim=1)
    if held.shape != full.weight.shape:
        present = weight_mask(full, kept_in, kept_out).to(held.device).clone()
        if int(present.sum()) != held.numel():
            raise InvalidProblem(
                f"repair: expected {site.path} with the {int(present.sum())} weights that the selection keeps, got "
                f"{held.numel()}; hand in the network that this selection made"
            )
        present[present.clone()] = held.flatten()
        held = present
    layer = copy.deepcopy(full)
    with torch.no_grad():
        layer.weight.masked_fill_(held.to(layer.weight.device), 0)
    return weight_matrix(layer)


class _Sums(NamedTuple):
    """E|H|^2 (groups, 1 or o, 1), E<H, G> and E|G|^2 (groups, 1 or o, d)."""

    hh: Tensor
    hg: Tensor
    gg: Tensor

    @property
    def mean(self) -> Tensor:
        """E<H, G> / E|H|^2, 0 where the bias does nothing."""
        return torch.where(self.hh > 0, self.hg / torch.where(self.hh > 0, self.hh, 1.0), 0.0)

    @property
    def variance(self) -> Tensor:
        return (self.gg - self.hg * self.mean).clamp_min(0.0)


def _moments(model: nn.Module, batches: Batches, paths: list[str], weighted: bool) -> dict[str, _Sums]:
    sums: dict[str, list[Tensor]] = {}
    with evaluating(model):
        for path, terms, count in _weighted(model, batches, paths) if weighted else _plain(model, batches, paths):
            if not all(bool(term.isfinite().all()) for term in terms):
                raise InvalidProblem(f"data: layer {path} reads NaN or infinite values; expected finite ones")
            held = sums.setdefault(path, [torch.zeros(()).double()] * 4)
            sums[path] = [a + b for a, b in zip(held, (*terms, torch.tensor(float(count)).double()), strict=True)]
    return {path: _Sums(*(term / count for term in terms)) for path, (*terms, count) in sums.items()}


Terms = tuple[str, tuple[Tensor, Tensor, Tensor], int]


def _plain(model: nn.Module, batches: Batches, paths: list[str]) -> Iterator[Terms]:
    """Sums over samples and places of 1, a and a^2."""
    found: list[Terms] = []

    def noted(path: str) -> Any:
        def note(module: Any, args: tuple[Tensor, ...]) -> None:
            found.append((path, *_read(module, args[0].double())))

        return note

    handles = [model.get_submodule(path).register_forward_pre_hook(noted(path)) for path in paths]
    try:
        for inputs, _ in batches:
            call(model, inputs)
            yield from found
            found.clear()
    finally:
        for handle in handles:
            handle.remove()


def _read(module: Any, x: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Sums of 1, a and a^2 over samples and places as the layer reads them, (groups, 1, 1 or d); and their number."""
    batch = x.reshape(-1, 1, x.shape[-1]) if isinstance(module, nn.Linear) else x
    batch = batch if batch.ndim > 1 + len(getattr(module, "kernel_size", (0,))) else batch.unsqueeze(0)
    # what is unfolded are copies and zeros: the sum over samples may come first
    sums = []
    for power in (batch, batch.square()):
        pieces = [(piece.sum(dim=2), piece.shape[2]) for piece, _ in columns(module, power.sum(dim=0, keepdim=True))]
        sums.append(torch.stack([piece for piece, _ in pieces]).sum(dim=0)[:, None].cpu())
    count = len(batch) * sum(places for _, places in pieces)
    return (sums[0].new_full((len(sums[0]), 1, 1), float(count)), sums[0], sums[1]), count


def _weighted(model: nn.Module, batches: Batches, paths: list[str]) -> Iterator[Terms]:
    """Sums over samples and outputs of H^2, H G and G^2."""
    generator = torch.Generator().manual_seed(0)
    work = copy.deepcopy(model).requires_grad_(True)
    for inputs, _ in batches:
        with evaluating(work), torch.enable_grad():
            calls, outputs = _recorded(work, inputs, paths)
            count = len(outputs)
            for probe in _probes(outputs, generator):
                made = [output for _, _, output in calls]
                gradients = torch.autograd.grad((outputs * probe).sum(), made, retain_graph=True, allow_unused=True)
                yield from _terms(work, calls, gradients, count)
        # samples are counted once, not once a probe
        for path in dict.fromkeys(path for path, _, _ in calls):
            yield path, (torch.zeros(()).double(),) * 3, count


def _recorded(work: nn.Module, inputs: Inputs, paths: list[str]) -> tuple[list[tuple[str, Tensor, Tensor]], Tensor]:
    """What each layer read and made, and the network's outputs as (B, K)."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def noted(path: str) -> Any:
        def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            calls.append((path, args[0].detach(), output))
            # what follows may work in place, on this copy then
            return output.clone()

        return note

    handles = [work.get_submodule(path).register_forward_hook(noted(path)) for path in paths]
    try:
        answers = [t for t in tensors(call(work, inputs)) if t.is_floating_point()]
    finally:
        for handle in handles:
            handle.remove()
    return calls, torch.cat([answer.reshape(len(answer), -1) for answer in answers], dim=1)


def _probes(outputs: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """(K,) unit vectors, or random signs scaled so that expected squares are those of all outputs."""
    width = outputs.shape[1]
    if width <= _PROBES:
        yield from torch.eye(width).to(outputs)
        return
    for _ in range(_PROBES):
        signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
        yield signs.to(outputs) / _PROBES**0.5


def _terms(work: nn.Module, calls: list[Any], gradients: tuple[Tensor | None, ...], count: int) -> Iterator[Terms]:
    """A layer that runs several times has one weight: its H and G add up over the calls."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (path, x, output), gradient in zip(calls, gradients, strict=True):
        pairs.setdefault(path, []).append((x, torch.zeros_like(output) if gradient is None else gradient))
    for path, used in pairs.items():
        module: Any = work.get_submodule(path)
        if isinstance(module, nn.Linear) and len(used) == 1 and used[0][1].ndim == 2:
            # one place: the sums over samples are matrix products
            read, squares = used[0][0].double().cpu(), used[0][1].double().cpu().square().T
            yield path, (squares.sum(1)[None, :, None], (squares @ read)[None], (squares @ read.square())[None]), 0
            continue
        hh, hg, gg = (torch.zeros(()).double() for _ in range(3))
        for sample in range(count):
            one = slice(sample, sample + 1)
            g, h = torch.zeros(()).double(), torch.zeros(()).double()
            for x, gradient in used:
                for piece, span in columns(module, x[one]):
                    slope = output_columns(module, gradient[one], span).double()
                    h = h + slope.sum(dim=2, keepdim=True).cpu()
                    g = g + (slope @ piece.double().transpose(1, 2)).cpu()
            hh, hg, gg = hh + h * h, hg + h * g, gg + g * g
        yield path, (hh, hg, gg), 0
