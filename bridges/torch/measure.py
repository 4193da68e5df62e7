r"""What every unit of a network is worth and costs, from a few hundred samples, streamed.

With gate_i a factor 1 on everything that unit i's consumers read, a sample's loss l_s, and one backward a batch,

    g_si = d l_s / d gate_i = sum over consumers, channels, positions of a * dl_s/da
    taylor_i = mean_s |g_si|      taylor_signed_i = mean_s g_si      fisher_i = 1/2 mean_s g_si^2
    factors["fisher"] F           F F' = mean_s g_s g_s'  (n, n)
    reconstruction  G_ij = E<u_i, u_j> / E||sum of all u||^2, summed over consumers                  (`Contributions`)
    activation_ij = |cos| of the units' maps at their consumers     weights_ij = cosine of the producers' filters
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem, Statistics, unknown
from prunesolve.problems.units import offsets

from ._forward import as_inputs, evaluating, where_not_finite
from ._layers import channel_axis
from .attention import layers_of, opened, owners
from .contributions import Contributions
from .costs import costs
from .data import Batches, call, samples
from .evaluate import Loss, per_sample, placed, with_targets
from .unfold import LINEAR_LAYERS, weight_matrix

Floats = np.ndarray[Any, np.dtype[np.float64]]


def measure(
    model: nn.Module,
    data: Any,
    *,
    layers: Sequence[str] | None = None,
    groups: Sequence[Group] | None = None,
    loss: Loss | None = None,
    device: Any = None,
    against: Any = None,
    classes: Collection[int] | None = None,
    progress: bool | None = None,
    rank: int = 512,
) -> Statistics:
    r"""Saliencies, similarities, Grams and exact costs of a network's units.

    Contrasted with a second data set, the need s_i that `data` has of a unit is discounted by the share of the need
    that is not `against`'s (ours):

        share_i = s_i/mean(s) / (s_i/mean(s) + t_i/mean(t))  in [0, 1]        s on data, t on against

    saliency -> s_i share_i, reconstruction G_ij -> sqrt(share_i share_j) G_ij, F_i -> sqrt(share_i) F_i. Nothing turns
    negative, Grams stay positive semidefinite, a unit both need equally counts half, one that only `against` needs
    nothing; so every formulation takes the result as it is. The plain values stay as "taylor/data", "taylor/against"
    and so on.

    Parameters
    ----------
    model : Module
        The trained network; measured in eval mode and left as it was.
    data : see `Batches`
        Samples on the first axis of every consumer's input. Without targets the statistics of the loss are left out.
    layers : sequence of str, optional
        Names of the layers whose outputs may go; default all.
    groups : sequence of Group, optional
        The units, where they are known already.
    loss : callable (outputs, targets), optional
        See `evaluate`; a batch mean serves, since gradients of different samples do not meet in eval mode.
    device : torch device, optional
        Where to compute; default where the model lies.
    against : see `Batches`, optional
        A second data set to contrast with: the units it needs lose worth.
    classes : collection of int, optional
        Only the samples of `data` with these targets; `Batches(other).of_classes(...)` does the same for `against`.
    progress : bool, optional
        A bar on stderr; default where stderr is a terminal.
    rank : int
        Columns of factors["fisher"]: with at most so many samples F F' is exact, beyond that sample s is added to
        column s mod rank with a random sign (a count sketch, fixed seed): F F' is then an unbiased estimate.

    Returns
    -------
    Statistics
        saliency l1, l2, taylor, taylor_signed, fisher; blocks activation, weights, reconstruction; cross
        reconstruction; factors fisher; cost, pair_cost and constant of params and macs; meta samples, excluded, notes.

    Raises
    ------
    InvalidProblem
        If no units are found, the data yield nothing or the network's outputs are not finite.

    References
    ----------
    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (gates); Charikar, Chen,
    Farach-Colton, Finding frequent items in data streams, 2002 (count sketch).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> units = Group("0", 4, [("0", "out", [[0], [1], [2], [3]]), ("2", "in", [[0], [1], [2], [3]])])
    >>> stats = measure(net, (torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)), groups=[units])
    >>> stats.factors["fisher"].shape, stats.spent("params", [True, True, False, False])
    ((4, 8), 14.0)
    """
    work = placed(model, device)
    batches = Batches(data) if classes is None else Batches(data).of_classes(classes)
    example = batches.example()
    units, meta = _units(work, example, layers, groups)
    meta["example"] = _described(example)
    meta["layers"] = None if layers is None else list(layers)
    with opened(owners(units), work):
        return _measured(work, batches, units, meta, loss, against, classes, progress, rank)


def _measured(
    work: nn.Module,
    batches: Batches,
    units: tuple[Group, ...],
    meta: dict[str, Any],
    loss: Loss | None,
    against: Any,
    classes: Collection[int] | None,
    progress: bool | None,
    rank: int,
) -> Statistics:
    """Statistics of a network all of whose units are read by layers that run."""
    seen = _Pass(work, units, rank).over(batches, loss, progress)
    meta["samples"] = seen.samples
    if seen.gates is None:
        meta["notes"]["loss"] = "the data have no targets: taylor, taylor_signed and fisher are left out"
    if classes is not None:
        meta["classes"] = sorted(int(c) for c in classes)
    measured = seen.statistics()
    if against is not None:
        other = _Pass(work, units, rank).over(Batches(against), loss, progress)
        meta["against"] = other.samples
        measured = _contrast(measured, other.statistics(), offsets(units))
    filters = [_filters(work, group) for group in units]
    saliency = {
        "l1": np.concatenate([np.abs(f).sum(1) for f in filters]),
        "l2": np.concatenate([np.linalg.norm(f, axis=1) for f in filters]),
    }
    spent = costs(work, units, batches.example())
    return Statistics(
        units,
        saliency=saliency | measured["saliency"],
        blocks=measured["blocks"] | {"weights": [_cosine(f @ f.T) for f in filters]},
        cross=measured["cross"],
        factors=measured["factors"],
        cost={resource: cost.linear for resource, cost in spent.items()},
        pair_cost={resource: cost.pair for resource, cost in spent.items()},
        constant={resource: cost.constant for resource, cost in spent.items()},
        meta=meta,
    )


def _units(
    model: nn.Module, example: Any, layers: Sequence[str] | None, groups: Sequence[Group] | None
) -> tuple[tuple[Group, ...], dict[str, Any]]:
    """The units to measure and what is to be said about those left out."""
    excluded: dict[str, str] = {}
    notes: dict[str, str] = {}
    if groups is None:
        from .groups import find_groups

        found = find_groups(model, example, layers=layers)
        groups, excluded, notes = found.groups, dict(found.excluded), dict(found.notes)
    elif layers is not None:
        raise InvalidProblem("measure: expected layers or groups, got both; groups already say which units there are")
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded.items()) or "it has none"
        raise InvalidProblem(f"the network has no units that could be removed ({reasons})")
    modules = layers_of(model)
    for member in (m for group in groups for m in group.members):
        if member.path not in modules:
            raise unknown("module", member.path, modules)
    return tuple(groups), {"samples": 0, "excluded": excluded, "notes": notes}


class _Gates:
    """Sums over samples of the gate gradients g (n,) and a sketch of their second moments."""

    def __init__(self, n: int, rank: int) -> None:
        self.count = 0
        self.absolute, self.signed, self.squared = np.zeros(n), np.zeros(n), np.zeros(n)
        self.sketch = np.zeros((n, rank))
        self.signs = np.random.default_rng(0)

    def add(self, g: Floats) -> None:
        """Add g (B, n)."""
        self.absolute += np.abs(g).sum(0)
        self.signed += g.sum(0)
        self.squared += np.square(g).sum(0)
        signs = self.signs.choice([-1.0, 1.0], size=len(g))
        for row, sign in zip(g, signs, strict=True):
            self.sketch[:, self.count % self.sketch.shape[1]] += sign * row
            self.count += 1

    def saliency(self) -> dict[str, Floats]:
        """The means over samples."""
        return {
            "taylor": self.absolute / self.count,
            "taylor_signed": self.signed / self.count,
            "fisher": 0.5 * self.squared / self.count,
        }

    def factor(self) -> Floats:
        """F (n, min(samples, rank))."""
        return self.sketch[:, : self.count] / np.sqrt(self.count)


class _Pass:
    """One pass over the data: everything that is accumulated at the consumers."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], rank: int) -> None:
        if rank < 1:
            raise InvalidProblem(f"rank: expected at least 1 column, got {rank}")
        self.model, self.groups, self.starts = model, groups, offsets(groups)
        self.samples = 0
        self.gates: _Gates | None = _Gates(int(self.starts[-1]), rank)
        self.reads: dict[str, list[tuple[int, Any]]] = {}
        for g, group in enumerate(groups):
            for member in group.members:
                if member.axis == "in":
                    self.reads.setdefault(member.path, []).append((g, member.channels))
        self.consumers = {path: model.get_submodule(path) for path in self.reads}
        self.contributions = {
            path: Contributions(path, self.consumers[path], [channels for _, channels in reads])
            for path, reads in self.reads.items()
        }
        self.maps = [np.zeros((group.size, group.size)) for group in groups]

    def over(self, batches: Batches, loss: Loss | None, progress: bool | None) -> _Pass:
        """Run the data through the network."""
        with evaluating(self.model), self._watched() as views:
            for inputs, targets in _followed(batches, progress):
                count = samples(inputs)
                if self.samples and (targets is None) != (self.gates is None):
                    raise InvalidProblem("data: expected targets in every batch or in none, got both kinds")
                self.samples += count
                views.clear()
                if targets is None:
                    self.gates = None
                    with torch.inference_mode():
                        _finite(self.model, inputs, call(self.model, inputs))
                elif self.gates is not None:
                    with torch.inference_mode(False), torch.enable_grad():
                        outputs = call(self.model, inputs)
                        _finite(self.model, inputs, outputs)
                        total = per_sample(loss, outputs, with_targets(targets, self.model), count).sum()
                        self.gates.add(self._gate_gradients(views, total, count))
        return self

    @contextmanager
    def _watched(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Hooks that accumulate what consumers read and, under autograd, give each its own copy to differentiate."""
        views: list[tuple[str, Tensor]] = []

        def hook(path: str) -> Any:
            def read(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
                seen = inputs[0]
                with torch.no_grad():
                    self._accumulate(path, seen.detach())
                if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                    return None
                # a clone, not a view: an in-place operation after the consumer must not reach it
                own = seen.clone() if seen.requires_grad else seen.detach().clone().requires_grad_()
                views.append((path, own))
                return (own, *inputs[1:])

            return read

        handles = [module.register_forward_pre_hook(hook(path)) for path, module in self.consumers.items()]
        try:
            yield views
        finally:
            for handle in handles:
                handle.remove()

    def _accumulate(self, path: str, inputs: Tensor) -> None:
        self.contributions[path].add(inputs)
        channels_first = inputs.movedim(channel_axis(self.consumers[path]), 0).flatten(1)
        for g, channels in self.reads[path]:
            maps = channels_first[torch.tensor(channels, device=inputs.device)].flatten(1)
            self.maps[g] += (maps @ maps.T).cpu().double().numpy()

    def _gate_gradients(self, views: list[tuple[str, Tensor]], total: Tensor, count: int) -> Floats:
        """G (count, n) of the samples of one batch."""
        gradients = torch.autograd.grad(total, [own for _, own in views], allow_unused=True)
        g = np.zeros((count, int(self.starts[-1])))
        for (path, own), gradient in zip(views, gradients, strict=True):
            if len(own) != count:
                raise InvalidProblem(
                    f"{path}: expected the {count} samples on the first axis of its input, got shape {tuple(own.shape)}"
                )
            if gradient is None:
                continue
            products = (
                (own.detach() * gradient)
                .movedim(channel_axis(self.consumers[path]), 1)
                .reshape(count, own.shape[channel_axis(self.consumers[path])], -1)
            )
            channel_sums = products.sum(2).cpu().double().numpy()
            for index, channels in self.reads[path]:
                g[:, self.starts[index] : self.starts[index + 1]] += channel_sums[:, channels].sum(2)
        return g

    def statistics(self) -> dict[str, Any]:
        """The sums as saliency, blocks, cross and factors."""
        grams, cross = self._reconstruction()
        blocks = {"activation": [np.abs(_cosine(m)) for m in self.maps], "reconstruction": grams}
        return {
            "saliency": {} if self.gates is None else self.gates.saliency(),
            "blocks": blocks,
            "cross": {"reconstruction": cross} if cross else {},
            "factors": {} if self.gates is None else {"fisher": self.gates.factor()},
        }

    def _reconstruction(self) -> tuple[list[Floats], dict[tuple[int, int], Floats]]:
        """Grams within groups and between groups that one consumer reads, each consumer divided by its energy."""
        grams = [np.zeros((group.size, group.size)) for group in self.groups]
        cross: dict[tuple[int, int], Floats] = {}
        for path, seen in self.contributions.items():
            reads = [g for g, _ in self.reads[path]]
            ends = np.cumsum([0] + [self.groups[g].size for g in reads])
            scaled = seen.gram / seen.energy if seen.energy > 0 else seen.gram
            for a, g in enumerate(reads):
                for b, h in enumerate(reads):
                    block = scaled[ends[a] : ends[a + 1], ends[b] : ends[b + 1]]
                    if g == h:
                        grams[g] += block
                    elif g < h:
                        cross[g, h] = cross.get((g, h), 0.0) + block
        return [(gram + gram.T) / 2 for gram in grams], cross


def _contrast(seen: Mapping[str, Any], other: Mapping[str, Any], starts: Any) -> dict[str, Any]:
    """Every statistic of need discounted by the share of it that is the second data set's; see `measure`."""
    saliency = dict(seen["saliency"])
    for name, need in seen["saliency"].items():
        if name not in other["saliency"]:
            raise InvalidProblem("against: expected targets as in data, got none")
        saliency[name] = need * _share(np.abs(need), np.abs(other["saliency"][name]))
        saliency[f"{name}/data"], saliency[f"{name}/against"] = need, other["saliency"][name]
    factors = dict(seen["factors"])
    if factors:
        share = _share(seen["saliency"]["fisher"], other["saliency"]["fisher"])
        factors["fisher"] = factors["fisher"] * np.sqrt(share)[:, None]
    diagonals = [np.concatenate([np.diag(g) for g in s["blocks"]["reconstruction"]]) for s in (seen, other)]
    weights = np.split(np.sqrt(_share(*diagonals)), starts[1:-1])
    scaled = [w[:, None] * gram * w for w, gram in zip(weights, seen["blocks"]["reconstruction"], strict=True)]
    cross = {
        kind: {(g, h): weights[g][:, None] * gram * weights[h] for (g, h), gram in pairs.items()}
        for kind, pairs in seen["cross"].items()
    }
    blocks = dict(seen["blocks"]) | {"reconstruction": scaled}
    return {"saliency": saliency, "blocks": blocks, "cross": cross, "factors": factors}


def _described(example: Any) -> list[dict[str, Any]]:
    """Shape and dtype of each input: enough to find the same groups again without the data."""
    tensors = example if isinstance(example, tuple) else (example,)
    return [{"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for t in tensors]


def _share(need: Floats, other: Floats) -> Floats:
    """Need / (need + other), each in units of its mean; 1/2 where neither is needed."""
    mine, theirs = need / (need.mean() or 1.0), other / (other.mean() or 1.0)
    total = mine + theirs
    return np.divide(mine, total, out=np.full(len(total), 0.5), where=total > 0)


def _filters(model: nn.Module, group: Group) -> Floats:
    """(size, d) weights that make each unit: the output slices of all its producers, side by side."""
    found = [np.zeros((group.size, 0))]
    for member in group.members:
        module = model.get_submodule(member.path)
        if member.axis == "out" and isinstance(module, LINEAR_LAYERS):
            rows = weight_matrix(module).flatten(0, 1)
        elif member.axis == "out" and isinstance(module, nn.Embedding):
            rows = module.weight.detach().T
        else:
            continue
        found.append(rows.cpu().double().numpy()[member.channels].reshape(group.size, -1))
    return np.concatenate(found, axis=1)


def _cosine(gram: Floats) -> Floats:
    """Gram to cosines: exactly 1 on the diagonal, 0 between a zero vector and others."""
    norms = np.sqrt(np.diag(gram))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosine = np.clip(gram * np.outer(scale, scale), -1.0, 1.0)
    np.fill_diagonal(cosine, 1.0)
    return cosine


def _finite(model: nn.Module, inputs: Any, outputs: Any) -> None:
    if isinstance(outputs, Tensor) and not bool(outputs.isfinite().all()):
        where = where_not_finite(model, as_inputs(model, inputs))
        raise InvalidProblem(
            f"the network's outputs on the data are not finite, first at {where}; check the inputs' scaling and the "
            "weights"
        )


def _followed(batches: Batches, progress: bool | None) -> Iterator[Any]:
    """The batches, with a bar on stderr where asked or where somebody is watching."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    try:
        total: int | None = len(batches)
    except TypeError:
        total = None
    yield from track(batches, "measuring", total=total, console=Console(stderr=True))
