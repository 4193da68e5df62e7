"""Who won, and how sure that is: what the page begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunesolve.campaigns.comparison import TIE, Pair, quantile

from .view import View
from .words import UNITS, counted, listed


def lead(view: View) -> str:
    """Who won; where there is nothing to win, why."""
    if not view.any_solved:
        return "No run found a feasible solution, so no solver can be said to have won."
    if len(view.solvers) == 1:
        own = view.summaries[0]
        return (
            f"{own.solver} ran alone, so there is nothing to compare it with; {own.feasible:.0%} of its "
            f"{counted(own.runs, 'run')} on {counted(own.instances, 'instance')} ended feasible."
        )
    return _winner(view)


def _winner(view: View) -> str:
    """Who won, and against whom that is shown."""
    (first, score), (_, runner_up) = list(view.standings.items())[:2]
    instances = counted(len(view.instances), "instance")
    if not any(pair.wins or pair.losses for pair in view.pairs):
        return f"On {instances} all solvers reach the same objective in the median run. {_fastest(view)}".strip()
    if score == runner_up:
        level = [solver for solver, share in view.standings.items() if share == score]
        return f"{', '.join(level)} share the lead: on {instances} they won alike, by the median objective."
    pairs = [pair for pair in view.pairs if first in (pair.a, pair.b)]
    wins = sum(pair.wins if pair.a == first else pair.losses for pair in pairs)
    losses = sum(pair.losses if pair.a == first else pair.wins for pair in pairs)
    ties = sum(pair.ties for pair in pairs)
    told = f"{first} did best: by the median objective on {instances} it won {wins}, tied {ties} and lost {losses} of "
    return f"{told}{counted(wins + ties + losses, 'comparison')} with the other solvers. {_sureness(first, pairs)}"


def _sureness(first: str, pairs: Sequence[Pair]) -> str:
    shown = [pair for pair in pairs if pair.shown and pair.ahead == first]
    open_ones = [pair for pair in pairs if pair not in shown]
    largest = max((pair.adjusted or 0.0 for pair in shown), default=0.0)
    if not open_ones:
        return (
            f"That lead is significant against every other solver (Wilcoxon, Holm-corrected p at most {largest:.2g})."
        )
    against = listed([f"{_other(pair, first)} ({_doubt(pair)})" for pair in open_ones])
    if not shown:
        return f"That lead is not shown to be more than chance: {against}."
    settled = listed([_other(pair, first) for pair in shown])
    return f"The lead is significant against {settled} (p at most {largest:.2g}), but not against {against}."


def _other(pair: Pair, solver: str) -> str:
    return pair.b if pair.a == solver else pair.a


def _doubt(pair: Pair) -> str:
    if pair.adjusted is None:
        return f"too few instances to tell: {pair.wins + pair.losses} without a tie"
    if pair.shown:
        return f"p = {pair.adjusted:.2g} in favour of that one: it wins by more where it wins"
    return f"p = {pair.adjusted:.2g}"


def _fastest(view: View) -> str:
    if view.anytime is None:
        return ""
    times = view.anytime.reached[TIE]
    medians = {solver: float(quantile(times[places], 0.5)) for solver, places in view.places.items()}
    solver = min(medians, key=lambda name: medians[name])
    if not math.isfinite(medians[solver]):
        return ""
    return f"{solver} got there first: after {medians[solver]:.3g} {UNITS[view.anytime.axis]} in the median."
