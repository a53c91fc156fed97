"""What the environments and images consist of: the locked packages, their licences, and whether policy accepts these.

A lock has no licences. They are read from the metadata of installed packages; of those that this host has not
installed, THIRD_PARTY.md knows what another host read.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from scripts import environments
from scripts.docker.bases import BASE, DOCKERFILE
from scripts.docker.client import ask
from scripts.environments import LOCKS, ROOT
from scripts.services import KINDS, PIPELINE, RAY, Image

POLICY = ROOT / "images" / "licences.yaml"
THIRD_PARTY = ROOT / "THIRD_PARTY.md"
UNKNOWN = "unknown"
# Classifiers that name no licence.
VAGUE = {"Other/Proprietary License", "OSI Approved", "DFSG approved"}

PIN = re.compile(
    r"^([\w.-]+)={2,3}([^\s;\\]+)(?: ; ([^\\\n]+?))?((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)
ROW = re.compile(r"^\| ([a-z0-9-]+) \| (\d[^ |]*) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A locked package; its name is normalised."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Pin:
    """A package in a lock."""

    package: Package
    marker: str
    """Where it is installed; empty: everywhere."""
    hashes: tuple[str, ...]
    """SHA-256 of each file that may be installed, in hexadecimal digits."""


def normalised(name: str) -> str:
    """The name of a package as all tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: Path) -> list[Pin]:
    """The packages of a lock."""
    found = PIN.findall(lock.read_text())
    return [
        Pin(Package(normalised(name), version), marker, tuple(re.findall(r"sha256:(\w+)", hashes)))
        for name, version, marker, hashes in found
    ]


def locked() -> dict[Package, list[str]]:
    """All locked packages, and the locks that each is in."""
    found: dict[Package, list[str]] = defaultdict(list)
    for lock in sorted(LOCKS.glob("*.lock")):
        for pin in pins(lock):
            found[pin.package].append(lock.stem)
    return dict(sorted(found.items()))


def metadata(sites: Iterable[Path]) -> Iterator[Message]:
    """What the packages in `site-packages` folders say of themselves."""
    for site in sites:
        for path in site.glob("*.dist-info/METADATA"):
            yield HeaderParser().parsestr(path.read_text(errors="replace"))


def sites() -> list[Path]:
    """The `site-packages` of the environments that this host has as their locks are now."""
    current = [environments.folder(name) for name in environments.NAMES if environments.is_current(name)]
    return [site for home in current for site in home.glob("lib/python*/site-packages")]


class Policy:
    """images/licences.yaml."""

    def __init__(self, text: str) -> None:
        content = yaml.safe_load(text)
        self.accepted = set(content["accepted"])
        self.spellings: dict[str, str] = content["spellings"]
        self.packages: dict[str, dict[str, str]] = content["packages"]
        self.models: dict[str, dict[str, str]] = content["models"]

    def allowed(self, name: str) -> dict[str, str] | None:
        """The entry that allows a package by name."""
        return next((entry for pattern, entry in self.packages.items() if fnmatch(name, pattern)), None)

    def licence(self, said: Message) -> str:
        """The licence in a package's metadata, as an SPDX expression where it can be one."""
        if expression := said["License-Expression"]:
            return str(expression)
        text = next(iter(str(said["License"] or "").strip().splitlines()), "")
        text = self.spellings.get(text, text)
        if text and self.accepts(text):
            return text
        kinds = [each.rpartition(" :: ")[2] for each in said.get_all("Classifier", []) if each.startswith("License ::")]
        named = [self.spellings.get(kind, kind) for kind in kinds if kind not in VAGUE]
        if not named and (entry := self.allowed(normalised(said["Name"]))):
            return entry["licence"]
        return " AND ".join(named) or text or UNKNOWN

    def accepts(self, licence: str) -> bool:
        """Whether a licence is accepted for any package: all parts joined by AND, one of those joined by OR."""
        parts = licence.replace("(", "").replace(")", "").split(" AND ")
        return all(any(one.strip() in self.accepted for one in part.split(" OR ")) for part in parts)

    def objection(self, package: Package, licence: str) -> str | None:
        """Why a package may not be used; None: it may."""
        entry = self.allowed(package.name)
        if self.accepts(licence) or (entry and entry["licence"] == licence):
            return None
        known = f"licence {licence!r} is not accepted" if licence != UNKNOWN else "its licence is not known"
        remedy = f"use another package, or allow it by name in {POLICY.relative_to(ROOT)}"
        if licence == UNKNOWN:
            remedy = f"prepare its environment, or name its licence in {POLICY.relative_to(ROOT)}"
        return f"{package.name} {package.version}: {known}: {remedy}"


