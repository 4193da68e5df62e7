"""Is a formulation what it says it is? `check_formulation` proves it by enumeration on a small network's statistics.

Anybody's formulation can be checked; ours are, in the test suite, by the same function.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    Group,
    InvalidProblem,
    LevelChoice,
    Member,
    MultiObjective,
    Statistics,
)
from prunesolve.problems._arrays import Bits, Floats

from ._base import FeatureFormulation, Formulation
from ._feature_testing import check_features

MOST_UNITS = 12
_CLOSE = 1e-9


def check_formulation(formulation: Formulation | FeatureFormulation, stats: Statistics | None = None) -> None:
    """Prove on every selection of a small instance that the formulation keeps its word.

    The problem's value is `meaning` for every x; encode changes nothing and repeats; decode gives back the labelled
    units; constraints admit exactly the selections asked for; missing statistics and impossible budgets are refused
    in words; a claimed diagonal is true; the instance survives a file. A formulation may encode a `BinaryQuadratic`,
    a `MultiObjective` (whose `meaning` has one value for each objective, and whose `keep` is at most that many) or a
    `LevelChoice`, whose points are checked by the selections they decode to. A formulation of features encodes a
    `Clustering`, a `PartialTransport` or a `SubsetRegression`; its solutions are enumerated, decoded and valued by
    `meaning`.

    Parameters
    ----------
    formulation : Formulation or FeatureFormulation
        What to check.
    stats : Statistics, optional
        For a formulation of statistics: at most 12 units; default `example_statistics()`, with and without groups that
        meet in one consumer.

    Raises
    ------
    AssertionError
        With what was expected and what came.

    Examples
    --------
    >>> from prunesolve.formulations import L1Qubo
    >>> check_formulation(L1Qubo(beta=0.1))
    """
    _check_class(formulation)
    if isinstance(formulation, FeatureFormulation):
        check_features(formulation)
        return
    samples = [stats] if stats is not None else [example_statistics(), example_statistics(concat=True)]
    for sample in samples:
        _say(sample.n <= MOST_UNITS, f"check_formulation enumerates: at most {MOST_UNITS} units, got {sample.n}")
        for check in (_check_purity, _check_value, _check_diagonal, _check_way_back, _check_file, _check_budgets):
            check(formulation, sample)
        _check_refused_statistics(formulation, sample)
        _check_refused_budgets(formulation, sample)


def example_statistics(seed: int = 0, *, concat: bool = False) -> Statistics:
    """Ten units in three layers of a made-up chain, with every statistic that `measure` writes; seeded.

    With `concat` the first two groups are read by one consumer, so that their contributions have cross terms.
    """
    from scipy import sparse

    rng = np.random.default_rng(seed)
    sizes = (4, 3, 3)
    n = sum(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    spans = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    maps, filters, contributions = (rng.standard_normal((n, d)) + 0.4 for d in (5, 6, 7))
    gates = rng.standard_normal((n, 20))
    gram = contributions @ contributions.T
    gram /= gram.sum()
    wide = np.concatenate([np.full(s, c) for s, c in zip(sizes, (30.0, 12.0, 21.0), strict=True)])
    return Statistics(
        groups=[_example_group(f"layer{g}", s, rng) for g, s in enumerate(sizes)],
        saliency={
            "l1": np.abs(filters).sum(axis=1),
            "l2": np.linalg.norm(filters, axis=1),
            "taylor": np.abs(gates).mean(axis=1),
            "taylor_signed": gates.mean(axis=1),
            "fisher": np.square(gates).mean(axis=1) / 2,
        },
        blocks={
            "activation": [np.abs(_cosine(maps[s])) for s in spans],
            "weights": [_cosine(filters[s]) for s in spans],
            "reconstruction": [gram[s, s] for s in spans],
        },
        cross={"reconstruction": {(0, 1): gram[spans[0], spans[1]]}} if concat else {},
        factors={"fisher": gates / np.sqrt(gates.shape[1])},
        cost={"params": wide, "macs": 16.0 * wide},
        pair_cost={r: sparse.csr_array(_neighbours(spans, n) * w) for r, w in (("params", 9.0), ("macs", 144.0))},
        constant={"params": 10.0, "macs": 0.0},
        meta={"samples": 20},
    )


def _example_group(name: str, size: int, rng: np.random.Generator) -> Group:
    channels = np.sort(rng.choice(2 * size, size, replace=False))
    return Group(name, size, [Member(name, "out", np.arange(size)[:, None])], channels=channels)


def _cosine(vectors: Floats) -> Floats:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def _neighbours(spans: list[slice], n: int) -> Floats:
    """(n, n) 1 where two units sit in layers that follow each other."""
    adjacent = np.zeros((n, n))
    for a, b in zip(spans, spans[1:], strict=False):
        adjacent[a, b] = adjacent[b, a] = 1.0
    return adjacent


def _say(holds: Any, message: str) -> None:
    # no assert statement: these checks must also hold under python -O
    if not holds:
        raise AssertionError(message)


def _selections(n: int) -> Bits:
    """(2^n, n) every selection."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


