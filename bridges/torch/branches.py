r"""Residual branches found in a running network, and taken out of it whole.

    z = shortcut(x) + branch(x)      ->      z = shortcut(x) + c,      c = argmin E||branch(x) - c||^2 = E branch(x)

A branch is what lies between one tensor and one side of a sum (or difference) that the tensor also reaches past it:
everything whose results are read there and nowhere else. A side that starts from several tensors is none. Removal
leaves the network's own code as it is: plain torch modules of the same geometry (identity, pooling) stand where the
branch's did, and the last of them gives the constant.

Reference: Veit, Wilber, Belongie, Residual networks behave like ensembles of relatively shallow networks, NeurIPS 2016
(one block deleted); the constant in its place is ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunesolve.problems import Group, InvalidProblem, unknown

from ._dataflow import Dataflow, added, dataflow, is_seen
from ._forward import as_inputs, evaluating, tensors
from ._residuals import Residual, below, common, residuals, unique
from ._stand_ins import Plan, Refused, planned, put_exit, put_stand_ins
from .costs import count
from .data import Batches, Inputs, call
from .evaluate import Loss, evaluate, placed
from .refit import _Reached
from .verify import KEPT, verify

# relative to the largest value: what float sums leave of a constant
_SAME = 1e-4


@dataclass(frozen=True)
class Branch:
    """A residual branch of a network.

    Parameters
    ----------
    name : str
        What its layers' paths have in common; "first:last" of them where that is nothing or not its own.
    modules : tuple of str
        Paths of the modules that go, in the order they run; a path stands for all below it.
    layers : tuple of str
        The convolutions and linear layers among them.
    params, macs : int
        What the network saves without it, as `count` counts; 0 where it cannot go.
    constant : int
        Parameters that its mean needs where it stays behind, an affine norm of the output's channels.
    within : str
        Name of the smallest branch that holds it; empty for none.
    reason : str
        Why it cannot be removed; empty where it can.
    """

    name: str
    modules: tuple[str, ...]
    layers: tuple[str, ...]
    params: int = 0
    macs: int = 0
    constant: int = 0
    within: str = ""
    reason: str = ""

    @property
    def entry(self) -> str:
        """The first module."""
        return self.modules[0]

    @property
    def exit(self) -> str:
        """The last module, whose output is added to the shortcut."""
        return self.modules[-1]

    def holds(self, path: str) -> bool:
        """Whether a module goes with the branch."""
        return any(path == module or path.startswith(module + ".") for module in self.modules)

    def groups_inside(self, groups: Sequence[Group]) -> tuple[str, ...]:
        """Names of the groups all of whose members go with the branch."""
        return tuple(g.name for g in groups if g.members and all(self.holds(m.path) for m in g.members))


@dataclass(frozen=True)
class BranchImportance:
    """What a network loses with one branch.

    Parameters
    ----------
    name : str
    error : float
        E||branch - mean||^2 / E||block output||^2, the block output being the sum; means run over channels.
    loss, metric : float
        Of the network without the branch.
    loss_increase, metric_change : float
        Against the dense network.
    """

    name: str
    error: float
    loss: float
    metric: float
    loss_increase: float
    metric_change: float


def find_branches(model: nn.Module, example: Any) -> tuple[Branch, ...]:
    """The residual branches of a network, each tried by removal.

    Parameters
    ----------
    model : nn.Module
        Any network; it stays as it is.
    example : tensor or tuple of tensors
        What the model is called with, batch first.

    Returns
    -------
    tuple of Branch
        In the order their sums are computed. Of the two sides of a sum the one that no path without weights leads
        through is the branch, of two such the one with more layers. A branch that cannot go is listed with the reason;
        so is one that holds every layer of the network. Networks without sums, such as those that concatenate, have
        none.

    Raises
    ------
    InvalidProblem
        If the model does not run on the example; names the layer.

    Examples
    --------
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.enter, self.inner = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    ...     def forward(self, x):
    ...         x = self.enter(x)
    ...         return x + self.inner(x)
    >>> [(b.name, b.layers, b.params, b.macs) for b in find_branches(Block(), torch.ones(1, 3))]
    [('inner.0', ('inner.0',), 20, 16)]
    """
    return tuple(candidate.branch for candidate in _candidates(model, example))


def remove_branches(
    model: nn.Module, branches: str | Branch | Iterable[str | Branch], example: Any, data: Any = None
) -> nn.Module:
    """A network without some of its residual branches.

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    branches : Branch or str, or an iterable of them
        What goes, by name. Where one lies within another, the larger is what counts.
    example : tensor or tuple of tensors
        Inputs on which the removal is checked against the masked network.
    data : see `Batches`, optional
        Calibration samples; targets are not used. In the order they run, each branch leaves the constant c by which
        the sum is the dense one's in the mean of every channel: E branch(x) for the first, and for later ones also the
        mean by which the shortcut has drifted. Without data, zero.

    Returns
    -------
    nn.Module
        A copy in which plain torch modules stand at the branch's paths. Nothing of it is multiplied; a constant is
        held by the bias of a norm whose input is zero, so it stays what it is in training until a gradient moves it.

    Raises
    ------
    InvalidProblem
        If a name is unknown, a branch cannot go (says why), or the removed network differs from the masked one.

    Examples
    --------
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.enter, self.inner = nn.Linear(3, 4), nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         x = self.enter(x)
    ...         return x + self.inner(x)
    >>> remove_branches(Block(), "inner", torch.ones(1, 3)).inner
    Threshold(threshold=inf, value=0.0)
    """
    plans = _plans(model, branches, example)
    if data is None:
        return _taken_out(model, plans, None, example)
    batches = Batches(data)
    return _taken_out(model, plans, lambda work, plan: _constant(model, work, plan, batches), example)


def remove_constant_branches(
    model: nn.Module, branches: str | Branch | Iterable[str | Branch], example: Any
) -> nn.Module:
    """The same function without branches that give the same at every place whatever comes in; see `remove_branches`.

    Raises
    ------
    InvalidProblem
        As `remove_branches`, and if what a branch gives depends on the example.
    """
    return _taken_out(model, _plans(model, branches, example), lambda _, plan: _given(model, plan, example), example)


def branch_importance(
    model: nn.Module,
    branches: str | Branch | Iterable[str | Branch],
    data: Any,
    *,
    loss: Loss | None = None,
    metric: Loss | None = None,
    device: Any = None,
) -> tuple[BranchImportance, ...]:
    """What each branch is worth, by its own error and by the true loss without it.

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    branches : Branch or str, or an iterable of them
        Those that can be removed.
    data : see `Batches`
        Batches with targets; the means are taken from them too.
    loss, metric : callable, optional
        As in `evaluate`.
    device : torch device, optional
        Where to compute; default where the model lies.

    Returns
    -------
    tuple of BranchImportance
        In the order the branches run.

    Raises
    ------
    InvalidProblem
        As `remove_branches` and `evaluate`.

    Examples
    --------
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
    ...     def forward(self, x):
    ...         return self.head(x + self.inner(x))
    >>> [found] = branch_importance(Block(), "inner", (torch.eye(2), torch.tensor([0, 1])))
    >>> 0.0 <= found.error
    True
    """
    model, batches = placed(model, device), Batches(data)
    example, dense = batches.example(), evaluate(model, batches, loss=loss, metric=metric)
    rows = []
    for candidate in _candidates(model, example, _names(branches)):
        branch, plan = candidate.branch, candidate.plan
        without = evaluate(remove_branches(model, branch, example, batches), batches, loss=loss, metric=metric)
        # a branch without a plan has been refused above
        error = _relative_error(model, plan, batches) if plan else math.nan
        change = without["loss"] - dense["loss"], without["metric"] - dense["metric"]
        rows.append(BranchImportance(branch.name, error, without["loss"], without["metric"], *change))
    return tuple(rows)


def _plans(model: nn.Module, branches: Any, example: Any) -> list[Plan]:
    """How the named branches are taken out, without those inside others of them."""
    chosen = _candidates(model, example, _names(branches))
    for candidate in chosen:
        if candidate.branch.reason:
            raise InvalidProblem(f"branch {candidate.branch.name!r} cannot be removed: {candidate.branch.reason}")
    return [one.plan for one in chosen if one.plan and not any(one.lies_in(other) for other in chosen)]


def _taken_out(
    model: nn.Module, plans: list[Plan], constant: Callable[[nn.Module, Plan], Tensor | None] | None, example: Any
) -> nn.Module:
    # inference tensors keep no version, by which an in-place change is told
    with torch.inference_mode(False):
        removed, constants = _removed(model, plans, constant)
        _check(model, removed, plans, constants, example)
    return removed


def _names(branches: Any) -> tuple[str, ...]:
    given = [branches] if isinstance(branches, (str, Branch)) else list(branches)
    wrong = [type(b).__name__ for b in given if not isinstance(b, (str, Branch))]
    if wrong:
        raise InvalidProblem(f"branches: expected names or Branch objects of find_branches, got {', '.join(wrong)}")
    return tuple(b.name if isinstance(b, Branch) else b for b in given)


# -- what is a branch


class _Candidate(NamedTuple):
    branch: Branch
    residual: Residual
    plan: Plan | None

    def lies_in(self, other: _Candidate) -> bool:
        return self.residual.operations < other.residual.operations


def _candidates(model: nn.Module, example: Any, names: tuple[str, ...] | None = None) -> list[_Candidate]:
    """All branches, each tried; with `names` only these, untried."""
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise InvalidProblem(
            f"model: expected a plain torch.nn.Module, got {type(model).__name__}; hand in the network as it was "
            "before torch.jit or torch.compile"
        )
    with torch.inference_mode(False), evaluating(model):
        flow = dataflow(model, tuple(x.clone() for x in as_inputs(model, example)))
        sides = residuals(model, flow)
        branches = _described(sides)
        known = [branch.name for branch in branches]
        for name in names or ():
            if name not in known:
                raise unknown("branch", name, known)
        dense = count(model, example) if names is None and branches else None
        return [
            _tried(model, flow, branch, residual, example, dense)
            for branch, residual in zip(branches, sides, strict=True)
            if names is None or branch.name in names
        ]


def _described(sides: Sequence[Residual]) -> list[Branch]:
    """Names, layers and nesting."""
    names = unique([common(side.layers) for side in sides], [f"{side.layers[0]}:{side.layers[-1]}" for side in sides])
    branches = []
    for side, name in zip(sides, names, strict=True):
        around = [
            (len(other.operations), theirs)
            for other, theirs in zip(sides, names, strict=True)
            if side.operations < other.operations
        ]
        branches.append(Branch(name, side.modules, side.layers, within=min(around, default=(0, ""))[1]))
    return branches


# -- how it is taken out


def _tried(
    model: nn.Module, flow: Dataflow, branch: Branch, residual: Residual, example: Any, dense: Any
) -> _Candidate:
    """The branch with its plan or the reason against one; removal is tried where the dense counts are given."""
    try:
        plan = planned(model, flow, residual, example)
        branch = replace(branch, modules=(*plan.stand_ins, plan.exit), constant=2 * plan.channels)
        if dense is not None:
            removed, constants = _removed(model, [plan])
            _check(model, removed, [plan], constants, example)
            left = count(removed, example)
            branch = replace(branch, params=dense["params"] - left["params"], macs=dense["macs"] - left["macs"])
        return _Candidate(branch, residual, plan)
    except (Refused, InvalidProblem) as error:
        return _Candidate(replace(branch, reason=str(error)), residual, None)


def _removed(
    model: nn.Module, plans: Sequence[Plan], constant: Callable[[nn.Module, Plan], Tensor | None] | None = None
) -> tuple[nn.Module, list[Tensor | None]]:
    """A copy without the branches, and what each leaves: `constant` of the network so far, zero for None."""
    work = copy.deepcopy(model)
    constants: list[Tensor | None] = []
    for plan in plans:
        put_stand_ins(work, plan)
        put_exit(work, plan, None)
        constants.append(None if constant is None else constant(work, plan))
        put_exit(work, plan, constants[-1])
    gone = [path for plan in plans for path in (*plan.stand_ins, plan.exit)]
    if hasattr(model, KEPT):
        setattr(work, KEPT, {path: kept for path, kept in getattr(model, KEPT).items() if not below(path, gone)})
    return work, constants


def _check(
    model: nn.Module, removed: nn.Module, plans: Sequence[Plan], constants: Sequence[Tensor | None], example: Any
) -> None:
    """Refuse a removed network that differs from the one whose branches are replaced by their constants."""
    masked = copy.deepcopy(model)
    for plan, constant in zip(plans, constants, strict=True):
        masked.get_submodule(plan.exit).register_forward_hook(_giving(plan, constant))
    check = verify(masked, removed, example)
    if not check.passed:
        raise InvalidProblem(
            f"removing it does not give what replacing its output by a constant gives; they part at {check.parted_at}: "
            f"{check.reason} (largest difference of the outputs {check.largest_difference:.3g}, allowed "
            f"{check.tolerance:.3g})"
        )


def _giving(plan: Plan, constant: Tensor | None) -> Callable[..., Tensor]:
    def give(_: nn.Module, args: Any, made: Tensor) -> Tensor:
        level = made.new_zeros(plan.channels) if constant is None else constant.to(made)
        return _along(level, plan.axis, made.ndim).expand_as(made).clone()

    return give


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    return values.reshape([-1 if k == axis else 1 for k in range(ndim)])


# -- what it gives


class _Meeting(TorchFunctionMode):
    """Follows the exit's output to the sum: `left` the exit, `branch` and `shortcut` are its two sides."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self.followed: list[Tensor] = []
        self.steps = plan.steps
        self.left = self.branch = self.shortcut = torch.empty(0)

    def run(self, inputs: Inputs) -> _Meeting:
        """Run the network up to the sum."""
        handle = self.model.get_submodule(self.plan.exit).register_forward_hook(self._at_exit)
        try:
            with evaluating(self.model), self:
                call(self.model, inputs)
        except _Reached:
            return self
        finally:
            handle.remove()
        raise InvalidProblem(f"the sum behind {self.plan.exit} is not reached: the path depends on the input's values")

    def _at_exit(self, _: nn.Module, args: Any, made: Tensor) -> None:
        # a clone, because what follows may work in place
        self.left, self.followed = made.clone(), [made]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(tensor is followed for tensor in tensors((args, kwargs)) for followed in self.followed):
            return func(*args, **(kwargs or {}))
        sides = added(func, args, kwargs)
        if sides and not self.steps:
            self.branch, self.shortcut = sides[self.plan.term][0].clone(), sides[1 - self.plan.term][0].clone()
            raise _Reached
        result = func(*args, **(kwargs or {}))
        if is_seen(func, result):
            self.steps -= 1
            self.followed += tensors(result)
        return result


