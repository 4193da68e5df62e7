"""Which parts of a trained network to keep, as a combinatorial-optimisation problem that any solver can take.

Every name is imported when it is first used, so that `import prunesolve` costs next to nothing and arrays can be
solved without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import bridges as bridges
    from . import campaigns as campaigns
    from . import formulations as formulations
    from . import problems as problems
    from . import solvers as solvers
    from .loading import load as load
    from .pareto import TradeOff as TradeOff
    from .pareto import trade_off as trade_off
    from .pipeline import prune as prune
    from .pipeline import prune_and_tune as prune_and_tune
    from .problems import BinaryQuadratic as BinaryQuadratic
    from .problems import BlackBox as BlackBox
    from .problems import Blocks as Blocks
    from .problems import Budget as Budget
    from .problems import Cardinality as Cardinality
    from .problems import Clustering as Clustering
    from .problems import Composite as Composite
    from .problems import Group as Group
    from .problems import GroupBounds as GroupBounds
    from .problems import InvalidProblem as InvalidProblem
    from .problems import Keep as Keep
    from .problems import LevelChoice as LevelChoice
    from .problems import LevelTuples as LevelTuples
    from .problems import LowRank as LowRank
    from .problems import MultiObjective as MultiObjective
    from .problems import NofM as NofM
    from .problems import PartialTransport as PartialTransport
    from .problems import PerRow as PerRow
    from .problems import Product as Product
    from .problems import Selection as Selection
    from .problems import Selections as Selections
    from .problems import SolverFailed as SolverFailed
    from .problems import SparseRegression as SparseRegression
    from .problems import Statistics as Statistics
    from .problems import SubsetRegression as SubsetRegression
    from .problems import Unit as Unit
    from .problems import UnsupportedProblem as UnsupportedProblem
    from .problems import library as library
    from .solvers import Front as Front
    from .solvers import Result as Result
    from .solvers import Solver as Solver
    from .solvers import Status as Status
    from .solving import select as select
    from .solving import solve as solve
    from .torch_door import apply_masks as apply_masks
    from .torch_door import evaluator as evaluator
    from .torch_door import find_branches as find_branches
    from .torch_door import find_groups as find_groups
    from .torch_door import fuse as fuse
    from .torch_door import masks as masks
    from .torch_door import measure as measure
    from .torch_door import merge as merge
    from .torch_door import recalibrate_batchnorm as recalibrate_batchnorm
    from .torch_door import refit as refit
    from .torch_door import remove_branches as remove_branches
    from .torch_door import shrink as shrink
    from .torch_door import tune as tune
    from .torch_door import verify as verify

__version__ = "0.1.0"

_ROOMS = ("bridges", "formulations", "problems", "solvers")
_MODULES = {room: f".{room}" for room in (*_ROOMS, "campaigns")} | {"library": ".problems.library"}
_NAMES = {
    "loading": ("load",),
    "pareto": ("trade_off", "TradeOff"),
    "pipeline": ("prune", "prune_and_tune"),
    "problems": (
        "BinaryQuadratic",
        "BlackBox",
        "Blocks",
        "Budget",
        "Cardinality",
        "Clustering",
        "Composite",
        "Group",
        "GroupBounds",
        "InvalidProblem",
        "Keep",
        "LevelChoice",
        "LevelTuples",
        "LowRank",
        "MultiObjective",
        "NofM",
        "PartialTransport",
        "PerRow",
        "Product",
        "Selection",
        "Selections",
        "SolverFailed",
        "SparseRegression",
        "Statistics",
        "SubsetRegression",
        "Unit",
        "UnsupportedProblem",
    ),
    "solvers": ("Front", "Result", "Solver", "Status"),
    "solving": ("select", "solve"),
    "torch_door": (
        "measure",
        "find_groups",
        "find_branches",
        "remove_branches",
        "masks",
        "apply_masks",
        "shrink",
        "verify",
        "evaluator",
        "tune",
        "refit",
        "recalibrate_batchnorm",
        "fuse",
        "merge",
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name], __name__)
    if name in _HOME:
        found = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, *_HOME, "__version__"])
