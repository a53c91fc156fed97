"""`upgrade`: show what another version changes, ask, then change to it; the last line is the way back."""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from pipeline.errors import InvalidSetting, NotFound, Unreadable
from scripts.commands import down
from scripts.commands.confirm import confirm
from scripts.docker import images
from scripts.docker.client import ask
from scripts.environments import PYTHON, ROOT, STATE
from scripts.release import bundle, install
from scripts.release.differences import changed_images, differences, text
from scripts.settings import StackSettings

# A version that came from a bundle is kept here, by its revision.
KEPT = STATE / "versions"


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--to", required=True, help="a git tag or commit of this clone, or the folder of a bundle")
    parser.add_argument("--yes", action="store_true", dest="confirmed", help="do not ask")


def run(settings: StackSettings, console: Console, to: str, confirmed: bool) -> int:
    """Change to another version. 0: done, or nothing to do. 1: not confirmed.

    Raises:
        UsageError: there is no such version, or this folder cannot be changed.
    """
    from_bundle = (Path(to) / install.MANIFEST).is_file()
    manifest = checked(Path(to)) if from_bundle else None
    if manifest is None:
        refuse_changed(to)
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder)
        unpack(to, new, from_bundle)
        own = {
            name: value
            for prefix in ("SPOTTER_", "STACK_", "DETECTOR_")
            for name, value in settings.user_variables(prefix).items()
        }
        for line in differences(ROOT, new, own):
            console.print(line, markup=False, soft_wrap=True)
        anew = made_anew(new) if manifest is None else {}
    free = decimal(shutil.disk_usage(ROOT).free)
    if manifest is not None:
        disk = decimal(sum(manifest["disk"].values()))
        console.print(f"disk: up to {disk} beside this version, {free} are free")
    else:
        each = ", ".join(f"{name} {decimal(size)}" for name, size in anew.items())
        needed = (
            f"about {decimal(sum(anew.values()))} without models, as large as now: {each}"
            if anew
            else "nothing is made anew"
        )
        console.print(f"disk: {needed}; images stand beside the present ones; {free} are free", soft_wrap=True)
    if not (confirmed or confirm(console, "nothing was changed")):
        return 1
    down.run(settings, console)
    if manifest is None:
        return check_out(to, console)
    kept = keep()
    console.print(f"the way back: make upgrade TO={kept}", soft_wrap=True)
    sys.stdout.flush()
    return os.execvp("sh", ["sh", str(Path(to) / "install.sh"), "--replace", str(ROOT)])


def checked(folder: Path) -> install.Manifest:
    """The manifest of a bundle that this folder can change to.

    Raises:
        UsageError: it cannot.
    """
    if not (ROOT / install.INSTALLED).exists():
        raise InvalidSetting(
            f"{ROOT} did not come from a bundle: give a git tag, or install the bundle in a new folder: "
            f"sh {folder}/install.sh FOLDER"
        )
    try:
        return install.check(folder, ROOT, replace=True)
    except install.Refused as refused:
        raise Unreadable(str(refused)) from refused


def refuse_changed(to: str) -> None:
    """Check that git has a version, and that this clone has no changes that it would lose.

    Raises:
        UsageError: it has not, or there are.
    """
    if images.git("rev-parse", "--verify", "--quiet", f"{to}^{{commit}}") is None:
        known = (images.git("tag", "--list", "--sort=-version:refname") or "none").split()
        raise NotFound(
            f"{to} is neither the folder of a bundle nor a version of this clone (tags: {', '.join(known[:5])}): "
            "`git fetch --tags` gets new ones"
        )
    if changed := images.git("status", "--porcelain", "--untracked-files=no"):
        raise InvalidSetting(
            f"{len(changed.splitlines())} files of this clone are changed: commit them, or `git stash`"
        )


def unpack(to: str, folder: Path, from_bundle: bool) -> None:
    """Write the files of a version into a folder."""
    if from_bundle:
        install.unpack(Path(to) / install.CHECKOUT, folder)
        return
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", to], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(folder, filter="data")


def made_anew(new: Path) -> dict[str, int]:
    """The environments and images of this host that a version makes anew, with their present sizes in bytes."""
    found = {}
    for home in sorted((STATE / "envs").glob("*/spotter.stamp")):
        name = home.parent.name
        files = ("scripts/environments.py", f"images/locks/{name}.lock")
        if any(text(ROOT, file) != text(new, file) for file in files):
            sizes = (path.lstat().st_size for path in home.parent.rglob("*"))
            found[f"environment {name}"] = sum(sizes)
    for name in changed_images(ROOT, new):
        size, _ = ask("image", "inspect", "--format", "{{.Size}}", images.IMAGES[name].tag)
        if size is not None:
            found[f"image {name}"] = int(size)
    return found


def check_out(to: str, console: Console) -> int:
    """Check out a version of this clone; its own commands make the rest at their first call."""
    before = images.git("symbolic-ref", "--quiet", "--short", "HEAD") or images.git("rev-parse", "--short", "HEAD")
    done = subprocess.run(["git", "-C", str(ROOT), "checkout", "--quiet", "--detach", to], check=False)
    if done.returncode:
        console.print("nothing was changed: git says why")
        return 1
    console.print(f"now at {to}; the way back: git checkout {before}; next: make up")
    return 0


def keep() -> Path:
    """Keep this version, which came from a bundle, as a bundle without its wheels, images and models: these stay here.

    Returns its folder.
    """
    installed = install.read_manifest(ROOT / install.INSTALLED)
    folder = KEPT / str(installed["revision"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bundle.pack(folder / install.CHECKOUT, [name for name in installed["checkout"] if (ROOT / name).is_file()])
    for name in ("install.py", "install.sh"):
        shutil.copyfile(Path(__file__).parent / name, folder / name)
    host = {"system": platform.system(), "machine": platform.machine(), "python": PYTHON, "glibc": "2.17"}
    manifest = {
        **{key: installed[key] for key in ("format", "version", "revision", "images")},
        **{"engines": ["process"], "models": [], "python": None, "host": host},
        "docker": bundle.DOCKER,
        "disk": {"folder": 0, "images": 0, "models": 0},
        "files": {path.name: bundle.about(path) for path in folder.iterdir()},
    }
    (folder / install.MANIFEST).write_text(json.dumps(manifest))
    return folder
