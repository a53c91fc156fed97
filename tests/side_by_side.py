"""Which tests stay together where several run at once (`pytest -n 3`), as a plugin of the test run.

The stack, in containers and as processes, is one group: it is started once, and no test meets another's requests or
faults. Each other file is a group, so that what its tests share is made once. The tests of tests/clocked share nothing,
and wait most of their time: each is a group.

xdist has marks for this (`--dist loadgroup`). With pytest 9.2 they are ignored without a word (pytest-xdist, issue
1386), so the scheduler is told here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

STACK_FIXTURES = frozenset({"stack", "containers"})
OWN_SERVICES = frozenset(
    f"tests/stack/test_{name}.py" for name in ("detector_service", "gemma3n", "offline", "wrong_configurations")
)
# Its tests share a ladder that was climbed.
LADDER = "tests/clocked/test_ladder.py"


def group(nodeid: str) -> str:
    """The name of the group that a test belongs to."""
    path = nodeid.partition("::")[0]
    if path.startswith("tests/clocked/") and path != LADDER:
        return nodeid
    return "stack" if path.startswith("tests/stack/") and path not in OWN_SERVICES else path


# What starts real services computes all the time; most of the slow unit tests wait for a simulated one half of theirs.
# Three at once keep two cores busy if some of each kind run at any time, as far as an order can bring that about:
# beside the stack, which takes the longest of all, one that computes and one that waits.
ORDER = (
    "stack",
    "tests/stack/test_detector_service.py",
    *(f"tests/unit/test_{name}.py" for name in ("faults", "resume", "fetch", "inputs")),
    "tests/stack/test_wrong_configurations.py",
    "tests/unit/test_bench.py",
    "tests/stack/test_gemma3n.py",
    "tests/stack/test_offline.py",
    "tests/unit/test_corpus.py",
    LADDER,  # of those in its folder it takes the longest
    *(f"tests/{room}/" for room in ("contract", "browser", "stack", "unit")),  # last many small ones, which fill up
)


def place(nodeid: str) -> int:
    """Where in the order a test's group stands."""
    name = group(nodeid)
    return next((number for number, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Hands whole groups to the test processes, in the order of their first tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Schedule by groups, whatever --dist says."""
    config.option.loadscopereorder = False  # by number of tests, which says nothing about their time
    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a test that uses the stack outside its group: two test processes would take down each other's."""
    uses = item.nodeid.startswith("tests/stack/") and STACK_FIXTURES & set(getattr(item, "fixturenames", ()))
    if uses and group(item.nodeid) != "stack":
        pytest.fail(f"it uses the stack: take its file out of OWN_SERVICES in {Path(__file__).name}", pytrace=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests; one at a time they keep their own order."""
    if hasattr(config, "workerinput"):  # of a test process of xdist
        items.sort(key=lambda item: place(item.nodeid))
