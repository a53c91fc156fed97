"""The cause, from its log, why a service died at its start or refused the first request, with a remedy."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from pydantic import ByteSize

# Patterns of a log's lines and the remedies. The first match counts: particular rows stand before general ones.
TABLE: tuple[tuple[str, str], ...] = (
    # hub: services look into its cache alone
    (
        r"LocalEntryNotFoundError|IncompleteSnapshotError|couldn't connect to .*hugg|cached snapshot folder|"
        r"offline mode is enabled|Cannot find .* in the cached files|We have no connection",
        "the model is missing or incomplete: `make fetch` gets it; or correct its name, `revision:` or path",
    ),
    # options and configuration
    (
        r"unrecognized arguments|error: argument|invalid choice",
        "correct the preset: `make preflight` names the option",
    ),
    (r"User-specified max_model_len .* is greater", "lower `max-model-len` in the preset"),
    (r"does not recognize this architecture|are not supported for now|is not supported anymore", "take another model"),
    (r"quantization is currently not supported|fp8 .*not supported|does not support .*fp8", "remove `quantization:`"),
    (r"No module named '?\"?timm|requires the .?timm", "install timm beside vLLM: the vllm-cuda lock holds it"),
    (
        r"Failed to find C compiler|Python\.h: No such file|InvalidCxxCompiler",
        "install a compiler and Python's headers (Debian, Ubuntu: g++ python3-dev): Triton compiles its launcher",
    ),
    (r"Could not find nvcc", "set VLLM_USE_FLASHINFER_SAMPLER=0, as the bundled presets do"),
    (r"No module named|cannot import name", "make the environment anew: remove its folder under .spotter/envs"),
    (r"Can't load tokenizer|Couldn't instantiate the backend tokenizer", "complete the model's tokenizer files"),
    (r"Can't load (?:image|feature) (?:processor|extractor)|preprocessor_config", "complete the processor's files"),
    # weights
    (
        r"SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader|deserializing header",
        "a weight file is damaged: fetch or copy the model again",
    ),
    (
        r"Cannot find any model weights|weights were not initialized|FileNotFoundError.*\.safetensors|"
        r"No such file or directory: \S*\.safetensors",
        "weight files are missing: fetch or copy the model again",
    ),
    (
        r"exceeds dimension size|size mismatch|shape.*mismatch|Attempted to load weight",
        "config.json and weights are of different models",
    ),
    # memory
    (
        r"less than desired GPU memory utilization",
        "end the other programs on the GPU (see nvidia-smi), or lower `gpu-memory-utilization`",
    ),
    (
        r"larger than the available KV cache|No available memory for the cache blocks",
        "lower `max-model-len`, or raise `gpu-memory-utilization` or `kv-cache-memory-bytes`",
    ),
    (r"CUDA out of memory|OutOfMemoryError", "lower `gpu-memory-utilization`, `max-num-seqs` or the detector's share"),
    (r"can't allocate memory|Cannot allocate memory|MemoryError|Killed", "free memory on the host, or add some"),
    # host
    (r"No space left on device|Disk quota exceeded", "free some disk space: `make doctor` shows where it is missing"),
    (
        r"Read-only file system",
        "mount the cache's folder so that it can be written, or set STACK_STATE to another folder",
    ),
    (r"Permission denied", "let the service's user write there: `make doctor` shows the folders"),
    (r"Address already in use", "end the program on that port, or set STACK_VLLM_PORT or STACK_DETECTOR_PORT"),
    (
        r"driver version is insufficient|no kernel image is available",
        "install the NVIDIA driver that `make doctor` requires",
    ),
    (r"Too many open files", "raise the limit of open files: ulimit -n 65536"),
    # first request
    (
        r"default chat template is no longer allowed|chat template .*(?:not|no)\b",
        "set `chat-template:` in the preset, or take an instruction-tuned variant of the model",
    ),
    (r"is not a multimodal model|At most 0 image", "take a vision-language model: the job sends images"),
    (
        r"longer than the maximum model length|maximum context length",
        "raise `max-model-len` in the preset, or lower max_tokens in the job file",
    ),
    (
        r"(?:schema|grammar).*(?:not supported|unsupported)|Grammar error|Failed to compile",
        "simplify the job's schema",
    ),
)

# Lines of one process about the death of another.
WRAPPERS = re.compile(
    r"Engine core initialization failed|initialization failed due to an exception|Failed core proc|"
    r"EngineDeadError|died unexpectedly|Worker proc .* died"
)
# A process of vLLM cannot start. Its server ends seconds later, on a busy machine many seconds.
GIVEN_UP = re.compile(r"(?:EngineCore|WorkerProc) failed to start\.")
# The prefixes of vLLM's and its libraries' log lines.
PREFIX = re.compile(r"^(?:\(\w+(?: pid=\d+)?\) )*(?:(?:ERROR|CRITICAL) [\d-]+ [\d:]+ (?:\[[^\]]+\] ?)?)?\s*")
ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Exit)\s*(?::(.*))?$")
USAGE = re.compile(r"^(?:[\w. ]+: )?error: .+")
VALIDATION = re.compile(r"validation errors? for")


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause of death."""

    message: str
    """The log's own words, one line."""
    remedy: str | None
    """None for an unknown cause."""

    def __str__(self) -> str:
        return f"{self.message} -> {self.remedy}" if self.remedy else self.message


def at_limit(service: str, limit: int) -> Cause:
    """The cause when the system killed a service in a container that exceeded `limit` bytes of memory.

    The log has no line about it: the killed process could not write one.
    """
    allowed = ByteSize(limit).human_readable()
    return Cause(
        f"the system killed it, or a process of it, for its memory: its container may use {allowed}",
        f"raise STACK_{service.upper()}_MEMORY, or free memory on the host if it has less",
    )


def remedy_for(text: str) -> str | None:
    """The remedy for a known cause in a text."""
    return next((remedy for line, remedy in TABLE if re.search(line, text, re.IGNORECASE)), None)


def error_lines(log: str) -> list[str]:
    """The lines of a log that name an error, without prefixes and without WRAPPERS."""
    lines = [PREFIX.sub("", line).strip() for line in log.splitlines()]
    found = []
    for number, line in enumerate(lines):
        error = ERROR.match(line)
        if not (error or USAGE.match(line)) or WRAPPERS.search(line):
            continue
        if VALIDATION.search(line) or (error and error[1] is not None and not error[1].strip()):
            below = itertools.takewhile(lambda each: each and not ERROR.match(each), lines[number + 1 : number + 3])
            line = " ".join([line, *below])
        elif error and error[1] is None:  # a bare assertion: show the code above it
            code = [each for each in lines[max(number - 3, 0) : number] if each.strip("^ ")]
            line = f"{line}: {code[-1]}" if code else line
        found.append(" ".join(line.split()))
    return found


def find_cause(log: str) -> Cause | None:
    """The root cause in the log of a service that died; None where no line names an error.

    A known cause wins, else the last error.
    """
    found = error_lines(log)
    for pattern, remedy in TABLE:
        for line in reversed(found):
            if re.search(pattern, line, re.IGNORECASE):
                return Cause(shorten(line), remedy)
    return Cause(shorten(found[-1]), None) if found else None


def shorten(line: str, longest: int = 400) -> str:
    """A line, cut at `longest` characters."""
    return line if len(line) <= longest else f"{line[:longest]}..."
