"""What every test may use."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# a shell that starts the suite in the background ignores Ctrl-C, and every process of ours would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
