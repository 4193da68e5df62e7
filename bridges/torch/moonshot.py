r"""One layer's weights judged by two errors at once: what its outputs lose, and what the loss gains to second order.

With X the layer's unfolded inputs, w^_i row i of its dense weights and g_is the gradient of sample s's loss by row i,

    Q(W) = lam R(W) + (1 - lam) Z_rec / Z_tay sum_i (w_i - w^_i)' F_i (w_i - w^_i)        F_i = 1/m sum_s g_is g_is'

R(W) = offset + sum_i w_i' H w_i - 2 w_i' c_i the regression of the plain pruner (H = X X', with any ridge), and each
error in units of its value with all weights zero: Z_rec = sum_i w^_i' H w^_i, Z_tay = sum_i w^_i' F_i w^_i. The second
one's minimiser is the dense row, whose own gradient is taken to be zero. So Q is a regression again, row i with

    H_i = lam H + (1 - lam) Z_rec / Z_tay F_i        c_i' = lam c_i + (1 - lam) Z_rec / Z_tay F_i w^_i

a shared matrix and one of low rank for each row, and any solver of `SparseRegression` takes it. lam = 1 is the plain
problem, bit by bit.

Afriat, Meng, Ibrahim, Hazimeh, Mazumder, MOONSHOT, arXiv 2604.13287; the form is our reconstruction, divided by Z_rec.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem, SparseRegression, unknown
from prunesolve.problems._arrays import Floats, floats, number, whole

from ._forward import evaluating
from .data import Batches, call, samples, slice_of
from .evaluate import Loss, per_sample, placed, with_targets
from .unfold import LINEAR_LAYERS, columns, output_columns, weight_matrix

LAMBDAS = tuple(round(0.1 * tenth, 1) for tenth in range(10, 0, -1))


def taylor_factors(
    model: nn.Module,
    path: str,
    data: Any,
    *,
    loss: Loss | None = None,
    samples: int = 128,
    rank: int | None = None,
    device: Any = None,
) -> Floats:
    r"""Factors of each row's empirical Fisher matrix, from per-sample gradients of the loss by one layer's weights.

        U_i U_i' = 1/m sum_s g_is g_is'        g_is = sum over calls and positions of (dl_s / dy_i) x

    Parameters
    ----------
    model : Module
        The trained network; run in eval mode and left as it was.
    path : str
        A Linear, Conv or ConvTranspose module that reads samples on the first axis.
    data : see `Batches`
        Samples with targets.
    loss : callable (outputs, targets), optional
        See `evaluate`.
    samples : int
        How many are taken, the first ones.
    rank : int, optional
        Columns at most: sample s is added to column s mod rank with a random sign (a count sketch, fixed seed), so
        that U_i U_i' is an unbiased estimate. Default one column a sample, which is exact; `leading` shortens that
        with the least error.
    device : torch device, optional
        Where to compute; default where the model lies.

    Returns
    -------
    (o, d, r) float
        Rows as in `weight_matrix`, those of a grouped layer's parts one after another; r = min(samples, rank).

    Raises
    ------
    InvalidProblem
        If there is no such layer, targets are missing, the layer does not read samples on its first axis or a gradient
        is not finite.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> data = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[9.0], [9.0]])
    >>> _ = net[0].weight.data.zero_()
    >>> taylor_factors(net, "0", data)[0].round(2).tolist()  # -18 x, over sqrt(2)
    [[-12.73, 0.0], [0.0, -12.73]]
    """
    work = placed(model, device)
    module = _layer(work, path)
    wanted = _positive("samples", samples)
    width = wanted if rank is None else min(wanted, _positive("rank", rank))
    rows, reads = weight_matrix(module).flatten(0, 1).shape
    found, signs = np.zeros((rows, reads, width)), np.random.default_rng(0).choice([-1.0, 1.0], size=wanted)
    seen = 0
    with closing(_gradients(work, path, data, loss, wanted)) as gradients:
        for gradient in gradients:
            if not bool(gradient.isfinite().all()):
                raise InvalidProblem(
                    f"{path}: the loss's gradient on sample {seen} is not finite; check the inputs' scaling and the "
                    "weights"
                )
            found[:, :, seen % width] += signs[seen] * gradient.cpu().numpy()
            seen += 1
    return found[:, :, :seen] / np.sqrt(seen)


def _layer(model: nn.Module, path: str) -> Any:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR_LAYERS)}
    if path not in layers:
        raise unknown("layer", path, layers)
    return layers[path]


def _positive(name: str, value: Any) -> int:
    count = whole(name, value)
    if count < 1:
        raise InvalidProblem(f"{name}: expected at least 1, got {count}")
    return count


def _gradients(model: nn.Module, path: str, data: Any, loss: Loss | None, wanted: int) -> Generator[Tensor]:
    """(o, d) of each of the first samples in turn."""
    module = model.get_submodule(path)
    with evaluating(model), _calls(module) as seen:
        for inputs, targets in Batches(data):
            count = min(samples(inputs), wanted)
            wanted -= count
            inputs = slice_of(inputs, slice(count))
            seen.clear()
            with torch.inference_mode(False), torch.enable_grad():
                outputs = call(model, inputs)
                wished = with_targets(None if targets is None else targets[:count], model)
                total = per_sample(loss, outputs, wished, count).sum()
                slopes = _slopes(total, [made for _, made in seen])
            for read, slope in zip((x for x, _ in seen), slopes, strict=True):
                if len(read) != count or len(slope) != count:
                    raise InvalidProblem(
                        f"{path}: expected {count} samples on the first axis of what it reads, got shape "
                        f"{tuple(read.shape)}"
                    )
            for s in range(count):
                yield sum(
                    (_of_sample(module, x[s : s + 1], y[s : s + 1]) for (x, _), y in zip(seen, slopes, strict=True)),
                    start=torch.zeros_like(weight_matrix(module).flatten(0, 1), dtype=torch.float64),
                )
            if not wanted:
                return


def _slopes(total: Tensor, made: Sequence[Tensor]) -> list[Tensor]:
    """The loss's gradient by each call's output; zero for one that the loss does not see."""
    if not made or not total.requires_grad:
        return [torch.zeros_like(y) for y in made]
    found = torch.autograd.grad(total, list(made), allow_unused=True)
    return [torch.zeros_like(y) if slope is None else slope for y, slope in zip(made, found, strict=True)]


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(what it read, what it made) of each call of the module, to differentiate by."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        made = output if output.requires_grad else output.detach().requires_grad_()
        # an activation may follow in place, on either side
        seen.append((inputs[0].detach().clone(), made))
        return made.clone()

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _of_sample(module: Any, read: Tensor, slope: Tensor) -> Tensor:
    """(o, d) what one call adds to one sample's gradient by the weights."""
    pieces = (
        output_columns(module, slope, span).double() @ x.double().transpose(1, 2) for x, span in columns(module, read)
    )
    return torch.stack(list(pieces)).sum(0).flatten(0, 1)


