"""What is to be decided: units, constraints and problems. numpy only at import; no torch anywhere."""

from ._errors import InvalidProblem as InvalidProblem
from ._errors import SolverFailed as SolverFailed
from ._errors import UnsupportedProblem as UnsupportedProblem
from ._errors import unknown as unknown
from .binary_quadratic import BinaryQuadratic as BinaryQuadratic
from .black_box import BlackBox as BlackBox
from .black_box import LevelTuples as LevelTuples
from .black_box import Selections as Selections
from .constraints import Budget as Budget
from .constraints import Cardinality as Cardinality
from .constraints import Constraint as Constraint
from .constraints import GroupBounds as GroupBounds
from .couplings import Blocks as Blocks
from .couplings import Coupling as Coupling
from .couplings import Dense as Dense
from .couplings import LowRank as LowRank
from .couplings import Sparse as Sparse
from .level_choice import LevelChoice as LevelChoice
from .multi_objective import Composite as Composite
from .multi_objective import MultiObjective as MultiObjective
from .multi_objective import Product as Product
from .units import Group as Group
from .units import Member as Member
from .units import Selection as Selection
from .units import Statistics as Statistics
from .units import Unit as Unit
