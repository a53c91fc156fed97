"""What vLLM compiles is kept under a key: of all that makes it stale, and of nothing else."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scripts.checks.doctor import compile_caches
from scripts.checks.doctor.context import Context
from scripts.commands import clean
from scripts.docker import host as docker_host
from scripts.settings import StackSettings
from scripts.stack import vllm_server
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.vllm import compile_cache
from scripts.vllm.options import Options
from scripts.vllm.tables import MODEL_INFOS

OPTIONS = Options({"model": "owner/model", "revision": "a" * 40, "dtype": "bfloat16", "max-num-seqs": 8})


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """Lock files of a vLLM and a torch."""
    folder = tmp_path / "locks"
    folder.mkdir()
    (folder / "vllm-cuda.lock").write_text("torch==2.13.0 \\\n    --hash=x\nvllm==0.32.0 \\\n")
    return folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The GPU that is seen, to be changed."""
    seen = ["NVIDIA L4, 8.9, 580.65.06"]
    monkeypatch.setattr(compile_cache, "gpu", lambda _: seen[0])
    return seen


def changed(options: Options, **values: object) -> Options:
    """Options with some of them changed."""
    return replace(
        options, values={**options.values, **{name.replace("_", "-"): each for name, each in values.items()}}
    )


def test_the_key_tells_people_what_it_is_of(locks: Path, gpu: list[str]) -> None:
    assert compile_cache.key(OPTIONS, "cuda", locks).startswith("vllm0.32.0-torch2.13.0-nvidia-l4-model-")
    assert compile_cache.NAME.fullmatch(compile_cache.key(OPTIONS, "cuda", locks))


def test_all_that_makes_a_cache_stale_changes_the_key(locks: Path, gpu: list[str]) -> None:
    keys = {compile_cache.key(OPTIONS, "cuda", locks)}
    for gpu[0] in ("NVIDIA L4, 8.9, 590.1", "NVIDIA A100, 8.0, 580.65.06"):
        keys.add(compile_cache.key(OPTIONS, "cuda", locks))
    gpu[0] = "NVIDIA L4, 8.9, 580.65.06"
    for change in ({"revision": "b" * 40}, {"dtype": "float16"}, {"model": "x/y"}, {"enforce_eager": True}):
        keys.add(compile_cache.key(changed(OPTIONS, **change), "cuda", locks))
    lock = locks / "vllm-cuda.lock"
    for before, after in (("vllm==0.32.0", "vllm==0.33.0"), ("torch==2.13.0", "torch==2.14.0")):
        lock.write_text(lock.read_text().replace(before, after))
        keys.add(compile_cache.key(OPTIONS, "cuda", locks))
    assert len(keys) == 9


def test_what_does_not_matter_leaves_the_key_as_it_is(locks: Path, gpu: list[str]) -> None:
    other = changed(OPTIONS, max_num_seqs=256, gpu_memory_utilization=0.9)
    assert compile_cache.key(other, "cuda", locks) == compile_cache.key(OPTIONS, "cuda", locks)


def test_every_cache_of_the_server_is_within_the_key(tmp_path: Path) -> None:
    settings = StackSettings(state=tmp_path)
    preset = VLLM_PRESETS / "cpu.yaml"
    variables = dict(vllm_server.vllm(settings, "cpu", preset).variables)
    folder = tmp_path / "cache" / "vllm" / vllm_server.model_servers(settings, "cpu", preset)[0].cache
    assert compile_cache.PLACES.keys() <= variables.keys()
    assert all(Path(variables[name]).is_relative_to(folder) for name in compile_cache.PLACES)


def test_a_place_that_the_user_chose_is_keyed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "large"))
    variables = dict(vllm_server.vllm(StackSettings(state=tmp_path), "cpu", VLLM_PRESETS / "cpu.yaml").variables)
    assert Path(variables["VLLM_CACHE_ROOT"]).parent.parent == tmp_path / "large"


def test_old_keys_are_listed_and_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_host, "answers", lambda: False)  # whatever runs on this host
    settings = StackSettings(state=tmp_path, engine="process", device="cpu", preset="cpu")
    root = vllm_server.cache_root(settings)
    current = vllm_server.model_servers(settings, "cpu", VLLM_PRESETS / "cpu.yaml")[0].cache
    old = "vllm0.31.0-torch2.12.0-cpu-tiny-vlm-0badcafe"
    for name in (current, old, "of-somebody-else"):
        (root / name / "vllm").mkdir(parents=True)
        (root / name / "vllm" / "graph").write_bytes(bytes(2000))
    findings = compile_caches.check(Context(settings))
    assert [each.severity for each in findings] == ["ok", "ok"]
    assert f"{current}: 2.0 kB" in findings[0].found
    assert f"{old} (2.0 kB); `make clean`" in findings[1].found
    shown = io.StringIO()
    clean.prune_compile_caches(settings, Console(file=shown, width=200))
    assert {path.name for path in root.iterdir()} == {current, "of-somebody-else"}
    assert f"removed compile cache {old}" in shown.getvalue()


def test_a_cache_begins_with_what_vllm_knows_of_the_presets_models(tmp_path: Path) -> None:
    compile_cache.seed(tmp_path / "key" / "vllm")
    (tmp_path / "key" / "vllm" / "modelinfos" / "other.json").write_text("of another model")
    compile_cache.seed(tmp_path / "key" / "vllm")
    files = {path.name: path.read_text() for path in (tmp_path / "key" / "vllm" / "modelinfos").iterdir()}
    assert files.pop("other.json") == "of another model"
    assert files == {path.name: path.read_text() for path in MODEL_INFOS.iterdir()}
    assert {name.split("-")[-1] for name in files} == {
        "Gemma3nForConditionalGeneration.json", "Idefics3ForConditionalGeneration.json"
    }  # fmt: skip


def test_a_fast_start_puts_its_options_over_the_preset(tmp_path: Path) -> None:
    full, fast = (
        vllm_server.vllm(StackSettings(state=tmp_path, start=start), "cuda", VLLM_PRESETS / "l4.yaml")
        for start in ("full", "fast")
    )
    assert fast.command == (*full.command, "--enforce-eager")
    assert fast.fingerprint != full.fingerprint
    assert dict(fast.variables)["VLLM_CACHE_ROOT"] != dict(full.variables)["VLLM_CACHE_ROOT"]
