"""Models and the preflight in containers: fetched into the volume, checked by the image that would serve them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import AF_INET

import psutil
import pytest
import yaml

from scripts.docker import images
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from tests.configurations import TINY_VLM
from tests.conftest import environment_python
from tests.simulated_hub import COMMIT, MODEL, TOKEN, SimulatedHub, of_folder, serve
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker

# What ends a name in Compose's short form of a mount, and in a line of CSV.
STATE = 'a: state, "of" $its own'


def on_bridge() -> str:
    """This host's address on Docker's bridge."""
    config = json.loads(docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]
    own = [each.address for addresses in psutil.net_if_addrs().values() for each in addresses if each.family == AF_INET]
    return next(each for each in own if ip_address(each) in ip_network(config["Subnet"]))


@pytest.fixture(scope="module")
def hub() -> Iterator[SimulatedHub]:
    """A hub that containers with a way out reach, on Docker's own bridge, and that gives its model for a token."""
    with serve(of_folder(TINY_VLM), on_bridge()) as simulated:
        simulated.token = TOKEN
        yield simulated


@pytest.fixture(scope="module")
def stack(hub: SimulatedHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack in containers that is not up, whose model is at the hub."""
    environment_python("operator")
    folder = tmp_path_factory.mktemp("hub-stack")
    preset = folder / "hub.yaml"
    options = yaml.safe_load((VLLM_PRESETS / "cpu.yaml").read_text())
    preset.write_text(yaml.safe_dump(options | {"model": MODEL, "revision": COMMIT}))
    variables = {"STACK_ENGINE": "compose", "STACK_DEVICE": "cpu", "STACK_STATE": str(folder / STATE)}
    made = RunningStack({**variables, "STACK_PRESET": str(preset), "HF_ENDPOINT": hub.url})
    built = made.operate("build")
    assert built.returncode == 0, built.stdout + built.stderr
    yield made
    cleaned = made.operate("clean", "--yes", "--caches")
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr


def test_a_model_is_fetched_into_the_volume_once(stack: RunningStack, hub: SimulatedHub) -> None:
    refused = stack.operate("fetch", HF_TOKEN="")
    assert refused.returncode == 1
    assert "gated" in refused.stderr
    offline = stack.operate("fetch", STACK_OFFLINE="1")
    assert offline.returncode == 1
    assert "/cache/hub" in offline.stderr
    fetched = stack.operate("fetch", HF_TOKEN=TOKEN)
    assert fetched.returncode == 0, fetched.stderr
    assert "fetched in" in fetched.stdout
    assert "verified" in fetched.stdout
    assert {request.token for request in hub.asked("GET", "/resolve/")} == {TOKEN}
    hub.requests.clear()
    again = stack.operate("fetch", STACK_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert "in the cache" in again.stdout
    assert hub.requests == []


def checked(stack: RunningStack, **variables: str) -> dict[str, str]:
    """The one finding of vLLM's own code, which ran in a container of the image."""
    since = docker("info", "--format", "{{.SystemTime}}")
    done = stack.operate("preflight", "--full", "--json", **variables)
    image = images.IMAGES["vllm-cpu"].tag
    filters = ("--filter", f"image={image}", "--filter", "event=start")
    assert docker("events", "--since", since, "--until", "0s", *filters)
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return next(each for each in findings if each["check"].startswith("vllm"))


def test_vllms_own_code_runs_in_the_image_that_will_serve(stack: RunningStack, tmp_path: Path) -> None:
    right = checked(stack)
    assert right["severity"] == "ok", right
    assert "grammar xgrammar" in right["found"]
    job = yaml.safe_load((Path(__file__).parents[2] / "pipeline" / "jobs" / "dog_breeds.yaml").read_text())
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(job | {"max_tokens": 7}))
    wrong = checked(stack, SPOTTER_JOB=str(tmp_path / "short.yaml"))
    assert (wrong["check"], wrong["severity"]) == ("vllm answer", "error"), wrong
    assert "max_tokens is 7" in wrong["found"]
