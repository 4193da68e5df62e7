"""Prune the heads and the feed-forward neurons of a small vision transformer, trained here, without fine-tuning.

    python benchmarks/vit.py                         both ways of writing attention, 25 and 50 % gone, 3 seeds
    python benchmarks/vit.py --seeds 1 --kind "by hand"

Two pre-norm blocks on scikit-learn's 8x8 digits: patches of 2x2 make 16 tokens, 4 heads, an MLP twice as wide. The
same share of the heads and of the neurons goes, each chosen network-wide by every method from 500 training images;
accuracy is that of 500 test images. "apart" is the largest difference between the masked and the removed network's
outputs, relative to the largest output.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunesolve as ps
from prunesolve.bridges.torch.attention import heads_of, layers_of
from prunesolve.bridges.torch.costs import count
from prunesolve.bridges.torch.refit import refit
from prunesolve.demo_networks import digits
from prunesolve.formulations import Fisher, HybridQubo, L1Qubo, Reconstruction

HEADS, EPOCHS, BATCH, RATE = 4, 50, 50, 5e-3
METHODS: dict[str, Any] = {
    "random": None,
    "l1": L1Qubo(beta=0.0),
    "taylor": HybridQubo(alpha=1.0, beta=0.0),
    "fisher": Fisher(),
    "hybrid-qubo": HybridQubo(),
    "reconstruction": Reconstruction(),
}


class Attention(nn.Module):
    """Written by hand, the width read off the input as in most published vision transformers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (width // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Ready(nn.Module):
    """The same by nn.MultiheadAttention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.fc1, self.fc2, self.drop = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class VisionTransformer(nn.Module):
    """Patches of 2x2, learned places, two blocks, the mean of the tokens."""

    def __init__(self, width: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, width, 2, stride=2), nn.Parameter(0.5 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, attention(width)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(1))


KINDS: dict[str, type[nn.Module]] = {"by hand": Attention, "nn.MultiheadAttention": Ready}


def trained(width: int, attention: type[nn.Module], seed: int) -> nn.Module:
    """AdamW with a cosine schedule on the 1,000 training digits, shifted by up to one pixel."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = VisionTransformer(width, attention)
    inputs, targets = digits("train")
    steps = EPOCHS * (len(targets) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(EPOCHS):
        for chosen in rng.permutation(len(targets)).reshape(-1, BATCH):
            shift = tuple(int(s) for s in rng.integers(-1, 2, size=2))
            images = torch.roll(F.pad(inputs[chosen], (1, 1, 1, 1)), shift, (2, 3))[:, :, 1:-1, 1:-1]
            optimiser.zero_grad()
            F.cross_entropy(network(images), targets[chosen], label_smoothing=0.05).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module) -> float:
    inputs, targets = digits("test")
    return 100 * float((network.eval()(inputs).argmax(1) == targets).double().mean())


def kinds_of_units(stats: ps.Statistics, network: nn.Module) -> list[list[int]]:
    """The groups that are heads, and those that are neurons."""
    modules = layers_of(network)
    heads = [heads_of(group, modules) is not None for group in stats.groups]
    return [[g for g, is_head in enumerate(heads) if is_head == wanted] for wanted in (True, False)]


def part(stats: ps.Statistics, chosen: list[int]) -> ps.Statistics:
    """The statistics of some of the groups."""
    units = np.isin(stats.group_of, chosen)
    return ps.Statistics(
        [stats.groups[g] for g in chosen],
        saliency={name: values[units] for name, values in stats.saliency.items()},
        blocks={kind: [blocks[g] for g in chosen] for kind, blocks in stats.blocks.items()},
        factors={kind: factor[units] for kind, factor in stats.factors.items()},
    )


def selection(stats: ps.Statistics, network: nn.Module, method: str, keep: float, seed: int) -> ps.Selection:
    """The same share of heads and of neurons, each chosen over the whole network."""
    kept = np.ones(stats.n, dtype=bool)
    for chosen in kinds_of_units(stats, network):
        units, some = np.flatnonzero(np.isin(stats.group_of, chosen)), part(stats, chosen)
        formulation = METHODS[method]
        if formulation is None:
            kept[units] = drawn(some, keep, np.random.default_rng(seed))
        else:
            kept[units] = ps.solve(formulation.encode(some, keep=keep), seed=seed, time_limit=1.0).solution
    return ps.Selection(stats.groups, kept)


def drawn(stats: ps.Statistics, keep: float, rng: np.random.Generator) -> Any:
    """A random selection with one unit of each group at least."""
    count_kept = int(keep * stats.n + 0.5)
    while True:
        kept = np.zeros(stats.n, dtype=bool)
        kept[rng.permutation(stats.n)[:count_kept]] = True
        if all(kept[stats.group_of == g].any() for g in range(len(stats.groups))):
            return kept


def row(network: nn.Module, stats: ps.Statistics, chosen: ps.Selection, data: Any) -> dict[str, float]:
    """Accuracy masked, removed and refitted, what is left, and how far masked and removed are apart."""
    example = digits("test")[0]
    masked = ps.apply_masks(copy.deepcopy(network), ps.masks(chosen, network))
    removed = ps.shrink(network, chosen, example[:2])
    with torch.inference_mode():
        wanted, got = masked(example), removed(example)
    before, after = count(network, example), count(removed, example)
    return {
        "masked": accuracy(masked),
        "removed": accuracy(removed),
        "refitted": accuracy(refit(network, removed, data, chosen)),
        "params": 100 * after["params"] / before["params"],
        "macs": 100 * after["macs"] / before["macs"],
        "apart": float((wanted - got).abs().max() / wanted.abs().max()),
    }


def main() -> None:
    """Train, prune, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="networks trained of each kind")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--kind", choices=KINDS, help="default: both")
    parser.add_argument("--gone", type=float, nargs="+", default=[0.25, 0.5])
    told = parser.parse_args()
    torch.set_num_threads(1)
    inputs, targets = digits("train")
    data = list(zip(inputs[:500].split(250), targets[:500].split(250), strict=True))
    for kind, attention in KINDS.items():
        if told.kind not in (None, kind):
            continue
        found: dict[tuple[float, str], list[dict[str, float]]] = {}
        dense = []
        for seed in range(told.seeds):
            began = time.perf_counter()
            network = trained(told.width, attention, seed)
            trained_in = time.perf_counter() - began
            dense.append(accuracy(network))
            stats = ps.measure(network, data)
            print(f"# {kind}, seed {seed}: trained in {trained_in:.0f} s, {dense[-1]:.1f} % on test", flush=True)
            for gone in told.gone:
                for method in METHODS:
                    chosen = selection(stats, network, method, 1.0 - gone, seed)
                    found.setdefault((gone, method), []).append(row(network, stats, chosen, data))
        print(f"\n{kind}: dense {np.mean(dense):.1f} %, mean of {told.seeds} networks of width {told.width}")
        print("gone  method           masked  removed  refitted  params %  MACs %    apart")
        for (gone, method), rows in found.items():
            mean = {name: np.mean([r[name] for r in rows]) for name in rows[0]}
            apart = max(r["apart"] for r in rows)
            accuracies = f"{mean['masked']:7.1f} {mean['removed']:8.1f} {mean['refitted']:9.1f}"
            left = f"{mean['params']:9.1f} {mean['macs']:7.1f}"
            print(f"{100 * gone:3.0f} %  {method:15s} {accuracies} {left} {apart:8.0e}")
        print(flush=True)


if __name__ == "__main__":
    main()
