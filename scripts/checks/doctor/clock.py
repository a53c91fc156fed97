"""The clock: one that is wrong makes TLS and the hub's signed addresses fail with words about certificates."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from pathlib import Path

from scripts import minimum_versions as floors
from scripts.checks.doctor.context import Context
from scripts.checks.doctor.hub import HUB, head
from scripts.environments import LOCKS
from scripts.findings import Finding
from scripts.models.model_files import is_offline

REMEDY = "set the clock: timedatectl set-ntp true"


def check(context: Context, now: Callable[[], float] = time.time) -> list[Finding]:
    """Against the hub's clock, or at least not before this copy of Spotter was made."""
    copied = max(path.stat().st_mtime for path in Path(LOCKS).glob("*.lock"))
    if now() < copied - floors.CLOCK_S:
        shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(now()))
        return [Finding("clock", "error", f"{shown}: before these files were written", "the right time", REMEDY)]
    if is_offline(context.environment):
        return [Finding("clock", "unchecked", "offline: not before these files' time, no other clock was asked")]
    endpoint = (context.environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    try:
        _, headers = head(endpoint, None)
        there = email.utils.parsedate_to_datetime({key.lower(): value for key, value in headers.items()}["date"])
    except (OSError, LookupError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return [Finding("clock", "unchecked", f"no other clock could be asked ({endpoint}: {reason})")]
    skew = now() - there.timestamp()
    if abs(skew) > floors.CLOCK_S:
        found = f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
        return [Finding("clock", "error", found, f"within {floors.CLOCK_S:.0f} s of the hub's", REMEDY)]
    return [Finding("clock", "ok", f"within {max(abs(skew), 1):.0f} s of the hub's")]