def leading(factors: Any, rank: int) -> Floats:
    """Factors (o, d, r) of at most `rank` columns whose products U_i U_i' are nearest to those given.

    Column by column the eigenvectors of the largest eigenvalues, each times the root of its eigenvalue.

    Examples
    --------
    >>> leading([[[3.0, 4.0], [0.0, 0.0]]], 1).round(6).tolist()
    [[[5.0], [0.0]]]
    """
    full = floats("factors", factors, (None, None, None))
    # the small side: r x r instead of d x d
    _, vectors = np.linalg.eigh(full.transpose(0, 2, 1) @ full)
    turned = full @ vectors[:, :, ::-1][:, :, : _positive("rank", rank)]
    # an eigenvector's sign is arbitrary; the first column that is not zero decides, so that results repeat
    signs = np.sign(np.take_along_axis(turned, np.abs(turned).argmax(axis=1)[:, None], axis=1))
    return np.asarray(turned * np.where(signs == 0.0, 1.0, signs))


def combined(
    gram: Any, cross: Any, weights: Any, factors: Any, lam: float, *, offset: float = 0.0, ridge: float = 1e-3
) -> dict[str, Any]:
    r"""The arguments of `SparseRegression` for the weighted sum of both errors.

    Parameters
    ----------
    gram : (d, d) float
        H of the plain problem, any ridge included.
    cross : (d, o) float
        c of the plain problem, such as H w^' or X_pruned Y_dense'.
    weights : (o, d) float
        w^, the dense weights.
    factors : (o, d, r) float
        U, see `taylor_factors`.
    lam : float in [0, 1]
        Weight of the reconstruction error; 1 gives gram, cross and offset as they came, without factors.
    offset : float
        Of the plain problem, E||y||^2 where the value is to be the error itself.
    ridge : float
        Pull towards the dense weights that takes the place of H's own as lam falls, 1 - lam of it, relative to H's
        mean diagonal: without H the rows' matrices have no inverse.

    Returns
    -------
    dict
        gram, cross, row_factors, offset, start_weights.

    Raises
    ------
    InvalidProblem
        If the arrays do not fit one another, `lam` is outside of [0, 1] or the ridge is negative.

    Examples
    --------
    >>> told = combined(np.eye(2), [[1.0], [1.0]], [[1.0, 1.0]], [[[0.0], [2.0]]], lam=0.5, ridge=0.0)
    >>> (told["gram"] + told["row_factors"][0] @ told["row_factors"][0].T).tolist()  # Z_rec 2, Z_tay 4
    [[0.5, 0.0], [0.0, 1.5]]
    >>> told["cross"].tolist()
    [[0.5], [1.5]]
    """
    plain = _Plain.checked(gram, cross, weights, factors, lam, offset, ridge)
    if plain.lam == 1.0:
        return plain.told() | {"row_factors": None, "start_weights": plain.weights}
    own = np.sqrt(plain.share) * plain.factors
    pull = np.einsum("odr,or->do", own, np.einsum("odr,od->or", own, plain.weights))
    told = plain.added(pull, float(np.einsum("do,od->", pull, plain.weights)))
    return told | {"row_factors": own, "start_weights": plain.weights}


