"""Looking at a run: bounded series, services' metrics, GPUs."""

import os
import time
from pathlib import Path

import psutil
import pytest

from pipeline.clients.server_load import parse
from pipeline.metrics import sampler as sampler_module
from pipeline.metrics.gpu import Gpus
from pipeline.metrics.sampler import Sampler, Series, Usage
from pipeline.metrics.services import ServerSeries, detector, model_server, of_detector, of_model
from pipeline.metrics.stage import RunMetrics, StageMetrics

NO_GPU = "no-such-program"

DETECTOR_PAGE = """\
# TYPE detector_throughput counter
detector_throughput_total{code="200",endpoint="/detect"} %d
# TYPE detector_process_duration_second histogram
detector_process_duration_second_sum{stage="Detect_2",connection="1"} %f
detector_process_duration_second_count{stage="Detect_2",connection="1"} %d
detector_process_duration_second_bucket{le="1.0",stage="Detect_2",connection="1"} 99
# TYPE detector_remaining_task gauge
detector_remaining_task %d
# EOF
"""

MODEL_PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} %d
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} %d
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} %d
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} %d
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} %d
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 3
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} %f
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} %d
# TYPE vllm:request_inference_time_seconds histogram
vllm:request_inference_time_seconds_sum{engine="0",model_name="m"} %f
vllm:request_inference_time_seconds_count{engine="0",model_name="m"} 7
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} %d
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} %d
"""


def test_a_run_of_any_length_has_a_bounded_number_of_samples() -> None:
    series = Series(most=100, every_s=0.25)
    last = 0.0
    for tick in range(1, 20_001):
        at = tick * 0.25
        if at - last >= series.every_s:
            last = at
            series.add(at, {"read.working": at, "late": None if at < 2500 else 1.0})
    samples = series.result()
    assert 50 <= len(samples.t_s) <= 100
    assert {len(column) for column in samples.series.values()} == {len(samples.t_s)}
    assert samples.t_s == sorted(samples.t_s)
    assert samples.t_s[-1] == pytest.approx(5000, rel=0.05)
    working = [value or 0 for value in samples.series["read.working"]]
    assert working == sorted(working)
    assert (samples.series["late"][0], samples.series["late"][-1]) == (None, 1.0)


def sampled() -> tuple[Sampler, StageMetrics, StageMetrics]:
    """A sampler, and the metrics of the stages read and detect."""
    metrics = RunMetrics.of(4, 8, 2)
    sampler = Sampler(metrics, {}, {}, time.perf_counter(), Gpus(NO_GPU))
    return sampler, metrics.stages["read"], metrics.stages["detect"]


def test_the_sampler_sees_work_and_the_machine() -> None:
    sampler, read, detect = sampled()
    sampler.start()
    read.arrive(time.perf_counter(), 1)
    began = read.begin()
    time.sleep(0.6)
    detect.arrive(read.end(began))
    sampler.stop()
    samples = sampler.series.result()
    assert max(value or 0 for value in samples.series["read.working"]) == pytest.approx(1.0, abs=0.1)
    assert 0 < (samples.mean("pipeline.memory_bytes") or 0) < psutil.virtual_memory().total
    host = samples.mean("host.cpu")  # 0.0 on one that idles
    assert host is not None
    # Each core's use is told in hundredths of a second, over a tenth at least.
    assert 0 <= host <= (os.cpu_count() or 1) * 1.1
    assert sampler.attribution.cost_s["read"] == pytest.approx(read.work_s, rel=0.2)
    assert detect.waiting == 1
    assert 0 < sampler.cpu_s < 0.1


def test_no_use_of_cpu_is_told_over_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the kernel's hundredths in a millisecond would be twenty cores; the next sample has them."""
    told = iter([(0.0, 0.0, 0.0), (0.25, 0.05, 0.25), (0.251, 0.051, 0.27), (0.5, 0.1, 0.5)])
    monkeypatch.setattr(Usage, "_cpu", lambda self: next(told))
    usage = Usage()
    looks = [usage.now() for _ in range(3)]
    assert [look.get("pipeline.cpu") for look in looks] == [pytest.approx(0.2), None, pytest.approx(0.2)]
    assert [look.get("host.cpu") for look in looks] == [pytest.approx(1.0), None, pytest.approx(1.0)]
    assert all(look["host.memory_bytes"] for look in looks)


