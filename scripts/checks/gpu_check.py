#!/usr/bin/env python3
"""Start the production architecture with dummy weights under each preset's memory share, on this host's GPU.

It measures what no test without a GPU can: the memory of each preset, the time of each phase of a start, and answers
per second. It needs no gated weights: the config has the production model's sizes, vLLM invents the weights, and the
tokenizer comes from the tests. The answers mean nothing, but the schema still ends them. Needs an NVIDIA GPU; makes the
vllm-cuda environment where it is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import job as jobs
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.clients.probe_model import blank_jpeg
from scripts import environments
from scripts.environments import ROOT, STATE
from scripts.programs import nvidia_smi
from scripts.settings import BuildFailed, NoGpu, StackError, StackSettings
from scripts.stack import api_key, warmup
from scripts.stack.devices import PRESETS, Gpu, find_gpus, numbers
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from scripts.stack.start_history import StartHistory
from scripts.stack.vllm_server import preset_file, vllm
from scripts.vllm.options import read_options
from scripts.vllm.startup_phases import summary

BUILDER = ROOT / "tests" / "models" / "build_gemma3n.py"
JOB = "dog_breeds"
CONCURRENCY = 64

# Sizes that the tests' checkpoint reduces. Without these keys Transformers takes its defaults, the sizes of
# gemma-3n-E4B: 7.82 billion parameters.
SMALL = {
    "text_config": (
        *("hidden_size", "hidden_size_per_layer_input", "intermediate_size", "num_hidden_layers", "layer_types"),
        *("num_attention_heads", "num_key_value_heads", "num_kv_shared_layers", "head_dim", "laurel_rank"),
        *("max_position_embeddings", "sliding_window", "activation_sparsity_pattern"),
        *("vocab_size", "vocab_size_per_layer_input"),
    ),
    "vision_config": ("architecture", "hidden_size", "model_args", "vocab_size", "vocab_offset"),
    "audio_config": (
        *("hidden_size", "conf_num_attention_heads", "conf_num_hidden_layers", "sscp_conv_channel_size"),
        *("vocab_size", "vocab_offset"),
    ),
}
# Pixels of the production model's images: 256 tokens of its vision tower.
IMAGE_SIDE = 768


@dataclass(frozen=True, slots=True)
class Measured:
    """One preset on this GPU."""

    preset: str
    ready_s: float
    phases: dict[str, float]
    used_mib: int
    answers: int
    failed: int
    answers_per_s: float


def widen(checkpoint: Path) -> None:
    """Give the tests' checkpoint the production model's sizes, and remove its weights."""
    config_file, processor_file = checkpoint / "config.json", checkpoint / "processor_config.json"
    config: dict[str, Any] = json.loads(config_file.read_text())
    for part, names in SMALL.items():
        config[part] = {name: value for name, value in config[part].items() if name not in names}
    config_file.write_text(json.dumps(config, indent=2))
    processor = json.loads(processor_file.read_text())
    processor["image_processor"]["size"] = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    processor_file.write_text(json.dumps(processor, indent=2))
    for weights in checkpoint.glob("*.safetensors"):
        weights.unlink()


def stand_in(folder: Path, python: Path) -> Path:
    """The production architecture without weights; made once.

    Raises:
        BuildFailed: the tests' builder failed.
    """
    checkpoint = folder / "gemma3n-e4b-dummy"
    if checkpoint.exists():
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    corpus = ROOT / "pipeline" / "jobs" / f"{JOB}.yaml"
    done = subprocess.run([python, BUILDER, partial, corpus], capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"the stand-in for the model cannot be made: {done.stderr[-2000:]}")
    widen(partial)
    partial.rename(checkpoint)
    return checkpoint


def service_for(preset: str, card_mib: int, gpu: Gpu, checkpoint: Path, settings: StackSettings) -> Service:
    """vLLM with a preset and dummy weights; on a larger GPU it gets no more than the preset's card would give it."""
    file = preset_file(preset)
    share = read_options(file, {}, "cuda")[0].number("gpu-memory-utilization") or 0.0
    made = vllm(settings, "cuda", file)
    program, serve, *rest = made.command
    scaled = share * min(card_mib / gpu.memory_mib, 1.0)
    dummy = ("--load-format", "dummy", "--gpu-memory-utilization", f"{scaled:.3f}")
    return replace(made, command=(program, serve, str(checkpoint), *rest, *dummy))


