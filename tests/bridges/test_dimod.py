"""Dimod samplers as solvers: what the battery (tests/solvers/test_battery.py) does not ask."""

from __future__ import annotations

import pickle
import signal
from contextlib import suppress
from itertools import product

import dimod
import numpy as np
import pytest

from prunesolve.bridges.dimod import DimodSampler
from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds, InvalidProblem, UnsupportedProblem
from prunesolve.solvers import Polish, Restarts, Status
from prunesolve.solvers._base import Run

N = 8
SELECTIONS = np.array(list(product([False, True], repeat=N)))


def problem_of(seed=0, *constraints, scale=1.0):
    rng = np.random.default_rng(seed)
    upper = np.triu(scale * rng.normal(size=(N, N)), 1)
    return BinaryQuadratic(rng.normal(size=N), upper + upper.T, constraints=constraints)


def best_of(problem):
    return problem.value(SELECTIONS[problem.is_feasible(SELECTIONS)]).min()


class Recorder(dimod.Sampler):
    """Exact, remembers what it was asked, and answers in spins with the variables in another order."""

    def __init__(self, *accepts):
        self.bqms, self.asked = [], []
        self._accepts = accepts

    @property
    def parameters(self):
        return dict.fromkeys(self._accepts, [])

    @property
    def properties(self):
        return {}

    def sample(self, bqm, **asked):
        self.bqms.append(bqm.copy())
        self.asked.append(asked)
        found = dimod.ExactSolver().sample(bqm).change_vartype("SPIN", inplace=False)
        order = list(bqm.variables)[::-1]
        rows = found.record.sample[:, [found.variables.index(v) for v in order]]
        return dimod.SampleSet.from_samples_bqm((rows, order), bqm.change_vartype("SPIN", inplace=False))


class Silent(Recorder):
    def sample(self, bqm, **asked):
        return dimod.SampleSet.from_samples_bqm((np.zeros((0, N)), range(N)), bqm)


@pytest.mark.parametrize("k", range(N + 1))
def test_every_cardinality_is_reached_exactly(k):
    problem = problem_of(1, Cardinality(k))
    result = DimodSampler(dimod.ExactSolver()).solve(problem)
    assert result.solution.sum() == k
    assert result.objective >= best_of(problem) - 1e-12


@pytest.mark.parametrize("k", range(1, N))
def test_the_field_alone_finds_every_optimum_on_the_hull(k):
    # values of the best selections by cardinality; a linear field reaches those on their lower convex hull
    problem = problem_of(2, Cardinality(k), scale=0.3)
    count, value = SELECTIONS.sum(axis=1), problem.value(SELECTIONS)
    best = np.array([value[count == m].min() for m in range(N + 1)])
    on_hull = all(
        (best[k] - best[a]) * (b - a) <= (best[b] - best[a]) * (k - a) for a in range(k) for b in range(k + 1, N + 1)
    )
    result = DimodSampler(dimod.ExactSolver(), bisections=40).solve(problem)
    assert result.solution.sum() == k
    if on_hull:
        assert result.objective == pytest.approx(best[k])


def test_only_linear_biases_are_changed():
    problem = problem_of(3, Cardinality(3), GroupBounds([0] * 4 + [1] * 4, [1, 1], [3, 3]))
    sampler = Recorder()
    DimodSampler(sampler).solve(problem)
    plain = problem.to_bqm()
    assert len(sampler.bqms) > 1
    for bqm in sampler.bqms:
        assert bqm.quadratic == plain.quadratic
        moved = [bqm.linear[i] - plain.linear[i] for i in range(N)]
        # one number for each group
        assert np.ptp(moved[:4]) < 1e-9
        assert np.ptp(moved[4:]) < 1e-9


def test_without_constraints_one_call_is_enough():
    problem = problem_of(4)
    sampler = Recorder()
    assert DimodSampler(sampler).solve(problem).objective == pytest.approx(best_of(problem))
    assert len(sampler.bqms) == 1


@pytest.mark.parametrize("pair", [None, 0.5 * (np.ones((N, N)) - np.eye(N))])
def test_a_budget_is_kept(pair):
    problem = problem_of(5, Budget(np.arange(1.0, N + 1), 12.5, pair))
    result = DimodSampler(dimod.ExactSolver()).solve(problem)
    assert problem.constraints[0].spent(result.solution) <= 12.5
    assert result.feasible