def mixed(problem: SparseRegression, factors: Any, lam: float, *, ridge: float = 1e-3) -> SparseRegression:
    """A plain layer's problem with the second error beside its own: `combined` of its arrays, all else as it was.

    Its `start_weights` are the dense ones; where it has none they are those that minimise it without a pattern.

    Examples
    --------
    >>> from prunesolve.problems import Keep
    >>> plain = SparseRegression(np.eye(2), [[1.0], [1.0]], Keep(1), offset=2.0, start_weights=[[1.0, 1.0]])
    >>> problem = mixed(plain, [[[0.0], [2.0]]], lam=0.5, ridge=0.0)
    >>> [round(plain.value(x), 6) for x in ([True, False], [False, True])]
    [1.0, 1.0]
    >>> [round(problem.value(x), 6) for x in ([True, False], [False, True])]  # the loss feels the second alone
    [1.5, 0.5]
    """
    if problem.row_factors is not None:
        raise InvalidProblem("problem: expected a plain one, got one with row_factors; they are what is added here")
    weights = problem.dense_weights if problem.start_weights is None else problem.start_weights
    told = combined(problem.gram, problem.cross, weights, factors, lam, offset=problem.offset, ridge=ridge)
    return problem.replace(**told, meta={**problem.meta, "lam": float(lam)})


def averaged(
    gram: Any, cross: Any, weights: Any, factors: Any, lam: float, *, offset: float = 0.0, ridge: float = 1e-3
) -> dict[str, Any]:
    r"""The arguments gram, cross and offset of `SubsetRegression`, which shares one matrix among the rows.

        F = 1/o sum_i F_i        in place of every F_i

    An approximation: of all matrices that rows can share it is the nearest to theirs. It keeps which inputs the loss
    is sensitive to and drops which outputs; `combined` keeps both. Parameters as there; Z_tay is that of F.

    Examples
    --------
    >>> told = averaged(np.eye(2), np.ones((2, 2)), np.ones((2, 2)), [[[0.0], [2.0]], [[0.0], [0.0]]], 0.5, ridge=0)
    >>> told["gram"].tolist()
    [[0.5, 0.0], [0.0, 1.5]]
    """
    plain = _Plain.checked(gram, cross, weights, factors, lam, offset, ridge)
    if plain.lam == 1.0:
        return plain.told()
    o, d, _ = plain.factors.shape
    flat = plain.factors.transpose(1, 0, 2).reshape(d, -1) / np.sqrt(o)
    fisher = flat @ flat.T
    energy = float(np.einsum("od,de,oe->", plain.weights, fisher, plain.weights))
    fisher *= plain.in_units(energy)
    pull = fisher @ plain.weights.T
    told = plain.added(pull, float(np.einsum("do,od->", pull, plain.weights)))
    return told | {"gram": told["gram"] + fisher}


