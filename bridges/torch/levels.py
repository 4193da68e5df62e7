r"""A level database: for every layer and number of units kept, which units, what they lose and what they cost.

For each group of units on its own, the others dense, backward elimination with refit gives nested sets of units (Meng
et al., OSSCAR, 2024). What a level loses is

    error = sum over consumers    E||y - y'||^2 / E||y - mean y||^2

y the consumer's dense output, y' that of its least-squares weights for the inputs it keeps. The weights of any choice
of levels follow in closed form from moments of the dense network's inputs, gathered once and kept in the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from prunesolve.problems import BlackBox, Group, InvalidProblem, Selection, UnsupportedProblem, unknown
from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems._npz import json_array, unpack
from prunesolve.problems.level_choice import LevelChoice
from prunesolve.problems.multi_objective import MultiObjective
from prunesolve.problems.units import _group_arrays, _groups_from

from ._branch_levels import branches_at_zero, costs_without, with_branch_gone
from ._level_costs import CostTable, counted
from ._mapped import read_mapped, write_plain
from ._stitching import Progress, Stitching, fingerprint
from .costs import costs
from .data import Batches, Inputs, samples, slice_of
from .evaluate import Evaluator, placed
from .latency import latency
from .memory import peak_memory

RESOURCES = ("params", "macs", "latency", "memory")
# densities of the uniform starts of a search for a front
_SWEEP = 16


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of every layer of one network; made by `build` or `load`.

    Attributes
    ----------
    groups : tuple of Group
        The layers, as groups of units.
    keep : tuple of (S_l, size_l) bool
        The units that each level keeps, fewest first; the last keeps all.
    error : tuple of (S_l,) float
        What each level loses, as above.
    costs : {resource: CostTable}
        What levels cost, for the resources asked so far.
    meta : mapping
        JSON-able facts: calibration samples, ridge, fingerprint of the network.
    """

    groups: tuple[Group, ...]
    keep: tuple[Bits, ...]
    error: tuple[Floats, ...]
    costs: dict[str, CostTable]
    meta: Mapping[str, Any]
    _stitching: Stitching | None = field(default=None, repr=False)

    @classmethod
    def build(
        cls,
        model: nn.Module,
        data: Any,
        groups: Sequence[Group] | None = None,
        *,
        levels: int = 16,
        ridge: float = 1e-3,
        resources: Sequence[str] = ("params", "macs"),
        counts: Mapping[str, Sequence[int]] | None = None,
        branches: bool = False,
        device: Any = None,
        progress: bool | Progress | None = None,
    ) -> Levels:
        """Measure, eliminate and fit: one pass over the data, then linear algebra in float64.

        Parameters
        ----------
        model : Module
            The dense network; copied, never changed.
        data : see `Batches`
            Calibration samples; targets are not used.
        groups : sequence of Group, optional
            The units; default all that `find_groups` finds.
        levels : int
            The most levels a layer: 1 unit, then equal steps up to all.
        ridge : float > 0
            Pull towards the dense weights, relative to the mean variance of the inputs.
        resources : sequence of "params", "macs", "latency", "memory"
            Costs to tabulate at once; others are when they are asked for.
        counts : {group name: units kept}, optional
            Other levels for some groups; 0 is a level too: what reads the group is left with a constant.
        branches : bool
            Whether whole residual branches may go: a layer inside one gets a level 0, at which the branch leaves its
            mean. Exact in parameters and multiply-adds; for time and memory its layers have no width and the sum with
            the mean still runs. `meta["branches"]` {group name: branch name} says which; see `find_branches`.
        device : torch device, optional
            Where to compute; default where the model lies.
        progress : bool or callable (what, done, of how many), optional
            A bar on stderr, by default where stderr is a terminal, or your own.

        Returns
        -------
        Levels

        Raises
        ------
        InvalidProblem
            If there are no units, the data yield nothing or an option is not what is expected above.

        Examples
        --------
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> units = Group("0", 4, [("0", "out", [[0], [1], [2], [3]]), ("2", "in", [[0], [1], [2], [3]])])
        >>> found = Levels.build(net, torch.randn(32, 3), [units], levels=3)
        >>> found.counts[0].tolist(), float(found.error[0][-1]), found.choice("params").spent([0])
        ([1, 3, 4], 0.0, 8.0)
        """
        if not ridge > 0.0:
            raise InvalidProblem(f"ridge: expected a number > 0, got {ridge}")
        if levels < 2:
            raise InvalidProblem(f"levels: expected 2 or more a layer, got {levels}")
        work, batches = placed(model, device), Batches(data)
        example = slice_of(batches.example(), slice(2))
        if groups is None:
            from .groups import find_groups, without_heads

            groups = without_heads(find_groups(work, example), work, "levels are made of channels").groups
        if not groups:
            raise InvalidProblem("groups: expected at least one group of units that could go, got none")
        kept = [_counts(group, levels, counts or {}) for group in groups]
        gone: dict[int, str] = {}
        # inference tensors keep no version, by which an in-place change is told
        with torch.inference_mode(False), _told(progress) as told:
            stitching = Stitching(work, groups, example, ridge)
            seen = _Counted(batches, told)
            stitching.watch(seen)
            if branches:
                gone = branches_at_zero(stitching)
                kept = [[0, *(c for c in each if c)] if g in gone else each for g, each in enumerate(kept)]
            tables = list(stitching.tables(kept, told))
        meta = {"samples": seen.samples, "ridge": ridge, "network": fingerprint(model)}
        meta["branches"] = {groups[g].name: branch for g, branch in gone.items()}
        found = cls(
            tuple(groups), tuple(k for k, _ in tables), tuple(e for _, e in tables), {}, meta, _stitching=stitching
        )
        for resource in resources:
            found.table(resource)
        return found

    # -- what the levels are

    @property
    def n(self) -> int:
        """Number of layers."""
        return len(self.groups)

    @property
    def counts(self) -> tuple[Indices, ...]:
        """(S_l,) units kept at each level of each layer, ascending."""
        return tuple(k.sum(1) for k in self.keep)

    @property
    def labels(self) -> tuple[str, ...]:
        """The groups' names."""
        return tuple(group.name for group in self.groups)

    @property
    def dense(self) -> Indices:
        """(L,) the levels that keep everything."""
        return np.array([len(k) - 1 for k in self.keep], dtype=np.int64)

    def uniform(self, share: float) -> Indices:
        """(L,) the levels nearest to keeping that share of every layer, the larger one of two.

        Raises
        ------
        InvalidProblem
            If the share is not in (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise InvalidProblem(f"share: expected a number in (0, 1], got {share}")
        apart = [np.abs(c - share * c[-1])[::-1] for c in self.counts]
        return np.array([len(a) - 1 - int(a.argmin()) for a in apart], dtype=np.int64)

    def bits(self, levels: Any) -> Bits:
        """(n,) bool, the units that levels (L,) keep, or one row each for levels (m, L)."""
        chosen = self._checked(levels)
        return np.concatenate([keep[chosen[..., i]] for i, keep in enumerate(self.keep)], axis=-1)

    def selection(self, levels: Any) -> Selection:
        """What levels (L,) keep."""
        return Selection(self.groups, self.bits(levels))

    # -- what they cost

    def table(self, resource: str) -> CostTable:
        """What every level costs of a resource; found out the first time it is asked for.

        Raises
        ------
        InvalidProblem
            If there is no such resource, or it is not in the file and there is no network to measure.
        """
        if resource not in RESOURCES:
            raise unknown("resource", resource, RESOURCES)
        if resource not in self.costs:
            self.costs[resource] = self._measured(resource)
        return self.costs[resource]

    def time(self, example: Inputs, **options: Any) -> CostTable:
        """Measure the latency for batches like `example`; options as in `latency.latency`."""
        self.costs["latency"] = latency(self._network.model, self.groups, self.counts, example, **options)
        return self.costs["latency"]

    def total(self, resource: str) -> float:
        """What the dense network costs."""
        return self.table(resource).dense

    def choice(
        self, resource: str = "params", budget: float | None = None, *, error: Sequence[Floats] | None = None
    ) -> LevelChoice:
        """One level a layer at the least sum of errors within a budget.

        Parameters
        ----------
        resource : "params", "macs", "latency" or "memory"
            Parameters and multiply-adds of one sample exactly; seconds of two samples, unless `time` measured another
            batch; bytes of one sample's activations at their peak.
        budget : float, optional
            A float up to 1 is a share of the dense network's; above, or an int, it is in the resource's unit. Default
            what the dense network costs.
        error : sequence of (S_l,), optional
            Other errors than `self.error`, such as those of `losses`.

        Returns
        -------
        LevelChoice

        Raises
        ------
        InvalidProblem
            If no levels can meet the budget; says which budget can be met.
        """
        table = self.table(resource)
        limit = table.dense if budget is None else float(budget)
        if isinstance(budget, float) and 0.0 < budget <= 1.0:
            limit = budget * table.dense
        meta = {"resource": resource, "dense": table.dense, "counts": [c.tolist() for c in self.counts]}
        return LevelChoice(
            self.error if error is None else error,
            table.cost,
            limit,
            table.pair,
            table.total,
            labels=self.labels,
            meta=meta | {"cost": dict(table.notes)},
        )

    def losses(self, data: Any, **options: Any) -> tuple[Floats, ...]:
        """(S_l,) increase of the true loss where one layer alone is at a level: another additive error for `choice`.

        Parameters
        ----------
        data : see `Batches`
            Samples with targets.
        **options
            Of `Evaluator`.
        """
        evaluate = self._true(data, options)
        rows = [np.repeat(self.dense[None], len(keep), axis=0) for keep in self.keep]
        for i, row in enumerate(rows):
            row[:, i] = np.arange(len(row))
        whole = float(evaluate(self.dense[None])[0])
        return tuple(evaluate(row) - whole for row in rows)

    # -- the network at some levels

    def network(self, levels: Any) -> nn.Module:
        """The smaller network with refitted weights, its layers those of the dense one.

        Raises
        ------
        InvalidProblem
            If a layer would keep nothing that is in no removable branch, or there is no network to the levels.
        """
        with torch.inference_mode(False):
            return self._network.network(self.selection(levels), self._branches)

    def evaluator(self, data: Any, **options: Any) -> Evaluator:
        """The `Evaluator` of stitched networks: selections are weighted as `network` weights them.

        Parameters
        ----------
        data : see `Batches`
            Samples with targets.
        **options
            Of `Evaluator`; `guard` is False by default.
        """
        return self._network.evaluator(data, **({"guard": False} | options))

    def black_box(
        self,
        data: Any,
        resource: str = "params",
        budget: float | None = None,
        *,
        objective: Literal["loss", "metric"] = "loss",
        **options: Any,
    ) -> BlackBox:
        """The true loss, or minus the true metric, of the stitched network within a budget.

        Parameters
        ----------
        data : see `Batches`
            Samples with targets; a batch of the black box for each batch.
        resource, budget
            As in `choice`, which is the space and the surrogate.
        objective : "loss" or "metric"
            As in `Evaluator`.
        **options
            Of `Evaluator`, such as dtype=torch.bfloat16.

        Returns
        -------
        BlackBox
        """
        space = self.choice(resource, budget)
        evaluate = self._true(data, options | {"objective": objective})
        weights = evaluate.evaluator.weights.astype(np.float64)
        return BlackBox(space, evaluate, space, weights, labels=self.labels, meta=space.meta)

    def multi_objective(
        self,
        data: Any,
        objectives: Sequence[str] = ("loss", "params"),
        *,
        budget: float | None = None,
        error: Sequence[Floats] | None = None,
        solver: Any = None,
        starts: int = _SWEEP,
        **options: Any,
    ) -> MultiObjective:
        """The true error of the stitched network against what it costs.

        Parameters
        ----------
        data : see `Batches`
            Samples with targets.
        objectives : sequence of "loss", "metric" and resources
            The first cost names the space; "metric" counts negatively.
        budget : float, optional
            The most of the first cost, as in `choice`: a search that need not look above finds more below.
        error : sequence of (S_l,), optional
            As in `choice`, for the solver's front.
        solver : Solver, optional
            Gives a front of the sum of errors against the first cost, `DynamicProgramming(front=True)` for instance;
            its points join the starts.
        starts : int
            Densities of the uniform starts, and points of the solver's front taken.
        **options
            Of `Evaluator`.

        Returns
        -------
        MultiObjective
        """
        known = ("loss", "metric", *RESOURCES)
        for name in objectives:
            if name not in known:
                raise unknown("objective", name, known)
        spent = [name for name in objectives if name in RESOURCES]
        if not spent:
            raise InvalidProblem(f"objectives: expected a cost among them ({', '.join(RESOURCES)}), got {objectives}")
        space = self.choice(spent[0], budget, error=error)
        evaluate = _Objectives(
            [
                _Cost(self, name) if name in RESOURCES else self._true(data, options | {"objective": name})
                for name in objectives
            ]
        )
        begun = [self.uniform(share) for share in np.linspace(0.0, 1.0, starts + 1)[1:]]
        if solver is not None:
            begun += _front(solver, space, starts)
        rows = np.unique(np.array(begun), axis=0)
        return MultiObjective(
            space,
            evaluate,
            tuple(objectives),
            starts=rows[np.asarray(space.is_feasible(rows))],
            groups=np.arange(self.n),
            labels=self.labels,
            meta={**space.meta, "network": self.meta["network"]},
        )

    # -- on the disk

    def save(self, path: str | Path) -> None:
        """Write `.npz` (format `prunesolve/1`, no pickle), whole or not at all, for `load` to map."""
        arrays: dict[str, Any] = dict(_group_arrays(self.groups))
        for i, (keep, error) in enumerate(zip(self.keep, self.error, strict=True)):
            arrays[f"keep.{i}"], arrays[f"error.{i}"] = keep, error
        told: dict[str, Any] = {}
        for resource, table in self.costs.items():
            told[resource] = {"total": table.total, "pairs": list(table.pair), "notes": dict(table.notes)}
            arrays |= {f"cost.{resource}.{i}": c for i, c in enumerate(table.cost)}
            arrays |= {f"pair.{resource}.{i}": p for i, p in enumerate(table.pair.values())}
        arrays["told"] = json_array("meta", {"meta": dict(self.meta), "costs": told})
        example = self._network.example
        parts = example if isinstance(example, tuple) else (example,)
        arrays |= {f"example.{i}": part.cpu().numpy() for i, part in enumerate(parts)}
        arrays["several"] = np.array(isinstance(example, tuple))
        for path_, layer in self._network.refit.layers.items():
            arrays[f"count.{path_}"] = np.array(layer.count)
            arrays[f"first.{path_}"], arrays[f"second.{path_}"] = layer.x.numpy(), layer.xx.numpy()
        write_plain(path, "levels", arrays)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> Levels:
        """Read what `save` wrote; moments stay on the disk until a layer is fitted.

        Parameters
        ----------
        path : path
        model : Module, optional
            The dense network; without it there are masks, errors and costs, but no weights.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        InvalidProblem
            If the file is truncated, foreign or of another network.
        """
        return unpack(path, lambda arrays: _from_arrays(arrays, model), read_mapped(path, "levels"))

    # -- within

    @property
    def _branches(self) -> dict[int, str]:
        """{group: the branch that goes at its level 0}."""
        named = self.meta.get("branches", {})
        return {g: named[name] for g, name in enumerate(self.labels) if name in named}

    @property
    def _network(self) -> Stitching:
        if self._stitching is None:
            raise InvalidProblem("levels: they were loaded without their network; use Levels.load(path, model)")
        return self._stitching

    def _measured(self, resource: str) -> CostTable:
        network = self._network
        if resource == "latency":
            return latency(network.model, self.groups, self.counts, network.example)
        if resource == "memory":
            return peak_memory(network.model, self.groups, network.example).table(self.counts)
        found = costs(network.model, self.groups, network.example)
        without = {g: costs_without(network, g, branch) for g, branch in self._branches.items()}
        for name, cost in found.items():
            self.costs[name] = counted(cost, self.groups, self.keep)
            for g, left in without.items():
                self.costs[name] = with_branch_gone(self.costs[name], cost, left[name], g, self.groups, self.keep)
        return self.costs[resource]

    def _true(self, data: Any, options: Mapping[str, Any]) -> _True:
        return _True(self.keep, self.evaluator(data, **options))

    def _checked(self, levels: Any) -> Indices:
        # any costs do: only the sizes are looked at
        return LevelChoice(self.error, [np.zeros(len(e)) for e in self.error], 0.0).checked("levels", levels)


class _True:
    """evaluate(X, b) of level tuples: the network's own loss; a class, so that it can be sent to another process."""

    def __init__(self, keep: Sequence[Bits], evaluator: Evaluator) -> None:
        self.keep, self.evaluator = keep, evaluator

    def __call__(self, levels: Any, b: int | None = None) -> Floats:
        rows = [keep[np.asarray(levels)[:, i]] for i, keep in enumerate(self.keep)]
        return self.evaluator.evaluate(np.concatenate(rows, axis=1), b)


