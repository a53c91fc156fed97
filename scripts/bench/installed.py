"""Packages that a bench measures against, each in an environment of its own under .spotter/envs-bench."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts import environments


def installed(package: str, version: str) -> Path:
    """The environment of a package from the package index, made unless it is there.

    Raises:
        EnvironmentFailed: it could not be installed.
    """
    home = environments.STATE / "envs-bench" / f"{package.partition('[')[0]}-{version}"
    done = home / "installed"
    if not done.exists():
        environments.ensure_uv()
        variables, uv, pinned = environments.uv_environment(), environments.uv(), f"{package}=={version}"
        print(f"installing {pinned} into {home} ...", file=sys.stderr, flush=True)
        failure = f"{pinned} could not be installed: see above"
        environments.run([uv, "venv", "--quiet", "--clear", "--python", environments.PYTHON, home], variables, failure)
        python = home / "bin" / "python"
        environments.run([uv, "pip", "install", "--quiet", "--python", python, pinned], variables, failure)
        done.touch()
    return home
