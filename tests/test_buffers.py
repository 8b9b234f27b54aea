"""Memory that is used again is never memory that is still in use."""

import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibrain.kernels.cpu import buffers

LARGE = (buffers.SMALLEST // 4 + 3,)


def address(array):
    return array.__array_interface__["data"][0]


def test_an_array_that_is_gone_leaves_its_memory_to_the_next():
    first = buffers.empty(LARGE)
    where = address(first)
    del first
    gc.collect()
    assert address(buffers.empty(LARGE)) == where


def test_a_view_keeps_the_memory():
    first = buffers.empty(LARGE)
    view = first[5:][::2].reshape(-1)
    view[...] = 7
    del first
    others = [buffers.empty(LARGE) for _ in range(3)]
    for other in others:
        other.fill(0)
    assert (view == 7).all()


def test_small_arrays_are_numpys_own():
    assert buffers.empty((3, 5)).base is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
@settings(max_examples=60)
def test_live_arrays_never_share_and_little_is_held(actions):
    """Arrays of four sizes come and go; each keeps the number that was written into it."""
    pool = buffers._Pool()
    live = []
    for number, (kind, remove) in enumerate(actions):
        if remove and live:
            del live[number % len(live)]
        else:
            live.append((buffers._lend(pool, (1000 * (kind + 1),)), number))
            live[-1][0].fill(number)
        assert all((array == value).all() for array, value in live)
        used = sum(array.nbytes for array, _ in live)
        assert pool.bytes_used == used
        assert pool.bytes_free == sum(buffer.nbytes for buffer in pool.free)
        assert pool.bytes_free + used <= pool.most_used


def test_memory_that_could_not_be_had_is_not_counted():
    pool = buffers._Pool()
    with pytest.raises(MemoryError):
        buffers._lend(pool, (2**50,))
    assert (pool.bytes_used, pool.most_used) == (0, 0)
