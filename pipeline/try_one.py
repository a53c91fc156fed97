"""`--try-one`: what happens to one image, step by step. Nothing is written."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.clients.connect import Clients, make_clients
from pipeline.clients.detector import Picture
from pipeline.clients.dialects import PICTURE, TEXT
from pipeline.clients.finders import given
from pipeline.clients.model import BadAnswer, Form
from pipeline.clients.probe import Services, probe
from pipeline.errors import InvalidSetting, RowError
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.runtime.runtime import Runtime
from pipeline.runtime.terminal import escaped
from pipeline.settings import Settings
from pipeline.sources.images import ALL_PIXELS, content_key, copy_for_detector, decode, decode_for_detector
from pipeline.sources.inputs import InputColumns, example
from pipeline.sources.listing import Source, list_images
from pipeline.sources.objects import Objects
from pipeline.sources.reader import Reader
from pipeline.stages.boxes import cut, encoded_size


@dataclass(frozen=True, slots=True)
class Tried:
    """One detection: its box, its crop, or why there is none."""

    label: str
    score: float | None
    box: list[float]
    """`xyxy`, in pixels of the upright image."""
    jpeg: bytes | None
    failure: str | None


def try_one(settings: Settings, console: Console) -> int:
    """Detect, crop and ask about the first image of the settings' place, and print each step.

    Returns 0, or 1 if a step failed.

    Raises:
        UsageError: as a run does.
    """
    if settings.from_run:
        raise InvalidSetting(
            f"SPOTTER_FROM_RUN={settings.from_run}: a trial of one picture detects anew: unset it, or run with LIMIT=1"
        )
    job, objects = load_job(settings.job), Objects(settings.endpoint)
    sources = list_images(settings.images, settings.column, objects, InputColumns.of(job), settings.every).sources
    source = sources[0]
    finder = given(settings, job, sources, objects)
    services = probe(settings, job, example([source.inputs]), finder)
    clients = make_clients(settings, job, services.model, Runtime.alone(), finder, services.form)
    return asyncio.run(Trial(console, job, services, clients).show(source, Reader(objects), len(sources)))


class Trial:
    """Prints the steps of one image."""

    def __init__(self, console: Console, job: Job, services: Services, clients: Clients) -> None:
        self.console = console
        self.job = job
        self.services = services
        self.clients = clients
        self.failed = False

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(escaped(text), highlight=False, markup=False, soft_wrap=True)

    def fail(self, text: str) -> None:
        """Print why a step failed."""
        self.failed = True
        self.console.print(escaped(text), style="red", highlight=False, markup=False, soft_wrap=True)

    async def show(self, source: Source, reader: Reader, listed: int) -> int:
        """All steps; 1 if one failed."""
        more = f" (the first of {listed})" if listed > 1 else ""
        try:
            if source.fault:
                raise RowError(source.fault)
            data = reader.read(source.path, source.row, source.size)
            takes = ALL_PIXELS if self.job.tiles else self.services.takes
            upright = decode_for_detector(data, takes)
            size = f"{upright.width} x {upright.height} pixels, {upright.format}, {len(data):,} bytes"
            self.say(f"image     {source.shown}{more}: {size}")
            copy = copy_for_detector(data, upright, takes) or data
            inputs = source.inputs.text if source.inputs else None
            picture = Picture(source.path, content_key(data, inputs), copy, upright.width, upright.height)
            if source.inputs and source.inputs.fault:
                raise RowError(source.inputs.fault)
            await self.ask_all(await self.detect(picture, data), json.loads(inputs or "{}"))
        except (RowError, OSError, pa.ArrowException) as error:
            self.fail(f"failed    {error}")
        finally:
            for http in self.clients.http:
                await http.aclose()
        return int(self.failed)

    async def detect(self, picture: Picture, data: bytes) -> list[Tried]:
        """Find the objects, and cut each out."""
        began = time.perf_counter()
        found = await self.clients.finder.find(picture)
        seconds = time.perf_counter() - began
        objects = "1 object" if len(found.boxes) == 1 else f"{len(found.boxes)} objects"
        self.say(f"detector  {self.services.detector}: {objects} in {seconds:.3f} s")
        scale, pixels = picture.width / found.width, decode(data).pixels
        tried = []
        for each in found.boxes:
            box, jpeg, failure = [value * scale for value in each.box], None, None
            try:
                jpeg = cut(pixels, box, self.job.crop.margin, self.job.crop.max_side, self.job.crop.min_side)
            except RowError as error:
                failure = str(error)
            tried.append(Tried(each.label, each.score, box, jpeg, failure))
        if tried:
            table = Table(box=None, pad_edge=False)
            for name in ("object", "label", "score", "box", "crop"):
                table.add_column(name, justify="right" if name in ("object", "score") else "left")
            for number, one in enumerate(tried):
                score = "" if one.score is None else f"{one.score:.3f}"
                shown = ", ".join(f"{value:.0f}" for value in one.box)
                crop = size_of(one.jpeg) if one.jpeg else one.failure or ""
                table.add_row(str(number), Text(escaped(one.label)), score, shown, Text(escaped(crop)))
            self.console.print(table)
        return tried

    async def ask_all(self, tried: list[Tried], inputs: dict[str, Any]) -> None:
        """Ask each object's questions; the first request is shown."""
        shown = False
        for number, one in enumerate(tried):
            if one.jpeg is None:
                self.fail(f"object {number}  {one.failure}")
                continue
            for question in self.job.about(one.label):
                if not shown:
                    form = self.clients.model.forms[question]
                    self.say(f"request   to {self.services.model}, {self.services.form.said()}:")
                    request = request_for_people(form, one.jpeg, inputs)
                    for line in json.dumps(request, indent=2, ensure_ascii=False).splitlines():
                        self.say(line)
                    shown = True
                await self.ask(number, question, one.jpeg, inputs)

    async def ask(self, number: int, question: int, jpeg: bytes, inputs: dict[str, Any]) -> None:
        """Ask one question about one crop."""
        asked = f"object {number}" + (f", question {question + 1}" if len(self.job.questions) > 1 else "")
        try:
            answer = await self.clients.model.ask(jpeg, question, inputs)
        except BadAnswer as error:
            self.fail(f"{asked}  {error}" + (f": the model wrote {error.raw!r}" if error.raw else ""))
        except RowError as error:
            self.fail(f"{asked}  {error}")
        else:
            cost = f"{answer.latency_s:.3f} s"
            if answer.prompt_tokens is not None and answer.completion_tokens is not None:
                cost += f", {answer.prompt_tokens} tokens in, {answer.completion_tokens} out"
            self.say(f"{asked}  {answer.raw}  ({cost})")


def size_of(jpeg: bytes) -> str:
    """A crop in words."""
    width, height = encoded_size(jpeg) or (0, 0)
    return f"{width} x {height}, {len(jpeg):,} bytes"


def request_for_people(form: Form, jpeg: bytes, inputs: dict[str, Any]) -> Any:
    """A request's JSON, with words in the place of the picture."""
    instead = {
        PICTURE: f"<the crop as JPEG, {size_of(jpeg)}>",
        TEXT: form.template.fill(inputs) if form.template else "",
    }

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: put(each) for name, each in value.items()}
        if isinstance(value, list):
            return [put(each) for each in value]
        if isinstance(value, str):
            for mark, words in instead.items():
                value = value.replace(mark, words)
        return value

    return put(form.request)
