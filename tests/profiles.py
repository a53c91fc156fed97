"""Profiles as the pipeline writes them, made of arithmetic: a run whose model is slow, or what a test makes of it."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.metrics.profile import (
    FILE,
    Advice,
    Concurrency,
    Diagnosis,
    Machine,
    Percentiles,
    Phase,
    Profile,
    Samples,
    Span,
    Stage,
)

NASTY = 'a"sk`<script>alert(1)</script>|#;&[x](y)\n--> é%%{init}%% end'
"""A stage's name that would be markup in each of the formats that a profile is shown in."""

# Name, rows, limit, seconds a row, bytes in and out of a row. Together they are busy one after another and at once.
STAGES = (
    ("read", 120, 2, 0.012, 180_000, 210_000),
    ("detect", 120, 16, 0.150, 30_000, 600),
    ("crop", 118, 2, 0.009, 180_000, 24_000),
    ("ask", 360, 8, 0.220, 8_000, 120),
    ("store", 360, 2, 0.0006, 8_000, 8_000),
    ("collect", 360, 1, 0.0002, 500, 0),
)


def spans_of(stage: str, rows: int, limit: int, row_s: float, begin: float) -> list[Span]:
    """Rows of a stage that keep all its slots busy, one after another; a row's time varies by a quarter."""
    free = [begin] * limit
    made = []
    for row in range(rows):
        slot = min(range(limit), key=free.__getitem__)
        start, length = free[slot], row_s * (1 + 0.25 * math.sin(row * 1.7))
        free[slot] = start + length
        made.append(
            Span(
                stage=stage,
                row=f"park-{row:03}.jpg",
                start_s=start,
                end_s=start + length,
                waited_s=max(start - begin, 0),
            )
        )
    return made


def at_work(spans: list[Span], moment: float) -> int:
    """How many of these spans hold a moment."""
    return sum(span.start_s <= moment < span.end_s for span in spans)