class _Cost:
    """What levels (m, L) cost of a resource; the peak of memory exactly, which a table only bounds."""

    def __init__(self, levels: Levels, resource: str) -> None:
        self.counts, self.peak = levels.counts, None
        self.choice = levels.choice(resource)
        if resource == "memory" and not self.choice.meta["cost"]["exact"]:
            network = levels._network
            self.peak = peak_memory(network.model, levels.groups, network.example)

    def __call__(self, levels: Any) -> Floats:
        if self.peak is None:
            return np.asarray(self.choice.spent(levels))
        kept = np.stack([c[np.asarray(levels)[:, i]] for i, c in enumerate(self.counts)], axis=1)
        return np.asarray(self.peak.peak(kept))


class _Objectives:
    """evaluate(X) -> (m, k)."""

    def __init__(self, each: Sequence[Callable[[Any], Floats]]) -> None:
        self.each = each

    def __call__(self, levels: Any) -> Floats:
        return np.stack([objective(levels) for objective in self.each], axis=1)


class _Counted:
    """The inputs of batches, counted as they pass."""

    def __init__(self, batches: Batches, told: Progress) -> None:
        self.batches, self.told, self.samples = batches, told, 0

    def __iter__(self) -> Iterator[Inputs]:
        try:
            total = len(self.batches)
        except TypeError:
            total = 0
        for done, (inputs, _) in enumerate(self.batches):
            self.samples += samples(inputs)
            yield inputs
            self.told("measuring", done + 1, total)


