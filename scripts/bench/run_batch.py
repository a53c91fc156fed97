"""`vllm run-batch`, vLLM's own batch program: it loads the model by itself and answers a file of questions."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts.bench import command
from scripts.bench.compare import failure
from scripts.stack.service import without_secrets
from scripts.stack.services import Stack

# `vllm run-batch` 0.32 refuses this option of the presets.
UNKNOWN = "disable-access-log-for-endpoints"
# Lines of its log: before the first it loads the model, at the second all questions are answered.
READS, WRITES = "Reading batch from", "Writing outputs to"


@dataclass(frozen=True, slots=True)
class Answered:
    """A batch; times in seconds."""

    start_s: float
    work_s: float
    answers: list[str | None]


def run_batch(python: str, stack: Stack, bodies: list[dict[str, object]], limit_s: float) -> Answered:
    """Answer all questions, with the options and variables of the stack's model server.

    Raises:
        BenchFailed: it failed, or took longer than `limit_s`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        preset, requests, answers = (Path(scratch, name) for name in ("preset.yaml", "in.jsonl", "out.jsonl"))
        options = yaml.safe_load(stack.preset_file.read_text())
        preset.write_text(yaml.safe_dump({name: value for name, value in options.items() if name != UNKNOWN}))
        asks = {"method": "POST", "url": "/v1/chat/completions"}
        lines = [json.dumps({"custom_id": str(number), **asks, "body": body}) for number, body in enumerate(bodies)]
        requests.write_text("\n".join(lines))
        server = next(service for service in stack.services if service.kind == "vllm")
        began, log = time.monotonic(), list[str]()
        program = subprocess.Popen(
            [Path(python).with_name("vllm"), "run-batch", "--config", preset, "-i", requests, "-o", answers],
            env={**without_secrets(os.environ), **dict(server.variables)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        timer = threading.Timer(limit_s, program.kill)
        timer.start()
        seen: dict[str, float] = {}
        for line in program.stdout or ():
            log.append(line)
            seen |= {mark: time.monotonic() for mark in (READS, WRITES) if mark in line}
        timer.cancel()
        if program.wait() or len(seen) < 2:
            raise command.BenchFailed(f"vllm run-batch {failure(''.join(log), program.returncode)}")
        texts: dict[str, str | None] = {}
        for line in answers.read_text().splitlines():
            answer = json.loads(line)
            choices = ((answer["response"] or {}).get("body") or {}).get("choices")
            texts[answer["custom_id"]] = choices[0]["message"]["content"] if choices else None
    return Answered(
        seen[READS] - began, seen[WRITES] - seen[READS], [texts.get(str(number)) for number in range(len(bodies))]
    )
