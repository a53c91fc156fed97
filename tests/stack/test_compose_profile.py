"""`make profile` with the job and the services in containers: the pages are made on this host."""

from __future__ import annotations

from pathlib import Path

from tests.stack.conftest import RunningStack
from tests.stack.profiled import check, profile


def test_the_job_in_its_container_is_profiled(containers: RunningStack, tmp_path: Path) -> None:
    folder, said = profile(containers, tmp_path)
    check(folder, said)
