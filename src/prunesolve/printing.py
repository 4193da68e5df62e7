"""What the commands print: results, problems and files in a line or a few."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any


def say(text: str) -> None:
    """Data, on stdout."""
    print(text)  # noqa: T201


def notice(text: str) -> None:
    """Everything else, on stderr."""
    print(text, file=sys.stderr)  # noqa: T201


PLAN_ROWS = 20


def summary(told: Mapping[str, Any]) -> str:
    """A result in a few lines."""
    lines = [f"{'instance':<12}{told['instance']}  ({told['instance_hash']})", f"{'solver':<12}{told['solver']}"]
    if "picked" in told["details"]:
        lines.append(f"{'picked':<12}{told['details']['picked']}")
    lines.append(f"{'status':<12}{told['status']}")
    if told["objective"] is not None:
        native = "" if told["sense"] == "minimise" else f"  ({told['native_objective']:.12g} maximised)"
        lines.append(f"{'objective':<12}{told['objective']:.12g}{native}")
    if told["bound"] is not None:
        gap = "" if told["gap"] is None else f"  (gap {100 * told['gap']:.4g} %)"
        lines.append(f"{'bound':<12}{told['bound']:.12g}{gap}")
    lines.append(f"{'feasible':<12}{'yes' if told['feasible'] else 'no'}")
    lines += list(_front_lines(told)) if "front" in told else []
    if told["kept"] is not None:
        lines.append(f"{'kept':<12}{told['kept']} of {told['n']}")
    lines.append(f"{'seconds':<12}{told['seconds']:.3f}  (seed {told['seed']}, {told['evaluations']} evaluations)")
    for layer, channels in (told["kept_units"] or {}).items():
        lines.append(f"  {layer}: {' '.join(map(str, channels)) or 'none'}")
    if isinstance(told["solution"], Mapping):
        lines += list(_plan_lines(told))
    elif told["kept_units"] is None and told["solution"] is not None:
        lines.append(f"{'solution':<12}{' '.join(map(str, told['solution']))}")
    return "\n".join(lines)


def _plan_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The first rows of a transport plan."""
    rows, details = told["solution"]["plan"], told["details"]
    yield f"{'carried':<12}{details['mass_carried']:.12g} of {details['mass_asked']:.12g}, {len(rows)} entries"
    for i, j, mass in rows[:PLAN_ROWS]:
        yield f"  {i} -> {j}  {mass:.6g}"
    if len(rows) > PLAN_ROWS:
        yield f"  and {len(rows) - PLAN_ROWS} more; --json tells them all"


