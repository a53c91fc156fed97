"""Why a service died at its start, or refused the first request: the cause out of its log, with a remedy."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from pydantic import ByteSize


@dataclass(frozen=True, slots=True)
class Known:
    """A cause that is recognised by a line, and what helps."""

    line: re.Pattern[str]
    remedy: str


def known(line: str, remedy: str) -> Known:
    """A row of the table."""
    return Known(re.compile(line, re.IGNORECASE), remedy)


# The first row whose line is in the text tells: particular ones stand before general ones.
TABLE = (
    # hub: services look into its cache alone
    known(
        r"LocalEntryNotFoundError|IncompleteSnapshotError|couldn't connect to .*hugg|cached snapshot folder|"
        r"offline mode is enabled|Cannot find .* in the cached files|We have no connection",
        "the model is not on this host, or not whole: `make fetch` gets it; or correct its name, `revision:` or path",
    ),
    # options and configuration
    known(
        r"unrecognized arguments|error: argument|invalid choice",
        "correct the preset: `make preflight` names the option",
    ),
    known(r"User-specified max_model_len .* is greater", "lower `max-model-len` in the preset"),
    known(
        r"does not recognize this architecture|are not supported for now|is not supported anymore", "take another model"
    ),
    known(
        r"quantization is currently not supported|fp8 .*not supported|does not support .*fp8", "remove `quantization:`"
    ),
    known(r"No module named '?\"?timm|requires the .?timm", "install timm beside vLLM: the vllm-cuda lock holds it"),
    known(r"No module named|cannot import name", "make the environment anew: remove its folder under .spotter/envs"),
    known(r"Can't load tokenizer|Couldn't instantiate the backend tokenizer", "complete the model's tokenizer files"),
    known(
        r"Can't load (?:image|feature) (?:processor|extractor)|preprocessor_config", "complete the processor's files"
    ),
    # weights
    known(
        r"SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader|deserializing header",
        "a weight file is damaged: fetch or copy the model again",
    ),
    known(
        r"Cannot find any model weights|weights were not initialized|FileNotFoundError.*\.safetensors|"
        r"No such file or directory: \S*\.safetensors",
        "weight files are missing: fetch or copy the model again",
    ),
    known(
        r"exceeds dimension size|size mismatch|shape.*mismatch|Attempted to load weight",
        "config.json and weights are of different models",
    ),
    # memory
    known(
        r"less than desired GPU memory utilization",
        "end what else uses the GPU (nvidia-smi), or lower `gpu-memory-utilization`",
    ),
    known(
        r"larger than the available KV cache|No available memory for the cache blocks",
        "lower `max-model-len`, or raise `gpu-memory-utilization` or `kv-cache-memory-bytes`",
    ),
    known(
        r"CUDA out of memory|OutOfMemoryError", "lower `gpu-memory-utilization`, `max-num-seqs` or the detector's share"
    ),
    known(r"can't allocate memory|Cannot allocate memory|MemoryError|Killed", "free memory on the host, or add some"),
    # host
    known(
        r"No space left on device|Disk quota exceeded", "free some disk space: `make doctor` shows where it is missing"
    ),
    known(r"Read-only file system", "mount the cache's folder so that it can be written, or set STACK_STATE elsewhere"),
    known(r"Permission denied", "let the service's user write there: `make doctor` shows the folders"),
    known(r"Address already in use", "end the program on that port, or set STACK_VLLM_PORT or STACK_DETECTOR_PORT"),
    known(
        r"driver version is insufficient|no kernel image is available",
        "install the NVIDIA driver that `make doctor` asks",
    ),
    known(r"Too many open files", "raise the limit of open files: ulimit -n 65536"),
    # first request
    known(
        r"default chat template is no longer allowed|chat template .*(?:not|no)\b",
        "set `chat-template:` in the preset, or take an instruction-tuned variant of the model",
    ),
    known(r"is not a multimodal model|At most 0 image", "take a vision-language model; the job shows it pictures"),
    known(
        r"longer than the maximum model length|maximum context length",
        "raise `max-model-len` in the preset, or lower max_tokens in the job file",
    ),
    known(
        r"(?:schema|grammar).*(?:not supported|unsupported)|Grammar error|Failed to compile",
        "simplify the job's schema",
    ),
)

# Lines that only say that something died elsewhere.
WRAPPERS = re.compile(
    r"Engine core initialization failed|initialization failed due to an exception|Failed core proc|"
    r"EngineDeadError|died unexpectedly|Worker proc .* died"
)
# A process of vLLM's says that it cannot start. Its server takes seconds more to end, many on a busy machine.
GIVEN_UP = re.compile(r"(?:EngineCore|WorkerProc) failed to start\.")
# What vLLM and its libraries put before a line.
PREFIX = re.compile(r"^(?:\(\w+(?: pid=\d+)?\) )*(?:(?:ERROR|CRITICAL) [\d-]+ [\d:]+ (?:\[[^\]]+\] ?)?)?\s*")
ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Exit)\s*(?::(.*))?$")
USAGE = re.compile(r"^(?:[\w. ]+: )?error: .+")
VALIDATION = re.compile(r"validation errors? for")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why it died."""

    message: str
    """The log's own words, one line."""
    remedy: str | None
    """What helps, where the cause is known."""

    def __str__(self) -> str:
        return f"{self.message} -> {self.remedy}" if self.remedy else self.message


def at_limit(service: str, limit: int) -> Cause:
    """The cause where the system has killed a service in a container for its memory, of which it may use so many bytes.

    No line of a log says so: the killed process could not write one.
    """
    allowed = ByteSize(limit).human_readable()
    return Cause(
        f"the system killed it, or a process of it, for its memory: its container may use {allowed}",
        f"raise STACK_{service.upper()}_MEMORY, or free memory on the host if it has less",
    )


def remedy_for(text: str) -> str | None:
    """What helps against a known cause that a text names."""
    return next((row.remedy for row in TABLE if row.line.search(text)), None)


def error_lines(log: str) -> list[str]:
    """The lines of a log that name an error, without prefixes, without those that only pass one on."""
    lines = [PREFIX.sub("", line).strip() for line in log.splitlines()]
    found = []
    for number, line in enumerate(lines):
        error = ERROR.match(line)
        if not (error or USAGE.match(line)) or WRAPPERS.search(line):
            continue
        if VALIDATION.search(line) or (error and error[1] is not None and not error[1].strip()):
            below = itertools.takewhile(lambda each: each and not ERROR.match(each), lines[number + 1 : number + 3])
            line = " ".join([line, *below])
        elif error and error[1] is None:  # a bare assertion: the code above it is all that there is
            code = [each for each in lines[max(number - 3, 0) : number] if each.strip("^ ")]
            line = f"{line}: {code[-1]}" if code else line
        found.append(" ".join(line.split()))
    return found


def find_cause(log: str) -> Cause | None:
    """The root cause in the log of a service that died; None where no line names an error.

    A known cause wins; else the last error counts that is not one process' word for another's death.
    """
    found = error_lines(log)
    for row in TABLE:
        for line in reversed(found):
            if row.line.search(line):
                return Cause(shorten(line), row.remedy)
    return Cause(shorten(found[-1]), None) if found else None


def shorten(line: str, longest: int = 400) -> str:
    """A line at a length that people read."""
    return line if len(line) <= longest else f"{line[:longest]}..."
