"""vLLM's presets: accepted by the parser of the version that serves them, and each value with its reason."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from scripts.checks.preflight.static import known_models
from scripts.settings import StackSettings, read_variables
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.stack.vllm_server import STARTS as VLLM_STARTS
from scripts.stack.vllm_server import start_arguments
from scripts.vllm import revisions

PARSE = Path(__file__).with_name("parse_preset.py")
GPU = ("l4", "a100-40", "a100-80")
# For an L4 too, with other models.
MODELS = {
    "gemma-3n-e2b": "google/gemma-3n-E2B-it",
    "gemma-4-e4b": "google/gemma-4-E4B-it",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
}
NAMES = ("cpu", *GPU, *MODELS)

# What a card's memory decides; all else is the same in every GPU preset.
BY_CARD = {"max-model-len", "max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization"}
# And what a model decides.
BY_MODEL = {
    *("model", "revision", "dtype", "limit-mm-per-prompt", "mm-processor-kwargs", "default-chat-template-kwargs"),
}
# What the engine adds: where to listen is the host's matter.
BY_ENGINE = {"host", "port"}
# Variables of others than vLLM that vLLM's processes read.
FOREIGN_VARIABLES = {"DO_NOT_TRACK", "TORCH_COMPILE_DISABLE", "OMP_NUM_THREADS"}
# What STACK_START puts over each preset.
STARTS = sorted(path.stem for path in VLLM_STARTS.glob("*.yaml"))
START_OPTIONS = {start: start_arguments(StackSettings(start=start)) for start in STARTS}
# vLLM hands this on as a list.
LISTS = {"served-model-name"}


@dataclass(frozen=True)
class Parsed:
    """What vLLM made of each file, and the names of the environment variables that it knows."""

    values: Mapping[str, dict[str, Any]]
    errors: Mapping[str, str | None]
    variables: frozenset[str]


def written(name: str) -> dict[str, Any]:
    """A preset as it stands in its file."""
    loaded: dict[str, Any] = yaml.safe_load((VLLM_PRESETS / f"{name}.yaml").read_text())
    return loaded


def expected(key: str, value: Any) -> Any:
    """What vLLM should have of a written value after parsing."""
    if key == "kv-cache-memory-bytes":
        return int(value.removesuffix("M")) * 2**20
    return [value] if key in LISTS else value


def name_of(words: str) -> str:
    """A preset's name, with the options behind it."""
    file, *options = shlex.split(words)
    return " ".join([Path(file).stem, *options])


