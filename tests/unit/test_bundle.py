"""A bundle is verified whole before it changes anything: a line says what is wrong with the bundle or the host."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.errors import UsageError
from scripts import environments
from scripts.__main__ import parse
from scripts.commands import fetch
from scripts.models.model_files import locate_in_cache
from scripts.release import archives, bundle, install, unbundle
from scripts.release.bundle import about, glibc_of
from scripts.settings import StackSettings
from scripts.stack.process_engine import ProcessEngine
from tests.conftest import ROOT
from tests.disks import small_disk

# Says what `unbundle` was called with.
SPOTTER = '#!/bin/sh\necho "$*" >"$(dirname "$0")/called"\n'
DOCKER = """#!/bin/sh
case "$*" in
version*) echo "{engine}" ;;
"compose version"*) echo 2.24.1 ;;
info*) echo "{root}" ;;
esac
"""


@dataclass
class Bundle:
    """A small bundle, and a host to install it on."""

    folder: Path
    target: Path
    bin: Path

    def change(self, edit: Callable[[install.Manifest], object]) -> None:
        """Edit its manifest."""
        file = self.folder / install.MANIFEST
        manifest = json.loads(file.read_text())
        edit(manifest)
        file.write_text(json.dumps(manifest))

    def docker(self, engine: str) -> None:
        """Give the host a Docker of this version."""
        (self.bin / "docker").write_text(DOCKER.format(engine=engine, root=self.bin))
        (self.bin / "docker").chmod(0o755)

    def install(self, *arguments: str, **variables: str) -> tuple[int, list[str]]:
        """Run install.sh; its exit code and the lines of its complaints."""
        done = subprocess.run(
            ["sh", str(self.folder / "install.sh"), *(arguments or (str(self.target),))],
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.bin), **variables},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr.splitlines()

    def refused(self, *words: str, **variables: str) -> None:
        """Check that it is refused in one line with these words, and that nothing was changed."""
        before = sorted(self.target.rglob("*")) if self.target.exists() else None
        code, lines = self.install(**variables)
        assert (code, lines[1:]) == (1, ["nothing was changed"]), lines
        assert all(word in lines[0] for word in words), lines
        assert (sorted(self.target.rglob("*")) if self.target.exists() else None) == before


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    folder, tree = tmp_path / "bundle", tmp_path / "tree"
    (folder / "wheels").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (folder / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"wheel" * 1000)
    tree.mkdir()
    (tree / "spotter").write_text(SPOTTER)
    (tree / "spotter").chmod(0o755)
    (tree / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    with tarfile.open(folder / install.CHECKOUT, "w:gz") as packed:
        for name in ("spotter", "pyproject.toml"):
            packed.add(tree / name, name)
    for name in ("install.py", "install.sh"):
        (folder / name).write_bytes((ROOT / "scripts" / "release" / name).read_bytes())
    host = {"system": "Linux", "machine": platform.machine(), "python": environments.PYTHON, "glibc": "2.17"}
    manifest = {
        **{"format": install.FORMAT, "version": "1.2.3", "revision": "abc", "host": host, "python": None},
        "docker": {"engine": "20.10", "compose": "2.20"},
        **{"engines": ["process"], "images": [], "models": []},
        "disk": {"folder": 5000, "images": 0, "models": 0},
        "files": {str(path.relative_to(folder)): about(path) for path in folder.rglob("*") if path.is_file()},
    }
    (folder / install.MANIFEST).write_text(json.dumps(manifest))
    return Bundle(folder, tmp_path / "target", tmp_path / "bin")


def with_images(manifest: install.Manifest) -> None:
    manifest["images"] = [{"tag": "spotter-x:local", "id": "sha256:1", "bytes": 1}]


def test_it_lays_out_checkout_wheels_and_settings_and_may_do_so_again(made: Bundle) -> None:
    made.change(lambda manifest: manifest.update(models=[{"name": "owner/model"}]))
    for _ in range(2):
        assert made.install() == (0, [])
        assert (made.target / "called").read_text() == f"unbundle --bundle {made.folder}\n"
        (made.target / "called").unlink()
        assert (made.target / ".env").read_text() == "STACK_OFFLINE=True\n"
        assert [path.name for path in (made.target / ".spotter" / "wheels").iterdir()] == ["a-1-py3-none-any.whl"]
        assert install.read_manifest(made.target / install.INSTALLED)["checkout"] == ["spotter", "pyproject.toml"]
    # install.sh leaves the user's settings alone, and the folder from which it was called.
    (made.target / ".env").write_text("STACK_ENGINE=process\n")
    assert made.install() == (0, [])
    assert (made.target / ".env").read_text() == "STACK_ENGINE=process\n"


def test_a_check_changes_nothing(made: Bundle) -> None:
    assert made.install("--check", str(made.target)) == (0, [])
    assert not made.target.exists()


def test_a_flipped_byte_is_found(made: Bundle) -> None:
    wheel = made.folder / "wheels" / "a-1-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[77] ^= 1
    wheel.write_bytes(content)
    made.refused("wheels/a-1-py3-none-any.whl", "SHA-256")


def test_a_missing_and_a_short_file_are_found(made: Bundle) -> None:
    wheel = made.folder / "wheels" / "a-1-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-1])
    made.refused("4999 bytes", "expected 5000")
    wheel.unlink()
    made.refused("a-1-py3-none-any.whl is missing")


def test_a_damaged_manifest_is_found(made: Bundle) -> None:
    (made.folder / install.MANIFEST).write_text('{"format": 1,')
    made.refused("manifest.json is damaged")
    (made.folder / install.MANIFEST).write_text('{"format": 99}')
    made.refused("format 99", "expected 1")
    (made.folder / install.MANIFEST).unlink()
    made.refused("manifest.json cannot be read", "make bundle")


def test_a_full_disk_is_found(made: Bundle) -> None:
    made.change(lambda manifest: manifest["disk"].update(folder=500_000_000))
    with small_disk(made.target, 1000):
        made.refused("are free", "expected 604.9 MB")


def test_another_architecture_is_found(made: Bundle) -> None:
    made.change(lambda manifest: manifest["host"].update(machine="riscv64"))
    made.refused(platform.machine(), "Linux riscv64")


def test_an_older_system_is_found(made: Bundle) -> None:
    made.change(lambda manifest: manifest["host"].update(glibc="2.99"))
    made.refused("glibc", "2.99")


def test_a_host_without_the_python_is_found(made: Bundle) -> None:
    made.change(lambda manifest: manifest["host"].update(python="3.99"))
    made.refused("no Python 3.99", "venv")


def test_an_older_docker_or_none_is_found(made: Bundle) -> None:
    made.change(with_images)
    made.docker("19.03.15")
    made.refused("Docker Engine is 19.03.15", "20.10", "STACK_ENGINE=process")
    made.docker("")
    made.refused("Docker Engine does not answer")
    assert made.install(STACK_ENGINE="process") == (0, [])
    assert not (made.target / "called").exists()  # nothing to load without images


def test_a_newer_docker_gets_the_images(made: Bundle) -> None:
    made.change(with_images)
    made.docker("28.0.1-rc.1")
    assert made.install() == (0, [])


def test_a_folder_with_something_else_is_refused(made: Bundle) -> None:
    made.target.mkdir()
    (made.target / "photo.jpg").touch()
    made.refused("is not empty")


def test_another_version_in_the_folder_is_an_upgrade(made: Bundle) -> None:
    assert made.install() == (0, [])
    made.change(lambda manifest: manifest.update(revision="def"))
    made.refused("holds Spotter already (abc)", "make upgrade")
    (made.target / install.INSTALLED).unlink()
    made.refused("holds Spotter already (a clone)")


def test_a_path_that_pip_would_split_is_refused(made: Bundle, tmp_path: Path) -> None:
    made.target = tmp_path / "two words"
    made.refused("space", "two words")


def test_an_archive_that_leads_out_is_refused(made: Bundle) -> None:
    with tarfile.open(made.folder / install.CHECKOUT, "w:gz") as packed:
        packed.add(made.bin, "../out")
    made.change(lambda manifest: manifest["files"].update({install.CHECKOUT: about(made.folder / install.CHECKOUT)}))
    code, lines = made.install()
    assert (code, "lead out" in lines[0]) == (1, True)
    assert not (made.target.parent / "out").exists()


def test_all_reasons_are_said_at_once(made: Bundle) -> None:
    made.change(with_images)
    made.docker("19.03.15")
    (made.folder / "wheels" / "a-1-py3-none-any.whl").unlink()
    code, lines = made.install()
    assert (code, len(lines)) == (1, 3)


# --- the side that makes it -------------------------------------------------------------------------------------------


def test_the_glibc_of_wheels_is_the_oldest_that_runs_all() -> None:
    names = ["a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl", "b-1-py3-none-any.whl"]
    assert glibc_of(names) == "2.17"
    assert glibc_of([*names, "c-1-cp311-cp311-manylinux_2_28_x86_64.whl"]) == "2.28"


def test_an_archive_of_the_checkout_has_no_ignored_file_and_no_owner(tmp_path: Path) -> None:
    names = bundle.tracked(exclude=[ROOT / "docs"])
    assert "pyproject.toml" in names
    assert not [name for name in names if name.startswith((".spotter", ".env/", "docs/")) or name == ".env"]
    bundle.pack(tmp_path / "a.tar.gz", ["spotter", "README.md"])
    with tarfile.open(tmp_path / "a.tar.gz") as packed:
        assert [(each.name, each.uid, each.uname) for each in packed] == [("README.md", 0, ""), ("spotter", 0, "")]


def test_the_licence_of_a_model_is_in_its_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: gemma\nextra_gated_heading: Access\n---\n# Model\n")
    (tmp_path / "LICENSE.txt").touch()
    with tarfile.open(tmp_path / "model.tar", "w") as packed:
        packed.add(card, "models--a--b/snapshots/1/README.md")
        packed.add(tmp_path / "LICENSE.txt", "models--a--b/snapshots/1/LICENSE.txt")
    assert archives.licence_of(tmp_path / "model.tar") == ("gemma", "LICENSE.txt", True)
    with tarfile.open(tmp_path / "none.tar", "w") as packed:
        packed.add(card, "models--a--b/snapshots/1/config.json")
    assert archives.licence_of(tmp_path / "none.tar") == ("unknown", "no licence file", False)


def test_an_interrupted_bundle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path, *_: object) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "fill", fill)
    given = StackSettings(state=tmp_path / "state", engine="process", device="cpu")
    output = tmp_path / "out" / "bundle"
    with pytest.raises(KeyboardInterrupt):
        bundle.run(given, Console(quiet=True), None, None, str(output))
    assert list(output.parent.iterdir()) == []
    monkeypatch.setattr(bundle, "WHEELS_BYTES", {"cpu": 10**18})
    with pytest.raises(UsageError, match="are free at"):
        bundle.run(given, Console(quiet=True), None, None, str(output))
    output.mkdir()
    with pytest.raises(UsageError, match="exists: remove it"):
        bundle.run(given, Console(quiet=True), None, None, str(output))


def test_a_bundle_holds_what_its_presets_and_engine_need(tmp_path: Path) -> None:
    given = StackSettings(state=tmp_path, engine="process")
    contents = bundle.choose(given, None, ["cpu", "l4"])
    assert (contents.device, contents.presets) == ("cuda", ("cpu", "l4"))
    assert contents.environments == ["uv", "operator", "detector-cpu", "vllm-cpu", "detector-cuda", "vllm-cuda"]
    models = {service.model for _, service in contents.models}
    assert models == {"google/gemma-3n-E4B-it", "ustc-community/dfine-xlarge-obj2coco"}
    assert contents.images == ()
    assert bundle.choose(given, None, ["gemma-4-e4b"]).device == "cuda"  # on a host without a GPU


def test_a_model_of_the_hub_goes_from_cache_to_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the archive are files, not links: a disk for carrying may know no links."""
    given = StackSettings(state=tmp_path, engine="process")
    _, service = bundle.choose(given, None, ["l4"]).models[-1]
    commit = service.revision or ""
    source, target = tmp_path / "source", tmp_path / "target"
    home = source / archives.cache_name(service.model)
    for place in (home / "blobs", home / "snapshots" / commit, home / "snapshots" / "older"):
        place.mkdir(parents=True)
    (home / "blobs" / "1").write_text("{}")
    (home / "snapshots" / commit / "config.json").symlink_to("../../blobs/1")
    (home / "snapshots" / "older" / "config.json").symlink_to("../../blobs/1")
    monkeypatch.setattr(fetch, "ensure", lambda *_, **__: [])
    monkeypatch.setattr(ProcessEngine, "prepare", lambda *_: None)
    monkeypatch.setenv("HF_HUB_CACHE", str(source))
    settings = StackSettings(state=tmp_path)
    engine = ProcessEngine(settings, "cuda")
    about_model = archives.save_model(tmp_path, engine, service, settings, Console(quiet=True))
    monkeypatch.setenv("HF_HUB_CACHE", str(target))
    archives.load_models(tmp_path, [about_model], ProcessEngine(StackSettings(state=tmp_path)), Console(quiet=True))
    found, obstacles = locate_in_cache(service.model, commit, {"HF_HUB_CACHE": str(target)}, Path())
    assert (obstacles, found.read_json("config.json")) == ([], {})
    files = [str(path.relative_to(target)) for path in target.rglob("*") if path.is_file() or path.is_symlink()]
    assert files == [f"{archives.cache_name(service.model)}/snapshots/{commit}/config.json"]
    assert not (target / files[0]).is_symlink()


