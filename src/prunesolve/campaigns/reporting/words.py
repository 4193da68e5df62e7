"""Phrases that several sections use."""

from __future__ import annotations

from collections.abc import Sequence

from prunesolve.campaigns.comparison import Anytime

NO_RESULT = "No run brought a feasible result, so there is nothing to draw or compare here."
UNITS = {"seconds": "s", "evaluations": "evaluations"}


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def counted(count: int, one: str) -> str:
    """A number of things, with an s where they are several."""
    return f"{count} {one if count == 1 else one + 's'}"


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def clock(runs: Anytime) -> str:
    """What is said of times too short to be told apart."""
    return " Less than 0.1 ms counts as 0.1 ms." if runs.axis == "seconds" else ""


def untraced(runs: Anytime) -> str:
    """What is said of runs that left no trace."""
    return f" Runs without a trace, here {runs.without}, count at their end." if runs.without else ""
