#!/usr/bin/env python3
"""Make the bases of the images from Debian packages, where no container registry can be reached.

    spotter-base         the images' base: Python 3.11 and the libraries that torch and vLLM need
    spotter-build-base   the same, with this site's way to a package index: certificate, mirror, wheels
    spotter-cuda-base    with --cuda, the base of vllm-cuda: also a compiler and Python's headers, for Triton

Only the stage that installs packages uses the second, so that nothing of this site gets into an image. Needs root,
mmdebstrap and a Debian mirror. A host that reaches a registry does not need this. Runs with Python alone, so it calls
docker itself, without the client of python-on-whales.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.environments import STATE, EnvironmentFailed, ensure_uv

BASE = "spotter-base"
BUILD_BASE = "spotter-build-base"
CUDA_BASE = "spotter-cuda-base"

# The Debian release whose Python is the one of the locks, 3.11.
SUITE = "bookworm"
PACKAGES = (
    "python3",
    "python3-venv",  # the stage that installs makes its environments with it
    "ca-certificates",  # remote model servers, model hubs
    "libgomp1",  # torch
    "libnuma1",  # vLLM on a CPU
    "util-linux",  # lscpu, which vLLM on a CPU asks for the cores
)
COMPILER = ("g++", "python3-dev")


class BaseFailed(Exception):
    """A base could not be made; the message says which step and what to do."""


def run(command: list[str], failure: str, stdin: Path | None = None) -> None:
    """Run a command quietly; on failure show its output.

    Raises:
        BaseFailed: it failed, or is not there.
    """
    try:
        with (stdin or Path("/dev/null")).open("rb") as source:
            done = subprocess.run(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise BaseFailed(f"{command[0]} is not installed: {failure}") from error
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        raise BaseFailed(failure)


def exists(image: str) -> bool:
    """Whether the engine has an image."""
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0


def make_base(name: str, packages: tuple[str, ...], mirror: str | None) -> None:
    """Debian's packages as an image."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}"]
        # Compiled Python files stay: without them a health probe took 5 s.
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        # Without what mmdebstrap copies from this host, and the packages' mirror.
        host = ("etc/resolv.conf", "etc/hostname", "etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap")
        command.append("--customize-hook=rm -f " + " ".join(f'"$1/{path}"' for path in host))
        run(
            [*command, SUITE, str(archive), *([mirror] if mirror else [])],
            "the base cannot be made from Debian packages: run as root, install mmdebstrap, or give a --mirror",
        )
        run(["docker", "import", "-", name], "docker cannot import the base: is the engine up (docker info)?", archive)


def pip_settings() -> dict[str, str]:
    """pip's settings on this host, from files and variables; the latter win."""
    ensure_uv()
    pip = [str(STATE / "uv" / "bin" / "python"), "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=") for line in sorted(listed.splitlines(), reverse=True))
    return {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in pairs}


def make_build_base() -> None:
    """The base, with this host's way to a package index as pip's settings."""
    settings = pip_settings()
    lines = ["[global]"] + [f"{key} = {settings[key]}" for key in ("index-url", "timeout") if key in settings]
    dockerfile = [f"FROM {BASE}"]
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        if certificate := settings.get("cert"):
            shutil.copy(certificate, context / "site.crt")
            dockerfile.append("COPY site.crt /etc/ssl/site.crt")
            lines.append("cert = /etc/ssl/site.crt")
        wheels = context / "wheels"
        wheels.mkdir()
        for place in settings.get("find-links", "").split():
            for wheel in Path(place.removeprefix("file://")).glob("*.whl"):
                shutil.copy(wheel, wheels)
        if any(wheels.iterdir()):
            dockerfile.append("COPY wheels /wheels")
            lines.append("find-links = /wheels")
        (context / "pip.conf").write_text("\n".join(lines) + "\n")
        dockerfile.append("COPY pip.conf /etc/pip.conf")
        (context / "Dockerfile").write_text("\n".join(dockerfile) + "\n")
        run(
            ["docker", "build", "--quiet", "--tag", BUILD_BASE, str(context)],
            f"{BUILD_BASE} cannot be built on {BASE} (see above)",
        )


def main() -> int:
    """Make the bases that are missing; 0 when both are there, 1 when one cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", help="address of a Debian mirror; by default the one that mmdebstrap knows")
    parser.add_argument("--cuda", action="store_true", help="make the base of vllm-cuda too")
    parser.add_argument("--anew", action="store_true", help="make both again, also where they are there")
    arguments = parser.parse_args()
    try:
        for image in (BASE, BUILD_BASE, *([CUDA_BASE] if arguments.cuda else [])):
            if not arguments.anew and exists(image):
                continue
            started = time.monotonic()
            if image == BUILD_BASE:
                make_build_base()
            else:
                make_base(image, PACKAGES + (COMPILER if image == CUDA_BASE else ()), arguments.mirror)
            print(f"{image}: made in {time.monotonic() - started:.0f} s")
    except (BaseFailed, EnvironmentFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
