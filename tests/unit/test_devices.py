"""Which device and preset a host gets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.commands.engines import plan
from scripts.settings import InvalidStackSetting, NoGpu, StackSettings, load
from scripts.stack.devices import Gpu, choose, find_gpus
from scripts.stack.services import make_stack
from scripts.stack.vllm_server import model_servers
from scripts.vllm import compile_cache

A100_80, A100_40 = Gpu("NVIDIA A100-SXM4-80GB", 81920), Gpu("NVIDIA A100-SXM4-40GB", 40960)
L4, T4 = Gpu("NVIDIA L4", 23034), Gpu("Tesla T4", 15360)


@pytest.mark.parametrize(
    ("settings", "gpus", "device", "preset"),
    [
        ({}, [], "cpu", "cpu"),
        ({}, [A100_80], "cuda", "a100-80"),
        ({}, [A100_40], "cuda", "a100-40"),
        ({}, [L4], "cuda", "l4"),
        ({}, [Gpu("NVIDIA H100", 81559)], "cuda", "a100-80"),
        ({"device": "cpu"}, [L4], "cpu", "cpu"),
        ({"preset": "l4"}, [A100_80], "cuda", "l4"),
        ({"device": "cpu", "preset": "mine.yaml"}, [], "cpu", "mine.yaml"),
    ],
)
def test_choice(settings: dict[str, str], gpus: list[Gpu], device: str, preset: str) -> None:
    assert choose(StackSettings(_env_file=None, **settings), gpus)[:2] == (device, preset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "preset", "why"),
    [
        ([L4, Gpu("NVIDIA L4", 23034, 1)], "l4", "2 x NVIDIA L4, 23034 MiB"),
        ([A100_80, Gpu("NVIDIA L4", 23034, 1)], "l4", "NVIDIA A100-SXM4-80GB, 81920 MiB and NVIDIA L4, 23034 MiB"),
    ],
)
def test_the_smallest_of_several_gpus_decides_the_preset(gpus: list[Gpu], preset: str, why: str) -> None:
    assert choose(StackSettings(_env_file=None, gpus="0,1"), gpus) == ("cuda", preset, why)


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({"device": "cuda"}, [], "GPU 0"),
        ({"gpus": "3"}, [], "GPU 3: .*STACK_GPUS"),
        ({"gpus": "0,3,5"}, [L4], "GPU 3, 5: .*STACK_GPUS"),
        ({"gpus": "all"}, [], "no GPU: .*STACK_GPUS"),
        ({}, [T4], "Tesla T4, 15360 MiB: .*STACK_PRESET"),
        ({"gpus": "0,1"}, [L4, Gpu("Tesla T4", 15360, 1)], "Tesla T4, 15360 MiB: .*STACK_PRESET"),
    ],
)
def test_what_cannot_be(settings: dict[str, object], gpus: list[Gpu], message: str) -> None:
    with pytest.raises(NoGpu, match=message):
        choose(StackSettings(_env_file=None, **settings), gpus)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "read"), [("0, 1,03", "0,1,3"), ("all", "all"), (" 2 ", "2")])
def test_a_list_of_gpus(given: str, read: str) -> None:
    assert StackSettings(_env_file=None, gpus=given).gpus == read


@pytest.mark.parametrize("given", ["1,", "first", "-1", "0,0", "0;1"])
def test_what_is_no_list_of_gpus(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_GPUS", given)
    with pytest.raises(InvalidStackSetting, match=f"STACK_GPUS='{given}' is invalid: .*(0,1,3|twice)"):
        load()


def test_the_setting_for_one_gpu_of_earlier_versions_names_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_GPU", "1")
    with pytest.raises(InvalidStackSetting, match=r"unknown variable STACK_GPU .*did you mean STACK_GPUS\?"):
        load()


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host with three L4 and, under number 1, an A100."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text(NVIDIA_SMI)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    compile_cache.gpu.cache_clear()
    yield
    compile_cache.gpu.cache_clear()


# Answers for the numbers after --id=, or for all, the fields that --query-gpu= names.
NVIDIA_SMI = """#!/bin/sh
chosen=0,1,2,3
for argument; do case $argument in --id=*) chosen=${argument#--id=};; --query-gpu=*) fields=$argument;; esac; done
for number in $(echo $chosen | tr , ' '); do
    case $number in 1) name='NVIDIA A100-SXM4-80GB' mib=81920;; 0|2|3) name='NVIDIA L4' mib=23034;;
        *) echo No devices were found; exit 6;; esac
    case $fields in *index) echo "$name, $mib, $number";; *) echo "$name, 8.9, 580.65";; esac
