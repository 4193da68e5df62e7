"""The network behind a level database: moments of its layers' inputs, fits on demand, the stitched smaller network."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem, Selection
from prunesolve.problems._arrays import Bits, Floats

from ._dense_refit import DenseRefit
from ._elimination import Reader, Refitted, Subtracted, eliminated
from ._fold import copied, folded, followers
from ._layers import conv_groups, widths
from .branches import remove_constant_branches
from .contributions import Contributions
from .data import Inputs
from .evaluate import Evaluator
from .masks import masks
from .shrink import shrink
from .unfold import taps

# (what is done, how much of it, of how much)
Progress = Callable[[str, int, int], None]


class Stitching:
    """A dense network whose layers can be given the weights of any level.

    BatchNorm is folded into the convolution it follows, where that gives the same: the layer then has a bias, and its
    errors are measured as the next layer sees them.

    Parameters
    ----------
    model : Module
        The dense network; copied.
    groups : sequence of Group
        The units.
    example : Inputs
        A few samples.
    ridge : float
        See `DenseRefit`.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], example: Inputs, ridge: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.groups, self.example, self.ridge = tuple(groups), example, ridge
        # {path of a convolution: path of the BatchNorm inside it}
        self.inside, self.base = _folded(self.model, followers(self.model, example), example)
        norms = set(self.inside.values())
        self.base_groups = [
            Group(g.name, g.size, [m for m in g.members if m.path not in norms], g.layer, g.channels) for g in groups
        ]
        self.reads = _reads(self.groups)
        self.refit = DenseRefit(self.base, (), self.reads, ridge=ridge)
        # readers too wide to be refitted
        self.plain = {
            path: Contributions(path, self.base.get_submodule(path), [channels for _, channels in owned])
            for path, owned in self.reads.items()
            if path not in self.refit.layers
        }

    def watch(self, batches: Iterable[Inputs]) -> None:
        """Gather the moments of what the readers read, in one pass."""
        seen = {path: each.add for path, each in self.plain.items()}
        handles = [self.base.get_submodule(p).register_forward_pre_hook(_adding(add)) for p, add in seen.items()]
        try:
            # a network may work on its inputs in place
            self.refit = DenseRefit(self.base, (copied(x) for x in batches), self.reads, ridge=self.ridge)
        finally:
            for handle in handles:
                handle.remove()
        layers = self.refit.layers
        unread = [path for path in layers if layers[path].count == 0 or not np.isfinite(layers[path].energy)]
        if unread:
            raise InvalidProblem(f"{unread[0]}: its inputs on the data are none or not finite; leave its group out")

    def tables(self, counts: Sequence[Sequence[int]], told: Progress) -> Iterator[tuple[Bits, Floats]]:
        """(S, size) units kept and (S,) error of each level, group by group."""
        inverses: dict[str, Floats] = {}
        last = {path: owned[-1][0] for path, owned in self.reads.items()}
        for g, group in enumerate(self.groups):
            keep = eliminated(list(self._readers(g, inverses)), group.size, counts[g])
            yield keep, np.array([self.error(g, row) for row in keep])
            for path in [path for path in inverses if last[path] <= g]:
                del inverses[path]
            told("eliminating", g + 1, len(self.groups))

    def error(self, g: int, keep: Bits) -> float:
        """What the readers of group g lose, as shares of what there is to lose, with `keep` (size,) of it alone."""
        total = 0.0
        for path, channels in self._read_of(g):
            if path in self.refit.layers:
                layer = self.refit.layers[path]
                kept = torch.ones(widths(layer.module)[0], dtype=torch.bool)
                kept[torch.from_numpy(channels[~keep].ravel())] = False
                total += layer.lost(kept) / layer.energy if layer.energy > 0 and not keep.all() else 0.0
            else:
                gram, gone = self._plain_gram(g, path), (~keep).astype(np.float64)
                total += float(gone @ gram @ gone)
        return total

    def _read_of(self, g: int) -> Iterator[tuple[str, Any]]:
        for path, owned in self.reads.items():
            for h, channels in owned:
                if h == g:
                    yield path, channels

    def _readers(self, g: int, inverses: dict[str, Floats]) -> Iterator[Reader]:
        """What reads group g, with the dense network's weights."""
        for path, channels in self._read_of(g):
            if path not in self.refit.layers:
                yield Subtracted(self._plain_gram(g, path))
                continue
            layer = self.refit.layers[path]
            if path not in inverses:
                inverses[path] = _inverse(layer.moments.numpy(), self.ridge)
            scale = 1.0 / np.sqrt(layer.energy) if layer.energy > 0 else 0.0
            for q, rows in enumerate(_rows(path, layer.module, channels)):
                each = rows.ravel()
                weights = layer.weight[q].numpy()[:, each] * scale
                yield Refitted(inverses[path][q][np.ix_(each, each)], weights, rows.shape[1])

    def _plain_gram(self, g: int, path: str) -> Floats:
        """(size, size) of the units of group g at a reader that is not refitted, as a share of its energy."""
        seen, start = self.plain[path], 0
        for h, channels in self.reads[path]:
            stop = start + len(channels)
            if h == g:
                gram: Floats = seen.gram[start:stop, start:stop] / (seen.energy or 1.0)
                return gram
            start = stop
        raise KeyError(path)

    # -- the stitched network

    def evaluator(self, data: Any, **options: Any) -> Evaluator:
        """The true loss or metric of stitched networks."""
        return Evaluator(self.base, data, self.base_groups, weights=self.refit, **options)

    def network(self, selection: Selection, branches: Mapping[int, str] | None = None) -> nn.Module:
        """The smaller network with fitted weights, its layers those of the caller's network.

        `branches` {group: the residual branch that goes where the group keeps nothing}.
        """
        work = copy.deepcopy(self.model)
        chosen = masks(selection, work)
        for path, kept in chosen.inputs.items():
            fitted = self.refit(path, kept)
            if fitted is not None:
                self._write(work, path, fitted)
        gone = {g: branch for g, branch in (branches or {}).items() if not list(selection)[g][1].any()}
        if not gone:
            return shrink(work, selection, self.example)
        # one unit stays to be shrunk, which nothing reads any more: the branch gives its mean
        keep = [kept | (np.arange(len(kept)) == 0) if g in gone else kept for g, (_, kept) in enumerate(selection)]
        smaller = shrink(work, Selection(self.groups, np.concatenate(keep)), self.example)
        return remove_constant_branches(smaller, gone.values(), self.example)

    def _write(self, work: nn.Module, path: str, fitted: Mapping[str, Tensor]) -> None:
        """Put a layer's fitted weights into a network whose BatchNorm is its own again."""
        module: Any = work.get_submodule(path)
        norm: Any = work.get_submodule(self.inside[path]) if path in self.inside else None
        weight, slope = fitted["weight"].double(), _slope(norm, fitted["weight"])
        # a channel that its BatchNorm does not let pass keeps the weights it has
        passes = slope != 0.0
        inverse = torch.where(passes, 1.0 / torch.where(passes, slope, 1.0), 0.0)
        across = (-1, *[1] * (weight.ndim - 1)) if norm is not None else (1,) * weight.ndim
        scaled = (weight * inverse.reshape(across)).to(module.weight)
        module.weight.data = torch.where(passes.reshape(across), scaled, module.weight.data)
        if "bias" not in fitted:
            return
        old: Any = self.base.get_submodule(path).bias
        shift = ((fitted["bias"] - old.detach()).double() * inverse).to(old)
        if module.bias is not None:
            module.bias.data += shift
        else:
            norm.running_mean -= shift


