"""Few plots: drawing takes most of the time."""

from __future__ import annotations

import pytest

from prunesolve.campaigns.reporting import drilldown


@pytest.fixture(autouse=True)
def _few_plots(monkeypatch):
    """What has a wider scope, as `usual` does, is made before this and draws all."""
    monkeypatch.setattr(drilldown, "PLOTTED", 1)
