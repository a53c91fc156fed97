"""The rooms of the code: who may import whom, and how long a module, a parameter list and a commit subject may be.

The sources are read, not run, so an import inside a function counts too. An exception stands in a table here, with its
date and reason; a test fails when the code no longer needs it.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping
from typing import TypeVar

import pytest

from tests.conftest import ROOT

T = TypeVar("T", str, tuple[str, str])

PRODUCT = ("imaging", "pipeline", "scripts", "services", "samples", "examples", "images")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in PRODUCT
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def prefixed(folder: str, names: str) -> list[str]:
    return [f"{folder}.{name}" for name in names.split()]


def in_order(rooms: list[str]) -> dict[str, set[str]]:
    """Rooms of which each may import those before it."""
    return {room: set(rooms[:number]) for number, room in enumerate(rooms)}


PIPELINE = in_order(
    prefixed(
        "pipeline",
        "version errors locations files settings answer_schema tables job_file labels template question job "
        "metrics runtime sources clients stages output results plan flow runners run try_one __main__",
    )
)
BASE = prefixed("scripts", "environments services settings findings files programs foreground minimum_versions")
SCRIPTS = in_order(BASE + prefixed("scripts", "vllm models stack docker checks commands"))
# The rooms that each room may import. A room is a package or module directly under one of these folders.
ALLOWED: dict[str, set[str]] = {
    **PIPELINE,
    "pipeline.sources": {*PIPELINE["pipeline.sources"], "imaging"},
    **{room: {*allowed, *PIPELINE} for room, allowed in SCRIPTS.items()},
    "scripts.checks": {*SCRIPTS["scripts.checks"], *PIPELINE, "services.detector"},  # measures the detector on a GPU
    "scripts.commands": {*SCRIPTS, *PIPELINE, "samples"},  # a fresh set of scenes for the smoke test
    "scripts.profile": {*BASE, *PIPELINE},
    "scripts.bench": {
        *SCRIPTS,
        *PIPELINE,
        *("samples", "examples", "services.detector"),
        *prefixed("tests", "browser corpus doubles killed_runs large_run outages pictures ray_cluster"),
    },
    "scripts.lock": set(SCRIPTS),
    "scripts.release": {*SCRIPTS, *PIPELINE, "scripts.lock"},
    "scripts.__main__": {*SCRIPTS, *PIPELINE, "scripts.profile", "scripts.release"},
    "services.detector": {"imaging"},
    "imaging": set(),
    "services.vllm": set(),
    "images": set(),
    "samples": {*prefixed("pipeline", "job clients stages"), "services.detector"},  # judges models as a job uses them
    "examples": {*prefixed("pipeline", "settings job clients stages run")},
}

IMPORTS_UPWARD: dict[tuple[str, str], str] = {}

MOST_LINES = 350
LONG_MODULES: dict[str, str] = {}

MOST_PARAMETERS = 7
MANY_PARAMETERS: dict[str, str] = {}

MOST_IN_A_SUBJECT = 72
# Older subjects stay as they are.
SUBJECTS_SINCE = "dd5c637"


def room_of(module: str) -> str:
    """The package or module directly under its folder; folders that are one room are it themselves."""
    parts = module.split(".")
    return parts[0] if parts[0] in ("imaging", "samples", "examples", "images") else ".".join(parts[:2])


def imported(source: str) -> Iterator[str]:
    """What a source imports from this repository, as full names; those of functions and for types alone too."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.partition(".")[0] in (*PRODUCT, "tests"))


def parameters(source: str) -> Iterator[tuple[str, int]]:
    """Each function's name and the number of its parameters, without `self` and `cls`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names += [each.arg for each in (given.vararg, given.kwarg) if each]
            yield node.name, len(names) - (names[:1] in (["self"], ["cls"]))


def unexpected(found: set[T], exceptions: Mapping[T, str]) -> tuple[list[T], list[T]]:
    """Offenders that are no exception, and exceptions that the code no longer needs: remove those from their table."""
    return sorted(found - exceptions.keys()), sorted(exceptions.keys() - found)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The text of each module of the product."""
    return {module: path.read_text() for module, path in SOURCES.items()}


def test_imports_go_one_way(sources: dict[str, str]) -> None:
    upward = {
        (module, room_of(name))
        for module, source in sources.items()
        for name in imported(source)
        if room_of(name) not in {room_of(module), *ALLOWED.get(room_of(module), ())}
    }
    assert unexpected(upward, IMPORTS_UPWARD) == ([], [])


def test_modules_are_short(sources: dict[str, str]) -> None:
    long = {module for module, source in sources.items() if len(source.splitlines()) > MOST_LINES}
    assert unexpected(long, LONG_MODULES) == ([], [])


def test_functions_have_few_parameters(sources: dict[str, str]) -> None:
    many = {
        f"{module}.{name}"
        for module, source in sources.items()
        for name, number in parameters(source)
        if number > MOST_PARAMETERS
    }
    assert unexpected(many, MANY_PARAMETERS) == ([], [])


def test_commit_subjects_are_short() -> None:
    """An archive or a shallow clone has no history to look at."""
    log = subprocess.run(
        ["git", "log", "--format=%s", f"{SUBJECTS_SINCE}..HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert [subject for subject in log.stdout.splitlines() if len(subject) > MOST_IN_A_SUBJECT] == []


def test_imports_and_parameters_are_found_wherever_they_stand() -> None:
    source = """
import json, pipeline.run
from scripts import settings, files as whole
class A:
    async def ask(self, a, /, b, *c, d=1, **e):
        from tests.doubles.faults import Fault
        def inner(): import services.detector.nms
"""
    assert set(imported(source)) == {
        "pipeline.run",
        "scripts.settings",
        "scripts.files",
        "tests.doubles.faults.Fault",
        "services.detector.nms",
    }
    assert dict(parameters(source)) == {"ask": 5, "inner": 0}
