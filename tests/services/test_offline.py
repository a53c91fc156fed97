"""`OFFLINE=1`: with no network at all every command works, and none as much as tries to reach one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, environment_python
from tests.ports import free_port

# Run in a network namespace that has loopback and nothing else. The kernel counts there each packet, and each
# connection or name look-up, that was to go anywhere else: it has no route for it.
DRIVER = """
import json, re, socket, subprocess, sys

def attempts():
    lines = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
    v4 = int(dict(zip(*lines))["OutNoRoutes"])
    v6 = next((int(line.split()[1]) for line in open("/proc/net/snmp6") if line.startswith("Ip6OutNoRoutes")), 0)
    return v4 + v6

results = []
for command in json.load(sys.stdin):
    before = attempts()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    results.append({"rc": done.returncode, "said": done.stdout, "attempts": attempts() - before})
print(json.dumps(results))
"""
TRY = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"


def without_network(commands: list[list[str]], variables: dict[str, str]) -> list[dict[str, Any]]:
    """Run commands where there is no network: exit code, output, and how often one tried to reach some."""
    enter = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-c", DRIVER]
    probe = subprocess.run([*enter[:4], "ip link set lo up"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"this user may not make a network namespace: {probe.stderr.strip()}")
    # As a person has it: the tests' own settings keep Daft and ONNX Runtime from reporting their use.
    left_out = re.compile(r"DO_NOT_TRACK|ORT_DISABLE_TELEMETRY|.*_PROXY", re.IGNORECASE)
    environment = {name: value for name, value in os.environ.items() if not left_out.fullmatch(name)}
    done = subprocess.run(
        enter, input=json.dumps(commands), cwd=ROOT, env=environment | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


@pytest.fixture
def variables(cache_dir: Path, tmp_path: Path) -> dict[str, str]:
    """A stack of its own, whose environments are there."""
    for name in ("operator", "detector-cpu", "vllm-cpu"):
        environment_python(name)
    ports = {"STACK_VLLM_PORT": str(free_port()), "STACK_DETECTOR_PORT": str(free_port())}
    # The compile caches of the tests' other stack: a first start takes long to learn what the model is.
    cache = {"VLLM_CACHE_ROOT": str(cache_dir / "stack" / "cache" / "vllm")}
    return {"STACK_STATE": str(tmp_path / "state"), "STACK_ENGINE": "process", "STACK_DEVICE": "cpu", **ports, **cache}


def test_the_count_sees_an_attempt(variables: dict[str, str]) -> None:
    (tried,) = without_network([[sys.executable, "-c", TRY]], variables)
    assert tried["attempts"] == 1


def test_everything_works_without_a_network_and_nothing_tries(variables: dict[str, str], tmp_path: Path) -> None:
    make = ["make", "--silent", "OFFLINE=1"]
    run = [f"OUTPUT={tmp_path / 'runs'}", "OPTIONS=--run-name=offline"]
    commands = [[*make, "doctor"], [*make, "fetch"], [*make, "up"], [*make, *run, "run"], [*make, "down"]]
    results = without_network(commands, variables)
    for command, result in zip(commands, results, strict=True):
        assert result["rc"] == 0, (command, result["said"])
    assert {" ".join(command): result["attempts"] for command, result in zip(commands, results, strict=True)} == {
        " ".join(command): 0 for command in commands
    }
    assert "offline" in results[0]["said"]
    assert "nothing to fetch" in results[1]["said"]
    assert "the stack is up" in results[2]["said"]
    counts = json.loads((tmp_path / "runs" / "offline" / "run.json").read_text())["counts"]
    assert counts["detections"]["answered"] == counts["detections"]["total"] > 0


def test_what_is_missing_is_told_at_once(variables: dict[str, str], tmp_path: Path) -> None:
    """A model that is not on this host, and an environment that would have to be installed."""
    make = ["make", "--silent", "OFFLINE=1"]
    preset = tmp_path / "hub.yaml"
    preset.write_text(
        (ROOT / "services/vllm/presets/cpu.yaml").read_text().replace("samples/models/tiny-vlm", "owner/x")
    )
    code = "import sys, pathlib; from scripts import environments; environments.STATE = pathlib.Path(sys.argv[1]); "
    install = [sys.executable, "-c", f"{code} environments.prepare('operator')", str(tmp_path)]
    offline = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_PYTHON_DOWNLOADS": "never"}  # as the Makefile has it
    home = {"HF_HOME": str(tmp_path / "hf"), "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    commands = [[*make, f"PRESET={preset}", "up"], [*make, f"PRESET={preset}", "fetch"], install]
    up, fetch, made = without_network(commands, variables | home | offline)
    assert up["rc"] != 0
    assert "owner/x@main is not in the cache" in up["said"]
    assert fetch["rc"] != 0
    assert "owner/x@main is not in" in fetch["said"]
    assert "STACK_OFFLINE or HF_HUB_OFFLINE forbids the network" in fetch["said"]
    assert made["rc"] != 0
    assert "uv could not be installed" in made["said"]
    assert [up["attempts"], fetch["attempts"], made["attempts"]] == [0, 0, 0]
