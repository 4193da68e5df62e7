"""Other people's solvers behind one signature: (problem, seconds, seed, penalty) -> list of selections.

Samplers know no constraint: they get  f(x) + penalty (sum x - k)^2,  the penalty in units of the mean local field.
What they return may break the cardinality, or a bound on a group, of which they are told nothing (real instances ask
for one unit a layer); `repaired` and `polished` mend and finish it for them. Gurobi, SCIP and HiGHS get cardinality
and group bounds as the linear rows they are, and no penalty.
A call builds its model from the problem's arrays and uses up its seconds, building included. What a peer has to know
about this machine beforehand (how long a sweep takes) `calibrated` measures, outside the clock.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, Cardinality, GroupBounds
from prunesolve.solvers._descent import descend
from prunesolve.solvers._start import Ledger, repair

PENALTIES = (0.03, 0.2, 1.0)
KEPT = 16  # distinct reads of a call that are repaired and polished, those of lowest energy
CALIBRATION = 0.05  # share of the seconds of a call that its calibration may use


class Refused(Exception):
    """A peer cannot take the problem: too large for its licence or for its model."""


def check(problem: BinaryQuadratic) -> None:
    """Raise Refused unless the constraints are a cardinality and, maybe, group bounds."""
    if problem.k is None or not all(isinstance(c, Cardinality | GroupBounds) for c in problem.constraints):
        raise Refused("models are written for a cardinality with group bounds and no other constraint")


# --- the model of a sampler ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Penalised:
    """linear.x + sum_{i<j} couplings_ij x_i x_j + offset  =  f(x) + weight (sum x - k)^2."""

    linear: Any  # (n,)
    couplings: Any  # (n, n) symmetric, zero diagonal
    offset: float

    @classmethod
    def of(cls, problem: BinaryQuadratic, penalty: float) -> Penalised:
        check(problem)
        k, weight = problem.k, penalty * field_scale(problem)
        couplings = problem.couplings.dense() + 2.0 * weight
        np.fill_diagonal(couplings, 0.0)
        return cls(problem.linear + weight * (1 - 2 * k), couplings, problem.offset + weight * k**2)

    def bits(self) -> Any:
        """The dimod BQM over x; dense, the fastest way dimod has."""
        return _bqm("BINARY", self.linear, self.couplings, self.offset)

    def spins(self) -> Any:
        """The dimod BQM over s = 2 x - 1."""
        linear, couplings = self.ising()
        shift = self.offset + self.linear.sum() / 2 + self.couplings.sum() / 8
        return _bqm("SPIN", linear, couplings, shift)

    def ising(self) -> tuple[Any, Any]:
        """Fields (n,) and couplings (n, n) of the spins, without the constant."""
        return self.linear / 2 + self.couplings.sum(axis=1) / 4, self.couplings / 4


def _bqm(vartype: str, linear: Any, couplings: Any, offset: float) -> Any:
    import dimod

    bqm = dimod.BinaryQuadraticModel(vartype)
    bqm.add_linear_from_array(linear)
    bqm.add_quadratic_from_dense(np.triu(couplings, 1))
    bqm.offset = offset
    return bqm


def field_scale(problem: BinaryQuadratic) -> float:
    """Mean |a_i + (J x)_i| at x = k/n: what one unit too many or too few is worth."""
    even = np.full(problem.n, problem.k / problem.n)
    return float(np.abs(problem.linear + problem.couplings.product(even)).mean()) or 1.0


def swap_scale(problem: BinaryQuadratic, pairs: int = 1000) -> float:
    """Mean |change of f| of random swaps in a random selection: the temperature of the moves that matter."""
    rng = np.random.default_rng(0)
    kept = np.zeros(problem.n, dtype=bool)
    kept[rng.permutation(problem.n)[: problem.k]] = True
    h = problem.fields(kept)
    out, into = rng.choice(np.flatnonzero(kept), pairs), rng.choice(np.flatnonzero(~kept), pairs)
    # the pair's own coupling is one of k terms of h and left out: reading it would need the whole matrix
    return float(np.abs(h[into] - h[out]).mean()) or 1.0


# --- after a sampler, outside its clock ------------------------------------------------------------------------------


def repaired(problem: BinaryQuadratic, x: Any) -> Any:
    """Exactly k kept: the cheapest unit is added, or the dearest dropped, until the count is right, then the groups."""
    ledger = Ledger(problem, x)
    missing = problem.k - int(ledger.x.sum())
    for _ in range(abs(missing)):
        may = ledger.addable() if missing > 0 else ledger.droppable()
        if not may.any():
            break
        ledger.flip(int(np.argmin(np.where(may, ledger.change(), np.inf))))
    repair(ledger, np.random.default_rng(0), lambda: True)
    return ledger.x


def polished(problem: BinaryQuadratic, x: Any) -> Any:
    """No single swap improves it."""
    return descend(problem, x)


# --- samplers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer(ABC):
    """A solver from elsewhere."""

    name: ClassVar[str]
    package: ClassVar[str]
    penalties: ClassVar[tuple[float | None, ...]] = PENALTIES
    proves: ClassVar[bool] = False

    def calibrated(self, problem: BinaryQuadratic, seconds: float, penalty: float | None) -> Peer:
        """The peer that knows how fast it is on this problem."""
        return self

    @abstractmethod
    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        """Selections (n,) bool found within the seconds; raises Refused where the problem is beyond it."""


def _fitting(seconds: float, work: Callable[[int], Any]) -> int:
    """How much work a call of that length does: calls of one unit and of ever more are timed."""

    def timed(amount: int) -> float:
        began = time.perf_counter()
        work(amount)
        return time.perf_counter() - began

    timed(1)
    once, amount, took = timed(1), 1, 0.0
    # the better of two, as others may be at work on this machine; one where that would be long
    again = once < 0.3
    once = min(once, timed(1)) if again else once
    while took < CALIBRATION * seconds and amount < 10**7:
        amount *= 8
        took = (min(timed(amount), timed(amount)) if again else timed(amount)) - once
    return int((seconds - once) * (amount - 1) / max(took, 1e-9))


@dataclass(frozen=True)
class Annealer(Peer):
    """What simulated annealers share: `reads` equal anneals that fill the time.

    Inverse temperatures run from `hot` to `cold` over the mean swap difference. dwave's own range ends at the
    smallest coupling, which for real-valued couplings is next to nothing, and takes a Python loop over all pairs.
    """

    reads: int = 8
    sweeps: int = 100
    hot: float = 1.0
    cold: float = 300.0

    def calibrated(self, problem: BinaryQuadratic, seconds: float, penalty: float | None) -> Annealer:
        """With the sweeps that fill the seconds."""
        sweeps = _fitting(seconds, lambda few: replace(self, reads=1, sweeps=few)(problem, np.inf, 0, penalty))
        return replace(self, sweeps=max(2, sweeps // self.reads))

    def betas(self, problem: BinaryQuadratic) -> tuple[float, float]:
        """Inverse temperatures of the first and the last sweep."""
        scale = swap_scale(problem)
        return self.hot / scale, self.cold / scale


@dataclass(frozen=True)
class DwaveAnnealing(Annealer):
    """SimulatedAnnealingSampler of dwave-samplers; it begins another read while half of one still fits."""

    name: ClassVar[str] = "dwave-sa"
    package: ClassVar[str] = "dwave.samplers"

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        from dwave.samplers import SimulatedAnnealingSampler

        began = time.perf_counter()
        most = self.reads if np.isinf(seconds) else 4 * self.reads
        found = SimulatedAnnealingSampler().sample(
            Penalised.of(problem, penalty).spins(),
            num_reads=most,
            num_sweeps=self.sweeps,
            beta_range=self.betas(problem),
            seed=seed,
            interrupt_function=lambda: time.perf_counter() - began > seconds * (1 - 0.5 / self.reads),
        )
        return selections(found)


@dataclass(frozen=True)
class OpenJij(Annealer):
    """SASampler of OpenJij, on its dense model."""

    name: ClassVar[str] = "openjij-sa"
    package: ClassVar[str] = "openjij"

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        import openjij
        from openjij.model.model import make_BinaryQuadraticModel

        fields, couplings = Penalised.of(problem, penalty).ising()
        upper = np.triu(couplings, 1)
        np.fill_diagonal(upper, fields)
        # the class is made for the type of the labels it is shown
        dense = make_BinaryQuadraticModel({0: 1.0}, {}, False)
        model = dense.from_numpy_matrix(upper, list(range(problem.n)), 0.0, "SPIN", True)
        hot, cold = self.betas(problem)
        found = openjij.SASampler().sample(
            model,
            num_reads=self.reads,
            num_sweeps=self.sweeps,
            beta_min=hot,
            beta_max=cold,
            sparse=False,
            seed=seed,
        )
        return selections(found)


@dataclass(frozen=True)
class DwaveTabu(Peer):
    """TabuSampler of dwave-samplers: one read that restarts until its time is up."""

    fixed_seconds: float = 0.0

    name: ClassVar[str] = "dwave-tabu"
    package: ClassVar[str] = "dwave.samplers"

    def calibrated(self, problem: BinaryQuadratic, seconds: float, penalty: float | None) -> DwaveTabu:
        """Knowing what a call takes beside the search, such as copying the model."""
        self(problem, 0.0, 0, penalty)
        began = time.perf_counter()
        self(problem, 0.0, 0, penalty)
        return replace(self, fixed_seconds=time.perf_counter() - began)

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        from dwave.samplers import TabuSampler

        milliseconds = max(1, round(1000 * (seconds - self.fixed_seconds)))
        return selections(TabuSampler().sample(Penalised.of(problem, penalty).bits(), timeout=milliseconds, seed=seed))


@dataclass(frozen=True)
class DwaveDescent(Peer):
    """SteepestDescentSampler of dwave-samplers, from as many random states as fit."""

    reads: int = 1

    name: ClassVar[str] = "dwave-descent"
    package: ClassVar[str] = "dwave.samplers"

    def calibrated(self, problem: BinaryQuadratic, seconds: float, penalty: float | None) -> DwaveDescent:
        """With the reads that fill the seconds."""
        reads = _fitting(seconds, lambda few: replace(self, reads=few)(problem, np.inf, 0, penalty))
        return replace(self, reads=max(1, reads))

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        from dwave.samplers import SteepestDescentSampler

        bqm = Penalised.of(problem, penalty).bits()
        return selections(SteepestDescentSampler().sample(bqm, num_reads=self.reads, seed=seed))


def selections(found: Any) -> list[Any]:
    """The distinct reads of lowest energy of a sample set, variables 0 to n - 1 in order."""
    order = np.argsort(list(found.variables))
    lowest = np.argsort(found.record.energy, kind="stable")[: 4 * KEPT]
    rows = found.record.sample[lowest][:, order] > 0
    _, first = np.unique(rows, axis=0, return_index=True)
    return [rows[r] for r in sorted(first)[:KEPT]]


# --- exact solvers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact(Peer):
    """What solvers of mixed-integer programs share: the cardinality as an equation, at most `pairs` products."""

    pairs: int = 20_000

    penalties: ClassVar[tuple[float | None, ...]] = (None,)
    proves: ClassVar[bool] = True

    def products(self, problem: BinaryQuadratic) -> tuple[Any, Any, Any]:
        """i, j and J_ij of the coupled pairs."""
        check(problem)
        pieces = [np.concatenate(part) for part in zip(*problem.couplings.pairs(), strict=True)]
        if len(pieces[0]) > self.pairs:
            raise Refused(f"{len(pieces[0])} products are more than the {self.pairs} a model is written for")
        return pieces[0], pieces[1], pieces[2]

    def rows(self, problem: BinaryQuadratic) -> tuple[Any, Any, Any]:
        """A (m, n), low (m,) and high (m,) of the cardinality and the group bounds."""
        members, low, high = [np.ones(problem.n)], [problem.k], [problem.k]
        for bounds in problem.of_kind(GroupBounds):
            members += [(bounds.group == g).astype(float) for g in range(len(bounds.low))]
            low, high = [*low, *bounds.low.tolist()], [*high, *bounds.high.tolist()]
        return np.array(members), np.array(low, dtype=float), np.array(high, dtype=float)


@dataclass(frozen=True)
class Gurobi(Exact):
    """Gurobi's binary quadratic programming."""

    pairs: int = 10**8

    name: ClassVar[str] = "gurobi"
    package: ClassVar[str] = "gurobipy"

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        import gurobipy
        from scipy import sparse

        began = time.perf_counter()
        i, j, products = self.products(problem)
        upper = sparse.coo_array((products, (i, j)), shape=(problem.n, problem.n)).tocsr()
        try:
            with gurobipy.Env(params={"OutputFlag": 0}) as environment, gurobipy.Model(env=environment) as model:
                x = model.addMVar(problem.n, vtype="B")
                A, low, high = self.rows(problem)
                model.addConstr(A @ x >= low)
                model.addConstr(A @ x <= high)
                model.setObjective(problem.linear @ x + x @ upper @ x)
                model.Params.Threads, model.Params.Seed, model.Params.MIPGap = 1, seed, 0.0
                model.Params.TimeLimit = max(0.0, seconds - (time.perf_counter() - began))
                model.optimize()
                return [x.X > 0.5] if model.SolCount else []
        except gurobipy.GurobiError as error:
            raise Refused(str(error)) from None


