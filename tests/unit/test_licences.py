"""What environments and images consist of, and under which licences; no package index is asked."""

from __future__ import annotations

import json
from email.message import Message
from pathlib import Path

import pytest
import yaml

from scripts import __main__ as spotter
from scripts import environments, lock
from scripts.checks import licences
from scripts.checks.licences import Package, Policy
from scripts.services import PIPELINE
from scripts.stack.vllm_server import PRESETS
from services.detector.settings import Settings as DetectorSettings
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(licences.POLICY.read_text())


@pytest.fixture(scope="module")
def known() -> dict[Package, str]:
    """The licences that THIRD_PARTY.md has."""
    return licences.known_licences(licences.THIRD_PARTY.read_text())


def said(**headers: str) -> Message:
    """A package's metadata; `_` in a header's name stands for `-`."""
    message = Message()
    for name, value in {"Name": "some-package", **headers}.items():
        for each in value.split("\n") if name == "Classifier" else [value]:
            message[name.replace("_", "-")] = each
    return message


def test_third_party_is_what_the_command_writes(policy: Policy, known: dict[Package, str]) -> None:
    """By the packages that are installed here, which may be some of them, and by what the page knows of the others."""
    found = licences.licences(policy, known, licences.sites())
    assert licences.third_party(policy, found) == licences.THIRD_PARTY.read_text(), "run: make sbom"
    assert licences.sites(), "at least the environment of these tests is installed"


def test_third_party_is_the_same_where_nothing_is_installed(policy: Policy, known: dict[Package, str]) -> None:
    assert licences.third_party(policy, licences.licences(policy, known, [])) == licences.THIRD_PARTY.read_text()


def test_every_locked_package_has_an_accepted_licence(policy: Policy, known: dict[Package, str]) -> None:
    assert set(known) == set(licences.locked())
    assert [text for each, licence in known.items() if (text := policy.objection(each, licence))] == []


def test_every_line_of_a_lock_is_read() -> None:
    for path in environments.LOCKS.glob("*.lock"):
        found = licences.pins(path)
        assert len(found) == len(lock.PINNED.findall(path.read_text())), path.name
        assert all(pin.hashes for pin in found)


def test_what_is_allowed_by_name_is_locked(policy: Policy, known: dict[Package, str]) -> None:
    for pattern in policy.packages:
        assert any(policy.allowed(each.name) is policy.packages[pattern] for each in known), pattern


def test_the_models_of_presets_and_defaults_are_listed(policy: Policy) -> None:
    named = {yaml.safe_load(path.read_text())["model"] for path in PRESETS.glob("*.yaml")}
    default = str(DetectorSettings.model_fields["model"].default)
    named.add(default.rpartition("/")[0])
    variables = [path.read_text() for path in PRESETS.glob("*.env")] + [(ROOT / ".env.example").read_text()]
    named |= {
        line.partition("=")[2] for text in variables for line in text.splitlines() if line.startswith("DETECTOR_MODEL=")
    }
    assert named <= policy.models.keys()


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        (said(License_Expression="MIT OR Apache-2.0", License="other"), "MIT OR Apache-2.0"),
        (said(License="Apache 2.0\nfollowed by the whole text"), "Apache-2.0"),
        (said(License="the whole text", Classifier="License :: OSI Approved :: MIT License"), "MIT"),
        (
            said(Classifier="License :: OSI Approved :: MIT License\nLicense :: OSI Approved :: BSD License"),
            "MIT AND LicenseRef-BSD",
        ),
        (said(Name="Nvidia_Thing", Classifier="License :: Other/Proprietary License"), "LicenseRef-NVIDIA-Proprietary"),
        (said(License="my own words"), "my own words"),
        (said(), "unknown"),
    ],
)
def test_a_licence_is_read_from_metadata(policy: Policy, metadata: Message, licence: str) -> None:
    assert policy.licence(metadata) == licence


