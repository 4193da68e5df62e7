"""Any dimod sampler as a solver: on the BQM itself, never on a penalised one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

from prunesolve.problems import BinaryQuadratic, InvalidProblem
from prunesolve.solvers import _capacity, _descent
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
