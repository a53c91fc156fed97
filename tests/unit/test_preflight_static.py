"""Wrong configurations of the model server that options and files give away: each named with its remedy, at once."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import job as jobs
from scripts.checks.preflight import command, static
from scripts.checks.preflight.memory import Host
from scripts.environments import ROOT
from scripts.findings import exit_code
from scripts.models.model_files import Model, check_layers
from scripts.settings import StackError, StackSettings
from scripts.stack.devices import Gpu
from scripts.stack.services import VLLM_PRESETS
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
    """A way to spoil a configuration, and what must be said about it."""

    name: str
    spoil: Spoil
    found: str
    remedy: str
    severity: str = "error"


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


def overflowing(c: Configuration) -> None:
    text = json.loads((c.model() / "config.json").read_text())["text_config"]
    c.edit("config.json", text_config=text | {"model_type": "gemma3_text"})
    c.set(dtype="float16")


def schema(**properties: object) -> Spoil:
    return lambda c: c.ask(schema={"type": "object", "properties": properties, "additionalProperties": False})


TEXT_ONLY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LONG = [f"{'a very long name of a breed that nobody ever heard of ' * 20}{n}" for n in range(2)]

WRONG = (
    # options
    Wrong("unknown flag", lambda c: c.set(max_model_length=64), "--max-model-length is no option", "max-model-len"),
    Wrong("value of the wrong type", lambda c: c.set(max_num_seqs="many"), "--max-num-seqs is 'many'", "correct"),
    Wrong("value out of choices", lambda c: c.set(dtype="bfloat"), "--dtype is 'bfloat'", "bfloat16"),
    Wrong("no JSON", lambda c: c.set(limit_mm_per_prompt="image=1"), "--limit-mm-per-prompt is", "correct the value"),
    Wrong(
        "unknown key in JSON",
        lambda c: c.set(structured_outputs_config={"backend": "xgrammar", "disable_whitespace": True}),
        "unknown key 'disable_whitespace'",
        "disable_any_whitespace",
    ),
    Wrong("switch with a value", lambda c: c.set(enforce_eager="yes"), "--enforce-eager is a switch", "alone"),
    Wrong(
        "switch off by false",
        lambda c: c.set(enforce_eager=False),
        "`enforce-eager: false` has no effect",
        "remove the line",
        "warning",
    ),
    Wrong(
        "unknown flag on the command line",
        lambda c: setattr(c, "arguments", ("--gpu-memory", "0.5", "--gpu-memory-fraction=0.5")),
        "--gpu-memory-fraction is no option",
        "gpu-memory-utilization",
    ),
    # model
    Wrong("wrong model path", lambda c: c.set(model="./models/nothing/here"), "does not exist", "does not exist"),
    Wrong(
        "misspelt model path",
        lambda c: c.set(model="samples/models/tiny-vml/"),
        "does not exist",
        "did you mean tiny-vlm",
    ),
    Wrong("a model's name, offline", lambda c: c.set(model="owner/nothing"), "is not in the cache", "`make fetch`"),
    Wrong("wrong revision, offline", wrong_revision, "which has aaaaaaaaaaaa", "set `revision:` to aaaa"),
    Wrong("folder without a config", remove("config.json"), "has no config.json", "name the folder"),
    Wrong(
        "unknown architecture",
        lambda c: c.edit("config.json", architectures=["Idefics9ForConditionalGeneration"], model_type="idefics9"),
        "Idefics9ForConditionalGeneration (model_type idefics9) is not known",
        "Idefics3ForConditionalGeneration",
    ),
    Wrong(
        "removed architecture",
        lambda c: c.edit("config.json", architectures=["MllamaForConditionalGeneration"]),
        "was removed after vLLM 0.10.2",
        "another model",
    ),
    Wrong("text-only model", lambda c: c.edit("config.json", **TEXT_ONLY), "takes text only", "vision-language model"),
    Wrong(
        "model that only hears",
        lambda c: c.edit("config.json", architectures=["Qwen2AudioForConditionalGeneration"]),
        "takes audio, not pictures",
        "vision-language model",
    ),
    Wrong(
        "pictures forbidden",
        lambda c: c.set(limit_mm_per_prompt={"image": 0}),
        "every picture would be refused",
        "remove",
    ),
    Wrong("no tokenizer", remove("tokenizer.json"), "has no tokenizer.json", "copy it"),
    Wrong("cut tokenizer", truncate("tokenizer.json"), "tokenizer.json is cut", "copy it again"),
    Wrong("no processor", remove("processor_config.json"), "has no processor_config.json", "copy it"),
    Wrong("float16 that overflows", overflowing, "its activations overflow", "dtype: bfloat16"),
    Wrong("unknown quantization", lambda c: c.set(quantization="fp9"), "--quantization fp9 is not known", "fp8"),
    Wrong("fp8 on a CPU", lambda c: c.set(quantization="fp8"), "fp8 on a CPU", "remove"),
    # template
    Wrong("no chat template", no_template, "has no chat template", "instruction-tuned"),
    Wrong(
        "template file that is not there",
        lambda c: c.set(chat_template="templates/none.jinja"),
        "templates/none.jinja is no file",
        "chat-template:",
    ),
    Wrong("template that does not parse", template("{% for m in messages %}"), "line 1", "correct the template"),
    Wrong(
        "template that drops the picture",
        template(
            "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
            "{% endfor %}{% endfor %}"
        ),
        "leaves the picture out",
        "chat-template:",
    ),
    Wrong(
        "template that drops the question",
        template("{% for m in messages %}{% for p in m.content %}<image>{% endfor %}{% endfor %}"),
        "leaves the question out",
        "chat-template:",
    ),
    Wrong(
        "template with the picture behind the question",
        template(
            "{% for m in messages %}"
            "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
            "{% for p in m.content %}{% if p.type == 'image' %}<image>{% endif %}{% endfor %}{% endfor %}"
        ),
        "puts the picture behind the question",
        "keeps the order",
        "warning",
    ),
    Wrong(
        "template that refuses the request",
        template(
            "{% for m in messages %}{% for p in m.content %}"
            "{{ raise_exception('no pictures') }}{% endfor %}{% endfor %}"
        ),
        "no pictures",
        "belongs to this model",
    ),
    # lengths and answers
    Wrong("length over the model's", lambda c: c.set(max_model_len=4096), "more than the model was made for", "2048"),
    Wrong("length too small", lambda c: c.set(max_model_len="64"), "needs at least 94 tokens", "max-model-len: 256"),
    Wrong("max_tokens over the length", lambda c: c.ask(max_tokens=2000), "needs at least", "lower max_tokens"),
    Wrong("string without an end", schema(name={"type": "string"}), "answer.name is a string without", "maxLength"),
    Wrong(
        "list without an end",
        schema(names={"type": "array", "items": {"enum": ["a"]}}),
        "answer.names is a list without maxItems",
        "maxItems",
    ),
    Wrong(
        "pattern without an end",
        schema(name={"type": "string", "pattern": "^[a-z]+$"}),
        "whose pattern has no end",
        "maxLength",
    ),
    Wrong("max_tokens too small for sure", schema(name={"enum": LONG}), "at least", "set max_tokens:"),
    Wrong(
        "max_tokens likely too small",
        lambda c: c.ask(max_tokens=20),
        "about 32 tokens",
        "set max_tokens: 32",
        "warning",
    ),
    Wrong(
        "free whitespace",
        lambda c: c.set(structured_outputs_config=None),
        "free whitespace is allowed",
        "disable_any_whitespace: true",
        "warning",
    ),
    Wrong(
        "no whitespace, but no backend",
        lambda c: c.set(structured_outputs_config={"disable_any_whitespace": True}),
        "vLLM refuses to start",
        "backend: xgrammar",
    ),
    # weights and memory
    Wrong("no weights", remove("model.safetensors"), "model.safetensors is missing", "copy it again"),
    Wrong("truncated weights", truncate("model.safetensors"), "model.safetensors is cut", "copy it again"),
    Wrong("a Git LFS pointer", pointer, "Git LFS pointer", "copy it again"),
    Wrong("weights of another model", other_weights, "by config.json it would be [128, 128]", "copy both again"),
    Wrong(
        "a tensor missing",
        lambda c: drop_tensor(c.model(), "model.text_model.layers.0.mlp.down_proj.weight"),
        "layers.0 has no mlp.down_proj.weight, which all other layers have",
        "copy the model again",
        "warning",
    ),
    Wrong("missing shard", missing_shard, "model-00002-of-00002.safetensors is missing", "copy it again"),
    Wrong(
        "KV cache too small",
        lambda c: c.set(kv_cache_memory_bytes="100k"),
        "are left for the KV cache",
        "max-model-len",
    ),
    Wrong("weights too large for the GPU", big_model, "leave no memory", "gpu-memory-utilization"),
    Wrong(
        "vLLM and detector over the GPU",
        crowded_gpu,
        "vLLM takes 21.4 GiB and the detector 3.9 GiB",
        "gpu-memory-utilization: 0.8",
    ),
    Wrong(
        "more than the host has", lambda c: c.set(kv_cache_memory_bytes="20G"), "take 23.0 GiB", "kv-cache-memory-bytes"
    ),
    # client
    Wrong(
        "a served name that the client does not ask for",
        lambda c: c.ask(model="gemma"),
        "calls its model tiny-vlm",
        "set it to tiny-vlm",
    ),
    Wrong(
        "a client option that the server drops",
        lambda c: c.ask(fields=(*c.asked.fields, "guided_json")),
        "the client sends 'guided_json'",
        "response_format",
    ),
    Wrong(
        "a client's extra_body, nested once too often",
        lambda c: c.ask(fields=(*c.asked.fields, "extra_body")),
        "the client sends 'extra_body'",
        "unfolds it once",
    ),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_configuration_is_named_with_its_remedy(configuration: Configuration, wrong: Wrong) -> None:
    wrong.spoil(configuration)
    begin = time.process_time()
    findings = configuration.check().findings
    assert time.process_time() - begin < STATIC_LIMIT_S
    named = [each for each in findings if wrong.found in each.found]
    assert named, [str(each) for each in findings]
    assert named[0].severity == wrong.severity
    assert wrong.remedy in named[0].remedy, named[0]
    assert named[0].required


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


@pytest.mark.parametrize(("preset", "memory_mib"), [("l4", 23_034), ("a100-40", 40_960), ("a100-80", 81_920)])
def test_no_false_alarm_for_a_gpu_preset_whose_model_is_still_to_fetch(
    preset: str, memory_mib: int, tmp_path: Path
) -> None:
    environment = {"HF_HOME": str(tmp_path)}
    file = VLLM_PRESETS / f"{preset}.yaml"
    server = command.server_of(file, "cuda", [Gpu("GPU", memory_mib)], environment=environment)
    checked = static.check(server, command.asked_of(jobs.load("dog_breeds")), ROOT)
    (finding,) = checked.findings
    assert (finding.severity, finding.check) == ("warning", "model")
    assert "set HF_TOKEN" in finding.remedy
    parts = {part.name.strip(): part.gib for part in checked.budget}
    assert parts["weights"] == pytest.approx(13.28)
    assert parts["KV cache"] is not None
    assert parts["KV cache"] > 2.0


def test_with_a_token_it_is_not_asked_for(tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_x"}
    server = command.server_of(VLLM_PRESETS / "l4.yaml", "cuda", [], environment=environment)
    findings = static.check(server, command.asked_of(jobs.load("dog_breeds")), ROOT).findings
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
    assert "1 of its files are half fetched" in finding.found


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
    assert [each.severity for each in report.findings] == ["ok"]
    configuration.set(max_model_length=1)
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    assert exit_code(command.preflight(settings).findings) == 1


def test_a_start_is_refused_with_a_line_for_each_error(configuration: Configuration) -> None:
    configuration.set(max_model_length=1, dtype="bf")
    settings = StackSettings(device="cpu", preset=str(configuration.server.preset))
    with pytest.raises(StackError, match="nothing was started") as refusal:
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
