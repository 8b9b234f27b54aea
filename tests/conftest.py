"""The same hypothesis examples on every machine and every run, and a way around fast twins."""

import signal

import pytest
from hypothesis import settings

from minibrain import kernels

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in a shell's background ignore it


@pytest.fixture
def without_twins(monkeypatch):
    """Every operation runs its readable body, whatever the array."""
    monkeypatch.setattr(kernels, "DEVICES", {})
    kernels._find_twin.cache_clear()
    yield
    kernels._find_twin.cache_clear()
