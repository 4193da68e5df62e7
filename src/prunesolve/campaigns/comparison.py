"""Which solver did better, by how much and how sure that is: statistics over the rows of a campaign.

A row is a mapping with the keys of `records.COLUMNS`. Objectives are minimised; what brought no feasible result counts
as infinitely bad, so that no solver gains by giving up on what is hard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from .records import WITHOUT_RESULT

Row = Mapping[str, Any]
Floats = np.ndarray[Any, Any]

TIE = 1e-9  # relative; two objectives closer than this are one
TINY = 1e-12  # gaps to a best known of at most this magnitude are absolute
TOO_FEW = 6  # fewer instances that differ cannot give a two-sided p below 0.05: 2 / 2^5 = 0.0625
EXACT = 50  # up to so many the test is exact; counts of sign choices stay whole numbers below 2^53
LEVEL = 0.05


def solved(row: Row) -> bool:
    """Whether a job brought a feasible result."""
    objective = row["objective"]
    return bool(row["feasible"]) and objective is not None and math.isfinite(objective)


def failed(row: Row) -> bool:
    """Whether a job brought no result at all: it raised, was ended or died."""
    return row["status"] in WITHOUT_RESULT


def grouped(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """The rows of each value of a column, in their order."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def quantile(values: Any, q: float) -> Any:
    """The q-quantile along the first axis, the mean of two neighbours where it falls between them; takes infinities.

    Parameters
    ----------
    values : (m, ...) float
        At least one; inf for what never happened.
    q : float
        Between 0 and 1; 0.5 is the median.

    Returns
    -------
    float or (...) float

    Reference
    ---------
    Hyndman and Fan 1996, "Sample quantiles in statistical packages", definition 2.

    Examples
    --------
    >>> float(quantile([4.0, 1.0, math.inf], 0.5)), float(quantile([4.0, 1.0], 0.5))
    (4.0, 2.5)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=0)
    at = q * len(ordered)
    low, high = math.ceil(at - 1e-9) - 1, math.floor(at + 1e-9)
    return (ordered[max(0, low)] + ordered[min(len(ordered) - 1, high)]) / 2


# --- best known and gaps -------------------------------------------------------------------------------------------


class Best(NamedTuple):
    """The least objective known of an instance; `given` says that it came with the instance, not from the campaign."""

    value: float
    given: bool


def best_known(rows: Iterable[Row]) -> dict[str, Best]:
    """The least objective of each instance: of all feasible results and of what came with the instance.

    Parameters
    ----------
    rows : iterable of rows
        Of all solvers.

    Returns
    -------
    {instance: Best}
        Without the instances of which nothing is known.

    Examples
    --------
    >>> row = {"instance": "a", "feasible": True, "objective": -2.0, "best_known": -3.0}
    >>> best_known([row, row | {"objective": -3.5}])
    {'a': Best(value=-3.5, given=False)}
    """
    known: dict[str, Best] = {}
    for row in rows:
        offers = [Best(row["objective"], False)] if solved(row) else []
        if row["best_known"] is not None and math.isfinite(row["best_known"]):
            offers.append(Best(row["best_known"], True))
        for offer in offers:
            held = known.get(row["instance"], Best(math.inf, False))
            # of equals the one that came with the instance is named
            known[row["instance"]] = min(held, offer, key=lambda best: (best.value, not best.given))
    return known


def scale(best: float) -> float:
    """What a difference to the best known is divided by: its magnitude, or 1 where that is at most 1e-12."""
    return abs(best) if abs(best) > TINY else 1.0


def gap(objective: Any, best: float) -> Any:
    """(objective - best) / |best|, the difference itself where |best| <= 1e-12.

    Examples
    --------
    >>> gap(-9.0, -10.0), gap(0.5, 0.0)
    (0.1, 0.5)
    """
    return (objective - best) / scale(best)


def gaps(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> Floats:
    """The gap of each row to the best known of its instance.

    Parameters
    ----------
    rows : sequence of m rows
        Of any solvers.
    known : {instance: Best}, optional
        By default that of the rows.

    Returns
    -------
    (m,) float
        At least 0; inf without a feasible result.
    """
    known = best_known(rows) if known is None else known
    return np.array(
        [gap(row["objective"], known[row["instance"]].value) if solved(row) else math.inf for row in rows],
        dtype=np.float64,
    )


def median_gaps(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> dict[str, dict[str, float]]:
    """The median gap of each solver's runs on each instance: the gap of its median objective.

    Returns
    -------
    {instance: {solver: gap}}
        inf where half of the runs or more brought nothing feasible.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row, value in zip(rows, gaps(rows, known), strict=True):
        found.setdefault(row["instance"], {}).setdefault(row["solver"], []).append(float(value))
    return {
        instance: {solver: float(quantile(values, 0.5)) for solver, values in solvers.items()}
        for instance, solvers in found.items()
    }


