"""What a choice by its name stands for: a solver, a formulation, the steps that follow a removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prunesolve import solvers
from prunesolve.problems import InvalidProblem, Selection, unknown
from prunesolve.solvers import Solver

AnySolver = str | Solver | type[Solver]


def solver_of(solver: AnySolver, options: dict[str, Any]) -> Solver:
    """The solver by its name, its class or itself; options go with a name or a class."""
    if isinstance(solver, str):
        return solvers.get(solver, **options)
    if isinstance(solver, Solver):
        if options:
            raise InvalidProblem(
                f"solve: {', '.join(options)}: options go into the solver itself where one is given, such as "
                f"{type(solver).__name__}({next(iter(options))}=...)"
            )
        return solver
    if isinstance(solver, type) and issubclass(solver, Solver):
        try:
            return solver(**options)
        except TypeError as error:
            raise InvalidProblem(f"{solver.__name__}: {error}") from None
    raise InvalidProblem(f"solver: expected a name, a Solver or its class, got {type(solver).__name__}")


def formulation_of(formulation: Any) -> Any:
    """The formulation by its name or itself."""
    from prunesolve import formulations

    if isinstance(formulation, str):
        return formulations.of_statistics(formulation)
    if isinstance(formulation, formulations.Formulation):
        return formulation
    raise InvalidProblem(f"formulation: expected a name or a Formulation, got {type(formulation).__name__}")


def checked_choices(
    granularity: str, allocation: str, refit: bool | str, repair: Sequence[str] | None
) -> list[tuple[str, Callable[..., Any]]]:
    """The steps after the removal, in order; choices that do not exist are refused by name."""
    if granularity != "channel":
        raise unknown("granularity", str(granularity), ["channel"])
    if allocation != "auto":
        raise unknown("allocation", str(allocation), ["auto"])
    if not isinstance(refit, bool) and refit != "reconstruct":
        raise InvalidProblem(f"refit: expected True (least squares), 'reconstruct' or False, got {refit!r}")
    steps: list[tuple[str, Callable[..., Any]]] = [("refit", _refit_step)] if refit else []
    steps += [("reconstruct", _reconstruct_step)] if refit == "reconstruct" else []
    for name in [repair] if isinstance(repair, str) else repair or ():
        if name not in REPAIRS:
            raise unknown("repair", str(name), REPAIRS)
        steps.append((name, REPAIRS[name]))
    return steps


def _refit_step(dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
    from prunesolve.bridges.torch.refit import refit

    return refit(dense, removed, batches, selection)


def _reconstruct_step(dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
    from prunesolve.bridges.torch.reconstruct import reconstruct

    return reconstruct(dense, removed, batches, selection)


def _repair_step(name: str, dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
    from prunesolve.bridges.torch.repair import repaired

    return repaired(dense, removed, batches, name, selection)


# those of prunesolve.bridges.torch.repair, by name alone: choices are checked before torch is loaded
REPAIRS: dict[str, Callable[..., Any]] = {
    name: partial(_repair_step, name) for name in ("bn", "layer-variance", "repair", "asr", "bias", "damped")
}
