"""Problem in, `Result` out: one solver, one file.

The table below is static so that listing the solvers loads none of them; a class is imported when it is asked for.
Third parties register theirs under the entry-point group `prunesolve.solvers`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from prunesolve.problems import InvalidProblem, unknown
from prunesolve.problems._errors import check_options

if TYPE_CHECKING:
    from ._base import Solver

ENTRY_POINTS = "prunesolve.solvers"

# name: (module, class, what it is in a sentence)
_TABLE = {
    "auto": ("auto", "Auto", "Picks a solver by the instance and the declared limits, and says which."),
    "greedy": ("greedy", "Greedy", "Adds and drops the unit that changes the objective least, from both ends."),
    "swap-annealing": ("swap_annealing", "SwapAnnealing", "Anneals by swaps that keep every constraint."),
    "swap-tabu": ("swap_tabu", "SwapTabu", "Tabu search by swaps that keep every constraint."),
    "simulated-annealing": (
        "simulated_annealing",
        "SimulatedAnnealing",
        "dwave-samplers' annealer, led to the constraints by a linear field.",
    ),
    "exact": ("exact", "Exact", "Proves the optimum: enumeration of small instances, else branch and bound."),
    "polish": ("polish", "Polish", "Another solver, then the best single moves until none improves."),
    "restarts": ("restarts", "Restarts", "Another solver over and over with new seeds, the best kept."),
}
_BASE = ("Solver", "Run", "Result", "Status", "TraceRow", "Incumbent", "Front")
_CLASSES = {class_name: module for module, class_name, _ in _TABLE.values()}

__all__ = ["all", "available", "get", *_BASE, *_CLASSES]


def __getattr__(name: str) -> Any:
    if name in _BASE:
        return getattr(import_module("._base", __name__), name)
    if name in _CLASSES:
        return getattr(import_module(f".{_CLASSES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _registered() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in _TABLE}


def names() -> list[str]:
    """Names of all solvers, third parties' included, without loading one."""
    return [*_TABLE, *sorted(_registered())]


def summaries() -> dict[str, str]:
    """{name: a sentence} of all solvers, without loading one; third parties' say where they come from."""
    own = {name: sentence for name, (_, _, sentence) in _TABLE.items()}
    return own | {name: f"From {point.value}." for name, point in sorted(_registered().items())}


def solver_class(name: str) -> type[Solver]:
    """The class behind a name.

    Raises
    ------
    InvalidProblem
        If there is no such solver; the message suggests the nearest.
    """
    if name in _TABLE:
        module, class_name, _ = _TABLE[name]
        return getattr(import_module(f".{module}", __name__), class_name)
    registered = _registered()
    if name not in registered:
        raise unknown("solver", name, [*_TABLE, *registered])
    return registered[name].load()


def get(name: str, **options: Any) -> Solver:
    """A solver by its name, with some options set.

    Raises
    ------
    InvalidProblem
        If the solver or an option is unknown.

    Examples
    --------
    >>> get("greedy")
    Greedy(direction='both')
    """
    cls = solver_class(name)
    check_options(name, options, cls.options())
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{name}: {error}") from None


def all() -> list[type[Solver]]:  # noqa: A001  (reads as solvers.all())
    """Every solver class of the library."""
    return [solver_class(name) for name in _TABLE]


def available(problem: Any = None) -> list[str]:
    """Names of the solvers, or of those that take `problem` as it is."""
    if problem is None:
        return names()
    return [name for name in names() if solver_class(name)().refuse(problem) is None]
