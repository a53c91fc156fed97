"""Remove what the stack made on this host, once the person has said yes."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console

from scripts import compose_engine, images, stack
from scripts.settings import StackSettings


def run(settings: StackSettings, console: Console, caches: bool, confirmed: bool) -> int:
    """Stop the stack; remove its state and images, and with `caches` what took long to get. 0: done, 1: refused.

    Runs are the person's: no command removes them.

    Raises:
        StackError: something cannot be stopped.
    """
    project = compose_engine.project_name(settings.state)
    folders = [settings.state / name for name in ("containers", "processes", "logs")]
    own = [image.tag for image in images.IMAGES.values()] if project == "spotter" else []
    tags = [tag for tag in own if images.has(tag)] if compose_engine.answers() else []
    volumes = []
    if caches:
        folders.append(settings.state / "cache")
        volumes = compose_engine.volumes(project) if compose_engine.answers() else []
    present = [str(folder) for folder in folders if folder.exists()]
    console.print("stops the stack, and removes:", highlight=False)
    for thing in [*present, *(f"image {tag}" for tag in tags), *(f"volume {name}" for name in volumes)]:
        console.print(f"  {thing}", highlight=False)
    if not caches:
        console.print("keeps the caches of models and compiled kernels; CACHES=1 removes them too", highlight=False)
    if not confirmed:
        if not sys.stdin.isatty():
            console.print("nothing was removed: to do it without a question, YES=1", highlight=False)
            return 1
        if console.input("go on? [y/N] ").strip().lower() not in ("y", "yes"):
            console.print("nothing was removed", highlight=False)
            return 1
    stack.down(settings, console)
    for tag in tags:
        images.docker("image", "rm", tag)
    for name in volumes:
        images.docker("volume", "rm", name)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return 0
