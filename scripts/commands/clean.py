"""Remove what the stack made on this host, once the person has said yes."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser

from rich.console import Console

from scripts.commands import down
from scripts.commands.confirm import confirm
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker import project as compose_project
from scripts.docker.client import ask
from scripts.docker.engine import ComposeEngine
from scripts.settings import NotRemoved, StackError, StackSettings
from scripts.stack import api_key
from scripts.stack.devices import choose, find_gpus
from scripts.stack.engine import Engine
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.vllm_server import model_servers, preset_file


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--caches", action="store_true", help="also models and compile caches, which take long to get")
    parser.add_argument("--yes", action="store_true", dest="confirmed", help="do not ask")


def run(settings: StackSettings, console: Console, caches: bool, confirmed: bool) -> int:
    """Stop the stack; remove its state and images, and with `caches` what took long to get. 0: done, 1: refused.

    Runs are the person's: no command removes them.

    Raises:
        NotRemoved: something cannot be stopped or removed.
    """
    project = compose_project.project_name(settings.state)
    folders = [settings.state / name for name in ("containers", "processes", "logs")]
    files = [api_key.file_in(settings.state)]
    docker = docker_host.answers()
    other = compose_project.other_checkout(project) if docker else None
    shared = docker and other is None  # images and volumes are for all checkouts
    own = [image.tag for image in images.IMAGES.values()] if project == "spotter" else []
    tags = [tag for tag in own if images.has(tag)] if shared else []
    old = images.left_over() if shared and own else []
    volumes = []
    if caches:
        folders.append(settings.state / "cache")
        volumes = compose_project.volumes(project) if shared else []
    present = [str(place) for place in [*folders, *files] if place.exists()]
    console.print("stops the stack, and removes:")
    for thing in [*present, *(f"image {tag}" for tag in tags), *(f"volume {name}" for name in volumes), *counted(old)]:
        console.print(f"  {thing}")
    if other:
        console.print(f"keeps images and volumes: another checkout, {other}, has containers of them", soft_wrap=True)
    if not caches:
        console.print(
            "and compile caches of earlier settings; keeps models and the current cache: CACHES=1 removes them too"
        )
    if not (confirmed or confirm(console, "nothing was removed")):
        return 1
    down.run(settings, console)
    if not caches:
        prune_compile_caches(settings, console)
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
    for file in files:
        file.unlink(missing_ok=True)
    kept = [f"image {tag}" for tag in (*tags, *old) if ask("image", "rm", tag)[0] is None]
    kept += [f"volume {name}" for name in volumes if ask("volume", "rm", name)[0] is None]
    if kept:
        raise NotRemoved(f"{', '.join(kept)}: cannot be removed: `docker ps --all` shows which container uses it")
    return 0


def counted(old: list[str]) -> list[str]:
    """Images without a name, for people."""
    return [f"images of earlier builds, without a name: {len(old)}"] if old else []


def prune_compile_caches(settings: StackSettings, console: Console) -> None:
    """Remove what was compiled for other settings, models, drivers or versions than those of now, on both engines."""
    try:
        device, preset, _ = choose(settings, find_gpus(settings))
        current = {server.cache for server in model_servers(settings, device, preset_file(preset))}
    except StackError as error:  # no key is current where there is nothing to serve
        console.print(f"compile caches are kept: {error}")
        return
    engines: list[Engine] = [ProcessEngine(settings, device)]
    if docker_host.answers() and not compose_project.other_checkout(compose_project.project_name(settings.state)):
        engines.append(ComposeEngine(settings, device, preset))
    for engine in engines:
        old = [each.name for each in engine.compile_caches() if each.name not in current]
        if old:
            engine.remove_compile_caches(old)
        for name in old:
            console.print(f"removed compile cache {name}")