@dataclass(frozen=True)
class Scip(Exact):
    """SCIP on the epigraph of the quadratic objective, the only place it takes one."""

    name: ClassVar[str] = "scip"
    package: ClassVar[str] = "pyscipopt"

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        import pyscipopt

        began = time.perf_counter()
        i, j, products = self.products(problem)
        model = pyscipopt.Model()
        model.hideOutput()
        x = [model.addVar(vtype="B") for _ in range(problem.n)]
        value = model.addVar(lb=None)
        linear = pyscipopt.quicksum(a * v for a, v in zip(problem.linear.tolist(), x, strict=True))
        terms = zip(i.tolist(), j.tolist(), products.tolist(), strict=True)
        model.addCons(linear + pyscipopt.quicksum(q * x[a] * x[b] for a, b, q in terms) <= value)
        for members, low, high in zip(*self.rows(problem), strict=True):
            kept = pyscipopt.quicksum(x[a] for a in np.flatnonzero(members))
            model.addCons(kept >= low)
            model.addCons(kept <= high)
        model.setObjective(value)
        model.setParam("randomization/randomseedshift", seed)
        model.setParam("limits/time", max(0.0, seconds - (time.perf_counter() - began)))
        model.optimize()
        return [np.array([model.getVal(v) for v in x]) > 0.5] if model.getNSols() else []


