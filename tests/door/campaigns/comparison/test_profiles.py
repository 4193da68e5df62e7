"""Performance profiles: by their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve.campaigns import comparison

from .runs import INF

times = st.lists(st.floats(0.01, 100) | st.just(INF), min_size=4, max_size=4)


@given(st.fixed_dictionaries({"s": times, "t": times, "u": times}))
def test_profiles_by_their_definition(taken):
    drawn = comparison.profile(taken)
    assert drawn.x[0] == 1.0
    assert (np.diff(drawn.x) > 0).all()
    fastest = [min(of) for of in zip(*taken.values(), strict=True)]
    for solver, own in taken.items():
        for x, share in zip(drawn.x, drawn.shares[solver], strict=True):
            within = [t < INF and t / least <= x for t, least in zip(own, fastest, strict=True)]
            assert share == pytest.approx(sum(within) / 4)


def test_a_profile_of_what_nobody_reached_is_flat():
    drawn = comparison.profile({"s": [INF, INF], "t": [INF, 3.0]})
    assert (drawn.x.tolist(), drawn.shares["s"].tolist(), drawn.shares["t"].tolist()) == ([1.0], [0.0], [0.5])
