"""`sbom`: bills of materials of all environments and images, THIRD_PARTY.md, and the check of licences."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from pipeline.runtime.terminal import escaped
from pipeline.version import version
from scripts import environments
from scripts import files as whole_file
from scripts.checks import licences
from scripts.settings import StackSettings

VULNERABILITIES = (
    "known vulnerabilities: not asked, for no database is on this host; with a network, a scanner such as osv-scanner, "
    "grype or trivy reads these files"
)


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--output", metavar="FOLDER", help="where the bills go (default: sbom in STACK_STATE)")


def run(settings: StackSettings, console: Console, *, output: str | None) -> int:
    """Write the bills and THIRD_PARTY.md; 1 if a licence is refused."""

    def say(text: str) -> None:
        console.print(escaped(text), markup=False, highlight=False, soft_wrap=True)

    policy = licences.Policy(licences.POLICY.read_text())
    before = licences.THIRD_PARTY.read_text() if licences.THIRD_PARTY.exists() else ""
    licence_of = licences.licences(policy, licences.known_licences(before), licences.sites())
    refused = [text for each, licence in licence_of.items() if (text := policy.objection(each, licence))]
    for text in refused:
        say(f"refused: {text}")
    page = licences.third_party(policy, licence_of)
    if page != before:
        whole_file.write(licences.THIRD_PARTY, page.encode(), 0o644)
    say(f"{licences.THIRD_PARTY.name}: {len(licence_of)} packages, {'as before' if page == before else 'changed'}")
    folder = Path(output).expanduser() if output else settings.state / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    for name in environments.NAMES:
        image = licences.image_of(name)
        debian = licences.of_debian(image) if image else []
        content = licences.bill(name, version(), policy, licence_of, debian)
        whole_file.write(folder / f"{name}.cdx.json", (json.dumps(content, indent=2) + "\n").encode(), 0o644)
        packages = sum(each["type"] == "library" for each in content["components"]) - len(debian)
        inside = "; its image's base, without the packages of that: this host does not have the image" if image else ""
        if debian:
            inside = f"; {len(debian)} Debian packages of its image"
        say(f"{folder / name}.cdx.json: {packages} packages{inside}")
    say(VULNERABILITIES)
    return 1 if refused else 0
