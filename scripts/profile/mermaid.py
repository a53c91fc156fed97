"""The stages of a run as a Mermaid flowchart: rows and times on the nodes, the data between them on the edges."""

from __future__ import annotations

import itertools
import re

from pipeline.metrics.profile import Profile, Stage
from scripts.profile.units import number, seconds, share, size

# Colours that are readable on a light and on a dark page.
CLASSES = (
    "classDef stage fill:#dbe9f6,stroke:#4a7fb0,color:#10202e",
    "classDef bottleneck fill:#f9d5ce,stroke:#c0392b,stroke-width:3px,color:#2e1210",
    "classDef service fill:#ececec,stroke:#888888,color:#222222",
)

# The service that a stage asks.
SERVICE_OF = {"detect": "detector", "ask": "model"}


def label(text: str) -> str:
    """Text that is shown unchanged: characters of markup, Mermaid's or HTML's, become character numbers."""
    plain = " ".join(text.split())
    return re.sub(r"[^\w .,:/()+*=-]", lambda found: f"#{ord(found[0])};", plain, flags=re.ASCII)


def node(name: str, lines: list[str], kind: str) -> str:
    """A box with a title, and lines under it."""
    return f'    {name}["{"<br/>".join(label(line) for line in lines)}"]:::{kind}'


def stage_lines(stage: Stage, profile: Profile) -> list[str]:
    """The lines in a stage's box."""
    cost = profile.diagnosis.cost_s.get(stage.name, 0.0)
    concurrency = stage.concurrency
    return [
        stage.name,
        f"{number(stage.rows)} rows" + (f", {stage.failed} failed" if stage.failed else ""),
        f"busy {seconds(stage.busy_s)}",
        f"p50 {seconds(stage.latency_s.p50)}",
        f"at once {concurrency.mean:.1f} of {concurrency.limit}",
        f"costs {seconds(cost)} ({share(cost, profile.wall_s)})",
    ]


def flowchart(profile: Profile) -> str:
    """The diagram's text, without a fence."""
    lines = ["flowchart LR"]
    stages = profile.stages
    for place, stage in enumerate(stages):
        kind = "bottleneck" if stage.name == profile.diagnosis.bottleneck else "stage"
        lines.append(node(f"s{place}", stage_lines(stage, profile), kind))
    for place, (stage, following) in enumerate(itertools.pairwise(stages)):
        passed = f"{number(following.rows)} rows, {size(stage.bytes_out)}"
        lines.append(f'    s{place} -->|"{label(passed)}"| s{place + 1}')
    for place, stage in enumerate(stages):
        service = SERVICE_OF.get(stage.name)
        if service in profile.services:
            lines.append(node(service, [service], "service"))
            waited = f"{number(stage.rows)} requests, p99 {seconds(stage.latency_s.p99)}"
            lines.append(f'    s{place} <-.->|"{label(waited)}"| {service}')
    return "\n".join([*lines, *(f"    {line}" for line in CLASSES)])
