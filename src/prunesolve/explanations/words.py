"""An explanation in sentences and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_SHOWN = 8  # multipliers printed


def in_words(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Sentences for the facts, and a table of the rows."""
    of_levels = facts["kind"] == "LevelChoice"
    sentences = _level_sentences(facts) if of_levels else _unit_sentences(facts)
    columns = _LEVEL_COLUMNS if of_levels else _UNIT_COLUMNS
    return "\n".join([*sentences, "", *_aligned(columns, rows)])


def _unit_sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['kept']} of {facts['n']} units kept, {_value_words(facts)}"
    yield from _constraint_sentences(facts)
    wrong = facts["wrong_side"]
    if wrong and facts["multipliers"]:
        why = "" if _is_improvable(facts) else ": held by couplings or by what a limit leaves, not by a price"
        yield f"{counted(wrong, 'unit')} on the wrong side{why}"
    elif facts["multipliers"]:
        yield "no unit on the wrong side: kept are those, and only those, that are worth what they are charged"
    yield _flip_sentence(facts["best_flip"], facts["slack"])
    yield from _stability_sentences(facts["stability"])


def _level_sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{counted(facts['n'], 'layer')}, {_value_words(facts)}, {facts['spent']:.6g} of {facts['budget']:.6g} spent"
    yield from _constraint_sentences(facts)
    if facts["wrong_side"]:
        why = "" if _is_improvable(facts) else ", though no switch by itself helps"
        yield f"{counted(facts['wrong_side'], 'layer')} with another level that is better at this price{why}"
    best = facts["best_flip"]
    if best is None:
        yield "no switch of one layer is feasible"
    else:
        move = f"{best['layer']} goes from level {best['from']} to {best['to']}"
        yield _change_words(best["change"], facts["slack"], move, "switch of one layer")
    yield from _stability_sentences(facts["stability"])


def _is_improvable(facts: Mapping[str, Any]) -> bool:
    return facts["best_flip"] is not None and facts["best_flip"]["change"] < -facts["slack"]


def _value_words(facts: Mapping[str, Any]) -> str:
    turned = f" ({-facts['objective']:.12g} maximised; all below is minimised)" if facts["sense"] == "maximise" else ""
    return f"objective {facts['objective']:.12g}{turned}"


def _constraint_sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    listed = sorted(facts["multipliers"], key=lambda told: -abs(told["multiplier"]))
    for told in listed[:_SHOWN]:
        yield f"{told['constraint']}: multiplier {told['multiplier']:.6g}"
    if len(listed) > _SHOWN:
        yield f"and {counted(len(listed) - _SHOWN, 'multiplier')} of smaller size"
    if facts["loose"]:
        yield f"not at a limit: {'; '.join(facts['loose'])}"


def _flip_sentence(best: Mapping[str, Any] | None, slack: float) -> str:
    if best is None:
        return "no flip of one unit, alone or in exchange, is feasible"
    goes, comes = best["goes"], best["comes"]
    move = f"{goes} goes instead of {comes}" if goes and comes else f"{goes} goes" if goes else f"{comes} stays"
    return _change_words(best["change"], slack, move, "flip or exchange")


def _change_words(change: float, slack: float, move: str, what: str) -> str:
    if change < -slack:
        return f"not optimal: better by {-change:.4g} if {move}"
    return f"no {what} makes it better; the nearest adds {max(change, 0.0):.4g}: {move}"


def _stability_sentences(stability: Mapping[str, Any]) -> Iterator[str]:
    if not stability["others"]:
        return
    own = f", {stability['of_same_solver']} of the same solver" if stability["of_same_solver"] else ""
    if "alike" in stability:
        counts, shared = f"{counted(stability['alike'], 'layer')} at one level in all", "of the levels"
    else:
        counts = f"{stability['core']} units kept in all, {stability['border']} in some, {stability['never']} in none"
        shared = "of what they keep"
    overlap = "" if stability["overlap"] is None else f"; two of them share {100 * stability['overlap']:.3g} % {shared}"
    yield f"{counted(stability['others'], 'other result')}{own}: {counts}{overlap}"


def counted(count: int, what: str) -> str:
    """A number and its noun, such as `1 unit` and `2 units`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


_Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def _number(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:.4g}"


def _of_others(row: Mapping[str, Any]) -> str:
    told = row["others"]
    return "-" if told is None else f"{told['count']} ({100 * told['share']:.0f} %)"


def _toward(name: str) -> Callable[[Mapping[str, Any]], str]:
    def shown(row: Mapping[str, Any]) -> str:
        told = row[name]
        if told is None:
            return "-"
        short = f", {told['short']:.4g} short" if told["short"] else ""
        return f"{told['error_change']:+.4g} for {told['cost_change']:+.4g}{short}"

    return shown


_UNIT_COLUMNS: tuple[_Column, ...] = (
    ("unit", lambda row: row["label"]),
    ("kept", lambda row: "yes" if row["kept"] else "no"),
    ("linear", _number("linear")),
    ("couplings", _number("couplings")),
    ("multiplier", _number("multiplier")),
    ("margin", _number("margin")),
    ("flip cost", _number("flip_cost")),
    ("with", lambda row: row["flip_with"] or "-"),
    ("kept in", _of_others),
)
_LEVEL_COLUMNS: tuple[_Column, ...] = (
    ("layer", lambda row: row["label"]),
    ("level", lambda row: f"{row['level']} of 0-{row['levels'] - 1}"),
    ("error", _number("error")),
    ("cost", _number("cost")),
    ("one down", _toward("down")),
    ("one up", _toward("up")),
    ("margin", _number("margin")),
    ("same in", _of_others),
)


def _aligned(columns: Sequence[_Column], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A heading and a line for each row, the first column to the left and the others to the right."""
    cells = [[head for head, _ in columns], *([shown(row) for _, shown in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()