def _constant(dense: nn.Module, work: nn.Module, plan: Plan, batches: Batches) -> Tensor:
    """(channels,) what the exit has to give for the sum's mean to be the dense one's."""
    passed, wanted = _Mean(plan.axis), _Mean(plan.axis)
    for inputs, _ in batches:
        full, given = _Meeting(dense, plan).run(inputs), _Meeting(work, plan).run(inputs)
        passed.add(full.left)
        if full.branch.shape == full.left.shape:
            wanted.add(full.branch + plan.sign * (full.shortcut - given.shortcut))
    if not plan.steps:
        return wanted.value()
    return _through_the_rest(work, plan, passed, wanted, batches.example())


def _given(model: nn.Module, plan: Plan, example: Any) -> Tensor | None:
    """(channels,) what the exit gives everywhere, None for zero."""
    left = _Meeting(model, plan).run(example).left
    rows = left.movedim(plan.axis, 0).flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    if not bool((high - low <= _SAME * rows.abs().max()).all()):
        raise InvalidProblem(
            f"{plan.exit} does not give a constant: it varies by up to {float((high - low).max()):.3g}"
        )
    return rows.mean(1) if bool(rows.any()) else None


def _through_the_rest(work: nn.Module, plan: Plan, passed: _Mean, wanted: _Mean, example: Inputs) -> Tensor:
    """Which mean, of the exit's output or of the branch's, the operations between them carry to the latter."""
    if not wanted.entries:
        return passed.value()
    trial, gaps = copy.deepcopy(work), []
    for constant in (passed.value(), wanted.value()):
        put_exit(trial, plan, constant)
        arrived = _Meeting(trial, plan).run(example).branch
        gaps.append((float((arrived - _along(wanted.value(), plan.axis, arrived.ndim)).square().sum()), constant))
    return min(gaps, key=lambda gap: gap[0])[1]


class _Mean:
    """Streams tensors into the mean of each channel, in float64."""

    def __init__(self, axis: int) -> None:
        self.axis, self.entries, self.total = axis, 0, torch.zeros(())
        self.like = torch.zeros(())

    def add(self, tensor: Tensor) -> None:
        """Add one batch's."""
        rows = tensor.movedim(self.axis, 0).flatten(1)
        self.total, self.like = self.total.to(rows.device) + rows.double().sum(1), tensor[:0]
        self.entries += rows.shape[1]

    def value(self) -> Tensor:
        """(channels,) of the tensors' own type."""
        return (self.total / self.entries).to(self.like)


def _relative_error(model: nn.Module, plan: Plan, batches: Batches) -> float:
    """E||branch - mean||^2 / E||sum||^2."""
    branch, squares, sums = _Mean(plan.axis), 0.0, 0.0
    for inputs, _ in batches:
        met = _Meeting(model, plan).run(inputs)
        branch.add(met.branch)
        squares += float(met.branch.double().square().sum())
        sums += float((met.branch + plan.sign * met.shortcut).double().square().sum())
    apart = squares - float(branch.total.square().sum()) / branch.entries
    return max(0.0, apart) / sums if sums else math.inf
