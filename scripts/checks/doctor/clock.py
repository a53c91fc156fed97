"""The clock: TLS and the hub's signed addresses fail with a wrong one, and their messages talk of certificates."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.checks.doctor.context import Context
from scripts.checks.doctor.hub import address, head
from scripts.environments import LOCKS
from scripts.findings import Finding, error, ok, unchecked
from scripts.minimum_versions import CLOCK_S
from scripts.models.model_files import is_offline

wrong = partial(error, "clock", remedy="set the clock: timedatectl set-ntp true")


def check(context: Context, now: Callable[[], float] = time.time) -> list[Finding]:
    """The clock agrees with the hub's; offline, it is at least later than this copy of Spotter."""
    copied = max(path.stat().st_mtime for path in Path(LOCKS).glob("*.lock"))
    if now() < copied - CLOCK_S:
        shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(now()))
        return [wrong(f"{shown} is earlier than the files of this copy", "the right time")]
    if is_offline(context.environment):
        return [unchecked("clock", "offline: later than the files of this copy, not compared with another clock")]
    endpoint = address(context.environment)
    try:
        _, headers = head(endpoint, None)
        there = email.utils.parsedate_to_datetime(headers["date"])
    except (OSError, LookupError, ValueError) as failure:
        reason = getattr(failure, "reason", None) or failure
        return [unchecked("clock", f"no other clock answers ({endpoint}: {reason})")]
    skew = now() - there.timestamp()
    if abs(skew) > CLOCK_S:
        found = f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
        return [wrong(found, f"within {CLOCK_S:.0f} s of the hub's")]
    return [ok("clock", f"within {max(abs(skew), 1):.0f} s of the hub's")]
