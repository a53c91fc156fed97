#!/usr/bin/env python3
"""Install a bundle of Spotter in a folder, without a network: all checks first, then the files.

`make bundle` copies this file into each bundle, where install.sh starts it. It runs with Python 3.9 or newer alone: the
host may have nothing else yet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CHECKOUT = "checkout.tar.gz"
FORMAT = 1
# Where the installed version is recorded, in the folder.
INSTALLED = Path(".spotter") / "bundle.json"
# Free space that must remain.
SPARE = 100 * 2**20
# A line about a long step, so often.
SAY_S = 5.0
# What a folder may hold beside the checkout.
KEPT = {".env", ".spotter", "runs"}

Manifest = dict[str, Any]


def say(text: str) -> None:
    print(text, flush=True)


def gigabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


class Refused(Exception):
    """The bundle cannot be installed here; a line for each reason. Nothing was changed."""


def read_manifest(file: Path) -> Manifest:
    """A bundle's manifest.

    Raises:
        Refused: it cannot be read.
    """
    try:
        manifest = json.loads(file.read_bytes())
        form = manifest["format"]
    except OSError as error:
        raise Refused(f"{file} cannot be read ({error.strerror}): give the folder that `make bundle` made") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} is damaged: copy the bundle again") from error
    if form != FORMAT:
        raise Refused(f"{file} has format {form}, expected {FORMAT}: use the install.sh of that bundle")
    return dict(manifest)


def check_files(bundle: Path, manifest: Manifest) -> Iterator[str]:
    """Each file of the manifest is there, with its size and hash."""
    total = total_bytes(manifest)
    done, said = 0, time.monotonic()
    for name, about in manifest["files"].items():
        path = bundle / name
        try:
            found = path.stat().st_size
            if found != about["bytes"]:
                yield f"{name} has {found} bytes, expected {about['bytes']}: copy it again from the bundle's source"
                continue
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for chunk in iter(lambda: file.read(2**20), b""):
                    digest.update(chunk)
                    done += len(chunk)
                    if time.monotonic() - said > SAY_S:
                        said = time.monotonic()
                        say(f"verifying: {gigabytes(done)} of {gigabytes(total)}")
        except FileNotFoundError:
            yield f"{name} is missing: copy it again from the bundle's source"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror}"
        else:
            if digest.hexdigest() != about["sha256"]:
                yield f"{name} has another SHA-256 than the manifest: copy it again from the bundle's source"


def numbers(text: str) -> list[int]:
    """The numbers that a version begins with."""
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0].split("-")[0])]


def check_host(manifest: Manifest) -> Iterator[str]:
    """This host is of the bundle's kind, and has a Python for it."""
    wanted = manifest["host"]
    here = f"{platform.system()} {platform.machine()}"
    if here != f"{wanted['system']} {wanted['machine']}":
        yield f"this host is {here}, the bundle is for {wanted['system']} {wanted['machine']}: make one on such a host"
        return
    glibc = platform.libc_ver()[1]
    if glibc and numbers(glibc) < numbers(wanted["glibc"]):
        yield f"this host has glibc {glibc}, the wheels need {wanted['glibc']} or newer: use a newer distribution"
    if manifest["python"]:
        return
    try:
        program = shutil.which(f"python{wanted['python']}")
        asked = [program or "python3", "-c", "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        found = done.stdout.decode()
    except OSError:
        found = ""
    if found.strip() != wanted["python"]:
        yield (
            f"this host has no Python {wanted['python']} with venv, and the bundle brings none: install it (Debian 12: "
            "python3 and python3-venv), or make the bundle where `uv python install` has fetched it"
        )


def docker(*arguments: str) -> str:
    """What docker prints; empty where it fails."""
    try:
        done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def takes_images(manifest: Manifest) -> bool:
    """Whether the images are to be loaded; STACK_ENGINE=process leaves them out."""
    return bool(manifest["images"]) and os.environ.get("STACK_ENGINE") != "process"


def check_docker(manifest: Manifest) -> Iterator[str]:
    """Docker can take the images."""
    if not takes_images(manifest):
        return
    without = "or leave the images out: STACK_ENGINE=process sh install.sh FOLDER"
    for name, least, found in (
        ("Docker Engine", manifest["docker"]["engine"], docker("version", "--format", "{{.Server.Version}}")),
        ("Compose", manifest["docker"]["compose"], docker("compose", "version", "--short")),
    ):
        if not found:
            yield f"{name} does not answer, and the images need {least} or newer: install or start it, {without}"
            return
        if numbers(found.lstrip("v")) < numbers(least):
            yield f"{name} is {found}, expected {least} or newer: update it, {without}"


def existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_disk(manifest: Manifest, folder: Path) -> Iterator[str]:
    """There is room for all that the bundle brings."""
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    disk = manifest["disk"]
    root = Path(docker("info", "--format", "{{.DockerRootDir}}") or "?") if takes_images(manifest) else Path("?")
    wanted = [(folder, disk["folder"]), (Path(hub).expanduser(), disk["models"])]
    if root.exists():
        wanted.append((root, disk["images"]))
    places: dict[int, Path] = {}
    needed: dict[int, int] = {}
    for place, size in wanted:
        there = existing(place)
        device = there.stat().st_dev
        places.setdefault(device, there)
        needed[device] = needed.get(device, 0) + size
    for device, there in places.items():
        free = shutil.disk_usage(there).free
        if needed[device] and free < needed[device] + SPARE:
            required = gigabytes(needed[device] + SPARE)
            yield f"{gigabytes(free)} are free at {there}, expected {required}: free some space there"


def check_folder(folder: Path, manifest: Manifest, replace: bool) -> Iterator[str]:
    """The folder is new, or holds this very version; or with `replace`, another one that came from a bundle."""
    if re.search(r"[\s,]", str(folder)):
        yield f"{folder} has a space or comma in its path, where pip and uv split lists: give another folder"
    place = existing(folder)
    if not os.access(place, os.W_OK):
        yield f"{place} cannot be written: give another folder, or correct its owner"
    if (folder / "pyproject.toml").exists():
        held = "a clone"
        if (folder / INSTALLED).exists():
            held = str(read_manifest(folder / INSTALLED)["revision"])
        if held != manifest["revision"] and not (replace and held != "a clone"):
            yield f"{folder} holds Spotter already ({held}): run `make upgrade TO=BUNDLE` there, or give a new folder"
    elif folder.is_dir() and not {path.name for path in folder.iterdir()} <= KEPT:
        yield f"{folder} is not empty: give a new folder"


def check(bundle: Path, folder: Path, replace: bool = False) -> Manifest:
    """Verify a bundle, and that this host and `folder` can take it; changes nothing.

    Raises:
        Refused: with all reasons.
    """
    manifest = read_manifest(bundle / MANIFEST)
    wrong = [*check_host(manifest), *check_docker(manifest)]
    wrong += [*check_folder(folder, manifest, replace), *check_disk(manifest, folder)]
    wrong += check_files(bundle, manifest)  # last: it takes long
    if wrong:
        raise Refused("\n".join(wrong))
    say(f"verified: {len(manifest['files'])} files, {gigabytes(total_bytes(manifest))}, {manifest['revision']}")
    return manifest


def total_bytes(manifest: Manifest) -> int:
    """Bytes of a bundle's files."""
    return sum(about["bytes"] for about in manifest["files"].values())


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack an archive of ours; the names of its files."""
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        if any(name.startswith("/") or ".." in name.split("/") for name in names):
            raise Refused(f"{archive} has names that lead out of the folder")
        packed.extractall(folder)
    return names


def lay_out(bundle: Path, folder: Path, manifest: Manifest) -> None:
    """Write checkout, wheels, Python and the settings for a host without a network; done again it changes nothing."""
    state = folder / ".spotter"
    (state / "wheels").mkdir(parents=True, exist_ok=True)
    before = read_manifest(folder / INSTALLED)["checkout"] if (folder / INSTALLED).exists() else []
    names = unpack(bundle / CHECKOUT, folder)
    for name in set(before) - set(names):
        (folder / name).unlink(missing_ok=True)
    for name in manifest["files"]:
        if name.startswith("wheels/"):
            place = state / name
            if not (place.exists() and place.stat().st_size == manifest["files"][name]["bytes"]):
                shutil.copyfile(bundle / name, place.with_suffix(".partial"))
                place.with_suffix(".partial").replace(place)
    if manifest["python"]:
        unpack(bundle / manifest["python"], state)
    settings = folder / ".env"
    if not settings.exists():
        settings.write_text("STACK_OFFLINE=True\n")
        settings.chmod(0o600)  # keys and tokens may follow
    record = {key: manifest[key] for key in ("format", "version", "revision")}
    loaded = manifest["images"] if takes_images(manifest) else []
    (folder / INSTALLED).write_text(json.dumps({**record, "images": loaded, "checkout": names}))


def main() -> int:
    """0: installed. 1: refused, nothing was changed; or a step failed. 130: interrupted."""
    parser = argparse.ArgumentParser(
        prog="install.sh", description="Install Spotter from this bundle, without a network."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("spotter"), help="where to install (./spotter)")
    parser.add_argument("--replace", action="store_true", help="replace another version, as `make upgrade` does")
    parser.add_argument("--check", action="store_true", help="verify the bundle and this host, and change nothing")
    arguments = parser.parse_args()
    bundle, folder = Path(__file__).resolve().parent, arguments.folder.absolute()
    begun = time.monotonic()
    try:
        manifest = check(bundle, folder, arguments.replace)
        if arguments.check:
            return 0
        lay_out(bundle, folder, manifest)
        say(f"{folder}: checkout and wheels, {time.monotonic() - begun:.0f} s")
        if manifest["models"] or takes_images(manifest):
            environment = {**os.environ, "STACK_OFFLINE": "True"}
            subprocess.run([folder / "spotter", "unbundle", "--bundle", bundle], env=environment, check=True)
    except Refused as refused:
        for line in str(refused).splitlines():
            print(f"error: {line}", file=sys.stderr)
        print("nothing was changed", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:  # which said why
        return failed.returncode
    except OSError as error:
        print(f"error: {error.filename or folder}: {error.strerror}; the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    say(f"installed Spotter {manifest['version']} in {time.monotonic() - begun:.0f} s; next:")
    say(f"  cd {folder} && make up OFFLINE=1 && make run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