def used_mib() -> int:
    """MiB in use on the stack's GPU."""
    used, reason = nvidia_smi("memory.used", str(numbers(StackSettings())[0]))
    if not used:
        raise NoGpu(f"nvidia-smi no longer tells the memory in use: {reason}")
    return int(used[0][0])


async def ask_many(url: str, model: str, count: int, headers: dict[str, str]) -> tuple[int, float]:
    """Send the job's question `count` times; the number of failures, and the seconds."""
    http = HttpClient(url, Limits(CONCURRENCY, timeout_s=300.0, attempts=1), headers=headers)
    client = ModelClient(http, model, jobs.load(JOB))

    async def one() -> bool:
        try:
            await client.ask(blank_jpeg())
        except (RequestFailed, BadAnswer):
            return False
        return True

    begin = time.monotonic()
    answered = await asyncio.gather(*(one() for _ in range(count)))
    seconds = time.monotonic() - begin
    await http.aclose()
    return answered.count(False), seconds


def measure(preset: str, service: Service, model: str, state: Path, count: int, console: Console) -> Measured:
    """Start vLLM, send the questions, stop it.

    Raises:
        ServiceDied, NotReady: it cannot start.
    """
    engine = ProcessEngine(StackSettings(state=state))
    engine.start(service)
    try:
        warmup.wait(engine, [service], 1800.0, console, state=state)
        url = f"{service.ready_url.rpartition('/')[0]}/v1"
        failed, seconds = asyncio.run(ask_many(url, model, count, api_key.headers(service.key_file)))
        used = used_mib()
    finally:
        engine.stop(service.name, service.stop_grace_s)
    start = StartHistory(state).read(f"process/vllm/{preset}")[-1]
    return Measured(preset, start.ready_s, start.phases, used, count, failed, count / seconds)


def report(gpu: Gpu, measured: list[Measured], console: Console) -> None:
    """The figures for people."""
    table = Table("preset", "ready", "phases", "memory used", "answers/s", "failed", title=gpu.name)
    for each in measured:
        sizes = (f"{each.used_mib} MiB", f"{each.answers_per_s:.1f}", str(each.failed))
        table.add_row(each.preset, f"{each.ready_s:.0f} s", summary(each.phases), *sizes)
    console.print(table)


def main() -> int:
    """0: every preset that fits this GPU started and answered. 1: one did not, or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=512, help="questions to each preset (default: 512)")
    parser.add_argument("--port", type=int, default=8000, help="port for vLLM (default: 8000)")
    arguments = parser.parse_args()
    console = Console(markup=False)
    gpus = find_gpus(StackSettings())
    if not gpus:
        print("error: nvidia-smi finds no GPU: nothing was checked", file=sys.stderr)
        return 1
    gpu, state = gpus[0], STATE / "gpu-check"
    fitting = [(name, card_mib) for name, card_mib in reversed(PRESETS) if gpu.memory_mib >= card_mib]
    if not fitting:
        print(f"error: {gpu.name} has {gpu.memory_mib} MiB, too little for every preset", file=sys.stderr)
        return 1
    try:
        environments.prepare("vllm-cuda")
        checkpoint = stand_in(state, environments.python("vllm-cuda"))
        settings = StackSettings(device="cuda", vllm_port=arguments.port, state=state)
        measured = []
        for name, card_mib in fitting:
            service = service_for(name, card_mib, gpu, checkpoint, settings)
            measured.append(measure(name, service, str(checkpoint), state, arguments.requests, console))
    except (StackError, environments.EnvironmentFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(gpu, measured, console)
    return 1 if any(each.failed for each in measured) else 0


if __name__ == "__main__":
    raise SystemExit(main())
