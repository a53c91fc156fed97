"""Slow tests: their mark, which `make check` leaves out, and the proof that a test without it is quick.

Mark a test or file `slow` when it takes about a second or more. What computes too long without the mark fails. Time on
the clock would fail on a busy machine, so only CPU time counts: the test's own and that of the programs it waited for.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

# Rooms that start programs, wait or draw pages, and fixtures that need a service's environment: slow without a mark.
SLOW_ROOMS = ("tests/stack/", "tests/services/", "tests/clocked/", "tests/browser/")
SLOW_FIXTURES = frozenset({"detector_python", "vllm_python"})

# Of 1,220 quick tests on two busy cores the most expensive took 2.7 s with the fixture that it was first to use; all
# together took 47 s.
MOST_CPU_S = 5.0


def cpu_s() -> float:
    """CPU time of this process and of its children that have ended, in seconds."""
    return sum(os.times()[:4])


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by its room or fixtures."""
    for item in items:
        if item.nodeid.startswith(SLOW_ROOMS) or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail an expensive test that has no mark; what ends with a shared fixture is not the test's own."""
    began = cpu_s()
    yield
    used = cpu_s() - began
    if used > MOST_CPU_S and not item.get_closest_marker("slow"):
        pytest.fail(f"used {used:.1f} s of CPU time, more than {MOST_CPU_S:.0f} s: mark it slow", pytrace=False)
