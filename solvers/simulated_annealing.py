"""Simulated annealing of D-Wave's samplers package on the BQM, with capacity-driven search for the constraints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem

from . import _capacity, _descent
from ._base import Run, Solver

# sampler operations between two looks at the clock: some 10 ms
_STRIDE = 2e6


@dataclass(frozen=True)
class SimulatedAnnealing(Solver):
    r"""Single-flip annealing of the unconstrained model, steered to the constraints by linear fields.

        minimise  f(x) + sum_c mu_c w_c.x,      mu bisected until the asked number is kept

    Never a quadratic penalty: the couplings stay as they are. What no field reaches is finished by cheapest adds and
    drops and by exact descent (see `_capacity`). Evaluations are sweeps.

    Parameters
    ----------
    reads : int
        Anneals per field.
    sweeps : int
        Passes over all variables per anneal.
    bisections : int
        Most fields tried; a problem without constraints needs one.

    Reference
    ---------
    Capacity-driven search: reconstruction after Orabi et al., Hybrid QUBO (arXiv 2604.05856). Sampler: dwave-samplers.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)])
    >>> SimulatedAnnealing().solve(problem).objective
    -5.0
    """

    reads: int = 4
    sweeps: int = 200
    bisections: int = 12

    name: ClassVar[str] = "simulated-annealing"

    def __post_init__(self) -> None:
        for option in ("reads", "sweeps", "bisections"):
            if getattr(self, option) < 1:
                raise InvalidProblem(f"{self.name}: {option} must be at least 1, got {getattr(self, option)!r}")

    def _prepare(self, problem: BinaryQuadratic) -> None:
        import dwave.samplers  # noqa: F401

        _descent.prepare(problem)

    def _search(self, problem: BinaryQuadratic, run: Run) -> None:
        rounds = self.bisections if problem.constraints else 1
        _capacity.search(problem, run, self._sampler(problem, run, rounds), rounds)

    def _sampler(self, problem: BinaryQuadratic, run: Run, rounds: int) -> _capacity.Sample:
        """Anneal f(x) + field.x; the spin model is built once and only its linear biases change."""
        from dwave.samplers import SimulatedAnnealingSampler

        spin = problem.to_bqm().change_vartype("SPIN", inplace=False)
        linear = spin.to_numpy_vectors(variable_order=range(problem.n)).linear_biases.copy()
        sampler = SimulatedAnnealingSampler()
        reads, betas = self._plan(problem, run, rounds)

        def sample(field: Any) -> Any:
            # field.x = field.(1 + s)/2
            for i, bias in enumerate((linear + field / 2).tolist()):
                spin.set_linear(i, bias)
            states = run.rng.choice(np.array([-1, 1], dtype=np.int8), size=(reads, problem.n))
            for part in betas:
                with _capacity.Interrupt(run) as stop:
                    found = sampler.sample(
                        spin,
                        initial_states=(states, range(problem.n)),
                        num_reads=reads,
                        beta_schedule=part,
                        beta_schedule_type="custom",
                        num_sweeps=None,
                        seed=int(run.rng.integers(2**31)),
                        interrupt_function=stop,
                    )
                run.count(reads * len(part))
                if len(found) < reads or run.should_stop():
                    # what is annealed so far is a fair start for the finish
                    return _in_order(found, problem.n) if len(found) else states > 0
                states = np.where(_in_order(found, problem.n), 1, -1).astype(np.int8)
            return states > 0

        return sample

    def _plan(self, problem: BinaryQuadratic, run: Run, rounds: int) -> tuple[int, list[Any]]:
        """Reads and the schedule of inverse temperatures, cut into parts of some 10 ms each."""
        reads, sweeps = self.reads, self.sweeps
        if run.evaluation_limit is not None:
            reads = max(1, min(reads, run.evaluation_limit // rounds))
            sweeps = max(1, min(sweeps, run.evaluation_limit // (rounds * reads)))
        betas = _schedule(problem, sweeps)
        per_sweep = reads * problem.n * max(1.0, problem.n / 8)
        parts = math.ceil(sweeps * per_sweep / max(_STRIDE, per_sweep))
        return reads, np.array_split(betas, min(parts, sweeps))


def _schedule(problem: BinaryQuadratic, sweeps: int) -> Any:
    """(sweeps,) geometric, from where the strongest unit flips freely to where a mean bias is frozen.

    The sampler's own default ends at the smallest coupling, which for real-valued couplings is next to nothing and
    spends most of the schedule frozen.
    """
    reach = _capacity.reach(problem)
    strong = float(reach.max())
    typical = float(np.median(reach[reach > 0])) if strong > 0 else 1.0
    # the inverse of a denormal is infinite
    hot = math.log(2) / max(strong, 1e-300)
    cold = math.log(100.0) * problem.n / max(typical, 1e-300)
    return np.geomspace(hot, max(cold, hot), sweeps) if sweeps > 1 else np.array([cold])


def _in_order(found: Any, n: int) -> Any:
    """(m, n) bool rows of a sample set with variables 0 to n - 1."""
    order = [found.variables.index(i) for i in range(n)]
    return found.record.sample[:, order] > 0
