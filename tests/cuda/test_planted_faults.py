"""Every planted fault is caught: some here, all of them in all schedules in the nightly run."""

import os

import pytest
from planted_faults import FAULTS, is_caught, main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
SOME = FAULTS[::2]


@pytest.mark.parametrize("fault", SOME, ids=[fault.name for fault in SOME])
def test_a_fault_is_caught(fault):
    assert is_caught(fault, fault.shows_in)


@pytest.mark.slow
def test_the_table_has_no_gap():
    assert main() == 0
