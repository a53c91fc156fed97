"""What a run's profile says: the shape of `profile/profile.json`.

The pipeline measures and writes it at the end of each run; `make profile` reads it to show tables, pages and a trace.
All times are seconds since the run began, unless a name says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FILE = Path("profile", "profile.json")


class Shape(BaseModel):
    """A part of the profile; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Phase(Shape):
    """One part of the run's wall time; phases follow each other without overlap.

    list (images), probe (services), prepare (folder, what is done already), start (of the flow, until its first row),
    flow, write (tables), finish (the services' last word), report.
    """

    name: str
    start_s: float
    end_s: float


class Percentiles(Shape):
    """Of a stage's rows, in seconds."""

    p50: float
    p90: float
    p99: float
    max: float


class Concurrency(Shape):
    """Rows of a stage that are worked on at once."""

    limit: int
    """What the settings allow: requests in flight, or threads."""
    mean: float
    """Over the time in which at least one row was worked on."""
    peak: int
    allowed: float | None = None
    """How many of these the service had room for, mean over that time; None where that is not known."""

    @property
    def room(self) -> float:
        """How many rows could be worked on at once."""
        return self.limit if self.allowed is None else self.allowed


class Stage(Shape):
    """What one stage did: read, detect, crop, ask, store, or collect (rows into tables, on the main thread)."""

    name: str
    rows: int
    failed: int
    first_s: float
    last_s: float
    busy_s: float
    """Wall time in which at least one row was worked on."""
    work_s: float
    """Row-seconds of work: each row's own time, summed."""
    waiting_s: float
    """Row-seconds between a row's arrival at the stage and its work: for a free slot, or for a retry's time."""
    queue_peak: int
    """Most rows that had arrived and were not worked on, of the moments at which the sampler looked."""
    concurrency: Concurrency
    latency_s: Percentiles
    """Of the work alone: a request's time at its service, without waiting for a slot; each try of one that failed."""
    bytes_in: int
    bytes_out: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cpu_s: float | None = None
    """CPU time of the stage's own threads while it worked; None for stages that wait, for a service or the disk."""


class WorkerProfile(Shape):
    """What one worker of a cluster did; a worker that died is in it too."""

    name: str
    node: str
    images: int
    """Images that ended there."""
    cpu_s: float
    memory_bytes: int
    """The most that its process held."""
    stages: list[Stage]


class Samples(Shape):
    """Measured at the same moments, some times a second: `series[name][i]` belongs to `t_s[i]`.

    Names are `<who>.<what>`: `read.working`, `ask.waiting` (rows of a stage), `pipeline.cpu` (cores),
    `pipeline.memory_bytes`, `host.cpu` (cores), `host.memory_bytes`, `gpu.utilisation` (0 to 1), `gpu.memory_bytes`,
    `model.running`, `model.waiting`, `model.kv_cache` (0 to 1), `detector.waiting`. None where nothing was measured.
    """

    t_s: list[float]
    series: dict[str, list[float | None]]

    def mean(self, name: str) -> float | None:
        """The mean of a series; None where nothing was measured."""
        known = [value for value in self.series.get(name, []) if value is not None]
        return sum(known) / len(known) if known else None


class Span(Shape):
    """One row's work in a stage, for the trace, which holds an even sample of the rows."""

    stage: str
    row: str
    start_s: float
    end_s: float
    waited_s: float = 0.0


class Advice(Shape):
    """What to change, and the effect to expect."""

    setting: str
    """A variable of .env.example or a key of a preset or job file."""
    now: str
    to: str
    why: str
    seconds_saved: float | None = None
    """What the run's wall time is expected to lose; None where it cannot be said."""


class Diagnosis(Shape):
    """Where the wall time went, and what to do about it."""

    bottleneck: str
    """A stage's or a phase's name."""
    cost_s: dict[str, float]
    """Wall time attributed to each stage or phase; the sum is the wall time that is explained."""
    explained: float
    """Share of the wall time that cost_s explains, 0 to 1."""
    evidence: list[str]
    advice: list[Advice]


class Machine(Shape):
    """Where the run took place."""

    cpus: int
    memory_bytes: int
    gpus: list[str] = Field(default_factory=list)


class Profile(Shape):
    """A run's profile."""

    run: str
    started: str
    """ISO 8601, UTC."""
    wall_s: float
    machine: Machine
    settings: dict[str, str | int | float | bool | None]
    """Those that tuning advice can name."""
    phases: list[Phase]
    stages: list[Stage]
    workers: list[WorkerProfile] = Field(default_factory=list)
    """Of a run on a cluster; `stages` has the work of all of them."""
    services: dict[str, dict[str, float]] = Field(default_factory=dict)
    """What the services' own metrics changed over the run, by service and metric: time to first token, tokens per
    second, cache hits, batch sizes ... in the units that the names say."""
    addresses: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    """The same of each address, by service and address, of services that have several."""
    samples: Samples
    spans: list[Span] = Field(default_factory=list)
    diagnosis: Diagnosis

    @classmethod
    def of(cls, folder: Path) -> Profile:
        """The profile in a run's folder.

        Raises:
            OSError: the folder has no profile.
            ValueError: the profile is of another version.
        """
        return cls.model_validate_json((folder / FILE).read_bytes())
