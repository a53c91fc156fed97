"""Part 2: the production architecture with dummy weights under a preset: start, memory, answers a second.

It needs no gated weights: the config has the production model's sizes, vLLM invents the weights, and the tokenizer
comes from the tests. The answers mean nothing, but the schema still ends them.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import job as jobs
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.clients.probe_model import blank_jpeg
from scripts import environments
from scripts.checks.gpu.part import FOLDER, Host, Result
from scripts.checks.preflight import static
from scripts.checks.preflight.command import asked_of, server_of
from scripts.environments import ROOT
from scripts.programs import nvidia_smi
from scripts.settings import BuildFailed, StackSettings
from scripts.stack import api_key, warmup
from scripts.stack.devices import PRESETS, Gpu, numbers
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from scripts.stack.start_history import StartHistory
from scripts.stack.vllm_server import preset_file, vllm
from scripts.vllm.options import read_options
from scripts.vllm.startup_phases import summary

BUILDER = ROOT / "tests" / "models" / "build_gemma3n.py"
JOB = "dog_breeds"
# Requests in flight, and for how long each is measured.
IN_FLIGHT = {"cuda": (1, 4, 16, 64, 256), "cpu": (1, 4)}
SECONDS = {"cuda": 15.0, "cpu": 3.0}
# What vLLM writes of its memory, by what it means.
LOGGED = {
    "weights_gib": re.compile(r"Model loading took ([\d.]+) ?GiB"),
    "kv_tokens": re.compile(r"KV cache size: ([\d,]+) tokens"),
    "graphs_gib": re.compile(r"Graph capturing finished in .* took ([\d.]+) GiB"),
}

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
STAND_IN = "gemma3n-e4b-dummy"
# Pixels of the production model's images: 256 tokens of its vision tower.
IMAGE_SIDE = 768


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
    checkpoint = folder / STAND_IN
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


async def ask_for(url: str, model: str, in_flight: int, seconds: float, headers: dict[str, str]) -> dict[str, float]:
    """Keep `in_flight` of the job's requests open for some seconds: rows a second, and how many failed."""
    http = HttpClient(url, Limits(in_flight, timeout_s=300.0, attempts=1), headers=headers)
    client = ModelClient(http, model, jobs.load(JOB))
    end, outcomes = time.monotonic() + seconds, list[bool]()

    async def worker() -> None:
        while time.monotonic() < end:
            try:
                await client.ask(blank_jpeg())
                outcomes.append(True)
            except (RequestFailed, BadAnswer):
                outcomes.append(False)

    begin = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    took = time.monotonic() - begin
    await http.aclose()
    return {"in_flight": in_flight, "rows_per_s": outcomes.count(True) / took, "failed": outcomes.count(False)}


def logged(log: str) -> dict[str, float]:
    """What vLLM's log says of its memory."""
    found = {name: pattern.findall(log) for name, pattern in LOGGED.items()}
    return {name: float(values[-1].replace(",", "")) for name, values in found.items() if values}


def calculated(preset: str, card_mib: int) -> dict[str, float]:
    """The preset's own arithmetic, as the preflight has it: GiB of weights, tokens of KV cache."""
    server = server_of(preset_file(preset), "cuda", [Gpu("card", card_mib)])
    budget = {part.name.strip(): part for part in static.check(server, asked_of(jobs.load(JOB), {}), ROOT).budget}
    weights, cache = budget["weights"], budget["KV cache"]
    return {"weights_gib": weights.gib or 0.0, "kv_tokens": float(cache.note.partition(" ")[0].replace(",", "") or 0)}


def one(preset: str, service: Service, model: str, host: Host, state: Path) -> dict[str, Any]:
    """Start vLLM, ask it, stop it.

    Raises:
        ServiceDied, NotReady: it cannot start.
    """
    engine = ProcessEngine(StackSettings(state=state), host.device)
    engine.prepare([service])
    engine.start(service)
    try:
        warmup.wait(engine, [service], 1800.0, Console(stderr=True, markup=False), state=state)
        url, headers = f"{service.ready_url.rpartition('/')[0]}/v1", api_key.headers(service.key_file)
        sizes = IN_FLIGHT[host.device]
        speed = [asyncio.run(ask_for(url, model, each, SECONDS[host.device], headers)) for each in sizes]
        used = nvidia_smi("memory.used", str(numbers(StackSettings())[0]))[0] if host.device == "cuda" else None
        log = engine.log(service.name).read_text(errors="replace")
    finally:
        engine.stop(service.name, service.stop_grace_s)
    start = StartHistory(state).read(f"process/vllm/{preset}")[-1]
    memory = logged(log) | ({"used_mib": float(used[0][0])} if used else {})
    return {"preset": preset, "ready_s": start.ready_s, "phases": start.phases, "memory": memory, "speed": speed}


def measure(host: Host) -> Result:
    """Each preset of the host, one after the other; the rehearsal takes the CPU's, with its tiny model.

    Raises:
        BuildFailed, ServiceDied, NotReady: a preset cannot be measured.
        EnvironmentFailed: the environment cannot be made.
    """
    settings = StackSettings(device=host.device, vllm_port=host.port, state=FOLDER)
    figures, wrong, rows = [], list[str](), list[Sequence[object]]()
    for preset in host.presets:
        if host.device == "cuda":
            environments.prepare("vllm-cuda")
            checkpoint = stand_in(FOLDER, environments.python("vllm-cuda"))
            card_mib = dict(PRESETS).get(preset, host.memory_mib)
            service = service_for(preset, card_mib, Gpu(host.name, host.memory_mib), checkpoint, settings)
            found = one(preset, service, str(checkpoint), host, FOLDER) | {"calculated": calculated(preset, card_mib)}
        else:
            service = vllm(settings, "cpu", preset_file(preset))
            found = one(preset, service, "tiny-vlm", host, FOLDER) | {"calculated": {}}
        figures.append(found)
        wrong += disagreements(found)
        memory, planned = found["memory"], found["calculated"]
        shown = [f"{memory.get(name, '-')} ({planned.get(name, '-')})" for name in ("weights_gib", "kv_tokens")]
        begun = f"{found['ready_s']:.0f} s: {summary(found['phases'])}"
        rows += [(preset, begun, *shown, each["in_flight"], each["rows_per_s"]) for each in found["speed"]]
    columns = ("preset", "ready", "weights, GiB (calculated)", "KV cache, tokens (calculated)", "in flight", "rows/s")
    return Result(columns, rows, {"presets": figures}, wrong)


def disagreements(found: dict[str, Any]) -> list[str]:
    """Where vLLM's memory is not what the preset calculates, and requests that failed."""
    wrong = []
    memory, planned = found["memory"], found["calculated"]
    if planned and abs(memory["weights_gib"] - planned["weights_gib"]) > 0.05 * planned["weights_gib"]:
        wrong.append(f"{found['preset']}: weights {memory['weights_gib']} GiB, calculated {planned['weights_gib']:.1f}")
    if planned and memory["kv_tokens"] < 0.9 * planned["kv_tokens"]:
        tokens = f"{memory['kv_tokens']:,.0f} tokens, calculated {planned['kv_tokens']:,.0f}"
        wrong.append(f"{found['preset']}: KV cache {tokens}")
    if failed := sum(each["failed"] for each in found["speed"]):
        wrong.append(f"{found['preset']}: {failed:.0f} requests failed")
    return wrong
