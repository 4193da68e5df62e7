"""Any dimod sampler as a solver, on the BQM itself and never on a penalised one; and results as dimod has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem, UnsupportedProblem
from prunesolve.solvers import Result, _capacity, _descent
from prunesolve.solvers._base import Run, Solver


@dataclass(frozen=True)
class DimodSampler(Solver):
    r"""Sample f(x) + field.x with any dimod sampler; a linear field steers it to each constraint.

        minimise  f(x) + sum_c mu_c w_c.x,      mu bisected until the asked number is kept

    Without constraints the best sample is the answer. Otherwise samples are steered by capacity-driven search and
    finished by cheapest adds and drops and exact descent, so the answer satisfies every constraint. Evaluations are
    samples.

    Parameters
    ----------
    sampler : dimod.Sampler or str
        An object with `sample(bqm, **parameters)`, or "module:Class" to be built without arguments.
    parameters : mapping
        Keyword arguments of every `sample` call, such as {"num_reads": 10}.
    bisections : int
        Most fields tried; a problem without constraints needs one.
    largest : int, optional
        Refuse problems of more variables, for exhaustive samplers.

    Notes
    -----
    A sampler with a `seed` parameter gets one from the run's seed at every call; one without repeats only as far as
    it does by itself (exact ones do). A sampler that stops by its own clock, as tabu's `timeout` does, repeats only if
    told to count instead: {"timeout": None, "num_restarts": 10}. A sampler without `interrupt_function` cannot be
    stopped within a call.

    Reference
    ---------
    Capacity-driven search: reconstruction after Orabi et al., Hybrid QUBO (arXiv 2604.05856).

    Examples
    --------
    >>> import dimod
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)])
    >>> DimodSampler(dimod.ExactSolver()).solve(problem).objective
    -5.0
    """

    sampler: Any = "dwave.samplers:SteepestDescentSampler"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    bisections: int = 12
    largest: int | None = None

    name: ClassVar[str] = "dimod"

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str) and not callable(getattr(self.sampler, "sample", None)):
            raise InvalidProblem(
                f"sampler: expected a dimod sampler object or 'module:Class', got {type(self.sampler).__name__}"
            )
        if self.bisections < 1:
            raise InvalidProblem(f"dimod: bisections must be at least 1, got {self.bisections!r}")

    def refuse(self, problem: Any) -> str | None:
        """Why this solver cannot take the problem, None where it can."""
        reason = super().refuse(problem)
        if reason is None and self.largest is not None and problem.n > self.largest:
            return f"{self.name} was told to take BinaryQuadratic of at most {self.largest} variables, got {problem.n}"
        return reason

    def _prepare(self, problem: BinaryQuadratic) -> None:
        self._loaded()
        _descent.prepare(problem)

    def _search(self, problem: BinaryQuadratic, run: Run) -> None:
        _capacity.search(problem, run, self._sampling(problem, run), self.bisections)

    def _sampling(self, problem: BinaryQuadratic, run: Run) -> _capacity.Sample:
        """Sample f(x) + field.x; the BQM is built once and only its linear biases change."""
        sampler = self._loaded()
        accepted = set(getattr(sampler, "parameters", None) or ())
        bqm = problem.to_bqm()

        def sample(steering: Any) -> Any:
            for i, bias in enumerate((problem.linear + steering).tolist()):
                bqm.set_linear(i, bias)
            # a sampler that cannot be interrupted must not hold Ctrl-C back either
            with _capacity.Interrupt(run) if "interrupt_function" in accepted else nullcontext() as stop:
                asked = {"seed": int(run.rng.integers(2**31)), "interrupt_function": stop}
                own = {name: value for name, value in asked.items() if name in accepted}
                found = sampler.sample(bqm, **(own | dict(self.parameters)))
            run.count(len(found))
            return found.record.sample[:, [found.variables.index(i) for i in range(problem.n)]] > 0

        return sample

    def _loaded(self) -> Any:
        if not isinstance(self.sampler, str):
            return self.sampler
        module, _, name = self.sampler.partition(":")
        try:
            return getattr(import_module(module), name)()
        except (ImportError, AttributeError, ValueError) as error:
            raise InvalidProblem(f"sampler: expected 'module:Class', got {self.sampler!r} ({error})") from None


def sample_set(problem: BinaryQuadratic, results: Iterable[Result | Mapping[str, Any]]) -> Any:
    r"""Results of one problem as a dimod SampleSet of bits, a row for each that brought a selection.

        energy = f(x) = offset + a.x + sum_{i<j} J_ij x_i x_j

    Parameters
    ----------
    problem : BinaryQuadratic
        What was solved. Its labels become the variables, a unit as the plain tuple it is; 0 to n - 1 without labels.
    results : iterable of Result or mapping
        Results, or the JSON objects that `solve --out` writes.

    Returns
    -------
    dimod.SampleSet
        With the fields `is_feasible`, `seed`, `solver`, `seconds` and `status`, energies and feasibility recomputed;
        `info` holds `instance`, `instance_hash` and the `version` of prunesolve. Constraints are not in the energies.

    Raises
    ------
    UnsupportedProblem
        If the problem is no BinaryQuadratic.
    InvalidProblem
        If a result belongs to another instance.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)], labels=["a", "b", "c"])
    >>> found = sample_set(problem, [{"n": 3, "kept": 2, "solution": [1, 2], "objective": -5.0, "bound": None,
    ...     "feasible": True, "status": "FINISHED", "seconds": 0.1, "evaluations": 9, "seed": 0, "solver": "Greedy()"}])
    >>> {name: int(bit) for name, bit in found.first.sample.items()}, float(found.first.energy)
    ({'a': 0, 'b': 1, 'c': 1}, -5.0)
    """
    import dimod

    if not isinstance(problem, BinaryQuadratic):
        raise UnsupportedProblem(f"sample_set: expected a BinaryQuadratic, got {type(problem).__name__}")
    told = [result for result in (_result_of(problem, r) for r in results) if result.solution is not None]
    samples = np.array([result.solution for result in told], dtype=bool).reshape(len(told), problem.n)
    named = range(problem.n) if problem.labels is None else problem.labels
    return dimod.SampleSet.from_samples(
        (samples.astype(np.int8), [tuple(name) if isinstance(name, tuple) else name for name in named]),
        vartype=dimod.BINARY,
        energy=problem.value(samples),
        info={
            "instance": str(problem.meta.get("name", "")),
            "instance_hash": problem.hash,
            "version": metadata.version("prunesolve"),
        },
        sort_labels=False,
        is_feasible=problem.is_feasible(samples),
        seed=np.array([result.seed for result in told], dtype=np.int64),
        # objects: dimod does not read back the type by which it names arrays of text
        solver=np.array([result.solver for result in told], dtype=object),
        seconds=np.array([result.seconds for result in told], dtype=np.float64),
        status=np.array([str(result.status) for result in told], dtype=object),
    )


def _result_of(problem: BinaryQuadratic, told: Result | Mapping[str, Any]) -> Result:
    """The result, checked to be of this problem as far as it says."""
    if isinstance(told, Result):
        result = told
    else:
        if told.get("instance_hash") not in (None, problem.hash):
            raise InvalidProblem(
                f"sample_set: expected results of instance {problem.hash}, got one of {told['instance_hash']}"
            )
        result = Result.from_json(json.dumps(dict(told)))
    shape = None if result.solution is None else (result.solution.dtype, result.solution.shape)
    if shape not in (None, (np.dtype(bool), (problem.n,))):
        raise InvalidProblem(f"sample_set: expected selections of n = {problem.n} units, got {shape[0]} of {shape[1]}")
    return result
