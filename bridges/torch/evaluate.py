"""Loss and metric of a network on data: exact means over samples, however uneven the batches.

`evaluate` is for one network, `Evaluator` for thousands of selections of one.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from prunesolve.problems import BinaryQuadratic, Group, InvalidProblem, Selection, unknown
from prunesolve.problems._arrays import bits
from prunesolve.problems.black_box import BlackBox
from prunesolve.problems.units import offsets

from ._dense_refit import DenseRefit
from ._fold import agree, answer, copied, folded, followers
from ._forward import evaluating, reseed, tensors
from ._prefix import Leaves, Prefix, Study, Varies
from ._reduced import Reduced, Weights
from .attention import layers_of, open_attention, owners
from .batchnorm import BATCH_NORMS, recalibrate_batchnorm
from .data import Batches, Inputs, call, device_of, samples, slice_of
from .masks import masks

Loss = Callable[[Any, Any], Any]
Half = Literal["search", "guard"]
_MSE_FLOOR = 1e-10
# selections whose BatchNorm statistics are remembered
_REMEMBERED = 256
_FOLD_IN = (
    "fold reparametrisations in first (torch.nn.utils.prune.remove, "
    "torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm)"
)
# one for all evaluators: they seed torch's random numbers, which the threads of a process share
_turn = threading.RLock()
_log = logging.getLogger("prunesolve")


def evaluate(
    model: nn.Module, data: Any, *, loss: Loss | None = None, metric: Loss | None = None, device: Any = None
) -> dict[str, Any]:
    """Mean loss and mean metric over the samples of `data`, in eval mode.

    Parameters
    ----------
    model : Module
        Left as it was, training flags included.
    data : see `Batches`
        Batches with targets.
    loss : callable (outputs, targets), optional
        Returns the batch mean or one value a sample. Default: cross-entropy for integer targets, mean squared error
        for float targets of the outputs' shape.
    metric : callable (outputs, targets), optional
        As `loss`. Default: accuracy in % for integer targets, mean PSNR in dB of the samples for float targets of the
        outputs' shape (peak value 1, no clipping, at most 100 dB); the loss itself where neither applies.
    device : torch device, optional
        Where to compute; default where the model lies.

    Returns
    -------
    dict
        {"loss": float, "metric": float, "metric_name": str}

    Raises
    ------
    InvalidProblem
        If there are no targets or no default loss fits them.

    Examples
    --------
    >>> inputs = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> evaluate(nn.Identity(), (inputs, torch.tensor([0, 0])))["metric"]
    50.0
    """
    model = placed(model, device)
    count, loss_sum, metric_sum, name = 0, 0.0, 0.0, "loss"
    with evaluating(model), torch.inference_mode():
        for inputs, targets in Batches(data):
            outputs, wanted = call(model, inputs), with_targets(targets, model)
            losses = per_sample(loss, outputs, wanted, samples(inputs))
            chosen, name = (metric, _name(metric)) if metric is not None else _default_metric(outputs, wanted)
            scores = losses if chosen is None else _each(chosen(outputs, wanted), samples(inputs), "metric")
            loss_sum += float(losses.double().sum())
            metric_sum += float(scores.double().sum())
            count += samples(inputs)
    return {"loss": loss_sum / count, "metric": metric_sum / count, "metric_name": name}


def per_sample(loss: Loss | None, outputs: Any, targets: Tensor, count: int) -> Tensor:
    """One loss value a sample, (count,).

    A `loss` that returns the mean over the batch gives that mean for each sample. The sum is then the same, and in
    eval mode, where samples do not meet, the gradient of the sum at a sample's activation is that sample's own.
    """
    if loss is not None:
        return _each(loss(outputs, targets), count, "loss")
    if not isinstance(outputs, Tensor):
        raise InvalidProblem(f"loss: the network returns a {type(outputs).__name__}, not a tensor; give loss=")
    if _is_classes(targets):
        return (
            F.cross_entropy(_classes_second(outputs, targets), targets.long(), reduction="none")
            .reshape(count, -1)
            .mean(1)
        )
    if targets.shape == outputs.shape and targets.is_floating_point():
        return F.mse_loss(outputs, targets, reduction="none").reshape(count, -1).mean(1)
    raise InvalidProblem(
        f"loss: no default for outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}: "
        "integer targets take cross-entropy, float targets of the outputs' shape mean squared error; give loss="
    )


def with_targets(targets: Tensor | None, model: nn.Module) -> Tensor:
    """The targets on the model's device; refuses a batch without them."""
    if targets is None:
        raise InvalidProblem("data: expected (inputs, targets) batches, got inputs without targets")
    return targets.to(device_of(model))


