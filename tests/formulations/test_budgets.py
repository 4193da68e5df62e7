"""What is asked for becomes constraints that mean just that, and what nobody can meet says what can be met."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve.formulations.budgets import demand, spending_limit, units_to_keep
from prunesolve.problems import BinaryQuadratic, Cardinality, Group, InvalidProblem, Statistics

few = settings(max_examples=30, deadline=None)


def chain(widths, *, seed=None):
    """Layers that follow each other; with a seed the units of a layer cost differently."""
    n = sum(widths)
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(widths)])
    pair = np.zeros((n, n))
    for a, b, c in zip(starts, starts[1:], starts[2:], strict=False):
        block = rng.integers(0, 9, (b - a, c - b)) if seed is not None else 9.0
        pair[a:b, b:c] = block
    cost = rng.integers(1, 9, n).astype(float) if seed is not None else np.full(n, 5.0)
    return Statistics(
        [Group(f"g{i}", w, [(f"g{i}", "out", np.arange(w)[:, None])]) for i, w in enumerate(widths)],
        cost={"params": cost, "macs": 10 * cost},
        pair_cost={"params": sparse.csr_array(pair + pair.T), "macs": sparse.csr_array(10 * (pair + pair.T))},
        constant={"params": 7.0},
    )


def admitted(stats, **asked):
    problem = BinaryQuadratic(np.zeros(stats.n), constraints=demand(stats, **asked).constraints)
    selections = np.array(list(itertools.product([False, True], repeat=stats.n)))
    return selections[problem.is_feasible(selections)]


@pytest.mark.parametrize(
    ("keep", "n", "k"), [(0.5, 5, 3), (0.5, 4, 2), (0.64, 336, 215), (1.0, 7, 7), (7, 7, 7), (0, 7, 0), (1e-9, 7, 0)]
)
def test_a_point_makes_a_fraction(keep, n, k):
    assert units_to_keep(keep, n) == k
    assert units_to_keep(np.float64(keep) if isinstance(keep, float) else np.int64(keep), n) == k


def test_a_spending_limit_is_a_fraction_of_the_total_or_itself():
    assert spending_limit("macs", 0.25, 1000.0) == 250.0
    assert spending_limit("macs", 300, 1000.0) == 300.0


@pytest.mark.parametrize("name", ["keep", "params", "macs"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (0.0, r"fraction and lies in \(0, 1\], got 0.0"),
        (1.01, r"fraction and lies in \(0, 1\], got 1.01"),
        (12.0, "without a point it is a number of"),
        (float("nan"), r"lies in \(0, 1\], got nan"),
        (float("inf"), r"lies in \(0, 1\], got inf"),
        (-3, "expected a number >= 0"),
        ("half", "expected a fraction such as 0.5 or a number of .*, got str 'half'"),
        (True, "got bool True"),
        (np.True_, "got bool"),
        ([1], "got list"),
        (1j, "got complex"),
    ],
)
def test_what_is_no_amount_is_refused_in_words(name, wrong, words):
    with pytest.raises(InvalidProblem, match=f"^{name}: .*{words}"):
        demand(chain([2, 3]), **{name: wrong})


def test_nothing_asked_is_refused():
    with pytest.raises(InvalidProblem, match="at least one budget, got none; give keep, params or macs"):
        demand(chain([2, 3]))


def test_an_unmeasured_resource_is_named():
    stats = Statistics([Group("g", 2, [("g", "out", [[0], [1]])])], cost={"params": [1.0, 1.0]})
    with pytest.raises(InvalidProblem, match="macs budget needs cost 'macs', the statistics hold params"):
        demand(stats, macs=0.5)


def test_the_minimum_keeps_every_layer_alive_and_smaller_layers_whole():
    stats = chain([3, 1, 4])
    kept = admitted(stats, keep=5, minimum=2)
    counts = np.stack([part.sum(axis=1) for part in np.split(kept, [3, 4], axis=1)], axis=1)
    assert set(map(tuple, counts)) == {(2, 1, 2)}
    assert len(admitted(stats, keep=2, minimum=0)) == math.comb(8, 2)
    with pytest.raises(InvalidProblem, match="each of 3 groups its minimum; the smallest count that can is 3"):
        demand(stats, keep=2)
    assert "GroupBounds" not in {type(c).__name__ for c in demand(stats, keep=2, minimum=0).constraints}


def test_several_budgets_hold_at_once():
    stats = chain([3, 4], seed=1)
    kept = admitted(stats, keep=4, params=0.45, macs=int(0.4 * stats.total("macs")))
    assert len(kept)
    for x in kept:
        assert x.sum() == 4
        assert stats.spent("params", x) <= 0.45 * stats.total("params")
        assert stats.spent("macs", x) <= int(0.4 * stats.total("macs"))
    assert len(kept) < math.comb(7, 4)


def test_the_constant_is_spent_whatever_is_kept():
    stats = chain([2, 2])
    least = 7 + 5 + 5 + 9
    assert {int(x.sum()) for x in admitted(stats, params=least)} == {2}
    with pytest.raises(InvalidProblem, match=f"params: {least - 1} of 63 cannot be met .* limit that can is {least}$"):
        demand(stats, params=least - 1)


@few
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2))
def test_the_smallest_limit_named_is_the_smallest_there_is(widths, minimum):
    """Units of one layer cost the same, as in a real network: then the refusal is exact."""
    stats = chain(widths)
    selections = np.array(list(itertools.product([False, True], repeat=stats.n)))
    bounds = [slice(int(a), int(b)) for a, b in zip(stats.starts, stats.starts[1:], strict=False)]
    alive = [x for x in selections if all(x[s].sum() >= min(minimum, s.stop - s.start) for s in bounds)]
    least = int(min(stats.spent("params", x) for x in alive))
    assert any(stats.spent("params", x) == least for x in admitted(stats, params=least, minimum=minimum))
    with pytest.raises(InvalidProblem, match=f"the smallest limit that can is {least}$"):
        demand(stats, params=least - 1, minimum=minimum)


@few
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 300))
def test_a_budget_that_can_be_met_is_never_refused(seed, keep, params):
    """Units of one layer cost differently: a refusal must be proved, and the limit it names must be reachable."""
    stats = chain([3, 2, 2], seed=seed)
    keep = max(keep, 3)
    least = min(stats.spent("params", x) for x in admitted(stats, keep=keep))
    try:
        demand(stats, keep=keep, params=params)
    except InvalidProblem as error:
        assert params < least
        named = int(re.findall(r"\d+", str(error))[-1])
        assert named >= least
        demand(stats, keep=keep, params=named)


def test_asking_for_everything_or_more_than_the_network_holds_is_no_constraint_in_effect():
    stats = chain([2, 2])
    assert any(x.all() for x in admitted(stats, params=1.0))
    assert any(x.all() for x in admitted(stats, macs=10**9))
    with pytest.raises(InvalidProblem, match="keep: asked for 5 of 4 units; the largest count that can be kept is 4"):
        demand(stats, keep=5)


def test_what_was_asked_is_told_in_plain_numbers():
    told = demand(chain([2, 2]), keep=np.int64(3), macs=np.float64(0.9)).told
    assert told == {
        "minimum": 1,
        "keep": {"asked": 3, "units": 3, "of": 4},
        "macs": {"asked": 0.9, "limit": 0.9 * 560.0, "of": 560.0},
    }
    assert type(told["keep"]["asked"]) is int
    assert type(told["macs"]["asked"]) is float


def test_the_count_comes_as_a_cardinality():
    assert [c.k for c in demand(chain([2, 2]), keep=0.75).constraints if isinstance(c, Cardinality)] == [3]