def _counts(group: Group, levels: int, given: Mapping[str, Sequence[int]]) -> list[int]:
    """Units kept at each level: 1, then equal steps up to all."""
    if group.name not in given:
        steps = np.rint(group.size * np.arange(2, levels + 1) / levels).astype(int)
        return sorted({1, *(max(1, int(step)) for step in steps)})
    counts = sorted({int(c) for c in given[group.name]})
    if not counts or counts[0] < 0 or counts[-1] != group.size:
        raise InvalidProblem(
            f"counts of {group.name}: expected numbers from 0 to {group.size}, the last among them, got {counts}"
        )
    return counts


def _front(solver: Any, choice: LevelChoice, most: int) -> list[Indices]:
    """Points spread over a solver's front of (sum of errors, cost).

    Where costs tie other layers together than neighbours, each level's cost with the other layers dense stands in.
    """
    try:
        result = solver.solve(choice)
    except UnsupportedProblem:
        result = solver.solve(_additive(choice))
    found = np.atleast_2d(result.solution) if result.front is None else np.asarray(result.front.solutions)
    spread = np.unique(np.rint(np.linspace(0, len(found) - 1, min(most, len(found)))).astype(int))
    return [np.asarray(row, dtype=np.int64) for row in found[spread]]


def _additive(choice: LevelChoice) -> LevelChoice:
    """The same choice with costs that add up, exact where one layer alone is not dense."""
    dense = choice.sizes - 1
    whole, cost = choice.spent(dense), []
    for i, size in enumerate(choice.sizes):
        rows = np.repeat(dense[None], size, axis=0)
        rows[:, i] = np.arange(size)
        cost.append(choice.spent(rows) - whole)
    return LevelChoice(choice.error, cost, 0.0, labels=choice.labels)