def make_profile(
    run: str = "dog_breeds-profile-1",
    *,
    model_slots: int = 8,
    bottleneck: str = "ask",
    samples_per_s: float = 10.0,
    gpu: bool = False,
    names: dict[str, str] | None = None,
) -> Profile:
    """A run of 120 pictures whose model is the bottleneck; `model_slots` more of them, a shorter run.

    `names` calls stages otherwise, throughout the profile.
    """
    called = {name: (names or {}).get(name, name) for name, *_ in STAGES}
    slots = {name: model_slots if name == "ask" else limit for name, _, limit, *_ in STAGES}
    begins = {"read": 0.35, "detect": 0.4, "crop": 0.6, "ask": 0.7, "store": 0.95, "collect": 0.96}
    spans = {name: spans_of(name, rows, slots[name], row_s, begins[name]) for name, rows, _, row_s, *_ in STAGES}
    flow_end = max(span.end_s for each in spans.values() for span in each) + 0.05
    wall = flow_end + 0.4
    stages = []
    for name, rows, _, _, bytes_in, bytes_out in STAGES:
        mine = spans[name]
        lengths = sorted(span.end_s - span.start_s for span in mine)
        first, last = min(span.start_s for span in mine), max(span.end_s for span in mine)
        work = sum(lengths)
        stages.append(
            Stage(
                name=called[name],
                rows=rows,
                failed=2 if name == "read" else 0,
                first_s=first,
                last_s=last,
                busy_s=last - first,
                work_s=work,
                waiting_s=sum(span.waited_s for span in mine),
                queue_peak=max(rows - slots[name], 0),
                concurrency=Concurrency(limit=slots[name], mean=work / (last - first), peak=slots[name]),
                latency_s=Percentiles(
                    p50=lengths[len(lengths) // 2],
                    p90=lengths[int(len(lengths) * 0.9)],
                    p99=lengths[int(len(lengths) * 0.99)],
                    max=lengths[-1],
                ),
                bytes_in=rows * bytes_in,
                bytes_out=rows * bytes_out,
                prompt_tokens=rows * 74 if name == "ask" else 0,
                completion_tokens=rows * 31 if name == "ask" else 0,
                cpu_s=work * 0.9 if name in ("read", "crop", "store", "collect") else None,
            )
        )
    moments = [step / samples_per_s for step in range(int(wall * samples_per_s) + 1)]
    series: dict[str, list[float | None]] = {}
    for name, mine in spans.items():
        series[f"{called[name]}.working"] = [at_work(mine, moment) for moment in moments]
        series[f"{called[name]}.waiting"] = [
            sum(span.start_s - span.waited_s <= moment < span.start_s for span in mine) for moment in moments
        ]
    asking = [at_work(spans["ask"], moment) for moment in moments]
    series["pipeline.cpu"] = [0.15 + 0.9 * at_work(spans["read"], moment) / 2 for moment in moments]
    series["host.cpu"] = [
        min(4.0, 0.4 + 0.9 * at_work(spans["read"], moment) / 2 + 2.4 * (asked > 0))
        for moment, asked in zip(moments, asking, strict=True)
    ]
    series["pipeline.memory_bytes"] = [3.1e8 + 1.2e8 * min(moment / flow_end, 1.0) for moment in moments]
    series["host.memory_bytes"] = [5.2e9 + 2e8 * min(moment / flow_end, 1.0) for moment in moments]
    series["model.running"] = [
        None if moment < 0.3 else min(asked, 64) for moment, asked in zip(moments, asking, strict=True)
    ]
    series["model.waiting"] = [
        None if moment < 0.3 else max(asked - 64, 0) for moment, asked in zip(moments, asking, strict=True)
    ]
    series["model.kv_cache"] = [
        None if moment < 0.3 else asked / 400 for moment, asked in zip(moments, asking, strict=True)
    ]
    series["detector.waiting"] = [max(at_work(spans["detect"], moment) - 8, 0) for moment in moments]
    if gpu:
        series["gpu.utilisation"] = [0.9 if asked else 0.02 for asked in asking]
        series["gpu.memory_bytes"] = [1.8e10 for _ in moments]
    cost = {
        "list": 0.05,
        "probe": 0.3,
        called["read"]: 0.05,
        called["detect"]: 0.3,
        called["ask"]: flow_end - 0.35 - 0.35,
        "write": 0.1,
        "report": 0.28,
    }
    return Profile(
        run=run,
        started="2026-03-01T12:00:00+00:00",
        wall_s=wall,
        machine=Machine(cpus=4, memory_bytes=24 * 2**30, gpus=["NVIDIA L4"] if gpu else []),
        settings={
            "SPOTTER_MODEL_CONCURRENCY": model_slots,
            "SPOTTER_DETECTOR_CONCURRENCY": 16,
            "crop.max_side": 512,
            "model": "tiny-vlm",
        },
        phases=[
            Phase(name="list", start_s=0.0, end_s=0.05),
            Phase(name="probe", start_s=0.05, end_s=0.35),
            Phase(name="flow", start_s=0.35, end_s=flow_end),
            Phase(name="write", start_s=flow_end, end_s=flow_end + 0.1),
            Phase(name="report", start_s=flow_end + 0.1, end_s=wall),
        ],
        stages=stages,
        services={
            "model": {"time_to_first_token_s": 0.084, "tokens_per_s": 1120.0, "prefix_cache_hits": 0.31},
            "detector": {"batch_size_mean": 3.7, "preprocess_s": 0.0061},
        },
        samples=Samples(t_s=moments, series=series),
        spans=sorted(
            (span.model_copy(update={"stage": called[name]}) for name, each in spans.items() for span in each),
            key=lambda span: span.start_s,
        ),
        diagnosis=Diagnosis(
            bottleneck=called.get(bottleneck, bottleneck),
            cost_s=cost,
            explained=sum(cost.values()) / wall,
            evidence=[
                f"{model_slots} of {model_slots} slots were in use for 97% of the time it had rows",
                f"up to {360 - model_slots} rows waited for a free slot",
                "the model server ran no more requests than it was sent, and none of them waited",
            ],
            advice=[
                Advice(
                    setting="SPOTTER_MODEL_CONCURRENCY",
                    now=str(model_slots),
                    to="32",
                    why="rows wait for a slot while the model server has room",
                    seconds_saved=(flow_end - 0.7) * (1 - model_slots / 32) if model_slots < 32 else None,
                ),
                Advice(setting="crop.max_side", now="512", to="336", why="a crop costs 74 prompt tokens"),
            ],
        ),
    )


def write_profile(folder: Path, profile: Profile) -> Path:
    """Leave a profile in a run's folder, as the pipeline does; the folder."""
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(profile.model_dump_json())
    return folder
