"""`make profile` on a running stack, whichever engine it has."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.metrics.profile import Profile
from tests.stack.conftest import RunningStack
from tests.trace_reader import load

PAGES = {"profile.json", "profile.html", "profile.md", "trace.json", "daft.md"}


def profile(stack: RunningStack, output: Path, *options: str) -> tuple[Path, str]:
    """Profile the bundled job; the newest run's folder, and what was printed."""
    done = stack.operate("profile", "--images", "samples/images", "--output", str(output), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return (output / "latest").resolve(), done.stdout


def check(folder: Path, said: str) -> Profile:
    """See that the profile is of the job's own run, that all its pages are there, and that they are the user's."""
    assert {path.name for path in (folder / "profile").iterdir()} == PAGES
    assert {path.stat().st_uid for path in (folder / "profile").iterdir()} == {os.getuid()}
    profile = Profile.of(folder)
    stages = {stage.name: stage for stage in profile.stages}
    assert stages["read"].rows == 26  # nothing was done already
    assert stages["ask"].rows == 78
    assert stages["ask"].prompt_tokens > 0
    assert f"bottleneck: {profile.diagnosis.bottleneck}, to blame for" in said
    assert "26 images: 24 with a dog" in said  # the job's own words come first
    page = (folder / "profile" / "profile.md").read_text()
    assert "## Daft's explain-analyze" in page
    assert page.count("```mermaid") == 2
    slices = load((folder / "profile" / "trace.json").read_bytes()).slices
    for stage in profile.stages:
        drawn = sum(len(each) for (process, _), each in slices.items() if process == stage.name)
        assert drawn == stage.rows, stage.name
    return profile