def test_composites_are_samplers_too():
    problem = problem_of(6, Cardinality(4))
    tracked = dimod.TrackingComposite(dimod.ExactSolver())
    pairs = [(i, j) for i in range(N) for j in range(i)]
    structured = dimod.StructureComposite(dimod.ExactSolver(), list(range(N)), pairs)
    plain = DimodSampler(dimod.ExactSolver()).solve(problem)
    for composite in (tracked, structured):
        result = DimodSampler(composite).solve(problem)
        assert np.array_equal(result.solution, plain.solution)
    assert len(tracked.inputs) >= 1


def test_it_can_be_wrapped_and_polished():
    problem = problem_of(7, Cardinality(4))
    sampler = DimodSampler("dwave.samplers:SteepestDescentSampler")
    plain = sampler.solve(problem).objective
    for wrapper in (Restarts(sampler, times=2), Polish(sampler)):
        result = wrapper.solve(problem)
        assert result.solution.sum() == 4
        assert best_of(problem) - 1e-12 <= result.objective <= plain + 1e-12 or isinstance(wrapper, Restarts)


def test_a_seed_is_passed_where_it_is_taken_and_the_caller_s_own_wins():
    problem = problem_of(8, Cardinality(3))
    without, drawn, own = Recorder(), Recorder("seed"), Recorder("seed")
    for sampler, parameters in ((without, {}), (drawn, {}), (own, {"seed": 5})):
        DimodSampler(sampler, parameters).solve(problem, seed=1)
    assert all(asked == {} for asked in without.asked)
    assert all(isinstance(asked["seed"], int) for asked in drawn.asked)
    assert {asked["seed"] for asked in own.asked} == {5}
    again = Recorder("seed")
    DimodSampler(again).solve(problem, seed=1)
    assert again.asked == drawn.asked


def test_ctrl_c_within_a_call_is_not_swallowed(monkeypatch):
    class Swallows(Recorder):
        """As dwave-samplers: what the interrupt function raises never leaves the compiled code."""

        def sample(self, bqm, *, interrupt_function):
            with suppress(KeyboardInterrupt):
                interrupt_function()
            return super().sample(bqm)

    asked = iter(range(100))

    def should_stop(run):
        if next(asked) == 2:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Run, "should_stop", should_stop)
    sampler = Swallows("interrupt_function")
    result = DimodSampler(sampler).solve(problem_of(9, Cardinality(3)))
    assert result.status is Status.STOPPED
    assert result.details["interrupted"] is True
    assert len(sampler.bqms) == 2


def test_a_signal_within_compiled_code_is_not_lost():
    class Deaf(Recorder):
        """Ctrl-C arrives while the sampler runs, whose compiled code drops exceptions."""

        def sample(self, bqm, *, interrupt_function):
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            self.told_to_stop = interrupt_function()
            return super().sample(bqm)

    before = signal.getsignal(signal.SIGINT)
    sampler = Deaf("interrupt_function")
    result = DimodSampler(sampler).solve(problem_of(9, Cardinality(3)))
    assert sampler.told_to_stop
    assert result.details["interrupted"] is True
    assert len(sampler.bqms) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_sampler_that_answers_nothing_is_no_crash():
    result = DimodSampler(Silent()).solve(problem_of(0, Cardinality(3)))
    assert result.status is Status.NO_FEASIBLE_FOUND
    assert result.solution is None


def test_a_sampler_object_survives_a_pickle():
    problem = problem_of(0, Cardinality(3))
    solver = DimodSampler(dimod.ExactSolver())
    assert pickle.loads(pickle.dumps(solver)).solve(problem).objective == solver.solve(problem).objective


def test_a_problem_too_large_for_an_exhaustive_sampler_is_refused():
    with pytest.raises(UnsupportedProblem, match="at most 7 variables, got 8"):
        DimodSampler(dimod.ExactSolver(), largest=7).solve(problem_of())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": 3}, "expected a dimod sampler object or 'module:Class', got int"),
        ({"bisections": 0}, "bisections must be at least 1, got 0"),
        ({"sampler": "dimod:NoSuchSampler"}, "expected 'module:Class', got 'dimod:NoSuchSampler'"),
        ({"sampler": "no_such_module:Sampler"}, "No module named 'no_such_module'"),
        ({"sampler": "dimod"}, "expected 'module:Class', got 'dimod'"),
    ],
)
def test_nonsense_is_refused(options, words):
    with pytest.raises(InvalidProblem, match=words):
        DimodSampler(**options).solve(problem_of())
