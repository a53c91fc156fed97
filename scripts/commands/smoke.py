"""Whether all of it works on this host: the stack from nothing, the job, its answers, the logs, nothing left behind.

Runs the operator's own commands, with the tiny models and the bundled images, on a stack of its own beside any other:
own state, own ports, own containers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial

import psutil
import pyarrow.parquet as pq
from rich.console import Console

from samples.agreement import compare
from scripts import environments
from scripts.commands.engines import plan
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker import project as compose_project
from scripts.environments import ROOT
from scripts.services import KINDS, PIPELINE
from scripts.settings import PREFIX, StackError, StackSettings

# The same bounds as in tests/stack/test_main_job.py.
LEAST_FOUND = 0.95
LEAST_RIGHT = 0.90

# The variables of stack, job and services, all of which keep their defaults here.
PREFIXES = (PREFIX, "SPOTTER_", *(kind.prefix for kind in KINDS.values()))

# A line that complains: loggers' levels (Mosec's is WARN), `UserWarning:`, `RuntimeError:` and `error:` as programs
# print them, torch's `[W1125 14:09:13...`, a Rust program's panic.
COMPLAINT = re.compile(
    r"\b(?:WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|(?i:(?:warning|error|exception|fatal)s?:)"
    r"|\bTraceback\b|\bpanicked at\b"
    r"|(?<!\w)[WEF]\d{4} \d\d:\d\d:"
)

# Complaints that do not matter, each with the reason.
ALLOWED = {
    r"Found ulimit of \d+ and failed to automatically increase": "20,000 open files are enough: a request needs one",
    r"Enforce eager set, disabling torch\.compile": "the preset asks for it",
    r"TORCH_COMPILE_DISABLE is set, disabling torch\.compile": "the same",
    r"Inductor compilation was disabled by user settings": "the same",
    r"Triton is not installed": "left out of the lock: 1 GB that a CPU does not need",
    r"Model Runner V2 requires Triton": "the same",
    r"Triton not available, find_triton_kernels": "the same",
    r"triton_utils/dispatcher\.py:\d+: FutureWarning: `torch\.distributed\.reduce_op`": (
        "vLLM looks at every name of every module, and so at one that torch will drop"
    ),
    r"Reset SSM cache type to float32": "about models of another kind (Mamba)",
    r"(libtcmalloc|libiomp) is not found in LD_PRELOAD": "a faster allocator and runtime; not needed",
    r"CPU backend doesn't allow to use `torch\.set_num_threads`": "the preset sets the number of threads",
    r"Failed to create oneDNN linear, fallback to torch linear\. Exception: could not create a primitive descriptor": (
        "a CPU without AVX-512: oneDNN cannot multiply bfloat16 there, torch does it instead, only slower"
    ),
    r"NUMA binding: Using MEMBIND policy": "a statement, as a warning",
    r"numa_(migrate_pages|set_membind) failed": "Docker forbids moving memory between sockets: only slower",
}
# The line after which a vLLM server is stopping, and what it may say then.
STOPPING = "[shutdown] API server: shutdown triggered"
ALLOWED_STOPPING = {
    r"\[async_llm\.py:\d+\]": "a race in an orderly stop: its reader of answers misses the engine it just stopped",
    r"Executor: workers still running after grace period; sending SIGTERM": (
        "on a busy machine a worker takes longer to end than the 5 s that vLLM gives it"
    ),
}

# What `clean` leaves in the state's folder: the user's runs, how long starts took, and the commands' lock.
KEPT = ("runs", "starts.jsonl", "stack.lock")


class SmokeFailed(Exception):
    """A step failed; the message says why."""


class Smoke:
    """One pass; `STEPS` are its steps."""

    def __init__(self, settings: StackSettings, engine: str) -> None:
        self.engine = engine
        self.settings = settings
        self.state = settings.state / "smoke"
        self.output = self.state / "runs"
        self.project = compose_project.project_name(self.state)
        self.ports = {f"{PREFIX}{name.upper()}_PORT": free_port() for name in KINDS}
        self.variables = {
            "STACK_ENGINE": engine,
            "STACK_DEVICE": "cpu",
            "STACK_PRESET": "cpu",
            "STACK_STATE": str(self.state),
            **{name: str(port) for name, port in self.ports.items()},
        }

    def operate(self, *arguments: str) -> str:
        """Run one of the operator's commands; its output.

        Raises:
            SmokeFailed: it did not end with 0.
        """
        # An empty variable undoes one of `.env`. Whether there is a network remains the user's choice.
        set_by_user = {name for prefix in PREFIXES for name in self.settings.user_variables(prefix)} - {"STACK_OFFLINE"}
        undone = dict.fromkeys(set_by_user, "")
        done = subprocess.run(
            [environments.python("operator"), "-m", "scripts", *arguments],
            cwd=ROOT,
            env={**os.environ, **undone, **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SmokeFailed(f"'{arguments[0]}' ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def from_nothing(self) -> str:
        """Remove what an earlier pass left."""
        self.operate("clean", "--yes", "--caches")
        shutil.rmtree(self.state, ignore_errors=True)
        return "no state, no caches"

    def prepare(self) -> str:
        """Make the environments or images, so that the other steps' times do not include them."""
        if self.engine == "compose":
            self.operate("build")
            wanted = [*(kind.image("cpu") for kind in KINDS.values()), PIPELINE]
            sizes = ", ".join(f"{image.name} {images.size(image)}" for image in wanted)
            return f"images: {sizes}"
        for kind in KINDS.values():
            environments.prepare(kind.image("cpu").name)
        return "environments are current"

    def up(self) -> str:
        """Bring the stack up."""
        return last_line(self.operate("up"))

    def up_again(self) -> str:
        """Check that a second `up` does nothing."""
        before = self.operate("status")
        self.operate("up")
        # By the ids: a busy host may answer later than `status` waits.
        running = r"^(\w+) +(?:ready|starting or not answering) +(\w+)"
        ids = [re.findall(running, text, re.MULTILINE) for text in (before, self.operate("status"))]
        if ids[0] != ids[1] or len(ids[0]) != len(KINDS):
            raise SmokeFailed(f"a second 'up' changed something: {ids[0]} became {ids[1]}")
        return "changes nothing"

    def job(self) -> str:
        """Run the bundled job; it must not complain either."""
        said = self.operate("run", "--images", "samples/images", "--output", str(self.output), "--run-name", "smoke")
        refuse_complaints("the job", said.splitlines())
        owners = {path.stat().st_uid for path in (self.output / "smoke").rglob("*")}
        if owners != {os.getuid()}:
            raise SmokeFailed(f"the run's files belong to the users {owners}, not to {os.getuid()}")
        counts = json.loads((self.output / "smoke" / "run.json").read_text())["counts"]
        return f"{counts['images']['total']} images, {counts['detections']['answered']} answers"

    def answers(self) -> str:
        """Compare the run's answers with what the images show."""
        truth = json.loads((ROOT / "samples" / "truth.json").read_text())["images"]
        rows = pq.read_table(self.output / "smoke" / "detections.parquet").to_pylist()
        agreement = compare(rows, truth)
        if short := agreement.shortfalls(LEAST_FOUND, LEAST_RIGHT):
            raise SmokeFailed("; ".join(short))
        right = ", ".join(f"{name} {right}" for name, right in agreement.right.items())
        return f"{agreement.found} of {agreement.drawn} dogs found, {agreement.false} false; right: {right}"

    def down(self) -> str:
        """Stop the stack, and check that no process, port, container or network is left."""
        said = last_line(self.operate("down"))
        refuse_left([*self.left_running(), *self.left_at_docker()])  # now: `clean` stops the stack once more
        return said

    def logs(self) -> str:
        """Check that the services did not complain, except of what is known to be harmless."""
        count = 0
        for name in KINDS:
            lines = (self.state / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
            count += len(lines)
            refuse_complaints(name, lines)
        return f"{count} lines, no complaint"

    def nothing_left(self) -> str:
        """Remove state and caches, and check that only the runs are left."""
        self.operate("clean", "--yes", "--caches")
        left = [f"volume {found}" for found in compose_project.volumes(self.project)] if docker_host.answers() else []
        left += [str(path) for path in sorted(self.state.iterdir()) if path.name not in KEPT]
        refuse_left([*self.left_running(), *self.left_at_docker(), *left])
        shutil.rmtree(self.state)
        return "no process, port, container, network or volume, and no state"

    def left_running(self) -> list[str]:
        """This pass's ports on which something listens, and its processes."""
        ports = [f"port {port}" for port in self.ports.values() if answers_at(port)]
        return ports + [f"process {each.pid}" for each in psutil.process_iter(["environ"]) if self.is_ours(each)]

    def left_at_docker(self) -> list[str]:
        """This pass's containers and networks."""
        if not docker_host.answers():
            return []
        containers, networks = compose_project.left_over(self.project)
        return [f"container {found}" for found in containers] + [f"network {found}" for found in networks]

    def is_ours(self, process: psutil.Process) -> bool:
        """Whether this pass started a process."""
        environ = process.info["environ"] or {}
        return environ.get("STACK_STATE") == str(self.state) and process.pid != os.getpid()

    def take_down(self, say: Callable[[str], None]) -> None:
        """Stop what a failed pass started."""
        try:
            self.operate("down")
        except SmokeFailed as error:
            say(f"and 'down' failed too: {error}")


STEPS: tuple[Callable[[Smoke], str], ...] = (
    *(Smoke.from_nothing, Smoke.prepare, Smoke.up, Smoke.up_again, Smoke.job, Smoke.answers),
    *(Smoke.down, Smoke.logs, Smoke.nothing_left),
)


def run(settings: StackSettings, console: Console) -> int:
    """Run all steps, with a line for each. 0: all passed. 1: one failed, and the stack was taken down.

    Raises:
        StackError: the engine of STACK_ENGINE is not there.
    """
    _, engine, why = plan(settings.model_copy(update={"device": "cpu", "preset": "cpu"}))
    say = partial(console.print, markup=False, soft_wrap=True)
    say(f"smoke test: {why}")
    smoke, begin = Smoke(settings, engine.name), time.monotonic()
    for step in STEPS:
        started, name = time.monotonic(), step.__name__.replace("_", " ")
        try:
            said = step(smoke)
        except KeyboardInterrupt:
            say(f"interrupted at '{name}': takes down what was started")
            smoke.take_down(say)
            raise
        except (SmokeFailed, StackError, environments.EnvironmentFailed, OSError) as error:
            say(f"FAILED  {name:<14}{time.monotonic() - started:6.1f} s  {error}")
            smoke.take_down(say)
            say(f"smoke test failed at '{name}'; logs: {smoke.state / 'logs'}")
            return 1
        say(f"ok      {name:<14}{time.monotonic() - started:6.1f} s  {said}")
    say(f"smoke test passed: {len(STEPS)} steps in {time.monotonic() - begin:.0f} s, engine {engine.name}")
    return 0


def complaints(lines: list[str]) -> list[str]:
    """The lines of a log that complain of something that is not allowed."""
    found, allowed = [], list(ALLOWED)
    for line in lines:
        if STOPPING in line:
            allowed += ALLOWED_STOPPING
        if COMPLAINT.search(line) and not any(re.search(pattern, line) for pattern in allowed):
            found.append(line)
    return found


def refuse_complaints(name: str, lines: list[str]) -> None:
    """Raise SmokeFailed, with the lines, where a program complains of something that is not allowed."""
    if strange := complaints(lines):
        shown = "\n".join(strange)
        raise SmokeFailed(f"{name} complains (scripts/commands/smoke.py lists what is allowed):\n{shown}")


def refuse_left(left: list[str]) -> None:
    """Raise SmokeFailed where something is left behind."""
    if left:
        raise SmokeFailed(f"left behind: {', '.join(left)}")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers_at(port: int) -> bool:
    """Whether something listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def last_line(text: str) -> str:
    """The last line of an output."""
    return text.strip().splitlines()[-1]