def known_licences(text: str) -> dict[Package, str]:
    """The licences in THIRD_PARTY.md."""
    return {Package(name, version): licence for name, version, licence in ROW.findall(text)}


def licences(policy: Policy, known: Mapping[Package, str], places: Iterable[Path]) -> dict[Package, str]:
    """The licence of each locked package: from `places` that have it installed, else as it is known."""
    found = {Package(normalised(said["Name"]), said["Version"]): policy.licence(said) for said in metadata(places)}
    return {package: found.get(package) or known.get(package, UNKNOWN) for package in locked()}


def third_party(policy: Policy, licence_of: Mapping[Package, str]) -> str:
    """The content of THIRD_PARTY.md."""
    lines = [
        "# Third-party software and models",
        "",
        "`make sbom` writes this page from [images/locks](images/locks), the metadata of the installed packages and",
        "[images/licences.yaml](images/licences.yaml), which has the accepted licences and what is allowed by name. A",
        "licence is an SPDX expression where the package says enough for one.",
        "",
        "## Models",
        "",
        "| model | licence | reason |",
        "|---|---|---|",
        *(f"| {name} | {entry['licence']} | {entry['why']} |" for name, entry in policy.models.items()),
        "",
        "## Allowed by name",
        "",
        "| allowed | licence | reason |",
        "|---|---|---|",
        *(f"| {name} | {entry['licence']} | {entry['why']} |" for name, entry in policy.packages.items()),
        "",
        "## Packages",
        "",
        "| package | version | licence | environments |",
        "|---|---|---|---|",
    ]
    rows = (
        f"| {package.name} | {package.version} | {licence_of[package]} | {', '.join(names)} |"
        for package, names in locked().items()
    )
    return "\n".join([*lines, *rows]) + "\n"


def component(pin: Pin, licence: str, policy: Policy) -> dict[str, Any]:
    """A package as CycloneDX has it."""
    package = pin.package
    purl = f"pkg:pypi/{package.name}@{quote(package.version)}"
    spdx = policy.accepts(licence) or re.fullmatch(r"[\w.+-]+", licence)
    return {
        "type": "library",
        "bom-ref": purl if not pin.marker else f"{purl}#{quote(pin.marker)}",
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "scope": "optional" if pin.marker else "required",
        "hashes": [{"alg": "SHA-256", "content": each} for each in pin.hashes],
        "licenses": [{"expression": licence} if spdx else {"license": {"name": licence}}],
    }


def image_of(environment: str) -> Image | None:
    """The image of an environment; None for one that has none."""
    images = (PIPELINE, RAY, *(image for kind in KINDS.values() for image in kind.images.values()))
    return next((image for image in images if image.name == environment), None)


def in_image(image: Image, policy: Policy) -> list[dict[str, Any]]:
    """What an image holds beside its environment, as CycloneDX has it: its base, and models of this repository."""
    named = {name: (base, digest) for name, base, digest in BASE.findall(DOCKERFILE.read_text())}
    base, digest = named[image.base]
    name, _, tag = base.partition(":")
    hashes = {"hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]} if digest else {}
    models = [
        {"type": "machine-learning-model", "bom-ref": source, "name": source, "licenses": [{"expression": licence}]}
        for source in image.sources
        if (licence := policy.models.get(source, {}).get("licence"))
    ]
    return [{"type": "container", "bom-ref": base, "name": name, "version": tag, **hashes}, *models]


def of_debian(image: Image) -> list[dict[str, Any]]:
    """The Debian packages of an image as CycloneDX has them; none where this host's engine has no such image."""
    query = ("--entrypoint=dpkg-query", image.tag, "-W", "-f", "${Package} ${Version} ${Architecture}\n")
    listed, _ = ask("run", "--rm", "--network=none", "--pull=never", *query, timeout_s=60)
    found = []
    for name, version, architecture in map(str.split, (listed or "").splitlines()):
        purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}"
        found.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return found


def bill(
    environment: str,
    version: str,
    policy: Policy,
    licence_of: Mapping[Package, str],
    debian: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The CycloneDX 1.6 bill of materials of an environment, and of the image that holds it, with its Debian packages.

    It is the same whenever it is made of the same locks and image: it has no time, and its number follows from its
    content.
    """
    image = image_of(environment)
    beside = in_image(image, policy) if image else []
    found = [component(pin, licence_of[pin.package], policy) for pin in pins(LOCKS / f"{environment}.lock")]
    kind = "container" if image else "application"
    name = f"spotter-{environment}"
    number = uuid.uuid5(uuid.NAMESPACE_OID, repr((name, version, beside, found, *debian)))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{number}",
        "version": 1,
        "metadata": {"component": {"type": kind, "bom-ref": name, "name": name, "version": version}},
        "components": [*beside, *found, *debian],
    }
