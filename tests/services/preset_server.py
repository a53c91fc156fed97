"""The real vLLM server with a preset for GPUs and a tiny checkpoint of its model's architecture, on a CPU."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts import environments
from scripts.settings import StackSettings, read_variables
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.stack.warmup import is_ready
from tests.ports import free_port

MODELS = Path(__file__).resolve().parent.parent / "models"
SHIM = MODELS / "shim"
BUILDER = MODELS / "build_gemma3n.py"
# The presets with other architectures.
NEWER_BUILDER = MODELS / "build_newer_models.py"
NEWER = ("gemma-4-e4b", "qwen3-vl-4b")
CHAT_TEMPLATE = MODELS / "gemma3n_chat_template.jinja"
# What the tokenizer learns its pieces from: the job's question and answers become a few tokens each, as in production.
CORPUS = environments.ROOT / "pipeline" / "jobs" / "dog_breeds.yaml"
# timm and torchvision, which the image for GPUs holds and vLLM's environment for CPUs does not.
LOCK = environments.LOCKS / "gemma3n-test.lock"

# What the CPU forces to be otherwise than in the preset, and nothing else.
OVERRIDES = (
    # torch.compile takes minutes on a CPU.
    "--enforce-eager",
    # In place of the share of a GPU's memory: a fixed cache, large enough for the preset's longest request.
    *("--kv-cache-memory-bytes", "256M"),
)
VARIABLES = {
    # The checkpoint is a folder: nothing to look up.
    "HF_HUB_OFFLINE": "1",
    # As in cpu.env: one thread, placed by the kernel.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# Measured: 50 s on an idle machine, 90 s on a busy one, another 25 s for the first start ever.
START_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Server:
    """Where the server listens and what it calls its model."""

    url: str
    model: str


def fingerprint(*sources: Path) -> str:
    """A short name for what is made from these files."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def run(command: list[str | Path], env: dict[str, str], purpose: str) -> None:
    """Run a command of the preparation; its output is shown when it fails."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{purpose} failed:\n{done.stdout}{done.stderr}"


def prepare_overlay(vllm_python: Path, uv: Path, cache_dir: Path) -> Path:
    """The folder with timm and torchvision for PYTHONPATH, installed unless it is there."""
    overlay = cache_dir / f"gemma3n-packages-{fingerprint(LOCK)}"
    if not overlay.is_dir():
        partial = overlay.with_suffix(f".partial-{time.time_ns()}")
        install: list[str | Path] = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", LOCK]
        install += ["--python", vllm_python, "--target", partial]
        run(install, environments.uv_environment(), f"installing {LOCK.name}")
        partial.rename(overlay)
    return overlay


def prepare_checkpoint(vllm_python: Path, env: dict[str, str], cache_dir: Path, preset: str) -> Path:
    """The folder of the preset's checkpoint, built unless it is there."""
    sources, name, program = [BUILDER, CHAT_TEMPLATE, CORPUS, LOCK], "gemma3n", [BUILDER]
    if preset in NEWER:
        sources, name, program = [*sources, NEWER_BUILDER], preset, [NEWER_BUILDER, Path(preset)]
    checkpoint = cache_dir / f"{name}-{fingerprint(*sources)}"
    if not checkpoint.is_dir():
        python_path = {"PYTHONPATH": f"{env['PYTHONPATH']}:{environments.ROOT}"}  # one builder imports the other
        run([vllm_python, *program, checkpoint, CORPUS], {**env, **python_path}, "building the checkpoint")
    return checkpoint


def wait_until_ready(engine: ProcessEngine, service: Service) -> None:
    """Return when the server answers; fail at once when it has ended, with the last lines of its log."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(service):
        log = engine.last_lines(service.name, 40)
        assert engine.running(service.name), f"the server ended with {engine.exit_code(service.name)}:\n{log}"
        assert time.monotonic() < deadline, f"the server is not ready after {START_TIMEOUT_S:.0f} s:\n{log}"
        time.sleep(0.5)


@contextlib.contextmanager
def serve(vllm_python: Path, uv: Path, cache_dir: Path, preset: str = "l4") -> Iterator[Server]:
    """Start the server, wait until it answers, and stop it in the end."""
    with environments.exclusive("gemma3n-test"):
        overlay = prepare_overlay(vllm_python, uv, cache_dir)
        python_path = {"PYTHONPATH": f"{SHIM}:{overlay}"}
        checkpoint = prepare_checkpoint(
            vllm_python, {**environments.uv_environment(), **python_path}, cache_dir, preset
        )

    port = free_port()
    variables = {
        **read_variables(VLLM_PRESETS / f"{preset}.env"),
        **VARIABLES,
        **python_path,
        "VLLM_CACHE_ROOT": str(cache_dir / "vllm"),
    }
    listen = ("--host", "127.0.0.1", "--port", str(port))
    config = ("--config", str(VLLM_PRESETS / f"{preset}.yaml"))
    service = Service(
        name="gemma3n",
        environment="vllm-cpu",
        command=(str(vllm_python.with_name("vllm")), "serve", str(checkpoint), *config, *OVERRIDES, *listen),
        variables=tuple(variables.items()),
        port=port,
        ready_url=f"http://127.0.0.1:{port}/health",
        stop_grace_s=30.0,
        inputs=(),
    )
    with tempfile.TemporaryDirectory(prefix="gemma3n-") as state:
        engine = ProcessEngine(StackSettings(state=Path(state)))
        engine.start(service)
        try:
            wait_until_ready(engine, service)
            yield Server(f"http://127.0.0.1:{port}", str(checkpoint))
        finally:
            engine.stop(service.name, service.stop_grace_s)