def _written(x: Bits) -> str:
    return "".join("1" if kept else "0" for kept in x)


def _encoded(formulation: Formulation, stats: Statistics, **asked: Any) -> Any:
    try:
        return formulation.encode(stats, **asked)
    except InvalidProblem as error:
        raise AssertionError(f"{formulation!r}: encode({_told(asked)}) can be met and was refused: {error}") from error


def _told(asked: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asked.items())


def _free(formulation: Formulation) -> Formulation:
    """The same without a minimum per group, so that every selection is admitted by some count."""
    return replace(formulation, minimum=0)


def _check_class(formulation: Any) -> None:
    known = isinstance(formulation, (Formulation, FeatureFormulation))
    _say(known, f"expected a Formulation, got {type(formulation).__name__}")
    cls = type(formulation)
    frozen = is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    _say(frozen and "__dataclass_fields__" in vars(cls), f"{cls.__name__}: decorate it with @dataclass(frozen=True)")
    _say(isinstance(getattr(cls, "name", None), str), f"{cls.__name__}: give it a name: ClassVar[str]")
    try:
        cls()
    except TypeError as error:
        raise AssertionError(f"{cls.__name__}: every field needs a default ({error})") from error
    _say(pickle.loads(pickle.dumps(formulation)) == formulation, f"{formulation!r}: changed by a pickle round trip")


def _check_value(formulation: Formulation, stats: Statistics) -> None:
    """The problem's value is the stated meaning, for every x."""
    problem = _encoded(_free(formulation), stats, keep=1.0)
    points, selections = _points(_free(formulation), problem, stats)
    values = problem.values(points) if isinstance(problem, MultiObjective) else problem.value(points)
    meant = np.array([formulation.meaning(stats, x) for x in selections])
    # of several objectives each has its own scale
    off = np.abs(values - meant) / np.maximum(1.0, np.abs(meant).max(axis=0))
    off = off.reshape(len(points), -1).max(axis=1)
    worst = int(np.argmax(off))
    _say(
        off[worst] <= _CLOSE,
        f"{formulation!r}: value differs from meaning at x = {_written(selections[worst])}: "
        f"value {_figures(values[worst])}, meaning {_figures(meant[worst])}",
    )


def _figures(values: Any) -> str:
    return ", ".join(f"{v:.12g}" for v in np.atleast_1d(values))


def _points(formulation: Formulation, problem: Any, stats: Statistics) -> tuple[Any, Bits]:
    """(every point of the problem, the selection that each stands for)."""
    if not isinstance(problem, LevelChoice):
        return (every := _selections(stats.n)), every
    levels = np.array(list(product(*map(range, problem.sizes))))
    return levels, np.array([formulation.decode(stats, x).keep for x in levels])


def _fingerprint(stats: Statistics) -> str:
    """Digest of all that the statistics hold."""
    from prunesolve.problems.units import _statistics_arrays

    digest = sha256()
    for name, array in _statistics_arrays(stats):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return digest.hexdigest()


def _check_purity(formulation: Formulation, stats: Statistics) -> None:
    """Encode leaves the statistics alone, and the same input gives the same problem."""
    before, state = _fingerprint(stats), pickle.dumps(np.random.get_state())  # noqa: NPY002  (the state we guard)
    hashes = {_encoded(formulation, stats, keep=1.0).hash for _ in range(2)}
    _say(_fingerprint(stats) == before, f"{formulation!r}: encode changed the statistics; copy before you write")
    _say(len(hashes) == 1, f"{formulation!r}: encode twice gave two problems, {sorted(hashes)}; it must be pure")
    touched = pickle.dumps(np.random.get_state()) != state  # noqa: NPY002
    _say(not touched, f"{formulation!r}: encode drew from numpy's global random generator")


def _check_diagonal(formulation: Formulation, stats: Statistics) -> None:
    """A claimed natural diagonal makes J/2 + diag(d) positive semidefinite; bounds rely on it."""
    problem = _encoded(formulation, stats, keep=1.0)
    if getattr(problem, "diagonal", None) is None:
        return
    eigenvalues = np.linalg.eigvalsh(problem.couplings.dense() / 2 + np.diag(problem.diagonal))
    _say(
        eigenvalues[0] >= -_CLOSE * max(1.0, float(np.abs(eigenvalues).max())),
        f"{formulation!r}: `diagonal` claims that J/2 + diag(d) is positive semidefinite; "
        f"its smallest eigenvalue is {eigenvalues[0]:.3g}. Claim it only where the quadratic is a Gram",
    )


