"""What a profile means: the bottleneck, what each part of the run cost, the evidence, and what to do about it."""

from __future__ import annotations

from pipeline.metrics.advice import advise
from pipeline.metrics.evidence import BUSY_HOST, Evidence
from pipeline.metrics.profile import Diagnosis
from pipeline.metrics.stage import ASK, COLLECT, DETECT, POOLED, STAGES


def diagnose(evidence: Evidence) -> Diagnosis:
    """Read a run's evidence; the bottleneck is what the most wall time is lost to."""
    cost = {name: seconds for name, seconds in evidence.cost_s.items() if seconds > 0}
    bottleneck = max(cost, key=lambda name: cost[name], default="flow")
    return Diagnosis(
        bottleneck=bottleneck,
        cost_s=cost,
        explained=min(sum(cost.values()) / evidence.wall_s, 1.0) if evidence.wall_s else 0.0,
        evidence=list(reasons(evidence, bottleneck)),
        advice=advise(evidence),
    )


def reasons(evidence: Evidence, bottleneck: str) -> list[str]:
    """Why this is the bottleneck: one sentence each."""
    cost = evidence.cost_s.get(bottleneck, 0.0)
    share = cost / evidence.wall_s if evidence.wall_s else 0.0
    said = [f"{bottleneck} is to blame for {cost:.1f} of {evidence.wall_s:.1f} s ({share:.0%})"]
    if bottleneck not in STAGES:
        return [*said, "this is done once in a run, before or after its images"]
    stage = evidence.stages[bottleneck]
    what = "rows" if bottleneck in (*POOLED, COLLECT) else "requests"
    limit = f"{stage.concurrency.limit} threads" if bottleneck in POOLED else f"{stage.concurrency.limit} allowed"
    said.append(
        f"it worked on {stage.concurrency.mean:.1f} {what} at once ({limit}), {stage.latency_s.p50:.3g} s each, while "
        f"up to {stage.queue_peak} rows waited before it"
    )
    after = STAGES[STAGES.index(bottleneck) + 1 :]
    pooled = POOLED if bottleneck in POOLED else ()  # they share their threads, and so their figure
    starved = [
        name
        for name in after
        if evidence.stages[name].rows and name not in pooled and evidence.needs_s(name) < evidence.needs_s(bottleneck)
    ]
    if starved:
        loads = ", ".join(f"{name} {evidence.needs_s(name):.1f} s" for name in starved)
        said.append(f"the stages after it need less time at their limits: {loads}")
    if bottleneck in POOLED and stage.cpu_s is not None and stage.work_s:
        said.append(f"it computed for {stage.cpu_s / stage.work_s:.0%} of the time that it held a thread")
    if bottleneck == ASK and "running_mean" in (model := evidence.services.get("model", {})):
        said.append(
            f"the model server ran {model.get('running_mean', 0):.1f} requests at once and let "
            f"{model.get('waiting_mean', 0):.1f} wait"
        )
    if bottleneck == DETECT and (detector := evidence.services.get("detector")) and "batch_size" in detector:
        said.append(
            f"the detector took {detector['batch_size']:.1f} images in a pass of {detector.get('pass_s', 0):.3g} s"
        )
    if evidence.host_cpu > BUSY_HOST * evidence.machine.cpus:
        said.append(
            f"the host was busy: the pipeline took {evidence.pipeline_cpu:.1f} of {evidence.machine.cpus} cores, all "
            f"programs {evidence.host_cpu:.1f}"
        )
    return said
