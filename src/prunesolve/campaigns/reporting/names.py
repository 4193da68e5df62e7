"""Names of instances and solvers: the order they stand in, and what shares one told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunesolve.campaigns.comparison import Row


def natural(name: str) -> list[Any]:
    """So that `b10` comes after `b2`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def run_order(row: Row) -> Any:
    """By solver, seed and repeat."""
    return natural(row["solver"]), row["seed"] or 0, row["repeat"] or 0


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the hash in the name of an instance whose file changed between them."""
    hashes: dict[Any, set[str]] = {}
    for row in rows:
        hashes.setdefault(row["instance"], set()).update([row["instance_hash"]] if row["instance_hash"] else [])
    return [
        row
        if isinstance(row["instance"], str) and isinstance(row["solver"], str) and len(hashes[row["instance"]]) < 2
        else {**row, "instance": _with_hash(row, hashes), "solver": str(row["solver"])}
        for row in rows
    ]


def _with_hash(row: Row, hashes: Mapping[Any, set[str]]) -> str:
    several = len(hashes[row["instance"]]) > 1
    return f"{row['instance']} ({(row['instance_hash'] or 'unread')[:8]})" if several else str(row["instance"])