@dataclass(frozen=True)
class Highs(Exact):
    """HiGHS on the standard linearisation: one continuous y_ij for each product."""

    name: ClassVar[str] = "highs"
    package: ClassVar[str] = "highspy"

    def __call__(self, problem: BinaryQuadratic, seconds: float, seed: int, penalty: float | None) -> list[Any]:
        import highspy

        began = time.perf_counter()
        solver = highspy.Highs()
        solver.silent()
        solver.passModel(self._linearised(problem))
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", seed)
        solver.setOptionValue("mip_rel_gap", 0.0)
        solver.setOptionValue("time_limit", max(0.0, seconds - (time.perf_counter() - began)))
        solver.run()
        kept = np.array(solver.getSolution().col_value[: problem.n])
        return [kept > 0.5] if solver.getInfo().primal_solution_status == 2 else []

    def _linearised(self, problem: BinaryQuadratic) -> Any:
        """y >= x_i + x_j - 1 where the product costs; y <= x_i and y <= x_j where it pays."""
        import highspy
        from scipy import sparse

        i, j, products = self.products(problem)
        n, m = problem.n, len(i)
        y, costs, pays = n + np.arange(m), np.flatnonzero(products > 0), np.flatnonzero(products < 0)
        A, low, high = self.rows(problem)
        identity = sparse.eye_array(n + m, format="csr")

        def pick(variables: Any) -> Any:
            return identity[variables]

        below = [pick(i[costs]) + pick(j[costs]) - pick(y[costs]), pick(y[pays]) - pick(i[pays])]
        below.append(pick(y[pays]) - pick(j[pays]))
        free = len(costs) + 2 * len(pays)
        asked = sparse.csr_array(np.hstack([A, np.zeros((len(A), m))]))
        columns = sparse.vstack([asked, *below], format="csc")
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = n + m, len(A) + free
        model.col_cost_ = np.concatenate([problem.linear, products])
        model.col_lower_, model.col_upper_ = np.zeros(n + m), np.ones(n + m)
        model.row_lower_ = np.concatenate([low, np.full(free, -np.inf)])
        model.row_upper_ = np.concatenate([high, np.ones(len(costs)), np.zeros(2 * len(pays))])
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_, model.a_matrix_.index_ = columns.indptr, columns.indices
        model.a_matrix_.value_ = columns.data
        kinds = highspy.HighsVarType
        model.integrality_ = [kinds.kInteger] * n + [kinds.kContinuous] * m
        return model


ALL: tuple[type[Peer], ...] = (DwaveAnnealing, DwaveTabu, DwaveDescent, OpenJij, Gurobi, Scip, Highs)


def installed() -> dict[str, Peer]:
    """{name: peer} of those whose package is here."""
    return {peer.name: peer() for peer in ALL if find_spec(peer.package.partition(".")[0]) is not None}
