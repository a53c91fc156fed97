"""One run of a job, after its plan: wire, execute, commit, report, publish."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from pipeline import runners
from pipeline.clients.address import add_served
from pipeline.errors import RunStopped
from pipeline.flow import Work
from pipeline.metrics import daft_plan, profiler
from pipeline.metrics.profiler import Profiler
from pipeline.output import resume, run_folder
from pipeline.output.annotate import copies_in
from pipeline.output.breakdown import explain, one_line
from pipeline.output.collector import Collector
from pipeline.output.estimate import after_trial
from pipeline.output.evaluation import write_evaluation
from pipeline.output.formats import FORMATS
from pipeline.output.manifest import Result, begun, ended, finished, lost
from pipeline.output.parts import Parts
from pipeline.output.report import Pictures, draw_copies, write_report
from pipeline.output.run_log import run_log
from pipeline.plan import Plan, make_plan
from pipeline.runners.runner import Runner
from pipeline.runtime import display, library_messages
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.display import Display
from pipeline.runtime.interrupts import INTERRUPTED, OneInterrupt
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.runtime.progress import Progress
from pipeline.runtime.runtime import Runtime
from pipeline.runtime.stream import Stream
from pipeline.runtime.terminal import say
from pipeline.runtime.watchdog import TICK_S, Watchdog
from pipeline.settings import Settings
from pipeline.sources import shards
from pipeline.sources.earlier_run import unchanged
from pipeline.sources.objects import Objects
from pipeline.sources.reader import Reader

log = logging.getLogger(__name__)


def run(settings: Settings, console: Console, *, measure: bool = True) -> Result:
    """Run the settings' job over their images, or continue such a run.

    Ctrl-C, SIGTERM, a service that stays away, a full disk or an unexpected error end it early; what was done until
    then is kept, and the next call does the rest. `measure`: write a profile.

    Raises:
        UsageError: invalid input; nothing was asked of any image yet.
        RunStopped: the folder cannot be written any more, or something broke before or after the rows.
    """
    measuring, objects = Profiler(enabled=measure), Objects(settings.endpoint)
    this = JobRun(make_plan(settings, objects, console, measuring.phase), console, measuring, Reader(objects))
    with this.opened():
        this.wire()
        with this.watchdog:
            with this.interrupt:
                this.execute()
                this.commit()
            this.report()
            this.publish()
    return Result(this.folder, this.manifest)


class JobRun:
    """One run; its methods are its steps, in this order."""

    runtime: Runtime
    runner: Runner
    resume_plan: resume.ResumePlan
    collector: Collector
    watchdog: Watchdog
    interrupt: OneInterrupt
    manifest: dict[str, Any]
    tables: dict[str, pa.Table]

    def __init__(self, plan: Plan, console: Console, profiler: Profiler, reader: Reader) -> None:
        self.plan = plan
        self.settings, self.job, self.folder = plan.settings, plan.job, plan.folder
        self.sources, self.publication = plan.sources, plan.publication
        self.console = console
        self.profiler = profiler
        self.reader = reader

    def say(self, text: str) -> None:
        """Print a line as it is."""
        say(self.console, text)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the run's folder and write its log until the block ends; an unexpected error becomes one line.

        Raises:
            UsageError: the folder cannot be used.
            RunStopped: something broke in the block.
        """
        settings = self.settings
        opening = f"removing the run in {self.folder}" if settings.force else f"opening {self.folder}"
        with ExitStack() as stack:
            with display.waiting(self.console, opening):
                stack.enter_context(
                    run_folder.open_run_folder(self.folder, self.plan.identity, settings.force, self._fetch_published)
                )
            stack.enter_context(run_log(self.folder, settings.log_level, settings.api_key))
            stack.enter_context(one_line(self.folder))
            yield

    def _fetch_published(self) -> None:
        if self.publication and (said := self.publication.fetch(self.settings.force)):
            self.say(said)

    def wire(self) -> None:
        """Make all that the flow needs, and write down that the run has begun."""
        settings, plan = self.settings, self.plan
        self.began, self.clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        parts = Parts(self.folder, self.job.properties)
        self.resume_plan = resume.plan(parts, self.sources, retry_failed=settings.retry_failed)
        todo, done = len(self.resume_plan.sources), len(self.sources) - len(self.resume_plan.sources)
        self.say(plan.heading(done))
        log.info("run %s: %d images, %d done before", self.folder.name, len(self.sources), done)
        log.info("settings: %s", json.dumps(settings.public()))
        log.info("services: %s", plan.services)
        self.manifest = begun(self.folder, self.began, plan.identity, settings, self.job, plan.services)
        self.manifest |= {"left_out": plan.listing.left_out.rows, **shards.described(plan.listing, settings)}
        if settings.trial:
            self.manifest["trial"] = {"images": settings.trial, "of": len(plan.listing.sources)}
        cancellation = CancellationToken()
        limits = (settings.detector_concurrency, settings.model_concurrency)
        metrics = self.profiler.measure(profiler.tunable(settings, self.job, detector=plan.given is None), limits)
        self.runtime = Runtime(MemoryBudget(settings.bytes_in_flight, cancellation), cancellation, metrics)
        answers = self.resume_plan.answers
        work = Work(settings, self.job, plan.services, plan.given, self.folder, answers)
        self.runner = runners.start(settings.runner, work, self.resume_plan, self.reader, self.runtime)
        run_folder.write_manifest(self.folder, self.manifest)
        if self.publication:
            self.publication.begin()
        self.profiler.workers = self.runner.workers
        if self.profiler.enabled:
            for name, server in self.runner.load.servers.items():
                server.listeners.append(self.profiler.servers[name].add)
                for page in server.pages if len(server.pages) > 1 else ():
                    page.listeners.append(self.profiler.heard(name, page.base_url))
        self.collector = Collector(parts, Progress(total=todo), self.runtime)
        self.watchdog = Watchdog(
            self.folder / run_folder.STALL,
            settings.stall_limit_s,
            cancellation,
            self.runner.waiting_for,
            self.runner.tasks,
        )
        self.interrupt = OneInterrupt(cancellation)

    def execute(self) -> None:
        """Let the rows flow and collect them, until there are no more or the run is cancelled."""
        if not self.resume_plan.sources:
            self.profiler.phase(profiler.WRITE)
            return
        self.profiler.phase(profiler.START)
        self.runner.load.start()
        runner = self.runner
        self.profiler.flow_begins(len(self.resume_plan.sources), runner.allowed, runner.clock, runner.usage)
        try:
            with (
                display.live(self.console, self.collector.progress) as shown,
                daft_plan.recorded(self.folder, self.settings.profile),
                library_messages.logged(),
            ):
                self._collect(Stream(self.runner.rows()), shown)
        except Exception as error:
            self.runtime.cancellation.cancel(explain(error, self.folder))
        if reason := self.runtime.cancellation.reason:
            log.warning("the run ends: %s", reason)
        self.profiler.flow_ended()

    def _collect(self, stream: Stream, shown: Display) -> None:
        """Take rows until there are no more or the run is cancelled.

        Raises:
            FlowFailed: there are no more, because of an error.
            OSError: a part cannot be written.
        """
        progress, cancellation = self.collector.progress, self.runtime.cancellation
        while cancellation.reason is None:
            try:
                row = stream.take(TICK_S)
            except StopIteration:
                return
            held_up = self.runner.held_up()
            if cancellation.reason is not None:
                return  # a row after the cancellation is not counted: the next run does it
            if row is not None:
                self.collector.add(row)
                self.watchdog.moved()
            elif held_up:
                self.watchdog.moved()  # an outage and a rate limit have a limit of their own
            shown.note(held_up or "")
            if progress.failure_rate() > self.settings.failure_limit:
                cancellation.cancel(
                    f"{progress.failure_rate():.0%} of the rows failed at a service, more than SPOTTER_FAILURE_LIMIT: "
                    "see the reasons below, then run again with --retry-failed"
                )
            shown.update()

    def commit(self) -> None:
        """Commit the last part, write both tables, and say in run.json how the run ended.

        Raises:
            RunStopped: the rows cannot be written; run.json says why, where that can be.
        """
        self.interrupt.hold()
        reason = self.runtime.cancellation.reason
        # From another thread: closing may take seconds, and has to begin before Daft's event loop is gone.
        self.closing = threading.Thread(target=self.runner.close, name="closing", daemon=True)
        self.closing.start()
        self.watchdog.now(f"writing the rows into {self.folder}")
        with self._stopped_in_manifest(reason):
            parts, images = self.collector.parts, {source.shown for source in self.sources}
            parts.commit()
            self.watchdog.moved()
            self.tables = parts.merge(images)
            for name, write in FORMATS.items():
                self.watchdog.moved()
                write(self.tables, self.folder / name)
            todo = len(self.resume_plan.sources)
            unended = max(todo - self.collector.progress.done, len(images) - self.tables["images"].num_rows)
            self._note_end(reason or lost(unended, len(images)))
            self.manifest |= {"done_before": len(self.sources) - todo}
            self.manifest["servers"] = add_served(self.manifest["servers"], self.runner.served())
            self.manifest |= ended(self.tables, len(images), self.job, self.settings)
            self.watchdog.moved()
            self.manifest |= write_evaluation(self.folder, self.tables, self.plan.truth, self.job, changed=todo > 0)
            run_folder.write_manifest(self.folder, self.manifest)
        seconds = self.manifest["starts"][-1]["seconds"]
        log.info("%s after %.1f s: %s", self.manifest["status"], seconds, json.dumps(self.manifest["counts"]))

    def _note_end(self, reason: str | None) -> None:
        seconds = round(time.perf_counter() - self.clock, 3)
        self.manifest |= finished(self.manifest["starts"], seconds, reason, self.collector.progress)

    @contextmanager
    def _stopped_in_manifest(self, reason: str | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = explain(error, self.folder) if reason in (None, INTERRUPTED) else reason
            self._note_end(reason)
            with suppress(OSError):
                run_folder.write_manifest(self.folder, self.manifest)
            raise RunStopped(f"{reason}; what was committed until then is safe") from error

    def report(self) -> None:
        """Write the report and the profile."""
        self.profiler.finish()
        self.closing.join()
        self.profiler.phase(profiler.REPORT)
        self.watchdog.now(f"writing the report into {self.folder}")
        shown = unchanged(self.sources) if self.plan.earlier else self.sources
        pictures = Pictures(shown, self.reader, self.resume_plan.paths, self.settings.copies)
        drawn = draw_copies(self.folder, self.tables, self.job, pictures, self.console, self.watchdog.moved)
        self.manifest["annotated"] = drawn
        write_report(self.folder, self.manifest, self.tables, copies_in(self.folder), Path.cwd())
        run_folder.point_latest_at(self.folder, self.plan.identity)
        self.profiler.write(self.folder, self.manifest["servers"])
        if self.settings.trial:
            self.manifest |= after_trial(self.folder, len(self.plan.listing.sources), self.settings.prices)
        run_folder.write_manifest(self.folder, self.manifest)

    def publish(self) -> None:
        """Copy the folder to the bucket that the settings name, if they do.

        Raises:
            RunStopped: the bucket does not take it; the folder is complete.
        """
        if self.publication:
            self.watchdog.now(f"publishing to {self.publication.address}")
            published = self.publication.publish(self.watchdog.moved)
            self.say(f"published {published} files to {self.publication.address}")
