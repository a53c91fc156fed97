"""What the services report of themselves over a run, from the readings of their Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Reading = Mapping[str, float]
"""A metric's value by its name, summed over its labels."""


@dataclass
class ServerSeries:
    """One server's readings over a run: counters' first and last values, gauges' means and peaks."""

    gauges: Mapping[str, str]
    """The series' name and the metric's."""
    first: Reading = field(default_factory=dict)
    last: Reading = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)
    """The gauges' values by the series' names; empty where the last reading failed."""
    sums: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    readings: int = 0
    flowing: bool = False
    """Whether rows are on their way: gauges count only then."""
    flow_readings: int = 0

    def add(self, reading: Reading) -> None:
        """Take a reading; an empty one says that the server could not be read."""
        self.now = {series: reading[metric] for series, metric in self.gauges.items() if metric in reading}
        if not reading:
            return
        self.first = self.first or reading
        self.last = reading
        self.readings += 1
        if self.flowing:
            self.flow_readings += 1
            for series, value in self.now.items():
                self.sums[series] = self.sums.get(series, 0.0) + value
                self.peaks[series] = max(self.peaks.get(series, 0.0), value)

    def change(self, metric: str) -> float:
        """By how much a counter rose over the run; from zero where the server was started again."""
        before, after = self.first.get(metric, 0.0), self.last.get(metric, 0.0)
        return after - before if after >= before else after

    def mean(self, histogram: str, label: str = "") -> float | None:
        """The mean of a histogram over the run; None when it counted nothing."""
        count = self.change(f"{histogram}_count{label}")
        return self.change(f"{histogram}_sum{label}") / count if count else None

    def gauge(self, series: str) -> float | None:
        """The mean of a gauge's readings."""
        return self.sums[series] / self.flow_readings if series in self.sums else None

    def at_once(self, histogram: str, seconds: float) -> float | None:
        """Mean number of requests in a state at once, from the histogram of its durations (Little's law)."""
        return self.change(f"{histogram}_sum") / seconds if self.knows(f"{histogram}_sum") else None

    def knows(self, metric: str) -> bool:
        """Whether the server has this metric at all."""
        return metric in self.last


def model_server() -> ServerSeries:
    """vLLM, or a server that has the same metrics."""
    return ServerSeries(
        {
            "model.running": "vllm:num_requests_running",
            "model.waiting": "vllm:num_requests_waiting",
            "model.kv_cache": "vllm:kv_cache_usage_perc",
        }
    )


def detector() -> ServerSeries:
    """The detector service."""
    return ServerSeries({"detector.waiting": "detector_remaining_task"})


def present(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that are known."""
    return {name: round(value, 6) for name, value in values.items() if value is not None}


def of_model(service: ServerSeries, seconds: float) -> dict[str, float]:
    """What the model server did, over the `seconds` in which it was asked. Shares are from 0 to 1."""
    if service.readings < 2:
        return {}

    def hits(cache: str) -> float | None:
        asked = service.change(f"vllm:{cache}_queries_total")
        return service.change(f"vllm:{cache}_hits_total") / asked if asked else None

    return present(
        {
            "requests": service.change("vllm:request_success_total"),
            "cut_at_max_tokens": service.change("vllm:request_success_total{length}"),
            "running_mean": service.at_once("vllm:request_inference_time_seconds", seconds),
            "running_peak": service.peaks.get("model.running"),
            "waiting_mean": service.at_once("vllm:request_queue_time_seconds", seconds),
            "waiting_peak": service.peaks.get("model.waiting"),
            "kv_cache_peak": service.peaks.get("model.kv_cache"),
            "preemptions": service.change("vllm:num_preemptions_total"),
            "time_to_first_token_s": service.mean("vllm:time_to_first_token_seconds"),
            "queue_s": service.mean("vllm:request_queue_time_seconds"),
            "prefill_s": service.mean("vllm:request_prefill_time_seconds"),
            "decode_s": service.mean("vllm:request_decode_time_seconds"),
            "request_s": service.mean("vllm:e2e_request_latency_seconds"),
            "prompt_tokens_per_s": service.change("vllm:prompt_tokens_total") / seconds,
            "generated_tokens_per_s": service.change("vllm:generation_tokens_total") / seconds,
            "tokens_per_step": service.mean("vllm:iteration_tokens_total"),
            "prefix_cache_hit_rate": hits("prefix_cache"),
            "image_cache_hit_rate": hits("mm_cache"),
        }
    )


def of_detector(service: ServerSeries) -> dict[str, float]:
    """What the detector did while the run went on."""
    if service.readings < 2:
        return {}
    requests = service.change("detector_throughput_total")
    passes = service.change("detector_process_duration_second_count{Detect}")
    return present(
        {
            "requests": requests,
            "batch_size": requests / passes if passes else None,
            "batches": passes,
            "pass_s": service.mean("detector_process_duration_second", "{Detect}"),
            "pass_total_s": service.change("detector_process_duration_second_sum{Detect}"),
            "decode_s": service.mean("detector_process_duration_second", "{Decode}"),
            "decode_total_s": service.change("detector_process_duration_second_sum{Decode}"),
            "batch_wait_s": service.mean("detector_batch_duration_second", "{Detect}"),
            "request_s": service.mean("detector_process_duration_second", "{total}"),
            "waiting_mean": service.gauge("detector.waiting"),
            "waiting_peak": service.peaks.get("detector.waiting"),
        }
    )
