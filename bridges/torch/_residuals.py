"""The residual branches of a traced network: sides of sums that start from what the other side also comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from ._dataflow import Dataflow
from .unfold import LINEAR_LAYERS


class Residual(NamedTuple):
    """One side of a sum, term 0 or 1, the operations that it alone reads and the one they start from."""

    operations: frozenset[int]
    source: int
    addition: int
    term: int
    modules: tuple[str, ...]
    layers: tuple[str, ...]


def residuals(model: nn.Module, flow: Dataflow) -> list[Residual]:
    """In the order of their sums; at most one a sum: that no shortcut runs through, then that of more layers."""
    found = []
    for index, operation in enumerate(flow.operations):
        sides = [_side(model, flow, index, term) for term in range(len(operation.terms))]
        ranked = sorted(
            (side for side in sides if side), key=lambda side: (_has_shortcut(flow, side), -len(side.layers))
        )
        found += ranked[:1]
    return found


def _has_shortcut(flow: Dataflow, side: Residual) -> bool:
    """Whether a path without weights leads through it, as where two branches are added to one tensor in turn."""
    reached = {side.source}
    for i in sorted(side.operations):
        if not flow.operations[i].weights and not flow.operations[i].reads.isdisjoint(reached):
            reached.add(i)
    return not flow.operations[side.addition].terms[side.term].reads.isdisjoint(reached)


def _side(model: nn.Module, flow: Dataflow, addition: int, term: int) -> Residual | None:
    """What one side of a sum is, if it is a branch."""
    terms = flow.operations[addition].terms
    ours, other = terms[term].reads, terms[1 - term].reads
    inside = {addition}
    for i in range(addition - 1, -1, -1):
        readers = flow.readers[i]
        # what runs in no module is an input
        if flow.operations[i].inside and readers and readers <= inside and not (addition in readers and i in other):
            inside.add(i)
    inside.remove(addition)
    # one of several results is where a branch starts, unless all of them are its own
    inside -= {i for i in inside if flow.operations[i].part and not flow.operations[i].reads <= inside}
    sources = {s for i in inside for s in flow.operations[i].reads - inside if flow.operations[s].depends}
    if ours.isdisjoint(inside) or len(sources) != 1 or not flow.reaches(min(sources), other):
        return None
    modules = [path for path in flow.calls if path and flow.within(path) and flow.within(path) <= inside]
    top = [path for path in modules if not any(path.startswith(above + ".") for above in modules)]
    top.sort(key=lambda path: flow.calls[path][0].start)
    layers = [p for p, m in model.named_modules() if isinstance(m, LINEAR_LAYERS) and below(p, top)]
    layers.sort(key=lambda path: min(flow.within(path), default=-1))
    return Residual(frozenset(inside), min(sources), addition, term, tuple(top), tuple(layers)) if layers else None


def below(path: str, modules: Iterable[str]) -> bool:
    return any(path == module or path.startswith(module + ".") for module in modules)


def common(paths: Sequence[str]) -> str:
    """The path that all of them are at or below; empty for none."""
    parts = [path.split(".") for path in paths]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ".".join(parts[0][:shared])


def unique(names: Sequence[str], longer: Sequence[str]) -> list[str]:
    """The names, the longer ones where they are empty or taken twice, numbered where that is not enough."""
    found: list[str] = []
    for name, instead in zip(names, longer, strict=True):
        chosen = name if name and names.count(name) == 1 else instead
        found.append(chosen if chosen not in found else f"{chosen}#{found.count(chosen) + 1}")
    return found