@pytest.fixture(scope="module")
def parsed(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    """All presets and two spoilt copies, parsed by one process."""
    spoilt = tmp_path_factory.mktemp("presets")
    (spoilt / "unknown-flag.yaml").write_text(yaml.safe_dump(written("l4") | {"max-model-length": 2048}))
    (spoilt / "bad-value.yaml").write_text(yaml.safe_dump(written("l4") | {"max-num-seqs": "many"}))
    starts = [f"{VLLM_PRESETS / name}.yaml {shlex.join(START_OPTIONS[start])}" for name in NAMES for start in STARTS]
    files: list[str | Path] = [*(VLLM_PRESETS / f"{name}.yaml" for name in NAMES), *sorted(spoilt.iterdir()), *starts]
    done = subprocess.run([vllm_python, PARSE, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    presets = {name_of(words): result for words, result in answer["presets"].items()}
    return Parsed(
        {name: result["values"] for name, result in presets.items()},
        {name: result["error"] for name, result in presets.items()},
        frozenset(answer["variables"]),
    )


def test_there_is_a_preset_and_its_variables_for_each_kind_of_host() -> None:
    assert {path.name for path in VLLM_PRESETS.iterdir()} == {
        f"{name}.{kind}" for name in NAMES for kind in ("yaml", "env")
    }


@pytest.mark.parametrize("name", NAMES)
def test_vllm_accepts_the_preset(parsed: Parsed, name: str) -> None:
    assert parsed.errors[name] is None


@pytest.mark.parametrize("name", NAMES)
def test_every_value_arrives_as_it_is_written(parsed: Parsed, name: str) -> None:
    arrived = dict(parsed.values[name])
    wanted = {key: expected(key, value) for key, value in written(name).items()}
    constraint, wanted_constraint = arrived.pop("structured-outputs-config"), wanted.pop("structured-outputs-config")
    assert arrived == wanted
    assert constraint["class"] == "StructuredOutputsConfig"
    assert constraint.items() >= wanted_constraint.items()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", STARTS)
def test_vllm_accepts_each_start_over_the_preset(parsed: Parsed, name: str, start: str) -> None:
    """Its options win over the preset's, and all others of the preset stay."""
    over = yaml.safe_load((VLLM_STARTS / f"{start}.yaml").read_text())
    behind = name_of(f"{name}.yaml {shlex.join(START_OPTIONS[start])}")
    assert parsed.errors[behind] is None
    assert parsed.values[behind] == {**parsed.values[name], **over}


def test_the_starts_are_those_of_the_setting() -> None:
    (choices,) = {get_args(StackSettings.model_fields["start"].annotation)}
    assert {*STARTS, "full"} == set(choices)


@pytest.mark.parametrize(
    ("copy", "named"),
    [("unknown-flag", "--max-model-length"), ("bad-value", "--max-num-seqs")],
)
def test_a_spoilt_copy_is_refused(parsed: Parsed, copy: str, named: str) -> None:
    assert named in (parsed.errors[copy] or "")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_switched_off_by_false(name: str) -> None:
    # `vllm serve --config` drops a key that is false, known or not: it looks for `--no-KEY` among the options of the
    # wrong parser (seen in 0.32).
    assert [key for key, value in written(name).items() if value is False] == []


@pytest.mark.parametrize("name", NAMES)
def test_where_to_listen_is_left_to_the_engine(name: str) -> None:
    assert not BY_ENGINE & written(name).keys()


@pytest.mark.parametrize("name", NAMES)
def test_no_code_of_a_checkpoint_is_trusted(name: str) -> None:
    assert "trust-remote-code" not in written(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["yaml", "env"])
def test_every_value_has_its_reason_above_it(name: str, kind: str) -> None:
    assert reasoned(VLLM_PRESETS / f"{name}.{kind}") >= 3


@pytest.mark.parametrize("start", STARTS)
def test_every_value_of_a_start_has_its_reason_above_it(start: str) -> None:
    assert reasoned(VLLM_STARTS / f"{start}.yaml") >= 1


def reasoned(file: Path) -> int:
    """How many values a file has; each has a comment above it."""
    lines = file.read_text().splitlines()
    settings = [index for index, line in enumerate(lines) if re.match(r"[\w-]+[:=]", line)]
    assert [lines[index] for index in settings if not lines[index - 1].startswith("# ")] == []
    return len(settings)


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_known(parsed: Parsed, name: str) -> None:
    variables = read_variables(VLLM_PRESETS / f"{name}.env")
    assert "" not in variables.values()
    assert variables.keys() - FOREIGN_VARIABLES <= parsed.variables


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_never_fetched(name: str) -> None:
    assert all(domain.endswith(".invalid") for domain in written(name)["allowed-media-domains"])
    assert read_variables(VLLM_PRESETS / f"{name}.env")["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_gpu_presets_differ_only_by_what_the_card_decides() -> None:
    common = [{key: value for key, value in written(name).items() if key not in BY_CARD} for name in GPU]
    assert common[0] == common[1] == common[2]
    assert all(written(name).keys() == written(GPU[0]).keys() for name in GPU)
    variables = {tuple(read_variables(VLLM_PRESETS / f"{name}.env").items()) for name in (*GPU, *MODELS)}
    assert len(variables) == 1


@pytest.mark.parametrize("name", MODELS)
def test_presets_of_other_models_differ_only_by_what_card_and_model_decide(name: str) -> None:
    own, common = (
        {key: value for key, value in written(each).items() if key not in BY_CARD | BY_MODEL} for each in (name, "l4")
    )
    assert own == common
    assert written(name)["model"] == MODELS[name]
    assert written(name)["model"] in known_models()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pinned_or_waits_for_make_lock(name: str) -> None:
    text = (VLLM_PRESETS / f"{name}.yaml").read_text()
    assert bool(revisions.OPEN.search(text)) != bool(re.fullmatch(r"[0-9a-f]{40}", str(written(name).get("revision"))))


@pytest.mark.parametrize("name", GPU)
def test_the_production_model_is_pinned_to_a_commit(name: str) -> None:
    assert written(name)["model"] == "google/gemma-3n-E4B-it"
    assert re.fullmatch(r"[0-9a-f]{40}", written(name)["revision"])


@pytest.mark.parametrize("name", NAMES)
def test_a_request_of_the_job_fits(name: str) -> None:
    preset = written(name)
    # 256 image tokens, the question, 64 of answer; and several pictures in a step.
    assert preset["max-model-len"] >= 1024
    assert preset["max-num-batched-tokens"] % 256 == 0
    assert preset["max-num-queued-reqs"] > preset["max-num-seqs"]
