"""`explain`, of solutions and of result files: what is asked is checked here, rows come from `units` or `levels`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunesolve.claims import rounding, solution_of
from prunesolve.problems import BinaryQuadratic, InvalidProblem, LevelChoice, SubsetRegression, UnsupportedProblem

from .agreement import Agreement, Answer, checked
from .levels import explain_levels
from .units import explain_units
from .words import in_words


@dataclass(frozen=True)
class Explanation:
    """What a solution rests on; `str` gives a table for the terminal.

    Parameters
    ----------
    rows : list of dict
        One a unit, or one a layer of a LevelChoice, those nearest to the border first.
    facts : dict
        The solution's value, multipliers, best flip and agreement with other results.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One JSON object with `facts` and `rows`; no NaN or infinity."""
        return json.dumps({"facts": self.facts, "rows": self.rows}, allow_nan=False)

    def __str__(self) -> str:
        return in_words(self.facts, self.rows)


def explain(problem: Any, solution: Any, others: Iterable[Any] = (), *, most: int = 20) -> Explanation:
    r"""What each unit near the border of a solution contributes, is charged, would cost to flip, and how stable it is.

    A flip is the best feasible one: the unit alone, or in exchange with one of the other side,

        f changes by  h_j (j comes),  -h_i (i goes),  h_j - h_i - J_ij (j comes for i)

    Parameters
    ----------
    problem : BinaryQuadratic, SubsetRegression or LevelChoice
        Of a regression, `linear` is what a group adds alone and `couplings` what the others of the selection change.
    solution : (n,) bool, (L,) int or Result
        A feasible solution.
    others : iterable of solutions or Results
        Solutions of the same problem, such as those of other seeds. The explained object itself, infeasible and missing
        ones are left out; those whose `solver` is the solution's are also counted by themselves.
    most : int
        Most rows.

    Returns
    -------
    Explanation

    Raises
    ------
    InvalidProblem
        If the solution is infeasible or not one of this problem.
    UnsupportedProblem
        If the problem is of another kind.

    Reference
    ---------
    H. Everett, Generalized Lagrange multiplier method for solving problems of optimum allocation of resources,
    Operations Research 11 (1963).

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic, Cardinality
    >>> problem = BinaryQuadratic([-3.0, -2.0, -1.0], constraints=[Cardinality(1)])
    >>> told = explain(problem, [True, False, False])
    >>> told.facts["multipliers"][0]["multiplier"], told.rows[0]["margin"], told.rows[0]["flip_cost"]
    (2.5, 0.5, 1.0)
    """
    if not isinstance(problem, (BinaryQuadratic, SubsetRegression, LevelChoice)):
        raise UnsupportedProblem(
            f"explain: expected a BinaryQuadratic, SubsetRegression or LevelChoice, got {type(problem).__name__}"
        )
    if most < 0:
        raise InvalidProblem(f"most: expected a number of rows >= 0, got {most}")
    x = checked(problem, getattr(solution, "solution", solution))
    if not problem.is_feasible(x):
        raise InvalidProblem(
            f"explain: expected a feasible solution, got one of violation {problem.violation(x):g}; no multipliers "
            "speak of it"
        )
    rest = [other for other in others if other is not solution]
    agreement = Agreement.of(problem, getattr(solution, "solver", None), rest)
    if isinstance(problem, LevelChoice):
        rows, facts = explain_levels(problem, x, agreement, most)
    else:
        rows, facts = explain_units(problem, x, agreement, most)
    return Explanation(rows, _value_facts(problem, x) | facts)


def explain_result(
    problem: Any, told: Mapping[str, Any], others: Iterable[Mapping[str, Any]] = (), *, most: int = 20
) -> Explanation:
    """`explain` for the JSON objects of result files, as `solve --out` writes them.

    Parameters
    ----------
    problem : BinaryQuadratic, SubsetRegression or LevelChoice
        The instance.
    told : mapping
        The result to be explained.
    others : iterable of mappings
        Results of the same instance; those without a feasible solution are left out.
    most : int
        Most rows.

    Raises
    ------
    InvalidProblem
        If a result is of another instance, or the explained one has no feasible solution.
    UnsupportedProblem
        If the problem is of another kind.

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic, Cardinality
    >>> problem = BinaryQuadratic([-3.0, -2.0, -1.0], constraints=[Cardinality(1)])
    >>> told = {"n": 3, "solution": [0], "solver": "Greedy()"}
    >>> explain_result(problem, told, [told, {"n": 3, "solution": [1]}]).rows[0]["others"]["count"]
    0
    """
    if not isinstance(problem, (BinaryQuadratic, SubsetRegression, LevelChoice)):
        return explain(problem, None)  # which says what is explained
    first = _told(problem, told)
    rest = [_told(problem, other) for other in others if other is not told and other.get("solution") is not None]
    return explain(problem, first, rest, most=most)


def best_told(problem: Any, results: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The feasible result of least value, both recomputed, among JSON objects of result files.

    Parameters
    ----------
    problem : BinaryQuadratic, SubsetRegression or LevelChoice
        The instance.
    results : iterable of mappings
        Results of it.

    Raises
    ------
    InvalidProblem
        If a result is of another instance, or none is feasible.

    Examples
    --------
    >>> problem = BinaryQuadratic([-3.0, -2.0])
    >>> best_told(problem, [{"n": 2, "solution": [1]}, {"n": 2, "solution": [0]}])["solution"]
    [0]
    """
    listed = [told for told in results if told.get("solution") is not None]
    found = [(told, _told(problem, told).solution) for told in listed]
    feasible = [(problem.value(x), told) for told, x in found if problem.is_feasible(x)]
    if not feasible:
        raise InvalidProblem(f"expected a feasible result to explain, got none among {len(listed)} with a solution")
    return min(feasible, key=lambda pair: pair[0])[1]


def _told(problem: Any, told: Mapping[str, Any]) -> Answer:
    if told.get("instance_hash") not in (None, problem.hash):
        raise InvalidProblem(f"made for instance {told['instance_hash']}, this one is {problem.hash}")
    return Answer(solution_of(problem, told), told.get("solver"))


def _value_facts(problem: Any, x: Any) -> dict[str, Any]:
    objective = problem.value(x)
    return {
        "kind": type(problem).__name__,
        "instance_hash": problem.hash,
        "n": problem.n,
        "objective": objective,
        "sense": problem.meta.get("sense", "minimise"),
        "slack": rounding(problem, objective),
    }