class Summary(NamedTuple):
    """A solver's campaign in a line; shares between 0 and 1, None where the rows cannot tell.

    Gaps are those of the median run of each instance that it solved in the median; `bound_gap` is the median, over
    runs, of the gap to the bound that the run itself proved.
    """

    solver: str
    instances: int
    runs: int
    best_found: float | None
    mean_gap: float | None
    median_gap: float | None
    bound_gap: float | None
    feasible: float
    proved: int
    failed: int
    seconds: float | None
    evaluations: float | None


def summaries(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> list[Summary]:
    """A line for each solver, in alphabetical order."""
    known = best_known(rows) if known is None else known
    medians = median_gaps(rows, known)
    ties = _best_runs(rows, known)
    return [_summary(solver, of, medians, ties) for solver, of in sorted(grouped(rows, "solver").items())]


def _summary(
    solver: str, rows: Sequence[Row], medians: Mapping[str, Mapping[str, float]], ties: Mapping[str, set[str]]
) -> Summary:
    instances = {row["instance"] for row in rows}
    finite = [m for m in (medians[instance][solver] for instance in instances) if math.isfinite(m)]
    found = [solver in ties[instance] for instance in instances if instance in ties]
    return Summary(
        solver,
        len(instances),
        len(rows),
        sum(found) / len(found) if found else None,
        math.fsum(finite) / len(finite) if finite else None,
        float(quantile(finite, 0.5)) if finite else None,
        _median(row["gap"] for row in rows),
        sum(map(solved, rows)) / len(rows),
        sum(row["status"] == "OPTIMAL" for row in rows),
        sum(map(failed, rows)),
        _median(row["seconds"] for row in rows),
        _median(row["evaluations"] for row in rows),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(quantile(known, 0.5)) if known else None


def _best_runs(rows: Sequence[Row], known: Mapping[str, Best]) -> dict[str, set[str]]:
    """{instance: solvers whose best run ties with the best run of all}, without instances that nobody solved."""
    best: dict[str, dict[str, float]] = {}
    for row in filter(solved, rows):
        of = best.setdefault(row["instance"], {})
        of[row["solver"]] = min(row["objective"], of.get(row["solver"], math.inf))
    return {
        instance: {s for s, value in of.items() if value - min(of.values()) <= TIE * scale(known[instance].value)}
        for instance, of in best.items()
    }


# --- pairs of solvers ----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two solvers on the instances that both ran on; wins are a's.

    `difference` is the median of a's gap minus b's; `p` that of Wilcoxon's signed-rank test, `adjusted` the same after
    Holm's correction over all pairs, both None where fewer than six instances differ; `ahead` is who has the larger
    rank sum.
    """

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    difference: float
    p: float | None
    adjusted: float | None
    ahead: str | None

    @property
    def shown(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.adjusted is not None and self.adjusted < LEVEL


def pairwise(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> list[Pair]:
    """Every pair of solvers: wins, ties and losses on instances, and Wilcoxon's test of their gaps.

    Of each instance counts the median over runs. Two medians tie within 1e-9 of the best known. The test is on the
    differences of the relative gaps of the instances that do not tie; one that only one of the two solved counts as a
    difference larger than all others.

    Parameters
    ----------
    rows : sequence of rows
        Of all solvers.
    known : {instance: Best}, optional
        By default that of the rows.

    Returns
    -------
    list of Pair
        In alphabetical order.

    Reference
    ---------
    Wilcoxon 1945, "Individual comparisons by ranking methods"; Holm 1979, "A simple sequentially rejective multiple
    test procedure".

    Examples
    --------
    >>> row = {"instance": "a", "feasible": True, "best_known": None}
    >>> rows = [row | {"solver": "s", "objective": -2.0}, row | {"solver": "t", "objective": -1.0}]
    >>> pairwise(rows)[0][:5], pairwise(rows)[0].p
    (('s', 't', 1, 0, 0), None)
    """
    medians = median_gaps(rows, known)
    solvers = sorted({row["solver"] for row in rows})
    pairs = [_pair(a, b, medians.values()) for a, b in combinations(solvers, 2)]
    tested = [i for i, pair in enumerate(pairs) if pair.p is not None]
    for i, adjusted in zip(tested, holm([pairs[i].p for i in tested]), strict=True):
        pairs[i] = pairs[i]._replace(adjusted=float(adjusted))
    return pairs


def _pair(a: str, b: str, medians: Iterable[Mapping[str, float]]) -> Pair:
    # where neither solved an instance both gaps are inf, whose difference is none
    both = [(of[a], of[b]) for of in medians if a in of and b in of]
    differences = np.array([0.0 if x == y else x - y for x, y in both], dtype=np.float64)
    apart = differences[np.abs(differences) > TIE]
    p, balance = signed_ranks(apart)
    return Pair(
        a,
        b,
        int((apart < 0).sum()),
        len(both) - len(apart),
        int((apart > 0).sum()),
        float(quantile(differences, 0.5)) if both else math.nan,
        p,
        None,
        None if balance == 0 else a if balance < 0 else b,
    )


def signed_ranks(differences: Any) -> tuple[float | None, float]:
    """Wilcoxon's two-sided signed-rank test of differences that are not 0.

    Parameters
    ----------
    differences : (m,) float
        Infinite ones rank above all others.

    Returns
    -------
    p : float or None
        None for fewer than six; exact up to 50, ties or not, above that scipy's normal approximation.
    balance : float
        Rank sum of the positive differences minus that of the negative ones.

    Examples
    --------
    >>> signed_ranks([1.0, 2.0, 3.0, 4.0, 5.0, math.inf])
    (0.03125, 21.0)
    """
    from scipy.stats import rankdata, wilcoxon

    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0:
        return None, 0.0
    ranks = np.sign(values) * rankdata(np.abs(values))
    balance = float(ranks.sum())
    if len(values) < TOO_FEW:
        return None, balance
    # the signed ranks in place of the differences: same test, and no infinity
    return (_exact(ranks) if len(values) <= EXACT else float(wilcoxon(ranks).pvalue)), balance


def _exact(ranks: Floats) -> float:
    """The share of all choices of signs that are at least as one-sided, counted sum by sum.

    scipy's own count leaves ties to the normal approximation, and instances that one solver alone solved all tie: 30
    wins out of 30 would then give p = 4e-8 in place of 2e-9.
    """
    doubled = np.rint(2 * np.abs(ranks)).astype(np.int64)
    counts = np.zeros(int(doubled.sum()) + 1)
    counts[0] = 1.0
    for rank in doubled:
        counts[rank:] = counts[rank:] + counts[:-rank]
    seen = int(doubled[ranks > 0].sum())
    tail = min(counts[: seen + 1].sum(), counts[seen:].sum())
    return float(min(1.0, 2 * tail / 2.0 ** len(ranks)))


def holm(p: Sequence[Any]) -> Floats:
    """Holm's correction: the i-th smallest of m values times m - i + 1, made monotone, at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def standings(pairs: Iterable[Pair]) -> dict[str, float]:
    """Wins minus losses over all comparisons of a solver, between -1 and 1, the best first."""
    balance: dict[str, int] = {}
    played: dict[str, int] = {}
    for pair in pairs:
        for solver, sign in ((pair.a, 1), (pair.b, -1)):
            balance[solver] = balance.get(solver, 0) + sign * (pair.wins - pair.losses)
            played[solver] = played.get(solver, 0) + pair.wins + pair.ties + pair.losses
    shares = {solver: balance[solver] / max(1, played[solver]) for solver in balance}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


# --- profiles ------------------------------------------------------------------------------------------------------


class Profile(NamedTuple):
    """Points x (k,) and for each label the share (k,) of values that are at most x."""

    x: Floats
    shares: dict[str, Floats]


def profile(times: Mapping[str, Any]) -> Profile:
    r"""Performance profiles: the share of problems on which a solver is within a factor of the fastest.

    rho_s(x) = |{p : t_ps <= x min_r t_pr}| / m

    Parameters
    ----------
    times : {solver: (m,) float > 0}
        What each problem took, inf where the solver did not get there. A problem that none solved still counts.

    Returns
    -------
    Profile
        At every ratio that occurs, from 1.

    Reference
    ---------
    Dolan and Moré 2002, "Benchmarking optimization software with performance profiles".

    Examples
    --------
    >>> drawn = profile({"s": [1.0, 4.0], "t": [2.0, 1.0]})
    >>> drawn.x.tolist(), drawn.shares["s"].tolist()
    ([1.0, 2.0, 4.0], [0.5, 0.5, 1.0])
    """
    taken = np.array(list(times.values()), dtype=np.float64)
    fastest = taken.min(axis=0)
    ratios = np.full(taken.shape, math.inf)
    np.divide(taken, fastest, out=ratios, where=np.isfinite(fastest) & np.isfinite(taken))
    return cumulative(dict(zip(times, ratios, strict=True)), start=1.0)


def cumulative(values: Mapping[str, Any], start: float) -> Profile:
    """The share of each label's values at most x, at every x >= start that occurs; inf never counts.

    Examples
    --------
    >>> cumulative({"s": [0.1, 0.5, math.inf, 0.2]}, start=0.2).shares["s"].tolist()
    [0.5, 0.75]
    """
    sets = {label: np.sort(np.asarray(of, dtype=np.float64)) for label, of in values.items()}
    joined = np.concatenate([*sets.values(), [start]])
    x = np.unique(np.maximum(joined[np.isfinite(joined)], start))
    return Profile(x, {label: np.searchsorted(of, x, side="right") / max(1, len(of)) for label, of in sets.items()})


# --- traces --------------------------------------------------------------------------------------------------------

AXES = {"seconds": 0, "evaluations": 1}  # where a trace's row has them


def axis_of(rows: Iterable[Row]) -> str:
    """What runs are compared along: evaluations where they alone are limited, as seconds would not repeat."""
    rows = list(rows)
    timed = any(row["time_limit"] is not None for row in rows)
    counted = any(row["evaluation_limit"] is not None for row in rows)
    return "evaluations" if counted and not timed else "seconds"


class Descent(NamedTuple):
    """When (k,) a run improved and the gap (k,) it had from then on."""

    at: Floats
    gap: Floats


def descent(row: Row, trace: Iterable[Sequence[Any]] | None, best: float, axis: str = "seconds") -> Descent:
    """The gaps a run went through; one without a trace had its objective at its end.

    Parameters
    ----------
    row : row
        Of the run.
    trace : iterable of [seconds, evaluations, objective, bound], optional
        Its improvements.
    best : float
        The best known objective.
    axis : str
        "seconds" or "evaluations".

    Returns
    -------
    Descent

    Examples
    --------
    >>> row = {"feasible": True, "objective": -9.0, "seconds": 2.0}
    >>> [part.tolist() for part in descent(row, [[0.5, 10, -5.0, None]], best=-10.0)]
    [[0.5, 2.0], [0.5, 0.1]]
    """
    column = AXES[axis]
    points = [(step[column], step[2]) for step in trace or () if step[2] is not None and step[column] is not None]
    if solved(row) and row[axis] is not None:
        points.append((row[axis], row["objective"]))
    at, objective = np.array(points, dtype=np.float64).reshape(-1, 2).T
    order = np.argsort(at, kind="stable")
    return Descent(at[order], np.minimum.accumulate(np.maximum(0.0, gap(objective[order], best))))


def reached(run: Descent, target: float) -> float:
    """When the gap was first at most the target, inf where it never was."""
    within = np.flatnonzero(run.gap <= target)
    return float(run.at[within[0]]) if len(within) else math.inf


def held(run: Descent, grid: Floats) -> Floats:
    """The gap at each point of a grid, inf before the first feasible solution."""
    return np.concatenate([[math.inf], run.gap])[np.searchsorted(run.at, grid, side="right")]


class Anytime(NamedTuple):
    """The runs of a campaign over time.

    `gap` (m, g) on the `grid` (g,) along `axis`; `reached` {target: (m,)} is when the gap was first at most the target;
    both inf for never. `without` counts feasible runs that left no trace.
    """

    axis: str
    grid: Floats
    gap: Floats
    reached: dict[float, Floats]
    without: int


def anytime(
    rows: Sequence[Row],
    trace_of: Callable[[Row], Any],
    known: Mapping[str, Best],
    targets: Sequence[float],
    points: int = 60,
) -> Anytime | None:
    """Every run reduced to a fixed grid, its trace read, used and let go before the next.

    Parameters
    ----------
    rows : sequence of m rows
        Of all solvers.
    trace_of : callable
        The trace of a row's run, None where there is none.
    known : {instance: Best}
        Of `best_known`.
    targets : sequence of float
        Relative gaps.
    points : int
        Size of the grid, which spans five decades up to the longest run.

    Returns
    -------
    Anytime or None
        None where no run with a feasible result says how long it took.
    """
    axis = axis_of(rows)
    ends = [row[axis] for row in rows if solved(row) and row[axis]]
    if not ends:
        return None
    last = max(ends)
    grid = np.geomspace(max(_LEAST[axis], last * 1e-5), max(last, 2 * _LEAST[axis]), points)
    # the logarithm and back may miss the end of the longest run by a rounding
    grid[-1] = max(grid[-1], last)
    paths, times, without = np.full((len(rows), points), math.inf), np.full((len(targets), len(rows)), math.inf), 0
    for r, row in enumerate(rows):
        if not solved(row):
            continue
        trace = trace_of(row)
        without += not trace
        run = descent(row, trace, known[row["instance"]].value, axis)
        paths[r] = held(run, grid)
        times[:, r] = [max(_LEAST[axis], reached(run, target)) for target in targets]
    return Anytime(axis, grid, paths, dict(zip(targets, times, strict=True)), without)


_LEAST = {"seconds": 1e-4, "evaluations": 1.0}  # below this a clock tells nothing, and a logarithm needs something
