"""The folders that the services write: there is a right to, and the disk lets them."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.doctor.context import Context, ask
from scripts.doctor.disk import existing
from scripts.findings import Finding
from scripts.images import IMAGES, OF_DEVICE
from scripts.preflight.model_files import hub_cache

# The volume that vLLM's container writes; see compose.yaml.
VOLUME, MOUNTED = "vllm-cache", "/cache/vllm"


def writable(name: str, path: Path, remedy: str) -> Finding:
    """A folder can be written, or made; found out without writing."""
    place = existing(path)
    if not place.is_dir():
        return Finding(name, "error", f"{place} is a file", "a folder", remedy)
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return Finding(name, "error", f"{place} is on a read-only file system", "one that can be written", remedy)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(name, "error", f"{place} cannot be written by user {os.getuid()}", "the right to write", remedy)
    return Finding(name, "ok", f"{path} can be written")


def check(context: Context) -> list[Finding]:
    """The state folder, the model cache, and the volume of vLLM's container."""
    findings = [writable("state folder", context.settings.state, "correct its owner, or set STACK_STATE")]
    if context.device == "cuda":
        findings.append(writable("model cache", hub_cache(context.environment), "correct its owner, or set HF_HOME"))
    return findings + volume(context)


def volume(context: Context) -> list[Finding]:
    """The container's user may write its cache volume."""
    if context.settings.engine == "process":
        return []
    names, _ = ask("docker", "volume", "ls", "--format", "{{.Name}}", "--filter", f"name={VOLUME}")
    if not names:
        return []  # none yet: a new one takes the owner that its image says
    tag = IMAGES[OF_DEVICE[context.device][1]].tag
    if ask("docker", "image", "inspect", "--format", "{{.Id}}", tag)[0] is None:
        return [Finding("cache volume", "unchecked", f"{tag} is not built")]
    findings = []
    for name in names.splitlines():
        mount = f"type=volume,source={name},target={MOUNTED},readonly=false"
        test = ("--entrypoint=/usr/bin/test", tag, "-w", MOUNTED)
        written, reason = ask("docker", "run", "--rm", "--network=none", "--mount", mount, *test)
        if written is not None:
            findings.append(Finding("cache volume", "ok", f"{name} can be written"))
        elif "test ended" in reason or reason.startswith("docker ended"):
            remedy = f"remove the volume, it is only a cache: docker volume rm {name}"
            findings.append(
                Finding("cache volume", "error", f"{name}: not for the container's user", "the right to write", remedy)
            )
        else:
            findings.append(Finding("cache volume", "unchecked", f"{name}: {reason}"))
    return findings
