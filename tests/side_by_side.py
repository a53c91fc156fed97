"""Which tests stay in one process where several run at once (`pytest -n 3`), and in which order.

The stack's tests (tests/stack) are one group: its fixtures start it once, and no test meets another's requests or
faults. Each other file is a group, so that its tests share what they prepare. The tests of tests/clocked share nothing
and mostly wait: each is a group.

pytest-xdist has marks for this (`--dist loadgroup`). With pytest 9.2 they have no effect (pytest-xdist, issue 1386).
"""

from __future__ import annotations

from collections import Counter

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

STACK = "tests/stack"
# Its tests share one measurement.
LADDER = "tests/clocked/test_ladder.py"


def group(nodeid: str) -> str:
    """The name of a test's group."""
    path = nodeid.partition("::")[0]
    if path.startswith(f"{STACK}/"):
        return STACK
    return nodeid if path.startswith("tests/clocked/") and path != LADDER else path


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Hands whole groups to the test processes, in the order of their first tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Schedule by groups, whatever --dist says."""
    config.option.loadscopereorder = False  # by number of tests, which says nothing about their time
    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the stack, which takes the longest, then with groups of many slow tests; quick ones fill the end."""
    if hasattr(config, "workerinput"):  # in a test process of xdist
        slow = Counter(group(item.nodeid) for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: (group(item.nodeid) != STACK, -slow[group(item.nodeid)]))
