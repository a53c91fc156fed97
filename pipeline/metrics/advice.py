"""Tuning advice: one rule for each setting that can help, with the time that it should save.

A gain is calculated from what the run measured, by two rules. A stage that is made faster by a factor saves that part
of the time attributed to it; and the flow never gets faster than the next stage allows, at the same number of threads
and requests, nor faster than one row. How a server behaves with more work than this run gave it is not known: advice
that depends on it says so, or names no gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.metrics.evidence import COMPUTES, Evidence
from pipeline.metrics.profile import Advice
from pipeline.metrics.stage import ASK, CROP, DETECT, POOLED, READ, STORE

# The highest values that are advised: vLLM's own default of max-num-seqs on large GPUs, and twice the detector's queue
# of a preset.
MOST_MODEL_CONCURRENCY = 256
MOST_DETECTOR_CONCURRENCY = 128
# The detector's default of DETECTOR_MAX_BATCH.
USUAL_BATCH = 8
# The job file's default of crop.max_side; most vision towers scale to 512 pixels or less.
USUAL_SIDE = 512

# KV cache in use above which more requests would be preempted, and below which there is room for more.
KV_FULL, KV_ROOM = 0.95, 0.7
# An address is slow when its answers take more than this many times as long as those of each other one.
SLOW = 3.0
# Fewer crops show no relation between size and time.
ENOUGH_CROPS = 30
# A slope counts when it is this many times as large as its own standard error.
SIGNIFICANT = 4.0


def power_of_two(value: float) -> int:
    """The smallest power of two that is not below the value."""
    power = 1
    while power < value:
        power *= 2
    return power


def concurrency(evidence: Evidence, name: str, setting: str, most: int) -> Advice | None:
    """More requests in flight, when all allowed ones were in use and the server had room."""
    stage = evidence.stages[name]
    if not evidence.worth(evidence.cost_s.get(name, 0.0)) or not evidence.full(name):
        return None
    now = stage.concurrency.limit
    wanted = now * evidence.cost_s[name] / max(evidence.floor_s(name), stage.latency_s.p50, 1e-3)
    to = min(power_of_two(min(wanted, stage.rows)), most)
    if to <= now:
        return None
    saved = evidence.saved_s(name, min(to, stage.rows) / now, stage.latency_s.p50)
    if not evidence.worth(saved):
        return None
    why = (
        f"{stage.concurrency.mean:.1f} of {now} requests were in flight and up to {stage.queue_peak} rows waited, at "
        f"{stage.latency_s.p50:.3g} s a request; the gain is for a server that answers more at once as fast"
    )
    return Advice(setting=setting, now=str(now), to=str(to), why=why, seconds_saved=saved)


def model_concurrency(evidence: Evidence) -> Advice | None:
    """SPOTTER_MODEL_CONCURRENCY, of all addresses together."""
    if evidence.server_full():
        return None
    most = MOST_MODEL_CONCURRENCY * max(len(evidence.servers.get("model server", ())), 1)
    return concurrency(evidence, ASK, "SPOTTER_MODEL_CONCURRENCY", most)


def slow_address(evidence: Evidence) -> Advice | None:
    """One address of several that takes far longer than the others."""
    for service, setting in (("model server", "SPOTTER_MODEL_URL"), ("detector", "SPOTTER_DETECTOR_URL")):
        means = {one["address"]: one["mean_latency_s"] for one in evidence.servers.get(service, ()) if one["answers"]}
        for address, mean_s in means.items():
            others = [each for name, each in means.items() if name != address]
            if others and mean_s > SLOW * max(others):
                why = f"it took {mean_s:.3g} s for an answer, the other addresses at most {max(others):.3g} s"
                return Advice(setting=setting, now=address, to="as fast as the others, or left out", why=why)
    return None


def detector_passes_one_by_one(evidence: Evidence) -> bool:
    """Whether the detector took images singly although several were there."""
    detector = evidence.services.get("detector", {})
    return detector.get("batch_size", 0.0) == 1.0 and evidence.stages[DETECT].concurrency.mean >= 2


def detector_concurrency(evidence: Evidence) -> Advice | None:
    """SPOTTER_DETECTOR_CONCURRENCY; no faster than the detector's model, which works on one batch at a time."""
    setting = "SPOTTER_DETECTOR_CONCURRENCY"
    if setting not in evidence.settings or detector_passes_one_by_one(evidence):
        return None  # the run asked no detector, or more requests would not help
    advice = concurrency(evidence, DETECT, setting, MOST_DETECTOR_CONCURRENCY)
    passes = evidence.services.get("detector", {}).get("pass_total_s", 0.0)
    if advice is None or advice.seconds_saved is None:
        return advice
    saved = min(advice.seconds_saved, max(evidence.cost_s[DETECT] - passes, 0.0))
    return advice.model_copy(update={"seconds_saved": saved}) if evidence.worth(saved) else None