def test_nothing_limits_a_run_before_its_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting is a phase of its own."""
    # The test looks by itself.
    monkeypatch.setattr(sampler_module, "SHORTEST_TICK_S", 60.0)
    monkeypatch.setattr(sampler_module, "LONGEST_TICK_S", 60.0)
    sampler, read, detect = sampled()
    sampler.start()
    read.arrive(time.perf_counter(), 2)
    sampler._look(keep=False)
    assert sampler.attribution.cost_s == {}
    began = read.begin()
    time.sleep(0.2)
    detect.arrive(read.end(began))
    sampler.stop()
    assert sampler.attribution.cost_s == {"read": pytest.approx(read.work_s)}


def test_the_limits_that_the_clients_keep_are_read() -> None:
    metrics = RunMetrics.of(4, 8, 2)
    sampler = Sampler(metrics, {}, {"ask": lambda: 3.0}, time.perf_counter(), Gpus(NO_GPU))
    sampler._look(keep=False)
    assert (metrics.stages["ask"].allowed, metrics.stages["detect"].allowed) == (3.0, 4)


def fed(series: ServerSeries, *pages: str, flowing: tuple[int, ...] = (1,)) -> ServerSeries:
    """A server's series after these pages, of which those with numbers in `flowing` were read while rows flowed."""
    for number, page in enumerate(pages):
        series.flowing = number in flowing
        series.add(parse(page))
    return series


def test_what_the_detector_did_over_a_run() -> None:
    pages = (
        DETECTOR_PAGE % (100, 9.0, 100, 0),
        DETECTOR_PAGE % (140, 9.5, 108, 12),
        DETECTOR_PAGE % (180, 10.0, 120, 4),
    )
    said = of_detector(fed(detector(), *pages))
    assert (said["requests"], said["batches"], said["batch_size"]) == (80, 20, 4)
    assert said["pass_s"] == pytest.approx(0.05)
    assert said["pass_total_s"] == pytest.approx(1.0)
    assert (said["waiting_mean"], said["waiting_peak"]) == (12, 12)


def test_what_the_model_server_did_over_a_run() -> None:
    pages = (
        MODEL_PAGE % (0, 0, 10, 0, 1000, 5.0, 10, 3.0, 4000, 0),
        MODEL_PAGE % (8, 2, 50, 2, 2000, 13.4, 52, 33.0, 8000, 400),
    )
    said = of_model(fed(model_server(), *pages), seconds=5.0)
    assert (said["requests"], said["cut_at_max_tokens"]) == (42, 2)
    assert said["generated_tokens_per_s"] == 200
    assert said["time_to_first_token_s"] == pytest.approx(0.2)
    assert said["prefix_cache_hit_rate"] == 0.1
    assert (said["running_peak"], said["waiting_peak"]) == (8, 2)
    assert said["running_mean"] == pytest.approx(6.0)
    assert "image_cache_hit_rate" not in said  # this server has no such cache


def test_a_service_that_was_started_again_counts_from_nought() -> None:
    pages = (DETECTOR_PAGE % (100, 9.0, 100, 0), DETECTOR_PAGE % (30, 1.0, 10, 0))
    assert of_detector(fed(detector(), *pages))["requests"] == 30


def test_a_server_without_metrics_has_none() -> None:
    series = model_server()
    series.add({})
    assert of_model(series, 1.0) == of_detector(series) == {}


def test_two_gpus_are_read_and_the_program_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\nwhile sleep 0.05; do printf '0, 50, 1000, A\\n1, 100, 3000, B\\n2, [N/A], 1, C\\n'; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gpus = Gpus()
    deadline = time.monotonic() + 20
    while len(gpus.names) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gpus.names == ["A", "B"]
    assert gpus.now() == (0.75, 4000 * 2**20)
    gpus.close()
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not any("nvidia-smi" in " ".join(child.cmdline()) for child in children)


def test_a_host_without_a_gpu_says_nothing() -> None:
    gpus = Gpus(NO_GPU)
    assert (gpus.names, gpus.now()) == ([], None)
    gpus.close()
