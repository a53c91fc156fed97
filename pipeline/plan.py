"""What a run is about to do: its images, its services and its folder, found before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.clients.finders import Given, given, stored
from pipeline.clients.probe import Services, probe
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.metrics import profiler
from pipeline.output import run_folder
from pipeline.output.evaluation import Truth, read_truth
from pipeline.output.manifest import folder_of, identify, why_new
from pipeline.output.publish import Publication
from pipeline.runtime import display
from pipeline.runtime.open_files import allow_open_files
from pipeline.runtime.terminal import say
from pipeline.settings import Settings
from pipeline.sources.earlier_run import AskedAgain
from pipeline.sources.inputs import InputColumns, example
from pipeline.sources.listing import Listing, Source, list_images
from pipeline.sources.objects import Objects
from pipeline.sources.shards import share, taken_of
from pipeline.tables import confidence_columns


@dataclass(frozen=True)
class Plan:
    """One run, before its first question."""

    settings: Settings
    job: Job
    listing: Listing
    sources: list[Source]
    """Of the listing those that this run is about: all of them, a trial's or a shard's."""
    earlier: AskedAgain | None
    given: Given | None
    truth: Truth | None
    services: Services
    identity: dict[str, Any]
    folder: Path
    publication: Publication | None

    def heading(self, done: int) -> str:
        """What the run does, in a line; `done`: images that have ended before."""
        images = taken_of(self.settings, len(self.sources), len(self.listing.sources))
        boxes = self.given.name if self.given else f"detector {self.services.detector}"
        text = f"{self.job.name}: {images}, {boxes}, model {self.services.model}"
        return f"{text}; {done} are done already" if done else text


def make_plan(settings: Settings, objects: Objects, console: Console, phase: Callable[[str], None]) -> Plan:
    """List the images, ask both services one question, and find the run's folder; `phase` hears what begins.

    Raises:
        UsageError: invalid input.
    """
    allow_open_files(settings.detector_concurrency + settings.model_concurrency)
    phase(profiler.LIST)
    job = load_job(settings.job)
    earlier = run_folder.earlier_run(settings, job)
    boxes: Given | None
    if earlier:
        listing, boxes = earlier.listing(), stored(earlier, job)
    else:
        with display.waiting(console, f"listing {settings.images}"):
            listing = list_images(settings.images, settings.column, objects, InputColumns.of(job), settings.every)
        boxes = given(settings, job, listing.sources, objects)
    sources = share(listing, settings)
    for line in filter(None, (listing.videos(), listing.summary(), *(boxes.notes if boxes else ()))):
        say(console, line)
    paths = [source.shown for source in listing.sources]
    truth = read_truth(settings.truth, job, paths, objects) if settings.truth else None
    phase(profiler.PROBE)
    services = ask_services(settings, job, sources, boxes, console)
    settings = services.reached(settings)
    phase(profiler.PREPARE)
    identity = identify(settings, job, services, earlier)
    folder = folder_of(settings, job, identity, earlier)
    publication = None
    if settings.published:
        publication = Publication(folder, f"{settings.published}/{folder.name}", objects)
    with suppress(OSError):  # a name that is too long: opening the folder says so
        if why := why_new(folder, identity, job):
            say(console, why)
    return Plan(settings, job, listing, sources, earlier, boxes, truth, services, identity, folder, publication)


def ask_services(
    settings: Settings, job: Job, sources: list[Source], boxes: Given | None, console: Console
) -> Services:
    """Ask the services one question, and say what a person should know of their answers.

    Raises:
        UsageError: a service does not answer, or not as it should.
    """
    asking = f"asking {'the model server' if boxes else 'both services'} one question"
    with display.waiting(console, asking):
        services = probe(settings, job, example(source.inputs for source in sources), boxes)
    for line in services.left_out:
        say(console, line)
    if why := services.form_reason:
        say(console, f"model server: {services.form.said()}, since it refuses the usual form: {why}")
    if settings.confidence == "auto" and confidence_columns(job.properties) and not services.form.logprobs:
        say(console, "model server: it gives no logprobs: the columns of confidences stay empty")
    return services
