"""Statistics to problem and back: one formulation, one file.

The table below is static so that listing the formulations loads none of them; a class is imported when it is asked
for. Third parties register theirs under the entry-point group `prunesolve.formulations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunesolve.problems._errors import InvalidProblem
from prunesolve.problems._registry import Registry

if TYPE_CHECKING:
    from ._base import FeatureFormulation as FeatureFormulation
    from ._base import Formulation as Formulation
    from ._base import Objective as Objective
    from .fisher import Fisher as Fisher
    from .generalised_pruning import GeneralisedPruning as GeneralisedPruning
    from .hybrid_qubo import HybridQubo as HybridQubo
    from .l1_qubo import L1Qubo as L1Qubo
    from .level_choice import KeepCounts as KeepCounts
    from .moonshot import Moonshot as Moonshot
    from .multi_objective import MultiObjectiveSelection as MultiObjectiveSelection
    from .partial_fusion import PartialFusion as PartialFusion
    from .reconstruction import Reconstruction as Reconstruction
    from .subset_regression import InputSelection as InputSelection

# name: (module, class, what it is in a sentence)
_TABLE = {
    "l1-qubo": ("l1_qubo", "L1Qubo", "L1 norms of the filters against their likeness: the baseline of the field."),
    "hybrid-qubo": ("hybrid_qubo", "HybridQubo", "Taylor and Fisher saliency against the likeness of activations."),
    "fisher": ("fisher", "Fisher", "Second-order increase of the loss when units go together."),
    "reconstruction": ("reconstruction", "Reconstruction", "Error of the next layer's output; no weights to tune."),
    "moonshot": ("moonshot", "Moonshot", "Reconstruction error and second-order loss, weighted against each other."),
    "level-choice": ("level_choice", "KeepCounts", "How many units each layer keeps, ranked beforehand."),
    "multi-objective": (
        "multi_objective",
        "MultiObjectiveSelection",
        "Another formulation's error against parameters and multiply-adds, as a front.",
    ),
    "subset-regression": (
        "subset_regression",
        "InputSelection",
        "Which inputs of a layer stay when the layer is refitted on them.",
    ),
    "partial-fusion": ("partial_fusion", "PartialFusion", "Which neurons of two layers become one; see ps.fuse."),
    "generalised-pruning": ("generalised_pruning", "GeneralisedPruning", "Which neurons become one; see ps.merge."),
}
_ELSEWHERE = (
    "networks are fused by prunesolve.fuse and made smaller by prunesolve.merge; for a layer's inputs see "
    "prunesolve.bridges.torch.moments"
)
_REGISTRY = Registry("formulation", __name__, _TABLE, ("Formulation", "FeatureFormulation", "Objective"))

__all__ = ["all", "formulation_class", "get", "names", "of_statistics", "summaries", *_REGISTRY.homes]

__getattr__ = _REGISTRY.attribute


def names() -> list[str]:
    """Names of all formulations, third parties' included, without loading one."""
    return _REGISTRY.names()


def summaries() -> dict[str, str]:
    """{name: a sentence} of all formulations, without loading one."""
    return _REGISTRY.summaries()


def formulation_class(name: str) -> type[Formulation]:
    """The class behind a name.

    Raises
    ------
    InvalidProblem
        If there is no such formulation; the message suggests the nearest.
    """
    return _REGISTRY.class_of(name)


def get(name: str, **options: Any) -> Any:
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
    return _REGISTRY.get(name, options)


def of_statistics(name: str, **options: Any) -> Formulation:
    """The same where statistics are at hand; refuses formulations that read features of neurons.

    Raises
    ------
    InvalidProblem
        If the formulation or an option is unknown, or it reads something else.
    """
    from ._base import Formulation

    found = get(name, **options)
    if not isinstance(found, Formulation):
        raise InvalidProblem(f"formulation: {name} reads features of neurons, not statistics of units; {_ELSEWHERE}")
    return found


def all() -> list[type[Formulation]]:  # noqa: A001  (reads as formulations.all())
    """Every formulation class of the library."""
    return _REGISTRY.all()
