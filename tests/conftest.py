"""What every test may use."""

from pathlib import Path

import pytest
from hypothesis import settings

# the same examples on every machine, however slow it is
settings.register_profile("prunesolve", deadline=None, derandomize=True, database=None)
settings.load_profile("prunesolve")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public networks and instances beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return folder