done
"""


@pytest.mark.parametrize(("number", "preset"), [(0, "l4"), (1, "a100-80")])
def test_the_gpu_that_is_asked_for_decides_and_is_the_only_one_that_a_service_sees(
    four_gpus: None, number: int, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StackSettings(gpus=str(number), state=tmp_path)
    assert choose(settings, find_gpus(settings))[:2] == ("cuda", preset)
    for service in make_stack(settings, "cuda", preset, {}).services:
        variables = dict(service.variables)
        assert (variables["CUDA_DEVICE_ORDER"], variables["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", str(number))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    for service in make_stack(StackSettings(gpus=str(number), state=tmp_path), "cuda", preset, {}).services:
        assert "CUDA_VISIBLE_DEVICES" not in dict(service.variables)
    assert find_gpus(StackSettings(gpus="4")) == []


@pytest.mark.parametrize(
    ("gpus", "pinned", "ports"),
    [("all", ["0", "1", "2", "3"], [8000, 8002, 8003, 8004]), ("3,1", ["3", "1"], [8000, 8002])],
)
def test_each_gpu_has_a_model_server_and_the_first_the_detector(
    four_gpus: None, tmp_path: Path, gpus: str, pinned: list[str], ports: list[int]
) -> None:
    stack, _, why = plan(StackSettings(gpus=gpus, state=tmp_path, engine="process", preset="l4"))
    detector, *servers = stack.services
    assert dict(detector.variables)["CUDA_VISIBLE_DEVICES"] == pinned[0]
    assert [each.name for each in servers] == ["vllm", "vllm-2", "vllm-3", "vllm-4"][: len(pinned)]
    assert [dict(each.variables)["CUDA_VISIBLE_DEVICES"] for each in servers] == pinned
    assert [each.port for each in servers] == ports
    urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
    assert stack.job_variables["SPOTTER_MODEL_URL"] == ",".join(urls)
    assert stack.job_variables["SPOTTER_MODEL_CONCURRENCY"] == str(64 * len(pinned))
    assert [each.ready_url for each in servers] == [url.replace("/v1", "/health") for url in urls]
    # Kernels for one kind of GPU are not for another; servers on one kind share them.
    caches = {number: each.cache for number, each in zip(pinned, servers, strict=True)}
    assert caches["1"] != caches["3"]
    assert len(set(caches.values())) == 2
    assert "NVIDIA A100-SXM4-80GB, 81920 MiB" in why


@pytest.mark.parametrize(
    ("gpus", "preset", "groups"),
    [
        ("0,1", "tensor-parallel-size: 2", [(0, 1)]),
        ("0,1,2,3", "tensor-parallel-size: 2", [(0, 1), (2, 3)]),
        ("3,2,1,0", "tensor-parallel-size: 2\npipeline-parallel-size: 2", [(3, 2, 1, 0)]),
    ],
)
def test_a_preset_may_spread_its_model_over_gpus(
    four_gpus: None, tmp_path: Path, gpus: str, preset: str, groups: list[tuple[int, ...]]
) -> None:
    (file := tmp_path / "large.yaml").write_text(f"model: my-org/large\n{preset}\n")
    settings = StackSettings(gpus=gpus, state=tmp_path)
    assert [server.gpus for server in model_servers(settings, "cuda", file)] == groups
    detector, first, *_ = make_stack(settings, "cuda", str(file), {}).services
    assert dict(detector.variables)["CUDA_VISIBLE_DEVICES"] == str(groups[0][0])
    assert dict(first.variables)["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, groups[0]))


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ({"gpus": "0,1,2"}, {}, "2 GPUs, and STACK_GPUS=0,1,2 names 3: name 2, or a multiple"),
        ({"gpus": "0"}, {}, "2 GPUs, and STACK_GPUS=0 names 1"),
        ({"gpus": "0,1", "replicas": 2}, {}, "STACK_REPLICAS is for a CPU"),
        ({"gpus": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}, "CUDA_VISIBLE_DEVICES=2,3 and STACK_GPUS=0,1 both choose"),
        ({"gpus": "0,1,2,3", "vllm_port": 65535}, {}, "STACK_VLLM_PORT=65535 leaves no port for 2 servers"),
    ],
)
def test_gpus_that_cannot_be_shared_out(
    four_gpus: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, object],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (file := tmp_path / "large.yaml").write_text("model: my-org/large\ntensor-parallel-size: 2\n")
    with pytest.raises(InvalidStackSetting, match=message):
        model_servers(StackSettings.model_validate(given), "cuda", file)


def test_replicas_on_a_cpu_differ_in_name_and_port_alone(tmp_path: Path) -> None:
    settings = StackSettings(state=tmp_path, replicas=3, vllm_port=9000, detector_port=9001)
    _, *servers = make_stack(settings, "cpu", "cpu", {}).services
    assert [(each.name, each.port) for each in servers] == [("vllm", 9000), ("vllm-2", 9002), ("vllm-3", 9003)]
    assert len({each.variables for each in servers}) == 1
    assert {each.kind for each in servers} == {"vllm"}
    alone = make_stack(StackSettings(state=tmp_path, vllm_port=9000), "cpu", "cpu", {}).services[1]
    assert alone.fingerprint == servers[0].fingerprint  # it need not start anew for a second one
