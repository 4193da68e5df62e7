"""Jobs that brought no result, and why."""

from __future__ import annotations

from prunesolve.campaigns.comparison import failed
from prunesolve.report import Section, Table

from .names import natural, run_order
from .view import View

REASON = 200  # characters of what went wrong


def failures(view: View) -> Section:
    """Every job without a result, and why it has none."""
    title = "Jobs without a result"
    columns = {"instance": "", "solver": "", "seed": "d", "repeat": "d", "status": "", "reason": "", "wall s": ".3g"}
    rows = [
        [row[key] for key in ("instance", "solver", "seed", "repeat", "status", "reason", "wall_seconds")]
        for row in sorted(filter(failed, view.rows), key=lambda row: (natural(row["instance"]), run_order(row)))
    ]
    if not rows:
        return Section(title, ["Every job brought a result."])
    table = view.tables.add("failures", "", columns, rows, f"Reasons of more than {REASON} characters are cut here.")
    shown = [[*row[:5], _cut(row[5]), row[6]] for row in table.rows]
    return Section(title, [Table("", columns, shown, table.note, table.file)])


def _cut(reason: str | None) -> str | None:
    return reason if reason is None or len(reason) <= REASON else f"{reason[:REASON]}…"
