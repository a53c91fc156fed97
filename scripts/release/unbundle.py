"""`unbundle`: load the images and models of a bundle; the bundle's install.sh, which lays out all else, calls it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from pipeline.errors import InvalidSetting, Unreadable
from scripts.commands.engines import one_at_a_time
from scripts.docker.engine import ComposeEngine
from scripts.environments import ROOT
from scripts.release import archives, install
from scripts.settings import StackSettings
from scripts.stack.process_engine import ProcessEngine


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--bundle", required=True, help="the bundle's folder")


def run(settings: StackSettings, console: Console, bundle: str) -> None:
    """Load images and models.

    Raises:
        UsageError: the bundle is of another version than this checkout.
        StackError: they cannot be loaded.
    """
    folder = Path(bundle)
    try:
        manifest = install.read_manifest(folder / install.MANIFEST)
        here = install.read_manifest(ROOT / install.INSTALLED)
    except install.Refused as refused:
        raise Unreadable(str(refused)) from refused
    if here["revision"] != manifest["revision"]:
        raise InvalidSetting(
            f"{bundle} is of {manifest['revision']}, this folder of {here['revision']}: use install.sh"
        )
    with one_at_a_time(settings, console):
        if images := install.takes_images(manifest):
            archives.load_images(folder, manifest["images"], console)
        # A model's place does not depend on the device.
        if "process" in manifest["engines"] or not images:
            archives.load_models(folder, manifest["models"], ProcessEngine(settings), console)
        if images and manifest["models"]:
            compose = ComposeEngine(settings, "cuda" if "vllm-cuda" in str(manifest["images"]) else "cpu", "cpu")
            archives.load_models(folder, manifest["models"], compose, console)