def fingerprint(model: nn.Module) -> str:
    """Hash of a network's parameters and buffers: the first 16 hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _folded(model: nn.Module, pairs: dict[str, str], example: Inputs) -> tuple[dict[str, str], nn.Module]:
    """The pairs of convolution and BatchNorm that can be folded, and the network with them folded.

    One that cannot, as the first norm of a DenseNet whose input is read elsewhere too, does not keep the others back.
    """
    fused = folded(model, pairs, example) if pairs else model
    if fused is not None:
        return pairs, fused
    each = list(pairs.items())
    if len(each) == 1:
        return {}, model
    halves = (dict(each[: len(each) // 2]), dict(each[len(each) // 2 :]))
    good = {conv: norm for half in halves for conv, norm in _folded(model, half, example)[0].items()}
    fused = folded(model, good, example) if good else None
    return (good, fused) if fused is not None else ({}, model)


def _adding(add: Callable[[Tensor], None]) -> Callable[..., None]:
    return lambda _module, inputs: add(inputs[0])


def _reads(groups: Sequence[Group]) -> dict[str, list[tuple[int, Any]]]:
    """{reader: [(group, (size, m) its input channels)]}."""
    reads: dict[str, list[tuple[int, Any]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            if member.axis == "in":
                reads.setdefault(member.path, []).append((g, member.channels))
    return reads


def _slope(norm: Any, like: Tensor) -> Tensor:
    """What a BatchNorm multiplies each channel with, (out,); (1,) where there is none."""
    if norm is None:
        return torch.ones(1, dtype=torch.float64, device=like.device)
    slope = torch.rsqrt(norm.running_var.double() + norm.eps)
    return slope if norm.weight is None else slope * norm.weight.detach().double()


def _inverse(moments: Floats, ridge: float) -> Floats:
    """(C + r I)^-1 of each part, (groups, d, d), r relative to the mean over inputs that vary."""
    inverse = np.empty_like(moments)
    for q, each in enumerate(moments):
        diagonal = np.diag(each)
        varies = diagonal > 1e-12 * diagonal.max()
        pull = ridge * float(diagonal[varies].mean()) if varies.any() else 1.0
        inverse[q] = np.linalg.inv(each + pull * np.eye(len(each)))
    return inverse


def _rows(path: str, module: Any, channels: Any) -> Iterator[Any]:
    """For each part of a layer, (units, channels x taps) the rows of its columns that belong to each unit."""
    parts, each = conv_groups(module), widths(module)[0] // conv_groups(module)
    ordered = np.sort(channels, axis=1)
    share = ordered.shape[1] // parts
    part = ordered.reshape(len(ordered), parts, share) if share * parts == ordered.shape[1] else None
    if part is None or (part // each != np.arange(parts)[:, None]).any():
        raise InvalidProblem(f"{path}: expected units with equally many channels in each of its {parts} groups")
    for q in range(parts):
        local = part[:, q] - q * each
        yield (local[:, :, None] * taps(module) + np.arange(taps(module))).reshape(len(local), -1)