def detector_batch(evidence: Evidence) -> Advice | None:
    """DETECTOR_MAX_BATCH, where images that wait together pass through the model one by one."""
    if not evidence.worth(evidence.cost_s.get(DETECT, 0.0)) or not detector_passes_one_by_one(evidence):
        return None
    in_flight = evidence.stages[DETECT].concurrency.mean
    detector = evidence.services["detector"]
    why = (
        f"{in_flight:.1f} images were at the detector at once, and each passed through its model alone, in "
        f"{detector.get('pass_s', 0.0):.3g} s"
    )
    saved: float | None = None
    if evidence.machine.gpus:
        why += f"; the gain is for a GPU that takes {USUAL_BATCH} images in the time of one, and so the most there is"
        saved = evidence.saved_s(DETECT, min(USUAL_BATCH, in_flight))
    else:
        why += "; on a GPU a batch takes little longer than one image, on a CPU nothing is gained"
    return Advice(setting="DETECTOR_MAX_BATCH", now="1", to=str(USUAL_BATCH), why=why, seconds_saved=saved)


@dataclass(frozen=True)
class Line:
    """A least-squares line."""

    slope: float
    error: float
    """The slope's standard error."""


def fit(points: Sequence[tuple[float, float]]) -> Line | None:
    """A line through points (x, y); None where all x are the same."""
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread <= 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Line(slope, (residual / (len(points) - 2) / spread) ** 0.5)


def crop_size(evidence: Evidence) -> Advice | None:
    """crop.max_side, where larger crops took the model longer."""
    asked = [(*step.size, step.ended - step.began) for step in evidence.steps if step.stage == ASK and step.size]
    now = int(evidence.settings["crop.max_side"] or 0)
    to = USUAL_SIDE if now > USUAL_SIDE else now // 2
    if not evidence.worth(evidence.cost_s.get(ASK, 0.0)) or len(asked) < ENOUGH_CROPS or evidence.server_full():
        return None
    line = fit([(width * height, seconds) for width, height, seconds in asked])
    if line is None or line.slope < SIGNIFICANT * line.error:
        return None
    pixels = fmean(width * height for width, height, _ in asked)
    spared = fmean(width * height * (1 - min(1.0, to / max(width, height)) ** 2) for width, height, _ in asked)
    took = fmean(seconds for *_, seconds in asked)
    factor = took / max(took - line.slope * spared, 0.05 * took)
    saved = evidence.saved_s(ASK, factor)
    if not evidence.worth(saved):
        return None
    why = (
        f"a crop's answer takes {line.slope * 1e6:.2g} s longer for each megapixel that is sent, and crops have "
        f"{pixels / 1e6:.2g} on average; see that the answers stay right"
    )
    return Advice(setting="crop.max_side", now=str(now), to=str(to), why=why, seconds_saved=saved)


def running_sequences(evidence: Evidence) -> Advice | None:
    """max-num-seqs, when the model server holds requests back although its cache has room."""
    model = evidence.services.get("model", {})
    if not evidence.worth(evidence.cost_s.get(ASK, 0.0)) or not evidence.server_full():
        return None
    if model.get("kv_cache_peak", 1.0) > KV_ROOM:
        return None
    running = round(model.get("running_peak", 0))
    why = (
        f"the model server ran at most {running} requests while {model['waiting_mean']:.0f} waited on average, with "
        f"{model['kv_cache_peak']:.0%} of its KV cache in use; on a GPU more run at once at little cost, on a CPU not"
    )
    return Advice(setting="max-num-seqs", now=str(running), to=str(power_of_two(running + 1)), why=why)


def kv_cache(evidence: Evidence) -> Advice | None:
    """gpu-memory-utilization, when the KV cache is full."""
    model = evidence.services.get("model", {})
    if model.get("preemptions", 0.0) == 0 and model.get("kv_cache_peak", 0.0) < KV_FULL:
        return None
    why = (
        f"the KV cache was {model.get('kv_cache_peak', 0.0):.0%} full and {model.get('preemptions', 0.0):.0f} answers "
        "were thrown out and begun again: more memory for it, a smaller max-model-len, or fewer max-num-seqs"
    )
    return Advice(setting="gpu-memory-utilization", now="the preset's", to="more, if the GPU has it", why=why)


def prefill_room(evidence: Evidence) -> Advice | None:
    """max-num-batched-tokens, where reading the questions takes longer than writing the answers."""
    model = evidence.services.get("model", {})
    prefill, decode = model.get("prefill_s", 0.0), model.get("decode_s", 0.0)
    if not evidence.worth(evidence.cost_s.get(ASK, 0.0)) or prefill <= decode or not evidence.server_full():
        return None
    why = (
        f"a request spends {prefill:.3g} s on its question and picture and {decode:.3g} s on its answer, while others "
        "wait: more tokens in a step let more pictures in at once, at the price of GPU memory"
    )
    return Advice(setting="max-num-batched-tokens", now="the preset's", to="twice as many", why=why)