def _front_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The points of a front, or what came nearest to one."""
    front, knee = told["front"], told["front"]["knee"]
    names = ", ".join(front["names"])
    if not front["objectives"]:
        nearest = told["details"].get("least_violated")
        yield f"{'front':<12}no point within the limits"
        if nearest is not None:
            yield f"{'nearest':<12}{', '.join(f'{v:.6g}' for v in nearest['objectives'])}  ({names})"
        return
    if front["hypervolume"] is None:
        (least, dearest), (most, cheapest) = front["objectives"][0], front["objectives"][-1]
        yield f"{'front':<12}{len(front['objectives'])} points of {names}, {told['details']['front']}"
        yield f"  from {least:.6g}, {dearest:.6g}, shown below, to {most:.6g}, {cheapest:.6g}"
        return
    yield f"{'front':<12}{len(front['objectives'])} points of {names}; hypervolume {front['hypervolume']:.6g}"
    for i, values in enumerate(front["objectives"]):
        yield f"  {i:<10}{', '.join(f'{v:.6g}' for v in values)}{'  knee, shown below' if i == knee else ''}"


def describe(thing: Any) -> str:
    """What a file holds, in a line or a few."""
    from prunesolve.problems import (
        BinaryQuadratic,
        Clustering,
        LevelChoice,
        MultiObjective,
        PartialTransport,
        SparseRegression,
        Statistics,
        SubsetRegression,
    )
    from prunesolve.results import Report
    from prunesolve.solvers import Result

    if isinstance(thing, LevelChoice):
        costs = "separable" if thing.is_separable else "chain" if thing.is_chain else "general pair"
        return (
            f"LevelChoice, {thing.n} layers of {min(thing.sizes, default=0)} to {max(thing.sizes, default=0)} levels, "
            f"{costs} costs, {thing.total} up to {thing.budget:g}, hash {thing.hash}"
        )
    if isinstance(thing, PartialTransport):
        weights = "any weights" if thing.unit is None else f"equal weights {thing.unit:g}: {thing.pairs} pairs"
        return (
            f"PartialTransport, {thing.n} sources, {thing.m} targets, {thing.cost.dtype} costs, mass {thing.mass:g} of "
            f"{thing.source.sum():g} and {thing.target.sum():g}, {weights}, hash {thing.hash}"
        )
    if isinstance(thing, Clustering):
        of = "distances" if thing.features is None else f"{thing.features.shape[1]} features"
        most = "" if thing.max_size is None else f" of at most {thing.max_size}"
        return f"Clustering, {thing.n} points by {of}, {thing.n_clusters} clusters{most}, hash {thing.hash}"
    if isinstance(thing, SparseRegression):
        own = "" if thing.row_factors is None else f", {thing.row_factors.shape[2]} factors for each output"
        return (
            f"SparseRegression, {thing.shape[0]} outputs of {thing.shape[1]} inputs{own}, {thing.pattern.words}: "
            f"{thing.k} of {thing.n} weights stay, hash {thing.hash}"
        )
    if isinstance(thing, SubsetRegression):
        constraints = ", ".join(_constraint_text(c) for c in thing.constraints) or "none"
        return (
            f"SubsetRegression, {thing.n} groups of {len(thing.block)} inputs, {thing.cross.shape[1]} outputs, "
            f"constraints: {constraints}, hash {thing.hash}"
        )
    if isinstance(thing, BinaryQuadratic):
        name = thing.meta.get("name")
        constraints = ", ".join(_constraint_text(c) for c in thing.constraints) or "none"
        return (
            f"{name + ': ' if name else ''}BinaryQuadratic, n = {thing.n}, {type(thing.couplings).__name__} couplings, "
            f"constraints: {constraints}, sense {thing.meta.get('sense', 'minimise')}, hash {thing.hash}"
        )
    if isinstance(thing, MultiObjective):
        constraints = ", ".join(_constraint_text(c) for c in thing.constraints) or "none"
        return (
            f"MultiObjective, n = {thing.n}, objectives: {', '.join(thing.objectives)}, constraints: {constraints}, "
            f"{len(thing.starts)} points to begin with, hash {thing.hash}"
        )
    if isinstance(thing, Statistics):
        head = f"Statistics, {thing.n} units in {len(thing.groups)} groups; saliency: {', '.join(thing.saliency)}"
        return "\n".join([head, *(f"  {g.name}: {g.size} units" for g in thing.groups)])
    if isinstance(thing, Result):
        return f"Result, status {thing.status}, objective {thing.objective}, bound {thing.bound}, by {thing.solver}"
    if isinstance(thing, Report):
        return str(thing)
    if isinstance(thing, Mapping):
        return "\n".join(_described(thing))
    return f"Program: {type(thing).__name__} with {sum(p.numel() for p in thing.parameters()):,} parameters"


def _described(thing: Mapping[str, Any]) -> Iterator[str]:
    """Masks, widths or weights, a line each."""
    if hasattr(thing, "inputs"):
        yield f"Masks of {len(thing)} modules"
        yield from (f"  {path}: {int(m.sum())} of {m.numel()} kept" for path, m in thing.items())
    elif "modules" in thing:
        yield f"Widths of {len(thing['modules'])} modules"
        for path, numbers in thing["modules"].items():
            yield f"  {path}: {', '.join(f'{name} = {number}' for name, number in numbers.items())}"
    else:
        yield f"Weights: {len(thing)} tensors, {sum(t.numel() for t in thing.values()):,} numbers"
        yield from (f"  {name}: {tuple(t.shape)}" for name, t in thing.items())


def _constraint_text(constraint: Any) -> str:
    from prunesolve.problems import Budget, Cardinality

    if isinstance(constraint, Cardinality):
        return f"Cardinality({constraint.k})"
    if isinstance(constraint, Budget):
        return f"Budget(limit {constraint.limit:g}{', bilinear' if constraint.pair is not None else ''})"
    return f"GroupBounds({len(constraint.low)} groups)"


def known_of(name: str) -> str:
    """What is known of a library instance, in a few lines."""
    from prunesolve.problems import library

    facts = library.about(name)
    shown = {"from": facts["provenance"], "by": facts["formulation"], "budget": facts["budget"]}
    shown["best known"] = f"{facts['best_known']:.12g}{' (proved optimal)' if facts['proved'] else ''}"
    shown["bound"] = f"{facts['bound']:.12g}"
    return "\n".join(f"  {word:<12}{value}" for word, value in shown.items())
