"""The folders of the services: the services have the right to write there, and the disk allows it."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.checks.doctor.context import Context
from scripts.checks.doctor.disk import existing, room
from scripts.docker.client import ask
from scripts.docker.images import has
from scripts.docker.project import project_name
from scripts.environments import ROOT
from scripts.findings import Finding, error, errors, ok, refuse, unchecked
from scripts.models.model_files import hub_cache, is_hub_name, is_offline
from scripts.programs import ANSWER_S
from scripts.services import KINDS
from scripts.stack.vllm_server import cache_root

# The containers' volumes, their place in a container, and the loss if one is removed; see compose.yaml.
VOLUMES = {
    "vllm-cache": ("/cache/vllm", "whose content the next start makes anew"),
    "hub-cache": ("/cache/hub", "whose models `make fetch` gets again"),
}

# A start writes logs, process ids and facts about the model: 6 MB with the tiny one.
LEAST_GIB = 0.05


def writable(name: str, path: Path, remedy: str) -> Finding:
    """A folder can be written, or made; the check writes nothing."""
    place = existing(path)
    if not place.is_dir():
        return error(name, f"{place} is a file", "a folder", remedy)
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return error(name, f"{place} is on a read-only file system", "one that can be written", remedy)
    if not os.access(place, os.W_OK | os.X_OK):
        return error(name, f"user {os.getuid()} cannot write {place}", "the right to write", remedy)
    return ok(name, f"{path} can be written")


def check(context: Context) -> list[Finding]:
    """The state folder, the model cache, and the volumes of the containers."""
    return on_host(context) + volumes(context)


def on_host(context: Context) -> list[Finding]:
    """The folders on this host."""
    state = context.settings.state
    findings = [writable("state folder", state, "correct its owner, or set STACK_STATE")]
    if context.in_containers:  # the caches are in volumes
        return findings
    remedy = "correct its owner, or set STACK_STATE or VLLM_CACHE_ROOT elsewhere"
    if not errors(findings) or not cache_root(context.settings).is_relative_to(
        state
    ):  # else the first finding covers it
        findings.append(writable("compile cache", cache_root(context.settings), remedy))
    model = context.options.text("model") if context.options else None
    if model and is_hub_name(model) and not (ROOT / model).is_dir() and not is_offline(context.environment):
        findings.append(writable("model cache", hub_cache(context.environment), "correct its owner, or set HF_HOME"))
    return findings


def require(context: Context) -> None:
    """Allow a start only if the services can write their folders.

    Raises:
        ChecksFailed: they cannot; names the folder and the remedy.
    """
    findings = on_host(context)
    if not errors(findings):
        places = {context.settings.state: "set STACK_STATE", cache_root(context.settings): "set VLLM_CACHE_ROOT"}
        findings += [
            room("disk", path, LEAST_GIB, f"free some space there, or {other} elsewhere")
            for path, other in places.items()
            if not context.in_containers
        ]
    refuse(findings, "nothing was started: this host cannot hold the services' files:")


def volumes(context: Context) -> list[Finding]:
    """The container's user may write its cache volumes; a volume made by hand belongs to root."""
    if not context.in_containers:
        return []
    tag = KINDS["vllm"].image(context.device).tag
    findings = []
    names, _ = ask("volume", "ls", "--format", "{{.Name}}", timeout_s=ANSWER_S)
    for volume, (target, lost) in VOLUMES.items():
        name = f"{project_name(context.settings.state)}_{volume}"
        if name not in (names or "").splitlines():
            continue  # Docker makes it, with the owner that the image names
        if not has(tag):
            return [unchecked("cache volume", f"{tag} is not built")]
        findings.append(writable_inside(name, target, tag, lost))
    return findings


def writable_inside(name: str, target: str, tag: str, lost: str) -> Finding:
    """A container of an image may write a volume."""
    mount = f"type=volume,source={name},target={target},readonly=false"
    test = ("--entrypoint=/usr/bin/test", tag, "-w", target)
    written, reason = ask("run", "--rm", "--network=none", "--mount", mount, *test, timeout_s=ANSWER_S)
    if written is not None:
        return ok("cache volume", f"{name} can be written")
    if "test ended" in reason or reason.startswith("docker ended"):
        remedy = f"remove the volume, {lost}: docker volume rm {name}"
        return error("cache volume", f"{name}: the container's user cannot write it", "the right to write", remedy)
    return unchecked("cache volume", f"{name}: {reason}")