def _check_way_back(formulation: Formulation, stats: Statistics) -> None:
    """Labels name the statistics' units, and decode gives back the bits and the units they name."""
    problem = _encoded(formulation, stats, keep=1.0)
    if isinstance(problem, LevelChoice):
        _check_ladders(formulation, stats, problem)
        return
    labels = problem.labels or ()
    _say(tuple(labels) == stats.units, f"{formulation!r}: labels must be the statistics' units, got {labels}")
    for x in np.random.default_rng(0).random((8, stats.n)) < 0.5:
        selection = formulation.decode(stats, x)
        named = {(layer, channel) for layer, channels in selection.kept.items() for channel in channels}
        expected = {tuple(label) for label, kept in zip(labels, x, strict=True) if kept}
        _say(
            np.array_equal(selection.keep, x) and named == expected,
            f"{formulation!r}: decode of {_written(x)} kept {_written(selection.keep)}, {sorted(named)}; "
            f"expected {sorted(expected)}",
        )


def _check_ladders(formulation: Formulation, stats: Statistics, choice: LevelChoice) -> None:
    """Labels name the groups, `meta` the units that each level keeps, from the minimum to all and ever more."""
    names = tuple(group.name for group in stats.groups)
    _say(choice.labels == names, f"{formulation!r}: labels must be the groups' names, got {choice.labels}")
    told = choice.meta.get("levels", ())
    for g, (group, levels) in enumerate(zip(stats.groups, told, strict=True)):
        least = min(formulation.minimum, group.size)
        counts = levels["counts"]
        ends = len(counts) == choice.sizes[g] and (counts[0], counts[-1]) == (least, group.size)
        _say(ends and sorted(set(counts)) == counts, f"{formulation!r}: counts of {group.name} are {counts}")
        for s, count in enumerate(counts):
            x = np.zeros(choice.n, dtype=np.int64)
            x[g] = s
            kept = formulation.decode(stats, x).keep[stats.starts[g] : stats.starts[g + 1]]
            named = set(levels["channels"][:count])
            _say(
                levels["layer"] == group.layer and set(group.channels[kept].tolist()) == named and len(named) == count,
                f"{formulation!r}: level {s} of {group.name} keeps {group.channels[kept]}, `meta` names {named}",
            )


