"""Problem in, `Result` out: one solver, one file.

The table below is static so that listing the solvers loads none of them; a class is imported when it is asked for.
Third parties register theirs under the entry-point group `prunesolve.solvers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunesolve.problems import InvalidProblem
from prunesolve.problems._registry import Registry

if TYPE_CHECKING:
    from ._base import Solver

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
    "block-fronts": ("block_fronts", "BlockFronts", "Joins one front per block by dynamic programming; may prove."),
    "swap-search": ("swap_search", "SwapSearch", "Swaps on a black box, ranked by its surrogate, cheap batches first."),
    "tensor-train": ("tensor_train", "TensorTrain", "Learns a probability tensor over feasible points of a black box."),
    "refine": ("refine", "Refine", "Solves the surrogate of a black box, then refines its answer by evaluations."),
    "dynamic-programming": (
        "dynamic_programming",
        "DynamicProgramming",
        "The best levels within a budget, or the whole front of error and cost, proved.",
    ),
    "level-switch": ("level_switch", "LevelSwitch", "Switches levels of a black box up and down within its budget."),
    "coefficient-search": (
        "coefficient_search",
        "CoefficientSearch",
        "Weighs the layers of a dynamic program so that its answer is best on a black box.",
    ),
    "nsga2": ("nsga2", "Nsga2", "Evolves the front of several objectives, every point within the constraints."),
    "emo-dir": (
        "emo_dir",
        "EmoDir",
        "Divide and conquer: a front for each sub-network, joined by impairment.",
    ),
    "ward": ("ward", "Ward", "Clusters points by Ward's merges with restarts, then moves them to better clusters."),
    "assignment": (
        "assignment",
        "Assignment",
        "The cheapest k pairs of points of one weight, proved by shortest augmenting paths.",
    ),
    "network-simplex": (
        "network_simplex",
        "NetworkSimplex",
        "POT's network simplex for partial transports of any masses, proved by its duals.",
    ),
    "sinkhorn": ("sinkhorn", "Sinkhorn", "POT's entropic transport in the log domain, rounded to a feasible plan."),
    "obc": ("obc", "Obc", "Removes single weights by their exact loss, the others making up for each."),
    "admm": ("admm", "Admm", "ALPS: single weights by least squares and the pattern in turn, until they agree."),
    "iht-swap": ("iht_swap", "IhtSwap", "CHITA: thresholded gradient steps, then exact exchanges of single weights."),
    "magnitude": ("magnitude", "Magnitude", "The largest single weights, or by Wanda's score; nothing is searched."),
    "osscar": (
        "osscar",
        "Osscar",
        "Takes out input groups at their exact cost, the others refitted, then swaps them; may prove.",
    ),
    "polish": ("polish", "Polish", "Another solver, then the best single moves until none improves."),
    "restarts": ("restarts", "Restarts", "Another solver over and over with new seeds, the best kept."),
}
_REGISTRY = Registry(
    "solver",
    __name__,
    _TABLE,
    ("Solver", "Run", "Result", "Status", "TraceRow", "Incumbent", "Front"),
    {"Evaluations": "_evaluations"},
)

__all__ = ["all", "available", "solver_class", "get", "names", "summaries", *_REGISTRY.homes]

__getattr__ = _REGISTRY.attribute


def names() -> list[str]:
    """Names of all solvers, third parties' included, without loading one."""
    return _REGISTRY.names()


def summaries() -> dict[str, str]:
    """{name: a sentence} of all solvers, without loading one."""
    return _REGISTRY.summaries()


def solver_class(name: str) -> type[Solver]:
    """The class behind a name.

    Raises
    ------
    InvalidProblem
        If there is no such solver; the message suggests the nearest.
    """
    return _REGISTRY.class_of(name)


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
    found: Solver = _REGISTRY.get(name, options)
    return found


def all() -> list[type[Solver]]:  # noqa: A001  (reads as solvers.all())
    """Every solver class of the library."""
    return _REGISTRY.all()


def available(problem: Any = None) -> list[str]:
    """Names of the solvers, or of those that load and take `problem` as it is."""
    return names() if problem is None else [name for name in names() if _takes(name, problem)]


def _takes(name: str, problem: Any) -> bool:
    try:
        solver = get(name)
    except InvalidProblem:
        # a third party's package that does not load must not hide the others
        return False
    return solver.refuse(problem) is None
