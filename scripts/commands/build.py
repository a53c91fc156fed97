"""`build`: build the containers' images."""

from __future__ import annotations

from rich.console import Console

from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.settings import StackSettings
from scripts.stack.devices import choose, find_gpus


def run(settings: StackSettings, console: Console) -> None:
    """Build the images of STACK_DEVICE, or of this host's device, where they are missing or old."""
    docker_host.client_config()
    # A host without a GPU may build for others that have one.
    device = choose(settings, find_gpus(settings))[0] if settings.device == "auto" else settings.device
    wanted = images.of_stack(settings, device)
    images.ensure(wanted, settings.state / "logs", console, offline=settings.offline)
    for image in wanted:
        console.print(f"{image.tag:<32}{images.size(image):>10}")
