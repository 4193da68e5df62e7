"""What benchmarks/multi_objective.py judges by: hypervolume, greedy paths, and the peer as pymoo has it."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from prunesolve.problems import Group, Statistics

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def trade_offs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"trade_offs.{name}")


@pytest.fixture
def stats():
    rng = np.random.default_rng(0)
    groups = [
        Group(name, size, [(name, "out", np.arange(size)[:, None]), ("next", "in", np.arange(size)[:, None])])
        for name, size in (("a", 4), ("b", 5))
    ]
    factors = [rng.normal(size=(g.size, 3)) for g in groups]
    pair = np.zeros((9, 9))
    pair[:4, 4:] = 2.0
    return Statistics(
        groups,
        saliency={"taylor": rng.random(9)},
        blocks={"reconstruction": [f @ f.T for f in factors]},
        cost={"params": rng.integers(1, 9, 9).astype(float)},
        pair_cost={"params": pair + pair.T},
        constant={"params": 7.0},
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_hypervolume_is_pymoos(trade_offs, seed):
    from pymoo.indicators.hv import HV

    objectives = trade_offs("objectives")
    points = np.random.default_rng(seed).integers(0, 12, (30, 2)) / 10.0
    reference = (0.9, 1.1)
    expected = float(HV(ref_point=np.array(reference))(points)) / (0.9 * 1.1)
    assert objectives.hypervolume(points, reference) == pytest.approx(expected)
    assert objectives.hypervolume(points + 2.0, reference) == 0.0


def test_the_front_is_what_no_other_point_dominates(trade_offs):
    points = np.random.default_rng(0).integers(0, 6, (40, 2)).astype(float)
    chosen = trade_offs("objectives").front(points)
    beaten = [any((q <= p).all() and (q < p).any() for q in points) for p in points]
    expected = {tuple(p) for p, lost in zip(points, beaten, strict=True) if not lost}
    assert [tuple(p) for p in points[chosen]] == sorted(expected)


def test_shares_are_those_of_the_statistics(trade_offs, stats):
    class Nothing:
        def evaluate(self, keep):
            return np.where(keep.all(axis=1), np.nan, keep.sum(axis=1))

    account = trade_offs("objectives").Objectives(Nothing(), stats)
    rows = np.random.default_rng(0).random((6, 9)) < 0.6
    values = account(np.concatenate([rows, rows[:2], np.ones((1, 9), dtype=bool)]))
    expected = [stats.spent("params", row) / stats.total("params") for row in rows]
    np.testing.assert_allclose(values[:6, 1], expected)
    # the first two were asked twice; what has no value is worse than any
    assert account.seen.shape == (7, 2)
    assert account.seen[-1].tolist() == [np.inf, 1.0]


def test_greedy_removal_takes_what_adds_least(trade_offs, stats):
    paths = trade_offs("paths")

    def error(keep):
        gone = np.split(~keep, [4])
        return sum(g @ block @ g for g, block in zip(gone, stats.matrices("reconstruction"), strict=True))

    for path, cost in (
        (paths.reconstruction_path(stats), error),
        (paths.taylor_path(stats), lambda keep: (~keep) @ stats.criterion("taylor")),
    ):
        assert path.shape == (9 + 1 - 2, 9)
        assert path[0].all()
        for before, after in zip(path, path[1:], strict=False):
            open_ = [i for i in np.flatnonzero(before) if before[:4].sum() > 1 or i >= 4]
            open_ = [i for i in open_ if before[4:].sum() > 1 or i < 4]
            tried = [cost(np.where(np.arange(9) == i, False, before)) for i in open_]
            assert (before & ~after).sum() == 1
            assert after.sum() == before.sum() - 1
            assert cost(after) == pytest.approx(min(tried))


def test_pymoos_default_counts_every_evaluation_and_is_repeatable(trade_offs):
    group, seen = np.repeat([0, 1], [6, 8]), []

    def evaluate(keep):
        seen.append(keep.copy())
        return np.stack([(~keep).sum(axis=1), keep.sum(axis=1)], axis=1).astype(float)

    told = trade_offs("pymoo_default").minimised(evaluate, group, 60, seed=3, population=20)
    first = np.concatenate(seen)
    assert told["generations"] == 3
    assert first.shape == (60, 14)
    assert first.dtype == bool
    seen.clear()
    trade_offs("pymoo_default").minimised(evaluate, group, 60, seed=3, population=20)
    np.testing.assert_array_equal(np.concatenate(seen), first)
