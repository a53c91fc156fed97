"""The preflight of this host's stack, and its report."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import psutil
from rich.console import Console
from rich.table import Table

from pipeline.clients.completion import completion_request
from pipeline.clients.dialects import Api, RequestForm, SchemaForm
from pipeline.errors import InvalidSetting, UsageError
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.labels import DETECTOR
from pipeline.question import Question
from pipeline.settings import Settings
from scripts.checks.preflight import detector, full, static
from scripts.checks.preflight.memory import Host, Part, shown_gib
from scripts.environments import ROOT
from scripts.findings import Finding, as_json, error, exit_code, ok, refuse, show, unchecked
from scripts.services import KINDS
from scripts.settings import StackSettings, read_variables
from scripts.stack.devices import Gpu, choose, find_gpus
from scripts.stack.services import own_variables, presets_of
from scripts.stack.vllm_server import preset_file, start_arguments
from scripts.vllm.checker import CHECKER, Place

UNABLE = "nothing was started: the services could not do the job:"


@dataclass(frozen=True, slots=True)
class Report:
    """The result of both tiers."""

    findings: Sequence[Finding]
    budget: Sequence[Part]
    static_s: float
    full_s: float | None = None


def asked_of(job: Job, user: Mapping[str, str], questions: Sequence[Question] | None = None) -> static.Asked:
    """A job's demands on a server; `user`: the user's variables SPOTTER_, which name the model and the form.

    `questions`: the job's with values of the input table.

    Raises:
        InvalidSetting: there is no such form.
    """
    form = form_of(user)
    return static.Asked(
        job=job.name,
        questions=tuple(questions or job.questions),
        max_side=job.crop.max_side,
        fields=tuple(completion_request(job.questions[0], job, "", form)),  # the same for each question
        more=job.request,
        thoughts=job.reasoning_tokens,
        model=user.get("SPOTTER_MODEL"),
        form=form,
    )


def form_of(user: Mapping[str, str]) -> RequestForm:
    """The form of request that the user sets, or else the first that the job's client tries, which vLLM takes.

    Raises:
        InvalidSetting: there is no such form.
    """
    chosen: dict[str, Any] = {}
    for name, known in (("api", get_args(Api)), ("schema_form", get_args(SchemaForm))):
        value = user.get(f"SPOTTER_{name.upper()}", "auto")
        if value not in ("auto", *known):
            expected = ", ".join(("auto", *known))
            raise InvalidSetting(f"SPOTTER_{name.upper()}={value!r} is invalid: expected {expected}")
        chosen[name] = known[0] if value == "auto" else value
    return RequestForm(**chosen)


def server_of(
    preset: Path,
    device: str,
    gpus: Sequence[Gpu],
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    replicas: int = 1,
) -> static.Server:
    """A model server as an engine starts it: the preset, its variables over the operator's, and this host.

    `replicas`: the number of such servers on a CPU; on GPUs, `gpus` decides.
    """
    own = dict(os.environ) if environment is None else environment
    variables = {**own, **read_variables(preset.with_suffix(".env"))}
    share = float(read_variables(presets_of(KINDS["detector"], "cuda")).get("DETECTOR_MEMORY_SHARE") or 0)
    memory = [gpu.memory_mib for gpu in gpus]
    further = min(memory[1:], default=None)
    host = Host(memory[0] if memory else None, psutil.virtual_memory().total, share, further, replicas)
    return static.Server(preset, device, variables, host, tuple(arguments))


def chosen_server(settings: StackSettings) -> tuple[str, static.Server]:
    """The preset and the model server of this host.

    Raises:
        InvalidStackSetting: there is no such preset.
        NoGpu: there is no such device.
    """
    gpus = find_gpus(settings)
    device, preset, _ = choose(settings, gpus)
    arguments, file = start_arguments(settings), preset_file(preset)
    return preset, server_of(file, device, gpus, arguments, settings.environment, settings.replicas)


def user_job(settings: StackSettings) -> Job:
    """The job that the user's variables name.

    Raises:
        InvalidJob: its file is invalid.
    """
    return load_job(settings.user_variables("SPOTTER_").get("SPOTTER_JOB", Settings.model_fields["job"].default))


class Boxes:
    """The check of where the job's boxes come from; from here on another process reads the detector's files."""

    def __init__(self, settings: StackSettings, job: Job, device: str) -> None:
        user = settings.user_variables("SPOTTER_")
        self.job = job
        self.boxes = user.get("SPOTTER_BOXES")
        self.url = user.get("SPOTTER_DETECTOR_URL")
        self.earlier = user.get("SPOTTER_FROM_RUN")
        self.asking = None
        if job.boxes == DETECTOR and self.url is None and not self.earlier:
            variables = own_variables(settings, KINDS["detector"], device)
            self.asking = detector.Asking(variables, settings.environment)

    def findings(self) -> list[Finding]:
        """Whether the boxes of the job can be had."""
        if self.earlier:
            return [ok("detector", f"not asked: the detections are those of {self.earlier}")]
        if self.job.boxes != DETECTOR:
            return list(detector.check_boxes(self.job, self.boxes))
        if self.asking is None:
            return [unchecked("detector", f"the detector is elsewhere: {self.url}")]
        model = self.asking.answer()
        return [model] if isinstance(model, Finding) else list(detector.check_labels(self.job, model))


def preflight(settings: StackSettings, *, place: Place | None = None, in_containers: bool = False) -> Report:
    """Check the model server that these settings would start, for the job that they name.

    `place` runs vLLM's own code; without it, only options and files are checked.
    `in_containers`: the hub's models are in a volume that this host does not see, so none is missing here.

    Raises:
        InvalidStackSetting: there is no such preset.
        NoGpu: there is no such device.
    """
    begin = time.monotonic()
    user = settings.user_variables("SPOTTER_")
    preset, server = chosen_server(settings)
    try:
        job = user_job(settings)
        boxes = Boxes(settings, job, server.device)  # its code reads the model's files meanwhile
        questions, wrong_inputs = job.questions, list[Finding]()
        if job.inputs:
            from scripts.checks.preflight.inputs import check_inputs  # loads Daft, which takes a second

            questions, wrong_inputs = check_inputs(job, user)
        asked = asked_of(job, user, questions)
    except UsageError as refusal:
        refused = error("job", str(refusal), "a valid job", "correct the job file, SPOTTER_JOB or that setting")
        return Report([refused], [], time.monotonic() - begin)
    if "SPOTTER_MODEL_URL" in user:
        elsewhere = unchecked("model", f"the model server is elsewhere: {user['SPOTTER_MODEL_URL']}")
        return Report([elsewhere, *wrong_inputs, *boxes.findings()], [], time.monotonic() - begin)
    checked = static.check(server, asked, ROOT)
    findings = list(checked.findings)
    if in_containers and checked.model is not None and checked.model.folder is None:
        later = "`make up` and `make preflight FULL=1` look for it in the containers' volume"
        findings = [each for each in findings if each.check != "model"]
        findings.append(unchecked("model", f"{checked.model.name}: {later}"))
    if not findings:
        findings.append(ok("model", f"preset {preset} fits job {asked.job}"))
    findings += [*wrong_inputs, *boxes.findings()]
    static_s, full_s = time.monotonic() - begin, None
    if place is not None and exit_code(findings) == 0:
        begin = time.monotonic()
        findings += full.check(server, asked, ROOT, place)
        full_s = time.monotonic() - begin
    return Report(findings, checked.budget, static_s, full_s)


def warn(findings: Iterable[Finding], console: Console) -> None:
    """Show the findings that do not stop a start."""
    for each in findings:
        console.print(f"{each.severity}: {each}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def require(settings: StackSettings, console: Console, *, in_containers: bool = False) -> None:
    """Allow a start only if options and files fit the job; show the warnings.

    Raises:
        ChecksFailed: they do not fit.
    """
    findings = preflight(settings, in_containers=in_containers).findings
    # `fetch` gets a missing model next, and its files are checked then.
    warn((each for each in findings if each.severity == "warning" and each.check != "model"), console)
    refuse(findings, UNABLE)


def require_full(settings: StackSettings, console: Console, place: Place, state: Path) -> None:
    """Allow a start only if vLLM's own code can do the job, where this host does not see the model's files.

    The check takes some ten seconds, so the folder `state` remembers a success.

    Raises:
        ChecksFailed: it cannot do the job.
    """
    _, server = chosen_server(settings)
    asked = asked_of(user_job(settings), settings.user_variables("SPOTTER_"))
    parts = [server.preset.read_text(), str(server.arguments), str(asked), place.fingerprint, CHECKER.read_text()]
    passed, known = hashlib.sha256("\0".join(parts).encode()).hexdigest(), state / "preflight.passed"
    if known.is_file() and known.read_text() == passed:
        return
    console.print("vllm: checking options, files and a request of this job with its own code", highlight=False)
    findings = full.check(server, asked, ROOT, place)
    refuse(findings, UNABLE)
    warn((each for each in findings if each.severity != "ok"), console)
    if not any(each.severity == "unchecked" for each in findings):
        state.mkdir(parents=True, exist_ok=True)
        known.write_text(passed)


def print_report(report: Report, console: Console) -> None:
    """The report for people."""
    if report.budget:
        table = Table("memory", "size", "", box=None, pad_edge=False)
        for part in report.budget:
            table.add_row(part.name, "unknown" if part.gib is None else shown_gib(part.gib), part.note)
        console.print(table)
    show(report.findings, console)
    tiers = f"options and files: {report.static_s:.1f} s"
    tiers += f"; vLLM's own code: {report.full_s:.1f} s" if report.full_s is not None else ""
    console.print(tiers, style="dim", highlight=False)


def run(
    settings: StackSettings,
    console: Console,
    *,
    place: Place | None = None,
    in_containers: bool = False,
    json_output: bool = False,
) -> int:
    """`preflight`: check, report; 1 when the server cannot do the job.

    Raises:
        InvalidStackSetting: there is no such preset.
        NoGpu: there is no such device.
    """
    report = preflight(settings, place=place, in_containers=in_containers)
    if json_output:
        times = {"static_s": round(report.static_s, 2), "full_s": report.full_s and round(report.full_s, 2)}
        print(as_json(report.findings, **times, budget=[asdict(part) for part in report.budget]))
    else:
        print_report(report, console)
    return exit_code(report.findings)
