"""Looking at a run: bounded series, services' metrics, GPUs."""

import itertools
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.metrics import sampler as sampler_module
from pipeline.metrics.gpu import Gpus
from pipeline.metrics.sampler import Sampler, Series, Usage
from pipeline.metrics.services import GIVE_UP_AFTER, Service, detector, model_server, of_detector, of_model, parse
from pipeline.metrics.stage import Account

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


def test_the_sampler_sees_work_and_the_machine() -> None:
    account = Account(4, 8, 2)
    sampler = Sampler(account.stages, account.selection, {}, time.perf_counter(), Gpus(NO_GPU))
    sampler.start()
    account.read.arrive(time.perf_counter(), 1)
    began = account.read.begin()
    time.sleep(0.6)
    account.finish(account.read, began, account.detect)
    sampler.stop()
    samples = sampler.series.result()
    assert max(value or 0 for value in samples.series["read.working"]) == pytest.approx(1.0, abs=0.1)
    assert 0 < (samples.mean("pipeline.memory_bytes") or 0) < psutil.virtual_memory().total
    host = samples.mean("host.cpu")  # 0.0 on one that idles
    assert host is not None
    # Each core's use is told in hundredths of a second, over a tenth at least.
    assert 0 <= host <= (os.cpu_count() or 1) * 1.1
    assert sampler.blame.cost_s["read"] == pytest.approx(account.read.work_s, rel=0.2)
    assert account.detect.waiting == 1
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


def test_a_page_that_drips_keeps_no_run_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "SERVICES_LIMIT_S", 0.2)
    over = threading.Event()

    def drip(url: str) -> dict[str, float]:
        over.wait()
        raise OSError("cut off")

    account = Account(4, 8, 2)
    services = {"model": Service("http://127.0.0.1:1/metrics", {}, drip)}
    sampler = Sampler(account.stages, account.selection, services, time.perf_counter(), Gpus(NO_GPU))
    began = time.perf_counter()
    sampler.start()
    started = time.perf_counter()
    sampler.stop()
    sampler.finish()
    assert sampler._asking.is_alive()  # it waits for the page still, and nobody for it
    over.set()
    assert started - began >= 0.2


def test_the_services_are_read_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "SERVICES_S", 60.0)
    counter = itertools.count()
    services = {"model": Service("http://127.0.0.1:1/metrics", {}, lambda url: {"counted": float(next(counter))})}
    account = Account(4, 8, 2)
    sampler = Sampler(account.stages, account.selection, services, time.perf_counter(), Gpus(NO_GPU))
    sampler.start()
    assert services["model"].readings == 1
    sampler.stop()
    sampler.finish()
    assert services["model"].change("counted") == 1


def test_nobody_is_to_blame_before_the_first_row_and_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting is a phase of its own, and so is the last look at the services, however long they take."""

    looks, over = threading.Event(), threading.Event()

    class Slow(Service):
        def look(self, between: bool = True) -> None:
            if between:
                looks.set()
                over.wait()

    # Looks are the test's to take.
    monkeypatch.setattr(sampler_module, "SHORTEST_TICK_S", 60.0)
    monkeypatch.setattr(sampler_module, "LONGEST_TICK_S", 60.0)
    monkeypatch.setattr(sampler_module, "SERVICES_S", 0.01)
    account = Account(4, 8, 2)
    services = {"model": Slow("http://127.0.0.1:1/metrics", {})}
    sampler = Sampler(account.stages, account.selection, services, time.perf_counter(), Gpus(NO_GPU))
    sampler.start()
    account.read.arrive(time.perf_counter(), 2)
    assert looks.wait(20)
    sampler._look(keep=False)
    assert sampler.blame.cost_s == {}
    began = account.read.begin()
    time.sleep(0.2)
    account.finish(account.read, began, account.detect)
    sampler.stop()
    assert sampler._asking.is_alive()
    assert sampler.blame.cost_s == {"read": pytest.approx(account.read.work_s)}
    over.set()


def test_what_the_detector_did_over_a_run() -> None:
    pages = iter(
        [DETECTOR_PAGE % (100, 9.0, 100, 0), DETECTOR_PAGE % (140, 9.5, 108, 12), DETECTOR_PAGE % (180, 10.0, 120, 4)]
    )
    service = detector("http://127.0.0.1:8001")
    service.read = lambda url: parse(next(pages))
    for between in (False, True, False):
        service.look(between)
    assert service.url == "http://127.0.0.1:8001/metrics"
    said = of_detector(service)
    assert (said["requests"], said["batches"], said["batch_size"]) == (80, 20, 4)
    assert said["pass_s"] == pytest.approx(0.05)
    assert said["pass_total_s"] == pytest.approx(1.0)
    assert (said["waiting_mean"], said["waiting_peak"]) == (12, 12)


def test_what_the_model_server_did_over_a_run() -> None:
    pages = iter(
        [
            MODEL_PAGE % (0, 0, 10, 0, 1000, 5.0, 10, 3.0, 4000, 0),
            MODEL_PAGE % (8, 2, 50, 2, 2000, 13.4, 52, 33.0, 8000, 400),
        ]
    )
    service = model_server("http://127.0.0.1:8000/v1")
    service.read = lambda url: parse(next(pages))
    service.look(between=False)
    service.look()
    assert service.url == "http://127.0.0.1:8000/metrics"
    said = of_model(service, seconds=5.0)
    assert (said["requests"], said["cut_at_max_tokens"]) == (42, 2)
    assert said["generated_tokens_per_s"] == 200
    assert said["time_to_first_token_s"] == pytest.approx(0.2)
    assert said["prefix_cache_hit_rate"] == 0.1
    assert (said["running_peak"], said["waiting_peak"]) == (8, 2)
    assert said["running_mean"] == pytest.approx(6.0)
    assert "image_cache_hit_rate" not in said  # this server has no such cache


def test_a_service_that_was_started_again_counts_from_nought() -> None:
    pages = iter([DETECTOR_PAGE % (100, 9.0, 100, 0), DETECTOR_PAGE % (30, 1.0, 10, 0)])
    service = detector("http://127.0.0.1:8001")
    service.read = lambda url: parse(next(pages))
    service.look()
    service.look()
    assert of_detector(service)["requests"] == 30


def test_another_page_is_none_of_the_services_metrics() -> None:
    with pytest.raises(ValueError, match="no metric that begins with vllm: or detector_"):
        parse("<html>hello</html>")


def test_a_server_without_metrics_is_left_alone() -> None:
    asked: list[str] = []

    def refuse(url: str) -> dict[str, float]:
        asked.append(url)
        raise OSError("404")

    service = Service("http://127.0.0.1:1/metrics", {}, refuse)
    for _ in range(10):
        service.look()
    assert len(asked) == GIVE_UP_AFTER
    assert of_model(service, 1.0) == of_detector(service) == {}


def test_who_wants_to_know_the_queue_is_told_at_each_reading() -> None:
    """Also that it could not be read: a queue of long ago must not bound the requests for good."""
    pages = iter([MODEL_PAGE % (8, 2, 50, 2, 2000, 13.4, 52, 33.0, 8000, 400), "<html>away</html>"])
    told: list[dict[str, float]] = []
    service = model_server("http://127.0.0.1:8000/v1")
    service.read = lambda url: parse(next(pages))
    service.tell = lambda now: told.append(dict(now))
    service.look()
    service.look()
    assert told == [{"model.running": 8, "model.waiting": 2}, {}]


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