def placed(model: nn.Module, device: Any) -> nn.Module:
    """The model where it lies on `device` or none is asked, else a copy there: the caller's stays where it is."""
    if device is None or _checked_device(device) == device_of(model):
        return model
    return copy.deepcopy(model).to(device)


def _checked_device(device: Any) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidProblem(
            f"device: expected a device that torch finds on this machine, such as cpu, got {device!r} ({reason})"
        ) from None


def _is_classes(targets: Tensor) -> bool:
    return not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool


def _classes_second(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores (B, classes, ...) from (B, classes, ...) or (B, ..., classes)."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[2:] == targets.shape[1:]:
        scores = outputs
    elif outputs.ndim == targets.ndim + 1 and outputs.shape[:-1] == targets.shape:
        scores = outputs.movedim(-1, 1)
    else:
        raise InvalidProblem(
            f"loss: integer targets {tuple(targets.shape)} do not fit outputs {tuple(outputs.shape)}: expected "
            "(batch, classes, ...) for targets (batch, ...); give loss="
        )
    classes = targets.long()
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= scores.shape[1]:
        raise InvalidProblem(f"targets: expected classes 0 to {scores.shape[1] - 1}, got {low} to {high}")
    return scores


def _each(value: Any, count: int, what: str) -> Tensor:
    """A mean or per-sample values as (count,)."""
    try:
        values = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidProblem(f"{what}: expected a mean or {count} values, got {type(value).__name__}") from None
    if values.is_complex():
        raise InvalidProblem(f"{what}: expected real numbers, got {values.dtype}")
    if not values.is_floating_point():
        values = values.double()
    if values.numel() == 1:
        return values.reshape(1).expand(count)
    if values.ndim == 0 or len(values) != count:
        raise InvalidProblem(
            f"{what}: expected a mean or {count} values, one a sample, got shape {tuple(values.shape)}"
        )
    return values.reshape(count, -1).mean(1)


def _name(metric: Any) -> str:
    return str(getattr(metric, "__name__", type(metric).__name__))


def _default_metric(outputs: Any, targets: Tensor) -> tuple[Loss | None, str]:
    if not isinstance(outputs, Tensor):
        return None, "loss"
    if _is_classes(targets) and outputs.ndim == targets.ndim + 1:
        return _accuracy, "accuracy"
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return _psnr, "psnr"
    return None, "loss"


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return 100.0 * (_classes_second(outputs, targets).argmax(1) == targets.long()).double()


def _psnr(outputs: Tensor, targets: Tensor) -> Tensor:
    errors = (outputs - targets).double().square().reshape(len(outputs), -1).mean(1)
    return -10.0 * torch.log10(errors.clamp_min(_MSE_FLOOR))


# -- many selections of one network


@dataclass
class Counters:
    """What an `Evaluator` has done so far.

    Attributes
    ----------
    masks : selections evaluated, those on some batches only by their share of the samples
    batches : forward passes of a batch for a selection
    references : further forward passes, to record what others resume from and to check that
    layers : calls of layers in these passes
    skipped : those that the prefix cache answered
    seconds : time spent
    """

    masks: float = 0.0
    batches: int = 0
    references: int = 0
    layers: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Evaluator:
    r"""The true loss or metric of a network's selections, as a black box for searches.

        f(x) = sum_b n_b f_b(x) / sum_b n_b        f_b the mean over the n_b samples of batch b, to be minimised

    The value of a selection is that of the masked network, which is that of the removed one; what is run has most of
    the channels removed, where that was found to give the same, and layers before the first change are answered from
    memory. The same selection gets the same value whatever was asked before. Calls from several threads take turns; an
    evaluator can be pickled and copied.

    Parameters
    ----------
    model : Module
        The dense network; copied, never changed.
    data : see `Batches`
        Calibration samples with targets; held in memory. One batch of the black box for each batch of the data.
    groups : sequence of Group
        The units, as in `Statistics.groups`.
    objective : "loss" or "metric"
        The loss is minimised. The metric is maximised, so that f is minus it; where `evaluate` has no metric it is the
        loss. For a metric of your own that is better when smaller, hand it in as `loss`.
    loss, metric : callable (outputs, targets), optional
        As in `evaluate`; the outputs come in the network's own precision.
    refit : bool
        Fit each layer to its kept inputs by least squares, from statistics of the dense network: a cheap stand-in for
        `refit`, which follows the pruned network from layer to layer and makes good what earlier layers lost. The
        stand-in misses that: it stays below, exaggerates differences and may order good selections otherwise. On a
        DnCNN (sigma 25) with 36 % removed it gives 28.0 to 28.3 dB for Taylor, hybrid, reconstruction and random
        selections, `refit` 28.6 to 28.7 dB, masks alone 19 to 25 dB; for L1 21.9, 24.1 and 19.6 dB. So `refit` what a
        search finds before saying how good it is. Printed by benchmarks/evaluator.py.
    weights : callable (path, (in,) bool), optional
        In place of `refit`: weight and, where it has one, bias of a layer of this network that keeps these inputs, by
        name and in dense shape; None for the dense ones.
    batchnorm : bool
        Measure the BatchNorm statistics of each selection anew, on the search half.
    guard : bool
        Keep every second sample, drawn by pairs, from the search: `score(keep, "guard")` shows what overfits.
        False: all samples are searched on.
    device : torch device, optional
        Where to compute; default where the model lies.
    dtype : torch dtype, optional
        Precision of the search; default the model's. torch.bfloat16 is several times faster where the processor has
        units for it; `score` computes in the model's own precision either way.
    memory : int
        Bytes for outputs that evaluations resume from; 0 switches that off.

    Attributes
    ----------
    n : int
        Number of units.
    weights : (B,) int
        Samples of each batch of the search half.
    counters : Counters
        What was done so far.

    Raises
    ------
    InvalidProblem
        If the groups do not belong to the model or a layer of theirs computes its weights, targets are missing or no
        loss fits them, there are too few samples for two halves, the network does not run in `dtype`, or an option is
        not what is expected above.

    References
    ----------
    Reconstruction (ours), with the least squares of He, Zhang, Sun, Channel pruning for accelerating very deep neural
    networks, ICCV 2017 and the BatchNorm recalibration of Sun et al., NeurIPS 2019.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> group = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("2", "in", [[0], [1], [2]])])
    >>> evaluator = Evaluator(net, (torch.randn(8, 2), torch.randn(8, 1)), [group])
    >>> evaluator.evaluate([[True, True, False], [True, True, True]]).shape, evaluator.weights.tolist()
    ((2,), [4])
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        groups: Sequence[Group],
        *,
        objective: Literal["loss", "metric"] = "loss",
        loss: Loss | None = None,
        metric: Loss | None = None,
        refit: bool = False,
        weights: Weights | None = None,
        batchnorm: bool = False,
        guard: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        memory: int = 2**30,
    ) -> None:
        if objective not in ("loss", "metric"):
            raise unknown("objective", objective, ("loss", "metric"))
        if refit and weights is not None:
            raise InvalidProblem("refit: expected refit or weights, got both; the weights are the refitted ones")
        for name, function in (("loss", loss), ("metric", metric)):
            if function is not None and not callable(function):
                raise InvalidProblem(f"{name}: expected a callable (outputs, targets), got {function!r}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InvalidProblem(f"dtype: expected a floating-point torch.dtype such as torch.bfloat16, got {dtype!r}")
        if not isinstance(memory, (int, float, np.number)) or not memory >= 0:
            raise InvalidProblem(f"memory: expected a number of bytes >= 0, got {memory!r}")
        self.groups = _checked_groups(groups, model)
        self.n = int(offsets(self.groups)[-1])
        self.objective, self.loss, self.metric = objective, loss, metric
        self.counters = Counters()
        with _turn, torch.inference_mode(False):
            self._halves = _halves(data, guard)
            self.weights = np.array([samples(inputs) for inputs, _ in self._halves["search"]])
            self._prepare(model, refit, weights, batchnorm, device, dtype, memory)

    def black_box(self, problem: BinaryQuadratic) -> BlackBox:
        """The search half as a black box over the problem's selections, with the problem as its surrogate."""
        if problem.n != self.n:
            raise InvalidProblem(f"problem: expected the {self.n} units of the evaluator's groups, got {problem.n}")
        return BlackBox.over(problem, self.evaluate, self.weights.astype(np.float64))

    def evaluate(self, X: Any, b: int | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(m,) values of the rows of X (m, n) on batch b of the search half, to be minimised; None takes all batches.

        NaN where the network's outputs are.

        Raises
        ------
        InvalidProblem
            If X does not hold zeros and ones for the n units or there is no such batch.
        """
        rows = np.atleast_2d(bits("X", np.asarray(X), self.n))
        if b is None:
            values = np.stack([self.evaluate(rows, b) for b in range(len(self.weights))])
            return self.weights @ values / self.weights.sum()
        if b not in range(len(self.weights)):
            raise InvalidProblem(f"b: expected a batch, 0 to {len(self.weights) - 1}, or None for all, got {b!r}")
        began = time.perf_counter()
        try:
            with _turn, torch.inference_mode(False), evaluating(self._reduced.model):
                return self._values(rows, b)
        finally:
            self.counters.seconds += time.perf_counter() - began

    def score(self, keep: Any, half: Half = "search") -> dict[str, Any]:
        """What `evaluate` says of one selection (n,) on a half, in the model's own precision and without memory.

        Raises
        ------
        InvalidProblem
            If there is no such half.
        """
        if half not in self._halves:
            raise unknown("half", half, self._halves)
        row = bits("keep", keep, self.n)
        with _turn, torch.inference_mode(False), evaluating(self._exact.model):
            self._exact.take(row)
            if self._statistics is not None:
                _recalibrated(self._exact.model, self._halves["search"])
            data = [(copied(inputs), targets.clone()) for inputs, targets in self._halves[half]]
            return evaluate(self._exact.model, data, loss=self.loss, metric=self.metric)

    # -- what is run

    def _prepare(
        self,
        model: nn.Module,
        refit: bool,
        weights: Weights | None,
        batchnorm: bool,
        device: Any,
        dtype: torch.dtype | None,
        memory: int,
    ) -> None:
        dense = open_attention(_copy(model, device), owners(self.groups)).eval()
        first = self._halves["search"][0][0]
        repeats = _repeats(dense, first)
        pairs = followers(dense, first)
        # weights that are given belong to the layers as they are
        folds = bool(pairs) and repeats and not batchnorm and weights is None
        fused = folded(dense, pairs, first) if folds else None
        dense, groups = (dense, self.groups) if fused is None else (fused, _without(self.groups, set(pairs.values())))
        if refit:
            readers = {m.path for group in groups for m in group.members if m.axis == "in"}
            inputs = (copied(inputs) for inputs, _ in self._halves["search"])
            weights = DenseRefit(dense, inputs, readers, centred=pairs if batchnorm else ())
        self._own = next((p.dtype for p in dense.parameters() if p.is_floating_point()), torch.float32)
        work, self._search = self._placed(dense, dtype or self._own)
        self._exact, self._reduced = Reduced(dense, groups, weights), Reduced(work, groups, weights)
        # a removed network draws other random numbers than the masked one
        self._exact.removes = self._reduced.removes = repeats and _removable(dense, groups, first)
        self._statistics: OrderedDict[bytes, list[Tensor]] | None = OrderedDict() if batchnorm else None
        self._leaves, self._prefix, self._calls = Leaves(work), None, 0
        if repeats:
            with evaluating(work):
                calls, _ = Study().of(self._leaves, work, copied(self._search[0][0]))
            self._calls = len(calls)
            if memory > 0:
                self._prefix = Prefix(self._leaves, calls, groups, len(self._search), memory)

    def _placed(self, dense: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, list[tuple[Inputs, Tensor]]]:
        """The network to search with and its batches, in `dtype` and the memory layout that suits it."""
        first, targets = self._halves["search"][0]
        layout = _layout(dense, first)
        work = _converted(copy.deepcopy(dense), dtype, layout)
        search = [
            (_prepared(inputs, device_of(dense), dtype, layout), with_targets(wanted, work))
            for inputs, wanted in self._halves["search"]
        ]
        self._objective(answer(dense, first), with_targets(targets, dense), samples(first))
        try:
            answer(work, search[0][0])
        except InvalidProblem as error:
            raise InvalidProblem(f"dtype: the network does not run in {dtype}, leave it out ({error})") from error
        return work, search

    def _values(self, rows: Any, b: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        if self._prefix is not None:
            self._refer(self._prefix, rows, b)
        values = np.array([self._value(row, b) for row in rows], dtype=np.float64)
        self.counters.masks += len(rows) * float(self.weights[b] / self.weights.sum())
        self.counters.batches += len(rows)
        return values

    def _refer(self, prefix: Prefix, rows: Any, b: int) -> None:
        """Move the reference of batch b where that pays."""
        centre = prefix.wanted(rows, b)
        if centre is None or not self._become(centre):
            return
        try:
            reseed(self._reduced.model)
            prefix.record(self._reduced.model, copied(self._search[b][0]), centre, b)
            self.counters.references += 1
        except Varies:
            self._switch_off()

    def _value(self, row: Any, b: int) -> float:
        inputs, targets = self._search[b]
        whole = self._become(row)
        outputs = self._outputs(row, b) if whole else self._computed(inputs)
        return self._objective(outputs, targets, samples(inputs))

    def _become(self, row: Any) -> bool:
        """Turn the network to search with into that of a selection; whether all that goes is removed."""
        whole = self._reduced.take(row)
        if self._statistics is not None:
            key = row.tobytes()
            if key not in self._statistics:
                self._statistics[key] = _recalibrated(self._reduced.model, self._search)
                if len(self._statistics) > _REMEMBERED:
                    self._statistics.popitem(last=False)
            _set_statistics(self._reduced.model, self._statistics[key])
        return whole

    def _outputs(self, row: Any, b: int) -> Any:
        """The network's answer on a batch, resumed from memory where that was found to give the same."""
        inputs, prefix = self._search[b][0], self._prefix
        upto = 0 if prefix is None else prefix.start(row, b)
        if prefix is None or upto == 0:
            return self._computed(inputs)
        try:
            reseed(self._reduced.model)
            outputs = prefix.run(self._reduced.model, copied(inputs), b, upto)
            self.counters.layers += self._calls
            self.counters.skipped += upto
        except Varies:
            self._switch_off()
            return self._computed(inputs)
        if upto not in prefix.checked:
            computed = self._computed(inputs)
            prefix.checked.add(upto)
            self.counters.references += 1
            if not agree(outputs, computed):
                self._switch_off()
                return computed
        return outputs

    def _computed(self, inputs: Inputs) -> Any:
        reseed(self._reduced.model)
        self.counters.layers += self._calls
        return call(self._reduced.model, copied(inputs))

    def _switch_off(self) -> None:
        _log.info("evaluator: the network's calls vary or share weights; it runs without prefix caching")
        self._prefix = None

    def _objective(self, outputs: Any, targets: Tensor, count: int) -> float:
        if any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors(outputs)):
            return float("nan")
        # a loss may work in place, on what later evaluations are answered with
        outputs, targets = _pytree.tree_map(self._precise, outputs), targets.clone()
        chosen = None
        if self.objective == "metric":
            chosen = self.metric if self.metric is not None else _default_metric(outputs, targets)[0]
        if chosen is None:
            return float(per_sample(self.loss, outputs, targets, count).double().mean())
        return -float(_each(chosen(outputs, targets), count, "metric").double().mean())

    def _precise(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self._own if value.is_floating_point() else value.dtype, copy=True)


def _checked_groups(groups: Any, model: nn.Module) -> tuple[Group, ...]:
    """The groups, if they are units of this model whose weights are parameters."""
    found = tuple(groups) if isinstance(groups, Iterable) else ()
    if not found or not all(isinstance(group, Group) for group in found):
        raise InvalidProblem(
            f"groups: expected one or more Group, as in find_groups(model, example).groups, got {groups!r:.80}"
        )
    masks(Selection(found, np.ones(sum(g.size for g in found), dtype=bool)), model)
    modules = layers_of(model)
    for path in {member.path for group in found for member in group.members}:
        weight = getattr(modules[path], "weight", None)
        if weight is not None and not isinstance(weight, nn.Parameter):
            raise InvalidProblem(f"model: {path} computes its weight anew at each call; {_FOLD_IN}")
    return found


def _copy(model: nn.Module, device: Any) -> nn.Module:
    try:
        return copy.deepcopy(placed(model, device))
    except RuntimeError as error:
        raise InvalidProblem(f"model: it cannot be copied ({str(error).splitlines()[0]:.120}); {_FOLD_IN}") from error


def _halves(data: Any, guard: bool) -> dict[str, list[tuple[Inputs, Tensor]]]:
    """The samples of each half, batch by batch; of each two samples that follow one another one goes to either."""
    rng = np.random.default_rng(0)
    halves: dict[str, list[tuple[Inputs, Tensor]]] = {"search": [], "guard": []} if guard else {"search": []}
    seen, coin = 0, 0
    for inputs, targets in Batches(data):
        if targets is None:
            raise InvalidProblem("data: expected (inputs, targets) batches, got inputs without targets")
        searched = np.ones(samples(inputs), dtype=bool)
        for i in range(len(searched) if guard else 0):
            coin = int(rng.integers(2)) if seen % 2 == 0 else 1 - coin
            searched[i], seen = coin == 1, seen + 1
        for half, chosen in zip(halves, (searched, ~searched), strict=False):
            rows = torch.from_numpy(np.flatnonzero(chosen))
            if len(rows):
                halves[half].append((slice_of(inputs, rows), targets[rows]))
    if not all(halves.values()):
        raise InvalidProblem("data: expected two samples or more, one for each half, got one; or set guard=False")
    return halves


def _repeats(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the network gives the same twice in a row and draws no random numbers."""
    with evaluating(model):
        reseed(model)
        before = _random_states(model)
        one = call(model, copied(inputs))
        drawn = any(not torch.equal(a, b) for a, b in zip(before, _random_states(model), strict=True))
        return not drawn and agree(one, call(model, copied(inputs)))


def _removable(model: nn.Module, groups: Sequence[Group], inputs: Inputs) -> bool:
    """Whether the network without every second unit runs and gives what it gives with them masked.

    It does not where the network's own code goes by a layer's width.
    """
    own = next((p.dtype for p in model.parameters()), torch.float32)
    dtype = own if own.itemsize >= 4 else torch.float32
    trial = Reduced(_converted(copy.deepcopy(model), dtype, torch.contiguous_format), groups)
    inputs = _prepared(inputs, device_of(model), dtype, torch.contiguous_format)
    keep = np.arange(trial.starts[-1]) % 2 == 0
    trial.multiple = 1
    try:
        if not trial.take(keep):
            return True
        removed = answer(trial.model, inputs)
    except InvalidProblem:
        return False
    trial.removes = False
    trial.take(keep)
    return agree(removed, answer(trial.model, inputs))


def _random_states(model: nn.Module) -> list[Tensor]:
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in cuda)]


def _without(groups: Sequence[Group], paths: set[str]) -> list[Group]:
    """The groups without their members in these modules."""
    return [Group(g.name, g.size, [m for m in g.members if m.path not in paths], g.layer, g.channels) for g in groups]


def _layout(model: nn.Module, inputs: Inputs) -> torch.memory_format:
    """Channels last, the faster one, unless code that reshapes fails or computes something else on it."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    spread = _converted(copy.deepcopy(model), dtype, torch.channels_last)
    try:
        found = answer(spread, _prepared(inputs, device_of(model), dtype, torch.channels_last))
    except (InvalidProblem, RuntimeError):
        return torch.contiguous_format
    return torch.channels_last if agree(found, answer(model, inputs)) else torch.contiguous_format


def _converted(model: Any, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
    model = model.to(dtype).to(memory_format=layout)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and dtype.itemsize < 4:
            # averages of averages: a short mantissa would lose them
            module.float()
    return model


def _prepared(inputs: Inputs, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Inputs:
    def one(part: Tensor) -> Tensor:
        part = part.to(device, dtype if part.is_floating_point() else None)
        return part.contiguous(memory_format=layout) if part.ndim == 4 else part.contiguous()

    return one(inputs) if isinstance(inputs, Tensor) else tuple(one(part) for part in inputs)


def _norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]


def _recalibrated(model: nn.Module, batches: list[Any]) -> list[Tensor]:
    """The BatchNorm statistics of the network as it is: mean and variance of each in turn."""
    for norm in _norms(model):
        norm.running_mean, norm.running_var = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
    recalibrate_batchnorm(model, [(copied(inputs), None) for inputs, _ in batches])
    return [statistic for norm in _norms(model) for statistic in (norm.running_mean, norm.running_var)]


def _set_statistics(model: nn.Module, statistics: list[Tensor]) -> None:
    for norm, mean, var in zip(_norms(model), statistics[::2], statistics[1::2], strict=True):
        norm.running_mean, norm.running_var = mean, var
