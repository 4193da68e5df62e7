"""Statistics to problem and back: one formulation, one file.

The table below is static so that listing the formulations loads none of them; a class is imported when it is asked
for. Third parties register theirs under the entry-point group `prunesolve.formulations`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from prunesolve.problems import InvalidProblem, unknown
from prunesolve.problems._errors import check_options

if TYPE_CHECKING:
    from ._base import Formulation as Formulation
    from ._base import Objective as Objective
    from .fisher import Fisher as Fisher
    from .hybrid_qubo import HybridQubo as HybridQubo
    from .l1_qubo import L1Qubo as L1Qubo
    from .reconstruction import Reconstruction as Reconstruction

ENTRY_POINTS = "prunesolve.formulations"

# name: (module, class, what it is in a sentence)
_TABLE = {
    "l1-qubo": ("l1_qubo", "L1Qubo", "L1 norms of the filters against their likeness: the baseline of the field."),
    "hybrid-qubo": ("hybrid_qubo", "HybridQubo", "Taylor and Fisher saliency against the likeness of activations."),
    "fisher": ("fisher", "Fisher", "Second-order increase of the loss when units go together."),
    "reconstruction": ("reconstruction", "Reconstruction", "Error of the next layer's output; no weights to tune."),
}
_BASE = ("Formulation", "Objective")
_CLASSES = {class_name: module for module, class_name, _ in _TABLE.values()}

__all__ = ["all", "formulation_class", "get", "names", *_BASE, *_CLASSES]


def __getattr__(name: str) -> Any:
    if name in _BASE:
        return getattr(import_module("._base", __name__), name)
    if name in _CLASSES:
        return getattr(import_module(f".{_CLASSES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _registered() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in _TABLE}


def names() -> list[str]:
    """Names of all formulations, third parties' included, without loading one."""
    return [*_TABLE, *sorted(_registered())]


def summaries() -> dict[str, str]:
    """{name: a sentence} of all formulations, without loading one; third parties' say where they come from."""
    own = {name: sentence for name, (_, _, sentence) in _TABLE.items()}
    return own | {name: f"From {point.value}." for name, point in sorted(_registered().items())}


def formulation_class(name: str) -> type[Formulation]:
    """The class behind a name.

    Raises
    ------
    InvalidProblem
        If there is no such formulation; the message suggests the nearest.
    """
    if name in _TABLE:
        module, class_name, _ = _TABLE[name]
        return getattr(import_module(f".{module}", __name__), class_name)
    registered = _registered()
    if name not in registered:
        raise unknown("formulation", name, [*_TABLE, *registered])
    return registered[name].load()


def get(name: str, **options: Any) -> Formulation:
    """A formulation by its name, with some options set.

    Raises
    ------
    InvalidProblem
        If the formulation or an option is unknown.

    Examples
    --------
    >>> get("l1-qubo", beta=0.0)
    L1Qubo(minimum=1, beta=0.0)
    """
    cls = formulation_class(name)
    check_options(name, options, cls.options())
    try:
        return cls(**options)
    except InvalidProblem:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{name}: {error}") from None


def all() -> list[type[Formulation]]:  # noqa: A001  (reads as formulations.all())
    """Every formulation class of the library."""
    return [formulation_class(name) for name in _TABLE]