def _check_file(formulation: Formulation, stats: Statistics) -> None:
    """The instance and its facts survive a file."""
    problem = _encoded(formulation, stats, keep=1.0)
    try:
        told = json.loads(json.dumps(dict(problem.meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{formulation!r}: meta must be JSON-able ({error}): {problem.meta}") from error
    missing = {"formulation", "groups", "sense", "asked"} - set(told)
    _say(not missing, f"{formulation!r}: meta lacks {sorted(missing)}")
    with TemporaryDirectory() as folder:
        problem.save(f"{folder}/instance.npz")
        again = type(problem).load(f"{folder}/instance.npz")
    _say(again.hash == problem.hash, f"{formulation!r}: the instance read from a file has another hash")
    _say(dict(again.meta) == told, f"{formulation!r}: the instance read from a file has other meta")


def _check_budgets(formulation: Formulation, stats: Statistics) -> None:
    """The constraints admit exactly the selections that meet what was asked."""
    for asked in _askable(stats, _kind(formulation, stats)):
        for chosen in (formulation, _free(formulation)):
            kind = _kind(chosen, stats)
            points, selections = _points(chosen, _encoded(chosen, stats, keep=1.0), stats)
            expected = _meet(stats, selections, chosen.minimum, asked, exact=kind is BinaryQuadratic)
            if not expected.any():
                continue
            admitted = _encoded(chosen, stats, **asked).is_feasible(points)
            wrong = np.flatnonzero(admitted != expected)
            if len(wrong):
                verb = "admits" if admitted[wrong[0]] else "excludes"
                raise AssertionError(
                    f"{chosen!r}: encode({_told(asked)}) {verb} {_written(selections[wrong[0]])} "
                    f"and {len(wrong) - 1} more that it should not"
                )


def _kind(formulation: Formulation, stats: Statistics) -> type[Any]:
    return type(_encoded(formulation, stats, keep=1.0))


def _askable(stats: Statistics, kind: type[Any]) -> Iterator[dict[str, Any]]:
    """Budgets to try: a count, a fraction, and each resource both ways, alone and where units are chosen together."""
    count = stats.n - max(1, stats.n // 3)
    yield {"keep": count}
    yield {"keep": 0.5}
    for resource in ("params", "macs"):
        if resource in stats.cost:
            yield {resource: 0.6}
            yield {resource: int(0.4 * stats.total(resource))}
            if kind is not LevelChoice:
                yield {"keep": count, resource: 0.8}


def _meet(stats: Statistics, selections: Bits, minimum: int, asked: dict[str, Any], *, exact: bool = True) -> Bits:
    """(m,) whether each selection keeps the minimum of every group and what was asked; `keep` at most, unless exact."""
    meet = np.ones(len(selections), dtype=bool)
    for start, end in zip(stats.starts, stats.starts[1:], strict=False):
        meet &= selections[:, start:end].sum(axis=1) >= min(minimum, end - start)
    for name, amount in asked.items():
        fraction = isinstance(amount, float)
        if name == "keep":
            kept, k = selections.sum(axis=1), math.floor(amount * stats.n + 0.5) if fraction else amount
            meet &= kept == k if exact else kept <= k
        else:
            total = stats.total(name)
            meet &= _spent(stats, name, selections) <= (amount * total if fraction else amount) + _CLOSE * total
    return meet


def _spent(stats: Statistics, resource: str, selections: Bits) -> Floats:
    """(m,) what each selection costs: the definition of the statistics' three parts, written out."""
    kept = selections.astype(np.float64)
    spent = stats.constant.get(resource, 0.0) + kept @ stats.cost[resource]
    if resource in stats.pair_cost:
        i, j = np.triu_indices(stats.n, 1)
        spent = spent + (kept[:, i] * kept[:, j]) @ stats.pair_cost[resource].toarray()[i, j]
    return spent


def _refusal(formulation: Formulation, what: str, call: Callable[[], Any]) -> str:
    """The words of the InvalidProblem that `call` raises."""
    try:
        call()
    except InvalidProblem as error:
        return str(error)
    except Exception as error:
        raise AssertionError(
            f"{formulation!r}: {what}: expected InvalidProblem, got {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{formulation!r}: {what}: expected InvalidProblem, got a problem")


def _with(stats: Statistics, sections: Mapping[str, Any]) -> Statistics:
    return replace(stats, **sections)


def _check_refused_statistics(formulation: Formulation, stats: Statistics) -> None:
    """Each statistic it needs is named when it is missing, and one it does not name is not needed."""
    for need in formulation.needs:
        section, _, name = need.partition(".")
        rest = {key: value for key, value in getattr(stats, section).items() if key != name}
        without = _with(stats, {section: rest})
        words = _refusal(formulation, f"statistics without {need}", partial(formulation.encode, without, keep=1.0))
        _say(name in words, f"{formulation!r}: the refusal of statistics without {need} does not name it: {words}")
    sections: dict[str, dict[str, Any]] = {need.partition(".")[0]: {} for need in formulation.needs}
    sections |= {section: {} for section in ("saliency", "blocks", "factors")}
    for section, _, name in (need.partition(".") for need in formulation.needs):
        sections[section][name] = getattr(stats, section)[name]
    try:
        formulation.encode(_with(stats, sections), keep=1.0)
    except (InvalidProblem, KeyError) as error:
        raise AssertionError(f"{formulation!r}: `needs` is {formulation.needs}, more was read: {error}") from error


def _check_refused_budgets(formulation: Formulation, stats: Statistics) -> None:
    """What says nothing is refused in words, and what nobody can meet with the smallest that can be met."""
    nonsense: list[dict[str, Any]] = [{"keep": stats.n + 1}, {"params": -1}]
    if _kind(formulation, stats) is not MultiObjective:
        nonsense.append({})
    nonsense += [{"keep": wrong} for wrong in (0.0, 1.5, float("nan"), "half", True, -1)]
    for asked, smallest in [*((a, "") for a in nonsense), *_out_of_reach(formulation, stats)]:
        words = _refusal(formulation, f"encode({_told(asked)})", partial(formulation.encode, stats, **asked))
        _say(
            words and all(name in words for name in asked) and smallest in words,
            f"{formulation!r}: the refusal of encode({_told(asked)}) must name it"
            + (f" and say that {smallest} is the smallest that can be met: " if smallest else ": ")
            + repr(words),
        )


def _out_of_reach(formulation: Formulation, stats: Statistics) -> Iterator[tuple[dict[str, Any], str]]:
    """(budget just below what any selection meets, the smallest that one does), by enumeration."""
    _, selections = _points(formulation, _encoded(formulation, stats, keep=1.0), stats)
    admitted = selections[_meet(stats, selections, formulation.minimum, {})]
    fewest = int(admitted.sum(axis=1).min())
    if fewest:
        yield {"keep": fewest - 1}, str(fewest)
    for resource in (name for name in ("params", "macs") if name in stats.cost):
        least = math.ceil(_spent(stats, resource, admitted).min() - 1e-6)
        if least > 0:
            yield {resource: least - 1}, str(least)
