"""What holds for every test of the CUDA kernels."""

import pytest
import standin
from threadpoolctl import threadpool_limits

from minibrain.kernels.cuda import loader


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """For the references: of BLAS's threads, with matrices this small, all but one would wait."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(autouse=True)
def emulation_ends():
    """A test that patches what `emulated` patches has to undo that before."""
    before = loader.launch
    yield
    assert loader.launch is before
    assert "empty" not in vars(standin)
