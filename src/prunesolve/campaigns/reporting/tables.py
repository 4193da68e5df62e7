"""Tables of the solvers: each in a line, its times to targets, and two by two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunesolve.campaigns.comparison import TIE, Anytime, Floats, Pair, quantile
from prunesolve.report import Section

from .view import TARGETS, View
from .words import NO_RESULT, UNITS, clock, listed, untraced

_SUMMARY_COLUMNS = {
    "solver": "",
    "instances": "d",
    "runs": "d",
    "best found / %": ".1f",
    "mean gap / %": ".3g",
    "median gap / %": ".3g",
    "gap to bound / %": ".3g",
    "feasible / %": ".1f",
    "optimal": "d",
    "failed": "d",
    "seconds": ".3g",
    "evaluations": ".0f",
}


def summary(view: View) -> Section:
    """Each solver in a line, the best first."""
    rows = [
        (
            *(of.solver, of.instances, of.runs, _percent(of.best_found), _percent(of.mean_gap)),
            *(_percent(of.median_gap), _percent(of.bound_gap), _percent(of.feasible), of.proved, of.failed),
            *(of.seconds, of.evaluations),
        )
        for of in view.summaries
    ]
    note = (
        "Best found: share of instances, of those that anyone solved, on which the solver's best run ties with the "
        "best of all. Gaps: of the solver's median run on each instance to the best known, mean and median over the "
        "instances where that run is feasible. Gap to bound: (objective - bound) / |objective|, median over the runs "
        "that proved a bound. Optimal: runs that proved it. Seconds and evaluations: medians over runs."
    )
    table = view.tables.add("summary", "", _SUMMARY_COLUMNS, rows, note)
    return Section("Solvers", [_sources(view), table])


def _sources(view: View) -> str:
    came = {instance for instance, rows in view.instances.items() if any(row["best_known"] is not None for row in rows)}
    given = [instance for instance, best in view.known.items() if best.given]
    improved = [instance for instance in view.known if instance in came and instance not in given]
    nothing = [instance for instance in view.instances if instance not in view.known]
    told = (
        "The best known of an instance is the least of all feasible objectives of this campaign and of the value that "
    )
    told += f"came with it: here the latter on {len(given)}, the campaign's own on {len(view.known) - len(given)}"
    told += f", which beats the value that came with {listed(improved)}." if improved else "."
    return told + (f" Nothing is known of {listed(nothing)}." if nothing else "")


def targets(view: View) -> Section:
    """When each solver came within a gap of the best known."""
    title = "Time to target"
    if view.anytime is None:
        return Section(title, [NO_RESULT])
    unit = UNITS[view.anytime.axis]
    columns = {"solver": "", "runs": "d"}
    for target in TARGETS:
        columns |= {f"{target}: reached / %": ".1f", f"{target}: median {unit}": ".3g"}
    rows = [(of.solver, of.runs, *_reached(view.anytime, view.places[of.solver])) for of in view.summaries]
    note = (
        "When runs first came within a gap of the best known: median over all runs on all instances, a dash where half "
        f"of them or more never did. Best: within {TIE:g} of it." + clock(view.anytime) + untraced(view.anytime)
    )
    return Section(title, [view.tables.add("targets", "", columns, rows, note)])


def _reached(runs: Anytime, places: Floats) -> Iterator[float]:
    """Of each target: the share of a solver's runs that reached it in percent, and their median time."""
    for target in TARGETS.values():
        times = runs.reached[target][places]
        yield 100.0 * float(np.isfinite(times).mean())
        yield float(quantile(times, 0.5))


_PAIR_COLUMNS = {
    "solver": "",
    "against": "",
    "wins": "d",
    "ties": "d",
    "losses": "d",
    "median difference / %": ".3g",
    "p": ".2g",
    "p, Holm": ".2g",
    "verdict": "",
}


def pairs(view: View) -> Section:
    """Who beats whom, and how sure that is."""
    title = "Pairs of solvers"
    if len(view.solvers) == 1:
        return Section(title, ["There is only one solver."])
    if not view.any_solved:
        return Section(title, [NO_RESULT])
    rows = [
        (*pair[:5], _percent(pair.difference), pair.p, pair.adjusted, _verdict(pair))
        for pair in sorted(view.pairs, key=lambda pair: (pair.adjusted is None, pair.adjusted or 0.0, pair.a, pair.b))
    ]
    note = (
        "Wins, ties and losses of the first solver on the instances that both ran on, by the median objective of each; "
        f"two within {TIE:g} of the best known tie. The p-value is the probability, were neither solver better, of "
        "signed ranks of the gap differences at least as one-sided as these (Wilcoxon's signed-rank test, two-sided, "
        "over the instances that do not tie). It is then corrected over all pairs by Holm's method; below 0.05 the "
        "difference is called significant. A solver that brought nothing feasible loses by more than any other."
    )
    return Section(title, [view.tables.add("pairs", "", _PAIR_COLUMNS, rows, note)])


def _verdict(pair: Pair) -> str:
    if pair.wins + pair.losses == 0:
        return "all tie" if pair.ties else "no instance in common"
    if pair.adjusted is None:
        return "too few instances to tell"
    return f"{pair.ahead} better" if pair.shown else "no significant difference"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share