@dataclass(frozen=True)
class _Plain:
    """The plain problem, checked, and what the second error is measured in."""

    gram: Floats
    cross: Floats
    weights: Floats
    factors: Floats
    lam: float
    offset: float
    ridge: float

    @classmethod
    def checked(
        cls, gram: Any, cross: Any, weights: Any, factors: Any, lam: float, offset: float, ridge: float
    ) -> _Plain:
        w = floats("weights", weights, (None, None))
        o, d = w.shape
        plain = cls(
            floats("gram", gram, (d, d)),
            floats("cross", cross, (d, o)),
            w,
            floats("factors", factors, (o, d, None)),
            number("lam", lam),
            number("offset", offset),
            number("ridge", ridge),
        )
        if not 0.0 <= plain.lam <= 1.0:
            raise InvalidProblem(f"lam: expected a number from 0 to 1, got {lam!r}")
        if plain.ridge < 0.0:
            raise InvalidProblem(f"ridge: expected a number >= 0, got {ridge!r}")
        return plain

    def told(self) -> dict[str, Any]:
        return {"gram": self.gram, "cross": self.cross, "offset": self.offset}

    @property
    def energy(self) -> float:
        """Z_rec."""
        return float(np.einsum("od,de,oe->", self.weights, self.gram, self.weights))

    @property
    def share(self) -> float:
        """What F_i is multiplied by."""
        return self.in_units(float(np.square(np.einsum("od,odr->or", self.weights, self.factors)).sum()))

    def in_units(self, energy: float) -> float:
        """(1 - lam) Z_rec / Z_tay; zero where no weight matters to the loss."""
        return (1.0 - self.lam) * self.energy / energy if energy > 0.0 else 0.0

    def added(self, pull: Floats, constant: float) -> dict[str, Any]:
        """The shared part of both errors: `pull` (d, o) is what the second one adds to cross, without the ridge."""
        damping = (1.0 - self.lam) * self.ridge * float(np.diagonal(self.gram).mean())
        return {
            "gram": self.lam * self.gram + damping * np.eye(len(self.gram)),
            "cross": self.lam * self.cross + pull + damping * self.weights.T,
            "offset": self.lam * self.offset + constant + damping * float(np.square(self.weights).sum()),
        }


@dataclass(frozen=True)
class Swept:
    """What `swept` found.

    Attributes
    ----------
    lam : float
        The best weight.
    answer : object
        What the pruner made of it.
    table : tuple of (lam, loss)
        In the order tried; inf where the loss is not finite.
    """

    lam: float
    answer: Any
    table: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        return "\n".join(f"lam {lam:<4g} {loss:.6g}{'  best' if lam == self.lam else ''}" for lam, loss in self.table)


def swept(prune: Callable[[float], Any], judge: Callable[[Any], float], lambdas: Sequence[float] = LAMBDAS) -> Swept:
    """The weight lam whose pruned layer, or network, the judge likes best.

    Parameters
    ----------
    prune : callable (lam) -> anything
        Prunes with that weight, such as by a solver on `SparseRegression(**combined(...), pattern=...)`.
    judge : callable (what prune returned) -> float
        The loss on calibration data, to be small.
    lambdas : sequence of float
        Tried in this order; among equals the earlier wins. By default from 1, the plain pruner, down to 0.1.

    Returns
    -------
    Swept

    Examples
    --------
    >>> found = swept(lambda lam: lam, lambda lam: (lam - 0.3) ** 2)
    >>> found.lam, len(found.table)
    (0.3, 10)
    """
    best: tuple[float, float, Any] | None = None
    table = []
    for lam in lambdas:
        answer = prune(lam)
        told = float(judge(answer))
        told = told if np.isfinite(told) else float("inf")
        table.append((lam, told))
        if best is None or told < best[0]:
            best = (told, lam, answer)
    if best is None:
        raise InvalidProblem("lambdas: expected at least one weight to try, got none")
    return Swept(best[1], best[2], tuple(table))
