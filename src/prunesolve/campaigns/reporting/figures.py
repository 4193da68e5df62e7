"""Figures that compare the solvers over the whole campaign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prunesolve.campaigns.comparison import Anytime, Floats, Row, cumulative, profile, quantile
from prunesolve.report import Curve, Section, lines

from .curves import FLOOR, anytime_curves, anytime_figure, bare, profile_curves
from .view import PROFILED, View
from .words import NO_RESULT, clock, counted, untraced


def performance(view: View) -> Section:
    """How often each solver comes close to the best known within a multiple of the fastest one's time."""
    title = "Performance profile"
    if view.anytime is None:
        return Section(title, [NO_RESULT])
    if len(view.solvers) == 1:
        return Section(title, ["A performance profile compares solvers; there is only one."])
    shared = [i for i, rows in view.instances.items() if len({row["solver"] for row in rows}) == len(view.solvers)]
    if not shared:
        return Section(title, ["There is no instance that every solver ran on yet."])
    panels = _profiles(view, view.anytime, shared)
    if not panels:
        return Section(title, ["In the median run no solver came within 0.1 % of the best known on any instance."])
    axis = view.anytime.axis
    note = (
        f"Share of {counted(len(shared), 'instance')} on which a solver's median run came that close in at most x "
        f"times the {axis} of the fastest solver (Dolan and Moré 2002). On the left: how often it is the fastest; on "
        "the right: how often it gets there at all." + clock(view.anytime) + untraced(view.anytime)
    )
    figure = lines(panels, title=title, x=f"{axis}, multiple of the least", y="share", log_x=True, steps=True)
    return Section(title, [bare(figure)], note)


def _profiles(view: View, runs: Anytime, instances: Sequence[str]) -> dict[str, list[Curve]]:
    """{target: curves}, without targets that no solver's median run reached."""
    panels = {}
    for heading, target in PROFILED.items():
        times = _median_times(view, runs.reached[target], instances)
        if np.isfinite(list(times.values())).any():
            panels[heading] = profile_curves(view, profile(times))
    return panels


def _median_times(view: View, times: Floats, instances: Sequence[str]) -> dict[str, list[float]]:
    """Of each solver, the median over its runs on each instance."""
    place = {instance: i for i, instance in enumerate(instances)}
    taken: dict[str, list[list[float]]] = {solver: [[] for _ in instances] for solver in view.solvers}
    for row, seconds in zip(view.rows, times, strict=True):
        if row["instance"] in place:
            taken[row["solver"]][place[row["instance"]]].append(float(seconds))
    return {solver: [float(quantile(of, 0.5)) for of in each] for solver, each in taken.items()}


def final_gaps(view: View) -> Section:
    """How many of each solver's runs ended within a gap of the best known."""
    title = "Runs within a gap at the end"
    if not view.any_solved:
        return Section(title, [NO_RESULT])
    ends = {solver: 100.0 * view.gaps[places] for solver, places in view.places.items()}
    curves = profile_curves(view, cumulative(ends, start=100.0 * FLOOR))
    figure = lines({"": curves}, title=title, x="gap to the best known / %", y="share", log_x=True, steps=True)
    note = (
        "Share of a solver's runs that ended within a gap of the best known; runs without a feasible result never do. "
        f"Gaps of at most {100 * FLOOR:g} % stand at the left edge."
    )
    return Section(title, [bare(figure)], note)


def progress(view: View) -> Section:
    """The gap of each solver's runs over time, instances of a size together."""
    title = "Gap over time" if view.anytime is None or view.anytime.axis == "seconds" else "Gap over evaluations"
    if view.anytime is None:
        return Section(title, [NO_RESULT])
    panels = dict(_by_size(view, view.anytime))
    if not panels:
        return Section(title, ["In every group more than half of each solver's runs ended without a feasible result."])
    figure = anytime_figure(view.anytime, panels, title)
    note = (
        "Median over instances, seeds and repeats of the gap to the best known, with the band between the quartiles; a "
        "curve begins when half of the runs have a feasible solution, its band when three quarters have. "
        f"Gaps of less than {100 * FLOOR:g} % are drawn there." + untraced(view.anytime)
    )
    return Section(title, [bare(figure)], note)


def _by_size(view: View, runs: Anytime) -> Iterator[tuple[str, list[Curve]]]:
    for heading, instances in _classes(view.instances).items():
        inside = np.array([row["instance"] in instances for row in view.rows])
        curves = anytime_curves(view, runs, {s: places[inside[places]] for s, places in view.places.items()})
        if curves:
            yield heading, curves


def _classes(instances: Mapping[str, Sequence[Row]]) -> dict[str, set[str]]:
    """{heading: instances}: one for each size where there are few, else one for each power of ten, else one for all."""
    sizes = {instance: max((row["n"] or 0 for row in rows), default=0) for instance, rows in instances.items()}
    by_size: dict[str, set[str]] = {}
    by_power: dict[str, set[str]] = {}
    for instance, n in sorted(sizes.items(), key=lambda item: item[1]):
        low = 10 ** (len(str(n)) - 1)
        by_size.setdefault(f"n = {n}", set()).add(instance)
        by_power.setdefault(f"n = {low} to {10 * low - 1}", set()).add(instance)
    for classes in (by_size, by_power):
        if 1 < len(classes) <= 6 and min(sizes.values()) > 0:
            return {f"{heading} ({counted(len(of), 'instance')})": of for heading, of in classes.items()}
    return {"": set(sizes)}
