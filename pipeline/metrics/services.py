"""What the services say of themselves: their Prometheus metrics, read now and then over a run.

vLLM names its metrics `vllm:...`; the detector's come from Mosec and begin with `detector_`. A server that tells
nothing (another kind, an address behind a gateway) is asked a few times and then left alone.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

# A server that is busy answers within this time, or the next reading will do.
TIMEOUT_S = 2.0
# Failures in a row after which a server is taken for one without metrics.
GIVE_UP_AFTER = 3

PREFIXES = ("vllm:", "detector_")

Reading = dict[str, float]
"""A metric's value by its name, summed over its labels; a stage of the detector stands in the name: `...{Detect}`."""


def parse(text: str) -> Reading:
    """The services' values on a page in Prometheus' text format; of histograms the sums and counts.

    Raises:
        ValueError: it has none of them.
    """
    reading: Reading = {}
    # Most of vLLM's page is buckets, and Python's own counters: parsing all of it each second is 20 ms of the pipeline.
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(PREFIXES) and "_bucket{" not in line)
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            if sample.name.endswith(("_created", "_info")):
                continue
            stage = sample.labels.get("stage", "").partition("_")[0]
            reason = sample.labels.get("finished_reason", "")
            labels = [label for label in (stage, reason) if label]
            for name in (sample.name, *(f"{sample.name}{{{label}}}" for label in labels)):
                reading[name] = reading.get(name, 0.0) + sample.value
    if not reading:
        raise ValueError(f"no metric that begins with {' or '.join(PREFIXES)}")
    return reading


def fetch(url: str) -> Reading:
    """Read a server's metrics.

    Raises:
        OSError: nobody answers, or not with 200.
        ValueError: they are none of these services'.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        text: str = response.read().decode()
    return parse(text)


def metrics_url(base_url: str) -> str:
    """Where a service has its metrics: beside its API's version."""
    return base_url.rstrip("/").removesuffix("/v1") + "/metrics"


@dataclass
class Service:
    """One service's metrics over a run."""

    url: str
    gauges: Mapping[str, str]
    """What is followed over time: the series' name, and the metric's."""
    read: Callable[[str], Reading] = fetch
    tell: Callable[[Mapping[str, float]], None] = lambda now: None
    """Is given `now` after each reading, in the thread that reads."""
    first: Reading = field(default_factory=dict)
    last: Reading = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)
    """The gauges' values, by the series' names; none where the last reading failed."""
    sums: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    readings: int = 0
    between: int = 0
    failures: int = 0

    @property
    def silent(self) -> bool:
        """Whether it was given up."""
        return self.failures >= GIVE_UP_AFTER and not self.readings

    def look(self, between: bool = True) -> None:
        """Read once; a failure is no news. Gauges count only `between` the flow's beginning and its end."""
        if self.silent:
            return
        try:
            reading = self.read(self.url)
        except Exception:  # whatever a page of metrics is like (cut short, no text): no run ends for it
            self.failures += 1
            self.now = {}
            self.tell(self.now)
            return
        self.now = {series: reading[metric] for series, metric in self.gauges.items() if metric in reading}
        self.tell(self.now)
        if not self.readings:
            self.first = reading
        if between:
            self.between += 1
            for series, value in self.now.items():
                self.sums[series] = self.sums.get(series, 0.0) + value
                self.peaks[series] = max(self.peaks.get(series, 0.0), value)
        self.last = reading
        self.readings += 1

    def change(self, metric: str) -> float:
        """What a counter counted over the run; from nought where the server was started again."""
        before, after = self.first.get(metric, 0.0), self.last.get(metric, 0.0)
        return after - before if after >= before else after

    def mean(self, histogram: str, label: str = "") -> float | None:
        """The mean of what a histogram saw over the run; None when it saw nothing."""
        count = self.change(f"{histogram}_count{label}")
        return self.change(f"{histogram}_sum{label}") / count if count else None

    def gauge(self, series: str) -> float | None:
        """The mean of a gauge's readings."""
        return self.sums[series] / self.between if series in self.sums else None

    def at_once(self, histogram: str, seconds: float) -> float | None:
        """How many requests were in a state at once, mean, of which a histogram has the durations (Little's law)."""
        return self.change(f"{histogram}_sum") / seconds if self.knows(f"{histogram}_sum") else None

    def knows(self, metric: str) -> bool:
        """Whether the server has this metric at all."""
        return metric in self.last


RUNNING, WAITING = "model.running", "model.waiting"


def model_server(model_url: str) -> Service:
    """vLLM, or a server that has the same metrics."""
    gauges = {
        RUNNING: "vllm:num_requests_running",
        WAITING: "vllm:num_requests_waiting",
        "model.kv_cache": "vllm:kv_cache_usage_perc",
    }
    return Service(metrics_url(model_url), gauges)


def detector(detector_url: str) -> Service:
    """The detector service."""
    return Service(metrics_url(detector_url), {"detector.waiting": "detector_remaining_task"})


def present(values: Mapping[str, float | None]) -> dict[str, float]:
    """What is known of it."""
    return {name: round(value, 6) for name, value in values.items() if value is not None}


def of_model(service: Service, seconds: float) -> dict[str, float]:
    """What the model server did; in the `seconds` of the flow in which it was asked. Shares are from 0 to 1."""
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


def of_detector(service: Service) -> dict[str, float]:
    """What the detector did over the run's flow."""
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