def _from_arrays(arrays: dict[str, Any], model: nn.Module | None) -> Levels:
    groups = tuple(_groups_from(arrays))
    told = json.loads(str(arrays["told"]))
    tables = {}
    for resource, table in told["costs"].items():
        pairs = {(int(a), int(b)): arrays[f"pair.{resource}.{i}"] for i, (a, b) in enumerate(table["pairs"])}
        cost = tuple(arrays[f"cost.{resource}.{i}"] for i in range(len(groups)))
        tables[resource] = CostTable(cost, pairs, table["total"], table["notes"])
    keep = tuple(np.asarray(arrays[f"keep.{i}"]) for i in range(len(groups)))
    error = tuple(np.asarray(arrays[f"error.{i}"]) for i in range(len(groups)))
    found = Levels(groups, keep, error, tables, told["meta"])
    return found if model is None else replace(found, _stitching=_stitched(arrays, groups, told["meta"], model))


def _stitched(arrays: dict[str, Any], groups: Sequence[Group], meta: Mapping[str, Any], model: nn.Module) -> Stitching:
    """The network with the moments of the file."""
    if fingerprint(model) != meta["network"]:
        raise InvalidProblem("model: expected the network that these levels were built from, got other weights")
    parts = [torch.from_numpy(arrays[name]) for name in sorted(arrays) if name.startswith("example.")]
    with torch.inference_mode(False):
        stitching = Stitching(model, groups, tuple(parts) if arrays["several"] else parts[0], meta["ridge"])
    for path, layer in stitching.refit.layers.items():
        layer.count = int(arrays[f"count.{path}"])
        layer.x, layer.xx = (torch.from_numpy(arrays[f"{name}.{path}"]) for name in ("first", "second"))
    return stitching


@contextmanager
def _told(progress: bool | Progress | None) -> Iterator[Progress]:
    """What to call as work is done: the caller's own, a bar on stderr, or nothing."""
    if callable(progress):
        yield progress
    elif not (sys.stderr.isatty() if progress is None else progress):
        yield lambda what, done, total: None
    else:
        from rich.console import Console
        from rich.progress import Progress as Bars

        with Bars(console=Console(stderr=True), transient=True) as bars:
            tasks: dict[str, Any] = {}

            def told(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total or None)
                bars.update(tasks[what], completed=done)

            yield told
