"""Phases and causes in the logs of vLLM's starts: real logs of a CPU, and lines of its source for other hosts.

Each file of tests/logs begins with the command that made it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.vllm.startup_causes import GIVEN_UP, find_cause, remedy_for
from scripts.vllm.startup_phases import Phases, summary

LOGS = Path(__file__).parents[1] / "logs"
ON_CPU = ["imports", "configuration", "engine process", "model set-up", "weights", "KV cache", "API"]

# A start on a GPU, by the lines of vLLM 0.32's source that open phases.
ON_GPU = {
    "configuration": "(APIServer pid=1) INFO 11-22 06:26:38 [api_utils.py:286] non-default args: {'model': 'tiny'}",
    "engine process": "(APIServer pid=1) INFO 11-22 06:26:54 [base.py:280] Multi-modal warmup completed in 0.161s",
    "model set-up": "(EngineCore pid=2) INFO 11-22 06:27:03 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with",
    "weights": "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]",
    "profile": "(Worker pid=3) INFO [gpu_model_runner.py:1] Model loading took 13.3 GiB and 20 seconds",
    "compile": "(Worker pid=3) INFO [backends.py:1] Dynamo bytecode transform time: 6.55 s",
    "KV cache": "(EngineCore pid=2) INFO [kv_cache_utils.py:2327] GPU KV cache size: 62,000 tokens",
    "capture": "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%|#         | 2/20",
    "API": "(EngineCore pid=2) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 40.25 s",
}


def log(name: str) -> str:
    """A real log."""
    return (LOGS / f"vllm-{name}.txt").read_text()


def phases_of(text: str) -> Phases:
    """The phases of a log that grows by a line a second."""
    phases, lines = Phases(), text.splitlines()
    for second in range(1, len(lines) + 1):
        phases.read("\n".join(lines[:second]), float(second))
    return phases


@pytest.mark.parametrize("name", ["cold", "warm"])
def test_the_phases_of_a_real_start(name: str) -> None:
    phases = phases_of(log(name))
    assert [phase for phase, _ in phases.opened] == ON_CPU
    end = float(len(log(name).splitlines()) + 1)
    assert sum(phases.seconds(end).values()) == pytest.approx(end)
    assert "slowest: " in summary(phases.seconds(end))


def test_a_good_start_has_no_cause_of_death() -> None:
    """Although its log warns of `OSError: [Errno 24] Too many open files`."""
    assert find_cause(log("cold")) is None
    assert not GIVEN_UP.search(log("cold"))


def test_the_phases_of_a_start_on_a_gpu() -> None:
    assert [phase for phase, _ in phases_of("\n".join(ON_GPU.values())).opened] == ["imports", *ON_GPU]


def test_a_phase_that_is_over_does_not_come_back() -> None:
    phases = phases_of("\n".join([*ON_GPU.values(), ON_GPU["weights"]]))
    assert phases.current == "API"


# The last phase of a real start that failed, its cause and the remedy.
FAILED = {
    "port-taken": ("configuration", "[Errno 98] Address already in use", "STACK_VLLM_PORT"),
    "bad-option": ("imports", "--max-model-length", "make preflight"),
    "bad-value": ("imports", "argument --dtype: invalid choice: 'bf16'", "make preflight"),
    "too-long": ("configuration", "max_model_len (4096)", "lower `max-model-len`"),
    "model-not-cached": ("configuration", "LocalEntryNotFoundError", "make fetch"),
    "no-weights": ("model set-up", "Cannot find any model weights", "weight files are missing"),
    "cut-weights": ("weights", "SafetensorError", "is damaged"),
    "other-config": ("weights", "start (0) + length (512) exceeds dimension size (256)", "of different models"),
    "kv-too-small": ("weights", "max seq len (1024)", "`kv-cache-memory-bytes`"),
}


@pytest.mark.parametrize("name", FAILED)
def test_the_cause_of_a_real_failure(name: str) -> None:
    phase, cause, remedy = FAILED[name]
    assert phases_of(log(name)).current == phase
    found = find_cause(log(name))
    assert found is not None
    assert cause in found.message
    assert remedy in (found.remedy or "")


@pytest.mark.parametrize("name", ["no-weights", "cut-weights", "other-config", "kv-too-small"])
def test_an_engine_that_gives_up_is_seen_before_the_server_ends(name: str) -> None:
    assert GIVEN_UP.search(log(name))


def test_every_log_is_used() -> None:
    assert {path.name for path in LOGS.iterdir()} == {f"vllm-{name}.txt" for name in ("cold", "warm", *FAILED)}


# As vLLM 0.32 and its libraries write them on other hosts; from their source.
CAUSES = {
    "(Worker pid=1) ERROR 11-22 06:54:35 [multiproc_executor.py:953] ImportError: \n"
    "(Worker pid=1) ERROR 11-22 06:54:35 [multiproc_executor.py:953] TimmWrapperModel requires the timm library but": (
        "install timm"
    ),
    "ValueError: Free memory on device (3/22 GiB) on startup is less than desired GPU memory utilization (0.9)": (
        "end the other programs on the GPU"
    ),
    "RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set": "install a compiler",
    "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist": "FLASHINFER_SAMPLER=0",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "lower `gpu-memory-utilization`",
    "OSError: [Errno 28] No space left on device: '/cache/models'": "free some disk space",
    "OSError: [Errno 30] Read-only file system: '/cache/models'": "can be written",
}


@pytest.mark.parametrize(("line", "remedy"), CAUSES.items(), ids=list(CAUSES.values()))
def test_a_known_cause_gets_its_remedy(line: str, remedy: str) -> None:
    after = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    cause = find_cause(f"INFO something\n{line}\n{after}")
    assert cause is not None
    assert remedy in (cause.remedy or "")
    assert "Engine core" not in cause.message


def test_an_unknown_cause_is_told_in_its_own_words() -> None:
    cause = find_cause("Traceback\nValueError: something new\nRuntimeError: Engine core initialization failed.")
    assert cause is not None
    assert (cause.message, cause.remedy) == ("ValueError: something new", None)
    assert find_cause("INFO all is well") is None


def test_a_server_without_a_chat_template_gets_its_remedy() -> None:
    message = (
        'HTTP 400: {"error": {"message": "As of transformers v4.44, default chat template is no longer allowed, so you '
        'must provide a chat template"}}'
    )
    assert "chat-template:" in (remedy_for(message) or "")
    assert "vision-language" in (remedy_for("HTTP 400: tiny is not a multimodal model") or "")