def image_cache(evidence: Evidence) -> Advice | None:
    """mm-processor-cache-gb, when no picture was found in the cache."""
    model = evidence.services.get("model", {})
    if model.get("image_cache_hit_rate", 1.0) > 0 or model.get("requests", 0.0) < ENOUGH_CROPS:
        return None
    why = "none of the pictures was in the server's cache, as each is asked about once: it only takes memory"
    return Advice(setting="mm-processor-cache-gb", now="on", to="0", why=why)


def prefix_cache(evidence: Evidence) -> Advice | None:
    """enable-prefix-caching, when no prefix was found: the image comes before the text, and each image is new."""
    model = evidence.services.get("model", {})
    if model.get("prefix_cache_hit_rate", 1.0) > 0 or model.get("requests", 0.0) < ENOUGH_CROPS:
        return None
    why = "no request began like an earlier one; hashing their prefixes is a small cost for nothing"
    return Advice(setting="enable-prefix-caching", now="true", to="false", why=why)


def answer_length(evidence: Evidence) -> Advice | None:
    """max_tokens, where answers were cut: each cost its whole time and is a failed row."""
    cut = evidence.services.get("model", {}).get("cut_at_max_tokens", 0.0)
    if not cut:
        return None
    now = evidence.settings["max_tokens"]
    why = f"{cut:.0f} answers ran into it and failed: raise it, or bound the schema's strings with maxLength or enum"
    return Advice(setting="max_tokens", now=str(now), to=str(2 * int(now or 0)), why=why)


def cores(evidence: Evidence) -> Advice | None:
    """More cores or smaller pictures, where decoding and cutting keep all busy; or a faster place for the files."""
    cost = {name: evidence.cost_s.get(name, 0.0) for name in POOLED}
    if not evidence.worth(sum(cost.values())) or evidence.crowded():
        return None
    name = max(cost, key=lambda it: cost[it])
    stage, cpus = evidence.stages[name], evidence.machine.cpus
    computing = (stage.cpu_s or 0.0) / max(stage.work_s, 1e-9)
    if computing >= COMPUTES:
        after = max(evidence.flow_s - sum(cost.values()) / 2, evidence.floor_s(name, 2 * cpus))
        what = {READ: "decoding", CROP: "cutting and encoding crops", STORE: "writing crops"}[name]
        kilobytes = stage.bytes_in / max(stage.rows, 1) / 1000
        why = (
            f"{what} took {stage.cpu_s:.1f} s of CPU on {cpus} cores, for {stage.rows} rows of {kilobytes:,.0f} kB; "
            "images of half the width and height take a quarter of it"
        )
        return Advice(
            setting="CPU cores", now=str(cpus), to=str(2 * cpus), why=why, seconds_saved=evidence.flow_s - after
        )
    setting = "SPOTTER_OUTPUT" if name == STORE else "SPOTTER_IMAGES"
    why = (
        f"{name} kept {stage.concurrency.mean:.1f} threads waiting, computing only {computing:.0%} of the time: the "
        "files come from, or go to, a slow disk or network"
    )
    return Advice(setting=setting, now="where it is", to="a local disk", why=why)


def crowded_host(evidence: Evidence) -> Advice | None:
    """More cores, or services elsewhere, where the host's cores are taken by others than the pipeline."""
    if not evidence.crowded() or not evidence.worth(evidence.flow_s):
        return None
    cpus = evidence.machine.cpus
    why = (
        f"all programs took {evidence.host_cpu:.1f} of {cpus} cores and the pipeline {evidence.pipeline_cpu:.1f}: the "
        "rest went to services on this host, or to other programs"
    )
    return Advice(setting="CPU cores", now=str(cpus), to=f"more than {cpus}, or services on another host", why=why)


def once_per_run(evidence: Evidence) -> Advice | None:
    """More images in a run, when the work that is done once takes most of it."""
    outside = evidence.wall_s - evidence.flow_s
    if outside < 0.5 * evidence.wall_s or not evidence.cost_s:
        return None
    why = (
        f"{outside:.1f} of {evidence.wall_s:.1f} s go to what a run does once, and {evidence.flow_s:.1f} s to its "
        "images: give it more of them at once"
    )
    return Advice(setting="SPOTTER_IMAGES", now=f"{evidence.stages[READ].rows} images", to="more in one run", why=why)


RULES: tuple[Callable[[Evidence], Advice | None], ...] = (
    model_concurrency,
    slow_address,
    detector_concurrency,
    detector_batch,
    crop_size,
    running_sequences,
    kv_cache,
    prefill_room,
    cores,
    crowded_host,
    answer_length,
    once_per_run,
    image_cache,
    prefix_cache,
)


def advise(evidence: Evidence) -> list[Advice]:
    """The advice that applies: the largest saving first, then those without a figure."""

    def applying() -> Iterator[Advice]:
        for rule in RULES:
            if (advice := rule(evidence)) is not None:
                yield advice

    return sorted(applying(), key=lambda advice: -(advice.seconds_saved or 0.0))
