"""The peers of benchmarks/solvers.py get the problem we get, and their answers the finish we promise."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds
from prunesolve.problems.generators import pruning

NAMES = ("dwave-sa", "dwave-tabu", "dwave-descent", "openjij-sa", "gurobi", "scip", "highs")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


def problem(coupling: str = "dense", n: int = 12) -> BinaryQuadratic:
    return pruning(n, keep=0.4, layers=3, rank=4, clusters=2, coupling=coupling, seed=4).replace(offset=2.5)


def every_selection(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


@pytest.mark.parametrize("penalty", [0.03, 1.0])
@pytest.mark.parametrize("coupling", ["dense", "blocks", "low-rank", "sparse"])
def test_dimod_energies_are_the_value_and_the_penalty(peers, coupling, penalty):
    asked = problem(coupling)
    model = peers.Penalised.of(asked, penalty)
    X = np.random.default_rng(0).random((40, asked.n)) < 0.5
    surplus = X.sum(axis=1) - asked.k
    expected = asked.value(X) + penalty * peers.field_scale(asked) * surplus**2
    order = list(range(asked.n))
    np.testing.assert_allclose(model.bits().energies((X.astype(np.int8), order)), expected, atol=1e-9)
    np.testing.assert_allclose(model.spins().energies((2 * X.astype(np.int8) - 1, order)), expected, atol=1e-9)


@pytest.mark.parametrize("kept", [0, 1, 5, 12])
def test_repair_keeps_exactly_k_and_polish_never_worsens(peers, kept):
    asked = problem()
    x = np.zeros(asked.n, dtype=bool)
    x[np.random.default_rng(kept).permutation(asked.n)[:kept]] = True
    before = x.copy()
    mended = peers.repaired(asked, x)
    finished = peers.polished(asked, mended)
    np.testing.assert_array_equal(x, before)
    assert mended.sum() == finished.sum() == asked.k
    # a repair only adds, or only drops
    assert (mended & ~x).sum() * (x & ~mended).sum() == 0
    value = asked.value(finished)
    assert value <= asked.value(mended)
    swaps = [
        asked.value(np.where(np.isin(range(asked.n), (i, j)), ~finished, finished))
        for i in np.flatnonzero(finished)
        for j in np.flatnonzero(~finished)
    ]
    assert value <= min(swaps) + 1e-9


def test_repair_takes_the_cheapest(peers):
    free = BinaryQuadratic([3.0, -1.0, 2.0, -4.0], constraints=[Cardinality(2)])
    assert peers.repaired(free, [False] * 4).tolist() == [False, True, False, True]
    assert peers.repaired(free, [True] * 4).tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_solves_a_small_instance(peers, name):
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed")
    asked = problem()
    peer = peers.installed()[name]
    penalty = peer.penalties[-1]
    found = peer.calibrated(asked, 0.2, penalty)(asked, 0.2, 3, penalty)
    assert all(x.shape == (asked.n,) and x.dtype == bool for x in found)
    if peer.proves:
        assert all(asked.is_feasible(x) for x in found)
    X = every_selection(asked.n)
    optimum = asked.value(X[X.sum(axis=1) == asked.k]).min()
    reached = min(asked.value(peers.polished(asked, peers.repaired(asked, x))) for x in found)
    assert reached == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_group_bounds_hold_in_the_end(peers, name):
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed")
    bounds = GroupBounds(np.arange(12) // 3, [0, 2, 0, 1], [3, 3, 1, 2])
    asked = problem().replace(constraints=[Cardinality(5), bounds])
    peer = peers.installed()[name]
    found = peer(asked, 0.2, 0, peer.penalties[0])
    X = every_selection(asked.n)
    optimum = asked.value(X[asked.is_feasible(X)]).min()
    finished = [peers.polished(asked, peers.repaired(asked, x)) for x in found]
    assert all(asked.is_feasible(x) for x in finished)
    if peer.proves:
        assert all(asked.is_feasible(x) for x in found)
        assert min(asked.value(x) for x in found) == pytest.approx(optimum, abs=1e-9)
    assert min(asked.value(x) for x in finished) >= optimum - 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_is_refused(peers, name):
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed")
    costly = problem().replace(constraints=[Cardinality(4), Budget(np.ones(12), 6.0)])
    peer = peers.installed()[name]
    with pytest.raises(peers.Refused, match="no other constraint"):
        peer(costly, 0.1, 0, peer.penalties[0])


def test_reads_come_in_the_order_of_the_problem(peers):
    import dimod

    rows = dimod.SampleSet.from_samples(([[1, 0, 0], [0, 0, 1]], ["2", "0", "1"]), energy=[5.0, 1.0], vartype="BINARY")
    found = peers.selections(rows.relabel_variables({"0": 0, "1": 1, "2": 2}, inplace=False))
    # lowest energy first: x_1 alone, then x_2 alone
    assert [x.tolist() for x in found] == [[False, True, False], [False, False, True]]


def test_the_runner_knows_all_its_options_without_flags(peers, monkeypatch):
    monkeypatch.setattr("sys.argv", ["solvers.py"])
    options = importlib.import_module("solvers").asked()
    assert options.times == (0.25, 1.0, 4.0)
    assert options.proof_time == 10.0
    assert options.ratio is None
