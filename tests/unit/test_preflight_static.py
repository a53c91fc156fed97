"""Wrong configurations of the model server that options and files give away: each named with its remedy, at once."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import job as jobs
from scripts.checks.preflight import command, full, static
from scripts.checks.preflight.lengths import image_tokens
from scripts.checks.preflight.memory import Host
from scripts.environments import ROOT
from scripts.findings import exit_code
from scripts.models.model_files import Model, check_layers
from scripts.settings import ChecksFailed, StackSettings
from scripts.stack.devices import Gpu
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.vllm.options import read_options
from tests.configurations import Configuration, cache_model, drop_tensor, write_safetensors

# What the issue allows the static tier, with imports; a check itself takes hundredths of it. As CPU time, which is all
# that it takes and which a busy machine does not change.
STATIC_LIMIT_S = 2.0


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    """The CPU preset with its model and the bundled job: right, until a test spoils it."""
    return Configuration(tmp_path)


Spoil = Callable[[Configuration], object]


@dataclass(frozen=True)
class Wrong:
    """A way to spoil a configuration, the check that must notice, and the facts that its finding must name."""

    name: str
    check: str
    spoil: Spoil
    facts: tuple[str, ...]
    severity: str = "error"


def wrong(name: str, check: str, spoil: Spoil, *facts: str, severity: str = "error") -> Wrong:
    """A row of the table."""
    return Wrong(name, check, spoil, facts, severity)


def no_template(c: Configuration) -> None:
    (c.model() / "chat_template.jinja").unlink()


def template(text: str) -> Spoil:
    return lambda c: (c.model() / "chat_template.jinja").write_text(text)


def remove(*files: str) -> Spoil:
    def spoil(c: Configuration) -> None:
        for file in files:
            (c.model() / file).unlink()

    return spoil


def truncate(file: str) -> Spoil:
    def spoil(c: Configuration) -> None:
        path = c.model() / file
        path.write_bytes(path.read_bytes()[:-1000])

    return spoil


def pointer(c: Configuration) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2297592\n"
    (c.model() / "model.safetensors").write_text(text)


def missing_shard(c: Configuration) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (c.model() / "model.safetensors").unlink()
    write_safetensors(c.model() / first)
    index = {"weight_map": {"a": first, "b": second}}
    (c.model() / "model.safetensors.index.json").write_text(json.dumps(index))


def wrong_revision(c: Configuration) -> None:
    cache_model(c.folder / "hub", "owner/model", "a" * 40, refs="main")
    c.environment["HF_HUB_CACHE"] = str(c.folder / "hub")
    c.set(model="owner/model", revision="b" * 40)


def big_model(c: Configuration) -> None:
    """A model of 0.6 GiB, in a file with holes."""
    c.edit("config.json")
    path = c.model() / "model.safetensors"
    size = 600 * 2**20
    header = json.dumps({"tensor": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    c.device, c.host = "cuda", Host(1024, None, detector_share=0.0)
    c.set(kv_cache_memory_bytes=None, gpu_memory_utilization=0.5)


def crowded_gpu(c: Configuration) -> None:
    c.device, c.host = "cuda", Host(23_034, None, detector_share=0.15)
    c.set(gpu_memory_utilization=0.95, kv_cache_memory_bytes=None)


def other_weights(c: Configuration) -> None:
    """A config.json of a smaller model: vLLM 0.32 starts with it, and answers with cut tensors."""
    text = json.loads((c.model() / "config.json").read_text())["text_config"]
    c.edit("config.json", text_config=text | {"intermediate_size": text["intermediate_size"] // 2})


def other_quantization(c: Configuration) -> None:
    c.edit("config.json", quantization_config={"quant_method": "awq"})
    c.set(quantization="gguf")


def overflowing(c: Configuration) -> None:
    text = json.loads((c.model() / "config.json").read_text())["text_config"]
    c.edit("config.json", text_config=text | {"model_type": "gemma3_text"})
    c.set(dtype="float16")


def schema(**properties: object) -> Spoil:
    return lambda c: c.question(
        answer_schema={"type": "object", "properties": properties, "additionalProperties": False}
    )


TEXT_ONLY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LONG = [f"{'a very long name of a breed that nobody ever heard of ' * 20}{n}" for n in range(2)]

PARTS = "{% for m in messages %}{% for p in m.content %}"
TEXT_PART = "{% if p.type == 'text' %}{{ p.text }}{% endif %}"
IMAGE_PART = "{% if p.type == 'image' %}<image>{% endif %}"
END = "{% endfor %}"

WRONG = (
    # options
    wrong("unknown flag", "option", lambda c: c.set(max_model_length=64), "--max-model-length", "max-model-len"),
    wrong("value of the wrong type", "option", lambda c: c.set(max_num_seqs="many"), "--max-num-seqs", "'many'"),
    wrong("value out of choices", "option", lambda c: c.set(dtype="bfloat"), "--dtype", "'bfloat'", "bfloat16"),
    wrong("no JSON", "option", lambda c: c.set(limit_mm_per_prompt="image=1"), "--limit-mm-per-prompt", "JSON"),
    wrong(
        "unknown key in JSON",
        "option",
        lambda c: c.set(structured_outputs_config={"backend": "xgrammar", "disable_whitespace": True}),
        *("--structured-outputs-config", "'disable_whitespace'", "disable_any_whitespace"),
    ),
    wrong("switch with a value", "option", lambda c: c.set(enforce_eager="yes"), "--enforce-eager", "switch", "'yes'"),
    wrong(
        "switch off by false",
        "option",
        lambda c: c.set(enforce_eager=False),
        *("`enforce-eager: false`", "no-enforce-eager: true"),
        severity="warning",
    ),
    wrong(
        "unknown flag on the command line",
        "option",
        lambda c: setattr(c, "arguments", ("--gpu-memory", "0.5", "--gpu-memory-fraction=0.5")),
        *("command line", "--gpu-memory-fraction", "gpu-memory-utilization"),
    ),
    # model
    wrong("wrong model path", "model", lambda c: c.set(model="./models/nothing/here"), "./models/nothing/here"),
    wrong("misspelt model path", "model", lambda c: c.set(model="samples/models/tiny-vml/"), "tiny-vlm"),
    wrong("a model's name, offline", "model", lambda c: c.set(model="owner/nothing"), "owner/nothing", "make fetch"),
    wrong("wrong revision, offline", "model", wrong_revision, "a" * 12, "b" * 12, f"`revision:` to {'a' * 12}"),
    wrong("folder without a config", "model", remove("config.json"), "config.json", "chat_template.jinja"),
    wrong(
        "unknown architecture",
        "architecture",
        lambda c: c.edit("config.json", architectures=["Idefics9ForConditionalGeneration"], model_type="idefics9"),
        *("Idefics9ForConditionalGeneration (model_type idefics9)", "Idefics3ForConditionalGeneration"),
    ),
    wrong(
        "architecture that vLLM runs through Transformers",
        "architecture",
        lambda c: c.edit("config.json", architectures=["Idefics9ForConditionalGeneration"]),
        *("Idefics9ForConditionalGeneration", "Transformers", "make preflight FULL=1"),
        severity="warning",
    ),
    wrong(
        "architecture with code of its own",
        "architecture",
        lambda c: c.edit("config.json", architectures=["Mine"], auto_map={"AutoModel": "mine.Mine"}),
        *("Mine", "do not trust"),
    ),
    wrong("no architecture", "architecture", lambda c: c.edit("config.json", architectures=None), "`architectures`"),
    wrong(
        "removed architecture",
        "architecture",
        lambda c: c.edit("config.json", architectures=["MllamaForConditionalGeneration"]),
        *("MllamaForConditionalGeneration", "0.10.2"),
    ),
    wrong("text-only model", "modality", lambda c: c.edit("config.json", **TEXT_ONLY), "LlamaForCausalLM", "text only"),
    wrong(
        "model that only hears",
        "modality",
        lambda c: c.edit("config.json", architectures=["Qwen2AudioForConditionalGeneration"]),
        *("Qwen2AudioForConditionalGeneration", "audio"),
    ),
    wrong("images forbidden", "modality", lambda c: c.set(limit_mm_per_prompt={"image": 0}), "--limit-mm-per-prompt"),
    wrong("no tokenizer", "tokenizer", remove("tokenizer.json"), "tokenizer.json"),
    wrong("cut tokenizer", "tokenizer", truncate("tokenizer.json"), "tokenizer.json is incomplete"),
    wrong("no processor", "processor", remove("processor_config.json"), "processor_config.json"),
    wrong("float16 that overflows", "dtype", overflowing, "--dtype float16", "gemma3_text", "dtype: bfloat16"),
    wrong("unknown quantization", "quantization", lambda c: c.set(quantization="fp9"), "--quantization fp9", "fp8"),
    wrong("fp8 on a CPU", "quantization", lambda c: c.set(quantization="fp8"), "fp8 on a CPU", "quantization:"),
    wrong(
        "quantization of another kind",
        "quantization",
        other_quantization,
        *("--quantization gguf", "awq"),
    ),
    # template
    wrong("no chat template", "template", no_template, "no chat template", "chat-template:"),
    wrong(
        "template file that is not there",
        "template",
        lambda c: c.set(chat_template="templates/none.jinja"),
        *("templates/none.jinja", "chat-template:"),
    ),
    wrong("template that does not parse", "template", template("{% for m in messages %}"), "chat_template", "line 1"),
    wrong("template without the image", "template", template(PARTS + TEXT_PART + END + END), "leaves the image out"),
    wrong("template without the question", "template", template(PARTS + "<image>" + END + END), "the question out"),
    wrong(
        "template with the image after the question",
        "template",
        template(PARTS + TEXT_PART + END + "{% for p in m.content %}" + IMAGE_PART + END + END),
        *("image after the question", "chat-template:"),
        severity="warning",
    ),
    wrong(
        "template that refuses the request",
        "template",
        template(PARTS + "{{ raise_exception('no pictures') }}" + END + END),
        "no pictures",
    ),
    # lengths and answers
    wrong("length over the model's", "length", lambda c: c.set(max_model_len=4096), "--max-model-len 4096", "2048"),
    wrong("length too small", "length", lambda c: c.set(max_model_len="64"), "at least 94", "64", "max-model-len: 256"),
    wrong("max_tokens over the length", "length", lambda c: c.question(max_tokens=2000), "2000", "1024", "max_tokens"),
    wrong("max_tokens too small for sure", "max_tokens", schema(name={"enum": LONG}), "at least", "set max_tokens:"),
    wrong(
        "max_tokens likely too small",
        "max_tokens",
        lambda c: c.question(max_tokens=20),
        *("max_tokens (20)", "about 34 tokens", "set max_tokens: 34"),
        severity="warning",
    ),
    wrong(
        "free whitespace",
        "schema",
        lambda c: c.set(structured_outputs_config=None),
        *("whitespace", "disable_any_whitespace: true"),
        severity="warning",
    ),
    wrong(
        "no whitespace, but no backend",
        "schema",
        lambda c: c.set(structured_outputs_config={"disable_any_whitespace": True}),
        *("disable_any_whitespace with backend auto", "backend: xgrammar"),
    ),
    # weights and memory
    wrong("no weights", "weights", remove("model.safetensors"), "model.safetensors is missing"),
    wrong("truncated weights", "weights", truncate("model.safetensors"), "model.safetensors is incomplete"),
    wrong("a Git LFS pointer", "weights", pointer, "Git LFS pointer", "git lfs pull"),
    wrong("weights of another model", "weights", other_weights, "mlp.gate_proj.weight", "[128, 128]"),
    wrong(
        "a tensor missing",
        "weights",
        lambda c: drop_tensor(c.model(), "model.text_model.layers.0.mlp.down_proj.weight"),
        *("layers.0", "mlp.down_proj.weight"),
        severity="warning",
    ),
    wrong("missing shard", "weights", missing_shard, "model-00002-of-00002.safetensors is missing", "2 shards"),
    wrong("KV cache too small", "memory", lambda c: c.set(kv_cache_memory_bytes="100k"), "KV cache", "1024 tokens"),
    wrong("weights too large for the GPU", "memory", big_model, "weights (600 MiB)", "gpu-memory-utilization"),
    wrong(
        "vLLM and detector over the GPU",
        "memory",
        crowded_gpu,
        *("vLLM takes 21.4 GiB", "detector 3.9 GiB", "gpu-memory-utilization: 0.8"),
    ),
    wrong("more than the host has", "memory", lambda c: c.set(kv_cache_memory_bytes="20G"), "23.0 GiB", "8.0 GiB"),
    # client
    wrong(
        "a served name that differs", "served name", lambda c: c.ask(model="gemma"), "SPOTTER_MODEL=gemma", "tiny-vlm"
    ),
    wrong(
        "a field that the server drops",
        "request",
        lambda c: c.ask(fields=(*c.asked.fields, "guided_json")),
        *("'guided_json'", "response_format"),
    ),
    wrong(
        "a client's extra_body, nested once too often",
        "request",
        lambda c: c.ask(fields=(*c.asked.fields, "extra_body")),
        *("'extra_body'", "unfolds it once"),
    ),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_configuration_is_named_with_its_facts(configuration: Configuration, wrong: Wrong) -> None:
    wrong.spoil(configuration)
    begin = time.process_time()
    findings = configuration.check().findings
    assert time.process_time() - begin < STATIC_LIMIT_S
    named = [each for each in findings if each.check == wrong.check and each.severity == wrong.severity]
    assert any(all(fact in str(each) for fact in wrong.facts) for each in named), [str(each) for each in findings]


def test_a_misspelt_field_that_a_job_adds_is_named(configuration: Configuration, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    added = "request: {max_completion_tokens: 64, mm_processor_kwarg: {max_pixels: 9}}"
    path.write_text(f"{(jobs.BUNDLED / 'dog_breeds.yaml').read_text()}\n{added}\n")
    configuration.ask(fields=command.asked_of(jobs.load(str(path)), {}).fields)
    (finding,) = configuration.check().findings
    assert (finding.check, finding.severity) == ("request", "error")
    assert "'mm_processor_kwarg'" in finding.found
    assert "mm_processor_kwargs" in finding.remedy


def test_the_right_configuration_has_no_findings(configuration: Configuration) -> None:
    assert list(configuration.check().findings) == []
    configuration.model()
    assert list(configuration.check().findings) == []


def test_layers_of_several_kinds_are_no_alarm() -> None:
    """As in models whose first layer is dense and whose others are experts, and with attention of two kinds."""
    dense, experts = (
        ("norm.weight", "mlp.up_proj.weight"),
        ("norm.weight", "mlp.experts.0.up.weight", "mlp.gate.weight"),
    )
    names = [f"model.layers.0.{name}" for name in dense]
    names += [f"model.layers.{number}.{name}" for number in range(1, 6) for name in experts]
    assert check_layers(Model("m", None, None), names) == []
    shared = [f"model.layers.{number}.k_proj.weight" for number in range(3)]
    names = [f"model.layers.{number}.q_proj.weight" for number in range(6)] + shared
    assert check_layers(Model("m", None, None), names) == []


# With the weights, GiB, and the tokens of the KV cache that each preset's comments calculate.
PLANNED = [
    ("l4", 23_034, 13.28, 62_000),
    ("a100-40", 40_960, 13.28, 298_000),
    ("a100-80", 81_920, 13.28, 1_135_000),
    ("gemma-3n-e2b", 23_034, 8.81, 141_000),
    ("gemma-4-e4b", 23_034, 14.21, 44_000),
    ("qwen3-vl-4b", 23_034, 8.27, 60_000),
]


@pytest.mark.parametrize(("preset", "memory_mib", "weights_gib", "tokens"), PLANNED)
def test_no_false_alarm_for_a_gpu_preset_whose_model_is_still_to_fetch(
    preset: str, memory_mib: int, weights_gib: float, tokens: int, tmp_path: Path
) -> None:
    environment = {"HF_HOME": str(tmp_path)}
    file = VLLM_PRESETS / f"{preset}.yaml"
    server = command.server_of(file, "cuda", [Gpu("GPU", memory_mib)], environment=environment)
    checked = static.check(server, command.asked_of(jobs.load("dog_breeds"), {}), ROOT)
    (finding,) = checked.findings
    assert (finding.severity, finding.check) == ("warning", "model")
    assert "set HF_TOKEN" in finding.remedy
    parts = {part.name.strip(): part.gib for part in checked.budget}
    assert parts["weights"] == pytest.approx(weights_gib)
    (note,) = [part.note for part in checked.budget if part.name.strip() == "KV cache"]
    assert float(note.partition(" ")[0].replace(",", "")) == pytest.approx(tokens, rel=0.08)
    assert f"{tokens:,} tokens" in file.read_text()


def test_with_a_token_it_is_not_asked_for(tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_x"}
    server = command.server_of(VLLM_PRESETS / "l4.yaml", "cuda", [], environment=environment)
    findings = static.check(server, command.asked_of(jobs.load("dog_breeds"), {}), ROOT).findings
    assert "HF_TOKEN" not in findings[0].remedy
    assert {each.severity for each in findings} == {"warning", "unchecked"}  # no GPU: its memory is not known


@pytest.mark.parametrize("refs", ["main", None])
def test_a_cached_model_is_checked_like_a_folder(configuration: Configuration, refs: str | None) -> None:
    commit = "c" * 40
    snapshot = cache_model(configuration.folder / "hub", "owner/model", commit, refs=refs)
    configuration.environment["HF_HUB_CACHE"] = str(configuration.folder / "hub")
    configuration.set(model="owner/model", revision=None if refs else commit)
    assert list(configuration.check().findings) == []
    (snapshot / "chat_template.jinja").unlink()
    assert [each.check for each in configuration.check().findings] == ["template"]


def test_a_fetch_that_was_cut_is_told(configuration: Configuration) -> None:
    snapshot = cache_model(configuration.folder / "hub", "owner/model", "c" * 40, refs="main")
    (snapshot / "config.json").unlink()
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "0123.incomplete").touch()
    configuration.environment["HF_HUB_CACHE"] = str(configuration.folder / "hub")
    configuration.set(model="owner/model")
    (finding,) = configuration.check().findings
    assert "1 of its files are incomplete" in finding.found


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-model-len", "1k", "--limit-mm-per-prompt.image", "1"),
        ("--max_model_len=1024", "--no-enforce-eager", "--allowed-media-domains", "a.invalid", "b.invalid"),
        ("samples/models/tiny-vlm", "--enforce-eag", "--structured-outputs-config.enable_in_reasoning", "true"),
    ],
)
def test_every_way_to_write_an_option_is_understood(configuration: Configuration, arguments: tuple[str, ...]) -> None:
    configuration.arguments = arguments
    checked = configuration.check()
    assert list(checked.findings) == []
    assert checked.options.values["max-model-len"] in (1000, 1024)


def test_the_command_line_wins_over_the_preset(configuration: Configuration) -> None:
    configuration.arguments = ("--max-model-len", "2048")
    assert configuration.check().options.number("max-model-len") == 2048


def test_the_command_ends_in_time_and_with_its_exit_code(configuration: Configuration) -> None:
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    begin = time.process_time()
    report = command.preflight(settings)
    assert time.process_time() - begin < STATIC_LIMIT_S
    assert {each.severity for each in report.findings} == {"ok"}
    configuration.set(max_model_length=1)
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    assert exit_code(command.preflight(settings).findings) == 1


def test_a_start_is_refused_with_a_line_for_each_error(configuration: Configuration) -> None:
    configuration.set(max_model_length=1, dtype="bf")
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    with pytest.raises(ChecksFailed) as refusal:
        command.require(settings, Console(file=io.StringIO()))
    assert "--dtype is 'bf'" in str(refusal.value)
    assert "--max-model-length is no option" in str(refusal.value)


def test_a_start_goes_on_with_its_warnings_shown(configuration: Configuration) -> None:
    configuration.set(structured_outputs_config=None)
    shown = io.StringIO()
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    command.require(settings, Console(file=shown, width=300))
    assert "warning: schema: free whitespace is allowed" in shown.getvalue()


def test_a_model_in_a_volume_is_not_missed_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    settings = StackSettings(device="cpu", preset="l4")
    assert "model" in {each.check for each in command.preflight(settings).findings}
    of_model = [each for each in command.preflight(settings, in_containers=True).findings if each.check == "model"]
    assert [each.severity for each in of_model] == ["unchecked"]  # told, and no cause for alarm


def test_the_report_as_json(configuration: Configuration, capsys: pytest.CaptureFixture[str]) -> None:
    configuration.set(max_model_len=64)
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    assert command.run(settings, Console(file=io.StringIO()), json_output=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][0]["check"] == "length"
    assert {part["name"].strip() for part in report["budget"]} >= {"host", "weights", "KV cache"}
    right = settings.model_copy(update={"preset": "cpu"})
    assert command.run(right, Console(file=io.StringIO())) == 0


def test_every_question_of_a_job_is_checked(configuration: Configuration) -> None:
    first = configuration.asked.questions[0]
    short = first.model_copy(update={"max_tokens": 2, "image": False})
    configuration.ask(questions=(first, short))
    (finding,) = configuration.check().findings
    assert (finding.severity, finding.check) == ("error", "max_tokens")
    assert "job dog_breeds, question 2:" in finding.found


TRUSTED = {"trust_request_mm_kwargs": True}


@pytest.mark.parametrize(
    ("user", "more", "options", "found"),
    [
        ({}, {}, {}, []),
        ({"SPOTTER_API": "responses"}, {}, {}, []),
        ({"SPOTTER_API": "responses", "SPOTTER_SCHEMA_FORM": "structured_outputs"}, {}, {}, []),
        ({}, {"length_penalty": 1}, {}, []),
        (
            {"SPOTTER_API": "responses"},
            {"length_penalty": 1},
            {},
            [("request", "error", "'length_penalty', which vLLM 0.", "SPOTTER_API=responses", "unset SPOTTER_API")],
        ),
        ({"SPOTTER_SCHEMA_FORM": "none"}, {}, {}, [("schema", "warning", "SCHEMA_FORM=none", "json_schema")]),
        ({"SPOTTER_SCHEMA_FORM": "json_object"}, {}, {}, [("schema", "warning", "does not enforce")]),
        ({}, {"chat_template_kwargs": {"enable_thinking": False}}, {}, []),
        ({}, {"mm_processor_kwargs": {"max_pixels": 9}}, TRUSTED, []),
        (
            {},
            {"mm_processor_kwargs": {"max_pixels": 9}},
            {},
            [("request", "error", "mm_processor_kwargs", "HTTP 400", "trust-request-mm-kwargs: true")],
        ),
        ({}, {"media_io_kwargs": {"image": {}}}, {}, [("request", "error", "media_io_kwargs")]),
    ],
)
def test_the_form_of_a_request_is_held_against_the_server(
    configuration: Configuration,
    user: dict[str, str],
    more: dict[str, object],
    options: dict[str, object],
    found: list[tuple[str, ...]],
) -> None:
    job = jobs.load("dog_breeds").model_copy(update={"request": more})
    configuration.asked = command.asked_of(job, user)
    configuration.set(**options, max_model_len=2048)
    findings = [each for each in configuration.check().findings if each.check != "length"]
    for finding, (check, severity, *facts) in zip(findings, found, strict=True):
        assert (finding.check, finding.severity) == (check, severity)
        for fact in facts:
            assert fact in str(finding)


@pytest.mark.parametrize("name", ["SPOTTER_API", "SPOTTER_SCHEMA_FORM"])
def test_a_form_that_does_not_exist_is_an_error_with_the_known_ones(name: str, tmp_path: Path) -> None:
    settings = StackSettings(state=tmp_path, device="cpu")
    settings._environment = {name: "chats"}
    (finding,) = command.preflight(settings).findings
    assert finding.severity == "error"
    assert f"{name}='chats'" in finding.found
    assert "auto" in finding.found


def test_a_schema_in_the_prompt_counts_as_prompt(configuration: Configuration) -> None:
    job = jobs.load("dog_breeds")
    plain, told = (command.asked_of(job, user) for user in ({}, {"SPOTTER_SCHEMA_FORM": "none"}))
    assert json.dumps(job.questions[0].answer_schema) in told.text(job.questions[0])
    assert full.demands(job.questions[0], plain)["schema"] == job.questions[0].answer_schema
    assert full.demands(job.questions[0], told)["schema"] is None
    configuration.set(max_model_len=100)
    lengths = []
    for asked in (plain, told):
        configuration.asked = asked
        (finding,) = (each for each in configuration.check().findings if each.check == "length")
        lengths.append(int(re.search(r"needs (?:at least|about) (\d+)", finding.found)[1]))  # type: ignore[index]
    assert lengths[1] > 1.5 * lengths[0]


@pytest.mark.parametrize(
    ("files", "config", "processing", "tokens"),
    [
        ({"patch_size": 14, "merge_size": 2}, {"vision_config": {}}, {}, 335),  # (512 / 28) squared
        ({"patch_size": 14, "merge_size": 2}, {"vision_config": {}}, {"max_pixels": 78_400}, 100),
        ({"patch_size": 14, "merge_size": 2}, {"vision_config": {}}, {"size": {"longest_edge": 78_400}}, 100),
    ],
)
def test_what_a_job_says_of_the_image_processor_counts(
    files: dict[str, object], config: dict[str, object], processing: dict[str, object], tokens: int, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(files))
    model = Model("qwen", None, tmp_path)
    assert image_tokens(model, config, 512, processing) == tokens


def test_vllms_own_code_gets_what_a_job_adds(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    more = "\nrequest: {mm_processor_kwargs: {max_pixels: 9}, max_completion_tokens: 70}\nreasoning_tokens: 5\n"
    path.write_text((jobs.BUNDLED / "dog_breeds.yaml").read_text() + more)
    asked = command.asked_of(jobs.load(str(path)), {})
    demanded = full.demands(asked.questions[0], asked)
    assert demanded["more"] == {"mm_processor_kwargs": {"max_pixels": 9}}
    assert (demanded["max_tokens"], demanded["answer_tokens"]) == (75, 70)


def test_an_option_of_the_build_for_gpus_holds_there_only(tmp_path: Path) -> None:
    """`cuda` is a choice of --mm-processor-device in the CUDA build alone."""
    arguments = ("--mm-processor-device", "cuda")
    preset = VLLM_PRESETS / "l4.yaml"
    assert read_options(preset, {}, "cuda", arguments)[1] == []
    (refused,) = read_options(preset, {}, "cpu", arguments)[1]
    assert "--mm-processor-device is 'cuda'" in refused.found
    assert refused.severity == "error"
