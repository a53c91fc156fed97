"""The full text of one message of each kind: the other tests assert kinds and facts, so that prose changes here alone.

`WRITE_MESSAGES=1` writes the texts of now into messages.txt, for a look at the difference.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from pipeline import errors, job, settings
from pipeline.clients import probe_model
from pipeline.output.breakdown import one_line
from pipeline.output.run_folder import open_run_folder
from pipeline.runners.ray import checks
from pipeline.sources.listing import list_images
from pipeline.sources.objects import Objects
from scripts import settings as stack_settings
from scripts.checks.doctor import caches, hub, proxy
from scripts.checks.doctor.context import Context
from scripts.commands import clean, down, fetch
from scripts.docker import engine as compose_engine
from scripts.docker import host, images, project
from scripts.docker.engine import ComposeEngine
from scripts.findings import Finding, show
from scripts.settings import StackSettings
from scripts.stack import devices, first_request, vllm_server, warmup
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from tests.configurations import Configuration
from tests.conftest import ROOT
from tests.doubles.simulated import Simulated
from tests.ports import free_port

GOLDEN = Path(__file__).with_name("messages.txt")
TITLE = re.compile(r"^=== (\w+)\n", re.MULTILINE)
BASES = (errors.UsageError, stack_settings.StackError)


@dataclass
class Place:
    """A folder, services that answer, and a way to make the host another."""

    folder: Path
    simulated: Simulated
    patch: pytest.MonkeyPatch
    request: pytest.FixtureRequest

    @property
    def stack(self) -> StackSettings:
        """A stack of its own."""
        return StackSettings(state=self.folder / "state", device="cpu")

    def service(self, name: str = "vllm", **given: object) -> Service:
        """A service of which only some things matter."""
        usual = {"command": ("/no/such/program",), "port": 0, "ready_url": f"{self.simulated.url}/health"}
        given = {"environment": "operator", "variables": ()} | usual | given
        return Service(name=name, stop_grace_s=0, inputs=(), **given)  # type: ignore[arg-type]

    def find_model(self, url: str, **given: object) -> None:
        """Ask a model server."""
        asyncio.run(probe_model.find_model(settings.Settings(model_url=url, **given)))  # type: ignore[arg-type]


EXAMPLES: dict[str, Callable[[Place], object]] = {}


def example(make: Callable[[Place], object]) -> None:
    """Register what raises the kind that the function is called after."""
    kind = "".join(word.capitalize() for word in make.__name__.split("_"))
    EXAMPLES[kind] = make


@example
def invalid_setting(place: Place) -> None:
    settings.load(["--model-concurrency", "0"])


@example
def invalid_job(place: Place) -> None:
    file = place.folder / "cats.yaml"
    file.write_text("labell: cat\n" + (ROOT / "pipeline/jobs/dog_breeds.yaml").read_text())
    job.load(str(file))


@example
def not_found(place: Place) -> None:
    job.load("dog_breads")


@example
def unreadable(place: Place) -> None:
    video = place.folder / "a.mp4"
    video.write_bytes(b"\0\0\0\x20ftypisom")
    list_images(str(video))


@example
def unwritable(place: Place) -> None:
    (place.folder / "file").touch()
    with open_run_folder(place.folder / "file" / "runs", {}, force=False):
        pass


@example
def bucket_unusable(place: Place) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
        place.patch.setenv(f"AWS_{name}", "a")
    list_images("s3://bucket/photos/", objects=Objects("http://127.0.0.1:1"))


@example
def folder_in_use(place: Place) -> None:
    with open_run_folder(place.folder, {}, force=False), open_run_folder(place.folder, {}, force=False):
        pass


@example
def cluster_unusable(place: Place) -> None:
    checks.see("127.0.0.1:1")


@example
def other_run(place: Place) -> None:
    (place.folder / "thesis.txt").touch()
    with open_run_folder(place.folder, {}, force=False):
        pass


@example
def service_unreachable(place: Place) -> None:
    place.find_model("http://127.0.0.1:9/v1")


@example
def service_refuses(place: Place) -> None:
    place.simulated.api_key = "s3cret"
    place.find_model(f"{place.simulated.url}/v1")


@example
def model_not_served(place: Place) -> None:
    place.simulated.models = ("cats", "dogs")
    place.find_model(f"{place.simulated.url}/v1")


@example
def run_stopped(place: Place) -> None:
    with one_line(place.folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@example
def invalid_stack_setting(place: Place) -> None:
    vllm_server.preset_file("a10")


@example
def checks_failed(place: Place) -> None:
    (place.folder / "state").touch()
    caches.require(Context(place.stack.model_copy(update={"engine": "process"})))


@example
def no_engine(place: Place) -> None:
    place.patch.setenv("PATH", str(place.folder))
    host.client_config.cache_clear()
    try:
        host.client_config()
    finally:
        host.client_config.cache_clear()


@example
def no_gpu(place: Place) -> None:
    devices.choose(StackSettings(device="cuda"), [])


@example
def build_failed(place: Place) -> None:
    place.patch.setattr(images, "is_current", lambda image: False)
    engine = ComposeEngine(place.stack.model_copy(update={"offline": True}), "cpu", "cpu")
    engine.ensure_images([images.IMAGES["vllm-cpu"]])


@example
def fetch_failed(place: Place) -> None:
    place.request.getfixturevalue("detector_python")
    place.patch.setenv("HF_HOME", str(place.folder / "hub"))
    service = place.service(environment="detector-torch-cpu", model="owner/model", revision="main")
    fetch.ensure(ProcessEngine(place.stack), [service], Console(file=io.StringIO()), offline=True, verify=False)


@example
def other_stack(place: Place) -> None:
    place.patch.setattr(compose_engine, "other_checkout", lambda _: "/home/ann/spotter")
    ComposeEngine(StackSettings(), "cpu", "cpu").claim()


@example
def port_taken(place: Place) -> None:
    port = int(place.simulated.url.rsplit(":", 1)[1])
    ProcessEngine(place.stack).start(place.service(port=port))


@example
def service_died(place: Place) -> None:
    code = "print('torch.OutOfMemoryError: CUDA out of memory.'); raise SystemExit(1)"
    engine = ProcessEngine(place.stack)
    service = place.service(port=free_port(), command=(sys.executable, "-c", code))
    engine.start(service)
    warmup.wait(engine, [service], 60, Console(file=io.StringIO()))


@example
def not_ready(place: Place) -> None:
    place.simulated.answer = lambda crop, request: "Sure! It is a poodle."
    port = int(place.simulated.url.rsplit(":", 1)[1])
    first_request.ask(place.service(port=port), settings.Settings())


@example
def not_running(place: Place) -> None:
    ProcessEngine(place.stack).show_logs(["vllm"], follow=False)


@example
def not_removed(place: Place) -> None:
    place.patch.setattr(host, "answers", lambda: True)
    place.patch.setattr(project, "checkouts", lambda _: {})
    place.patch.setattr(project, "volumes", lambda _: ["spotter_hub-cache"])
    place.patch.setattr(down, "run", lambda *_: None)
    place.patch.setattr(clean, "ask", lambda *_: (None, "volume is in use"))
    clean.run(place.stack, Console(file=io.StringIO()), confirmed=True, caches=True)


def rendered(place: Place, text: str) -> str:
    """A message without what differs between hosts and test runs."""
    known = {str(place.folder): "/place", str(ROOT): "/spotter", place.simulated.url: "http://127.0.0.1:9001"}
    port, process = place.simulated.url.rsplit(":", 1)[1], psutil.Process()
    known |= {f"port {port}": "port 9001", f"by {process.name()}, process {process.pid}": "by python, process 1234"}
    for found, shown in known.items():
        text = text.replace(found, shown)
    return text


def golden() -> dict[str, str]:
    """The texts of messages.txt by their titles."""
    parts = TITLE.split(GOLDEN.read_text())
    return {title: text.rstrip("\n") for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def compare(title: str, text: str) -> None:
    """Hold a text to the golden one, or write it there."""
    if os.environ.get("WRITE_MESSAGES"):
        known = golden() | {title: text}
        GOLDEN.write_text(
            "\n".join(f"=== {name}\n{known[name]}\n" for name in [*EXAMPLES, "Findings"] if name in known)
        )
    assert text == golden()[title]


@pytest.fixture
def place(
    tmp_path: Path, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Place:
    """A host without a proxy."""
    for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    return Place(tmp_path, simulated, monkeypatch, request)


SLOW = {"BucketUnusable", "FetchFailed"}  # one tries again for seconds, one needs another environment


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in EXAMPLES])
def test_the_message_of_each_kind(place: Place, kind: str) -> None:
    with pytest.raises((errors.RunStopped, *BASES)) as raised:
        EXAMPLES[kind](place)
    assert type(raised.value).__name__ == kind
    compare(kind, rendered(place, str(raised.value)))


def test_each_kind_has_one_example() -> None:
    kinds = {kind.__name__ for base in BASES for kind in base.__subclasses__()}
    assert {*kinds, "RunStopped"} == set(EXAMPLES) == set(golden()) - {"Findings"}


@pytest.mark.parametrize("folder", ["pipeline", "scripts"])
def test_an_error_names_its_kind(folder: str) -> None:
    bases = {base.__name__ for base in BASES}
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in bases
    ]
    assert bare == []


def test_the_report_of_representative_findings(place: Place) -> None:
    configuration = Configuration(place.folder)
    legs = {"type": "object", "properties": {"legs": {"type": "integer"}}, "additionalProperties": False}
    configuration.set(max_model_length=64, max_model_len=64)
    found: list[Finding] = list(configuration.check().findings)
    configuration.set(max_model_length=None, max_model_len=1024)
    configuration.question(answer_schema=legs)
    found += configuration.check().findings
    found += proxy.check(Context(place.stack))
    for status, code in ((503, None), (401, "GatedRepo")):
        found.append(hub.judge("owner/model@main", "owner/model", status, code, None))
    shown = io.StringIO()
    show(found, Console(file=shown, width=1000))
    compare("Findings", shown.getvalue().rstrip("\n"))