def test_a_bundle_with_python_installs_where_there_is_none(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv's build of Python goes along; a link to this host's library keeps the stand-in for it small."""
    build = tmp_path / "state" / "python-builds" / "cpython-3.11.99-linux-x86_64-gnu"
    (build / "bin").mkdir(parents=True)
    (build / "lib").mkdir()
    home = Path(sys.base_prefix)
    shutil.copy(home / "bin" / f"python{environments.PYTHON}", build / "bin")
    (build / "lib" / f"python{environments.PYTHON}").symlink_to(home / "lib" / f"python{environments.PYTHON}")
    uv = environments.uv()
    monkeypatch.setattr(environments, "uv", lambda: uv)
    monkeypatch.setattr(environments, "STATE", tmp_path / "state")
    monkeypatch.setattr(environments, "ensure_uv", lambda: None)
    monkeypatch.setenv("UV_OFFLINE", "1")
    name = bundle.bring_python(made.folder)
    assert name == f"python/{build.name}.tar.gz"
    made.change(lambda manifest: manifest.update(python=name))
    made.change(lambda manifest: manifest["files"].update({name: about(made.folder / name)}))
    made.change(lambda manifest: manifest["host"].update(python="3.11 of the bundle"))  # this host's is not asked for
    for tool in ("sh", "dirname", "mktemp", "tar", "gzip", "ls", "rm"):
        (made.bin / tool).symlink_to(shutil.which(tool) or tool)
    assert made.install(PATH=str(made.bin)) == (0, [])
    python = made.target / ".spotter" / "python" / "bin" / f"python{environments.PYTHON}"
    said = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(said.stdout.strip()) == python.parent.parent
    monkeypatch.setattr(environments, "STATE", tmp_path / "without")
    assert bundle.bring_python(tmp_path) is None


def test_the_command_line_loads_the_images_of_this_version_only(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made.change(with_images)
    made.docker("20.10")
    assert made.install() == (0, [])
    loaded: list[Path] = []
    monkeypatch.setattr(unbundle, "ROOT", made.target)
    monkeypatch.setattr(archives, "load_images", lambda folder, *_: loaded.append(folder / archives.IMAGES))
    monkeypatch.delenv("STACK_ENGINE", raising=False)
    name, given = parse(["--folder", str(made.target), "unbundle", "--bundle", "../bundle"])
    settings = StackSettings(state=made.bin)
    unbundle.run(settings, Console(quiet=True), **given)
    assert (name, [path.resolve() for path in loaded]) == ("unbundle", [made.folder / archives.IMAGES])
    made.change(lambda manifest: manifest.update(revision="def"))
    with pytest.raises(UsageError, match="is of def, this folder of abc"):
        unbundle.run(settings, Console(quiet=True), **given)
