"""The rows and facts of a LevelChoice's solution: what a switch of one layer changes, and the price of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunesolve.problems import LevelChoice
from prunesolve.problems._arrays import Floats, Indices

from .agreement import Agreement
from .labels import name_of
from .multipliers import multipliers_of
from .terms import RELATIVE
from .tight import Tight


def explain_levels(
    problem: LevelChoice, x: Indices, agreement: Agreement, most: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the layers nearest to the border, and the facts."""
    switches = [_Switches.of(problem, x, layer) for layer in range(problem.n)]
    left = problem.budget - problem.spent(x)
    tight = _tight_levels(problem, switches, left)
    error = np.concatenate([np.zeros(0), *(s.error for s in switches)])
    multipliers, reduced = multipliers_of(error, np.zeros(len(error), dtype=bool), tight)
    ends = np.cumsum([0, *(len(s.level) for s in switches)])
    margins = np.array([reduced[a:b].min(initial=np.inf) for a, b in zip(ends[:-1], ends[1:], strict=True)])
    facts = {
        "spent": problem.spent(x),
        "budget": problem.budget,
        "multipliers": [{"constraint": t.name, "multiplier": float(multipliers[0])} for t in tight],
        "loose": [] if tight else [_spending(problem, left)],
        "wrong_side": int((margins < -RELATIVE * np.abs(error).max(initial=0.0)).sum()),
        "best_flip": _best_switch(problem, switches, left),
        "stability": agreement.of_levels(),
    }
    order = np.argsort(np.abs(margins), kind="stable")[:most]
    rows = [
        _level_row(problem, switches[i], left)
        | {"margin": float(margins[i]) if np.isfinite(margins[i]) else None}
        | {"others": agreement.of_unit(int(i), x[i])}
        for i in order
    ]
    return rows, facts


@dataclass(frozen=True)
class _Switches:
    """The other levels of one layer: what a switch to each adds to the error and to the spending."""

    layer: int
    now: int
    level: Indices
    error: Floats
    cost: Floats

    @classmethod
    def of(cls, problem: LevelChoice, x: Indices, layer: int) -> _Switches:
        level = np.delete(np.arange(problem.sizes[layer]), x[layer])
        rows = np.repeat(x[None], len(level), axis=0)
        rows[:, layer] = level
        error = problem.error[layer][level] - problem.error[layer][x[layer]]
        return cls(layer, int(x[layer]), level, error, problem.spent(rows) - problem.spent(x))


def _tight_levels(problem: LevelChoice, switches: Sequence[_Switches], left: float) -> list[Tight]:
    """The budget as long as some switch does not fit into what is left."""
    cost = np.concatenate([np.zeros(0), *(s.cost for s in switches)])
    if not (cost > left + problem.slack).any():
        return []
    units = np.flatnonzero(cost)
    return [Tight(LevelChoice, _spending(problem, left), units, cost[units], 0.0, np.inf)]


def _spending(problem: LevelChoice, left: float) -> str:
    return f"budget, {problem.budget - left:.6g} of {problem.budget:.6g} spent"


def _best_switch(problem: LevelChoice, switches: Sequence[_Switches], left: float) -> dict[str, Any] | None:
    """The feasible switch of one layer that adds least to the error."""
    fits = [(s, i) for s in switches for i in np.flatnonzero(s.cost <= left + problem.slack)]
    if not fits:
        return None
    s, i = min(fits, key=lambda pair: float(pair[0].error[pair[1]]))
    return {
        "change": float(s.error[i]),
        "layer": name_of(problem, s.layer),
        "from": s.now,
        "to": int(s.level[i]),
        "cost_change": float(s.cost[i]),
    }


def _level_row(problem: LevelChoice, switches: _Switches, left: float) -> dict[str, Any]:
    layer, now = switches.layer, switches.now
    return {
        "unit": layer,
        "label": name_of(problem, layer),
        "level": now,
        "levels": int(problem.sizes[layer]),
        "error": float(problem.error[layer][now]),
        "cost": float(problem.cost[layer][now]),
        "down": _neighbour(problem, switches, now - 1, left),
        "up": _neighbour(problem, switches, now + 1, left),
    }


def _neighbour(problem: LevelChoice, switches: _Switches, level: int, left: float) -> dict[str, Any] | None:
    """What one level costs and loses, what a switch to it changes, and by how much the budget falls short of it."""
    at = np.flatnonzero(switches.level == level)
    if not len(at):
        return None
    short = float(switches.cost[at[0]]) - left
    return {
        "level": level,
        "error": float(problem.error[switches.layer][level]),
        "cost": float(problem.cost[switches.layer][level]),
        "error_change": float(switches.error[at[0]]),
        "cost_change": float(switches.cost[at[0]]),
        "short": short if short > problem.slack else 0.0,
    }
