"""NSGA-II as pymoo has it for binary variables, with its own operators and random start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def minimised(
    evaluate: Callable[[Any], Any], group: Any, evaluations: int, seed: int, population: int = 100
) -> dict[str, Any]:
    """Run it for that many evaluations; a selection must keep a unit of every group. Returns its generations."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling
    from pymoo.optimize import minimize

    groups = np.eye(int(group.max()) + 1)[group]

    class Units(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=len(group), n_obj=2, n_ieq_constr=1, xl=0, xu=1, vtype=bool)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            keep = np.asarray(x, dtype=bool)
            # a network without a value is the worst there is
            out["F"] = np.nan_to_num(evaluate(keep), nan=1e9, posinf=1e9)
            out["G"] = np.maximum(0.0, 1.0 - keep @ groups).sum(1)[:, None]

    algorithm = NSGA2(
        pop_size=population,
        sampling=BinaryRandomSampling(),
        crossover=TwoPointCrossover(),
        mutation=BitflipMutation(),
        eliminate_duplicates=True,
    )
    done = minimize(Units(), algorithm, ("n_eval", evaluations), seed=seed)
    return {"generations": int(done.algorithm.n_gen) - 1}
