"""The rows and facts of a selection: each unit's terms, multipliers, margin and least flip."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesolve.problems._arrays import Bits, Floats

from .agreement import Agreement
from .flips import Flips, least_flips
from .labels import labelled, name_of
from .multipliers import multipliers_of
from .terms import RELATIVE, Selected, terms_of
from .tight import tight_constraints

_PARTNERS = 3  # strongest couplings named


def explain_units(
    problem: Selected, kept: Bits, agreement: Agreement, most: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the units nearest to the border, and the facts."""
    terms = terms_of(problem, kept)
    fields = terms.linear + terms.couplings
    tight, loose = tight_constraints(problem, kept)
    multipliers, reduced = multipliers_of(fields, kept, tight)
    margins, flips = np.where(kept, -reduced, reduced), least_flips(problem, kept, terms)
    noise = RELATIVE * (np.abs(terms.linear) + np.abs(terms.couplings) + np.abs(reduced - fields))
    facts = {
        "kept": int(kept.sum()),
        "multipliers": [
            {"constraint": t.name, "multiplier": float(value), "units": len(t.units)}
            for t, value in zip(tight, multipliers, strict=True)
        ],
        "loose": loose,
        "wrong_side": int((margins < -noise).sum()),
        "best_flip": _best_flip(problem, kept, flips),
        "stability": agreement.of_kept(),
    }
    order = np.argsort(np.abs(margins), kind="stable")[:most]
    rows = [
        labelled(problem, int(i))
        | {
            "kept": bool(kept[i]),
            "linear": float(terms.linear[i]),
            "couplings": float(terms.couplings[i]),
            "partners": _partners(problem, terms.partners(int(i))),
            "field": float(fields[i]),
            "multiplier": float(reduced[i] - fields[i]),
            "margin": float(margins[i]),
        }
        | _flip_of(problem, flips, int(i))
        | {"others": agreement.of_unit(int(i), True)}
        for i in order
    ]
    return rows, facts


def _partners(problem: Selected, parts: Floats) -> list[dict[str, Any]]:
    """The kept units whose couplings weigh most."""
    strongest = np.argsort(-np.abs(parts), kind="stable")[:_PARTNERS]
    return [{"label": name_of(problem, int(j)), "coupling": float(parts[j])} for j in strongest if parts[j]]


def _flip_of(problem: Selected, flips: Flips, i: int) -> dict[str, Any]:
    mate = int(flips.partner[i])
    return {
        "flip_cost": float(flips.cost[i]) if np.isfinite(flips.cost[i]) else None,
        "flip_with": None if mate < 0 else name_of(problem, mate),
        "flip_with_unit": None if mate < 0 else mate,
    }


def _best_flip(problem: Selected, kept: Bits, flips: Flips) -> dict[str, Any] | None:
    if not np.isfinite(flips.cost).any():
        return None
    i = int(flips.cost.argmin())
    moved = {bool(kept[u]): name_of(problem, u) for u in (i, int(flips.partner[i])) if u >= 0}
    return {"change": float(flips.cost[i]), "goes": moved.get(True), "comes": moved.get(False)}
