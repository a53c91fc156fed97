"""The version stands in pyproject.toml; the command line, the changelog and tags agree with it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from pipeline.version import version
from scripts.docker import images
from scripts.services import PIPELINE
from tests.conftest import ROOT

# A heading of the changelog: a version, and its day once it is released.
HEADING = re.compile(r"^## (\d+\.\d+\.\d+), (\d{4}-\d{2}-\d{2}|not released)$")


def headings() -> list[tuple[str, str]]:
    """The changelog's versions, newest first, each with its day or `not released`."""
    lines = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    found = [HEADING.match(line) for line in lines]
    assert all(found), lines
    return [(match[1], match[2]) for match in found if match]


def git(*arguments: str) -> list[str]:
    """The lines that git prints; an archive or a shallow clone may have no tags."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.split()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_project_file_has_the_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version() == project["version"]
    assert images.labels(PIPELINE)["org.opencontainers.image.version"] == version()
    assert "pyproject.toml" in PIPELINE.sources  # the job's run.json reads it in the container


def test_the_command_says_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{version()}\n")


def test_the_changelog_begins_with_this_version_and_only_it_may_be_unreleased() -> None:
    found = headings()
    assert found[0][0] == version()
    assert "not released" not in [day for _, day in found[1:]]
    assert [numbers(each) for each, _ in found] == sorted((numbers(each) for each, _ in found), reverse=True)


def test_tags_agree_with_version_and_changelog() -> None:
    released = {f"v{each}" for each, day in headings() if day != "not released"}
    assert set(git("tag", "--list", "v*")) <= released  # a tag has a section with its day
    assert set(git("tag", "--points-at", "HEAD", "v*")) <= {f"v{version()}"}