@pytest.mark.parametrize(
    "licence",
    [
        "AGPL-3.0-only",
        "MIT AND AGPL-3.0-or-later",
        "GPL-3.0-only",
        "CC-BY-NC-4.0",
        "AGPL-3.0-only OR CC-BY-NC-4.0",
        "free for research",
        "unknown",
    ],
)
def test_what_is_not_accepted_is_refused_unless_it_is_allowed_by_name(policy: Policy, licence: str) -> None:
    package = Package("new-package", "1.0")
    refused = policy.objection(package, licence)
    assert refused is not None
    assert "new-package 1.0" in refused
    text = yaml.safe_load(licences.POLICY.read_text())
    text["packages"]["new-package"] = {"licence": licence, "why": "a test"}
    assert Policy(yaml.safe_dump(text)).objection(package, licence) is None
    assert Policy(yaml.safe_dump(text)).objection(package, licence + " ") is not None


@pytest.mark.parametrize("licence", ["MIT", "(MIT OR AGPL-3.0-only)", "Apache-2.0 WITH LLVM-exception AND MIT"])
def test_a_choice_is_accepted_if_one_of_it_is(policy: Policy, licence: str) -> None:
    assert policy.objection(Package("new-package", "1.0"), licence) is None


@pytest.mark.parametrize("name", environments.NAMES)
def test_a_bill_has_each_locked_package_once(policy: Policy, known: dict[Package, str], name: str) -> None:
    """As version 1.6 of CycloneDX wants it; the same bytes whenever it is made."""
    made = licences.bill(name, "1.2.3", policy, known)
    assert json.dumps(made) == json.dumps(licences.bill(name, "1.2.3", policy, known))
    components = [each for each in made["components"] if each["type"] == "library"]
    pinned = lock.PINNED.findall((environments.LOCKS / f"{name}.lock").read_text())
    assert [(each["name"], each["version"]) for each in components] == [
        (licences.normalised(each), version) for each, version in pinned
    ]
    references = [each["bom-ref"] for each in made["components"]]
    assert len(set(references)) == len(references)
    assert all(len(each["content"]) == 64 for one in components for each in one["hashes"])
    assert all(set(each) in ({"expression"}, {"license"}) for one in components for each in one["licenses"])
    assert (made["bomFormat"], made["specVersion"], made["version"]) == ("CycloneDX", "1.6", 1)


def test_an_image_names_its_base(policy: Policy, known: dict[Package, str]) -> None:
    made = licences.bill("detector-cpu", "1.2.3", policy, known)
    assert made["metadata"]["component"]["type"] == "container"
    base = made["components"][0]
    assert (base["type"], base["name"]) == ("container", "python")
    model = made["components"][1]
    assert (model["type"], model["name"]) == ("machine-learning-model", "samples/models/tiny-detector")
    assert licences.bill("dev", "1.2.3", policy, known)["metadata"]["component"]["type"] == "application"


def test_the_command_writes_bills_and_refuses_a_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "THIRD_PARTY.md"
    page.write_text(licences.THIRD_PARTY.read_text())
    monkeypatch.setattr(licences, "THIRD_PARTY", page)
    monkeypatch.setattr(licences, "sites", list)
    listed = {PIPELINE.tag: "libc6 2.36-9+deb12u10 amd64\ntzdata 2025b-0+deb12u1 all"}
    monkeypatch.setattr(licences, "ask", lambda *asked, **_: (next(filter(None, map(listed.get, asked)), None), ""))
    assert spotter.main(["sbom", "--output", str(tmp_path / "bills")]) == 0
    said = capsys.readouterr().out
    assert "packages, as before" in said
    assert "pipeline.cdx.json: 37 packages; 2 Debian packages of its image" in said
    assert "without the packages of that: this host does not have the image" in said
    bill = json.loads((tmp_path / "bills" / "pipeline.cdx.json").read_text())
    assert bill["components"][-2]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    made = {path.name for path in (tmp_path / "bills").iterdir()}
    assert made == {f"{name}.cdx.json" for name in environments.NAMES}
    page.write_text(
        page.read_text().replace("| aiohttp | 3.14.5 | Apache-2.0 AND MIT |", "| aiohttp | 3.14.5 | AGPL-3.0 |")
    )
    assert spotter.main(["sbom", "--output", str(tmp_path / "bills")]) == 1
    assert "refused: aiohttp 3.14.5: licence 'AGPL-3.0' is not accepted" in capsys.readouterr().out
    page.unlink()
    assert spotter.main(["sbom", "--output", str(tmp_path / "bills")]) == 1
    assert "its licence is not known" in capsys.readouterr().out
