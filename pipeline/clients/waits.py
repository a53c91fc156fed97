"""How long a server asks to wait, in whichever header, date or words it says so."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# "6m0s", "1s", "20ms", "1h2m3.5s", "26 seconds".
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
UNIT = r"(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)"
PART = re.compile(rf"(\d+(?:\.\d+)?)\s*({UNIT})(?![a-z])", re.IGNORECASE)
DURATION = re.compile(rf"(?:\s*\d+(?:\.\d+)?\s*{UNIT})+", re.IGNORECASE)

# In words, and in Google's and Hugging Face's fields of an error.
IN_WORDS = re.compile(
    r"(?:try again|retry|wait)\s+(?:in |after |about |for )*((?:\d+(?:\.\d+)?\s*[a-z]*\s?)+)", re.IGNORECASE
)
IN_FIELDS = re.compile(
    r'"(?:retryDelay|estimated_time|retry_after|retry_after_seconds)"\s*:\s*"?([\d.]+\s*[a-z]*)', re.IGNORECASE
)

# LiteLLM passes on its providers' headers with a prefix, and sends the time of its own limits under such a name too.
RETRY_AFTER = {
    "retry-after-ms": 0.001,
    "x-ms-retry-after-ms": 0.001,
    "Retry-After": 1.0,
    "llm_provider-retry-after-ms": 0.001,
    "llm_provider-retry-after": 1.0,
}

# Above these a number is a time since 1970 in seconds or milliseconds, not a number of seconds.
EPOCH_S, EPOCH_MS = 1e9, 1e12


def wait_asked_for(headers: Mapping[str, str], words: str, *, limits: bool) -> float:
    """Seconds until the server wants the next request; 0 where it does not say.

    Retry-After goes before the times at which limits end, which count for an answer about `limits` alone, because
    some servers send them with every answer; those go before the body's words.
    """
    for name, factor in RETRY_AFTER.items():
        if seconds := factor * in_seconds(headers.get(name, "")):
            return seconds
    if limits and (seconds := limit_ends(headers)):
        return seconds
    found = IN_FIELDS.search(words) or IN_WORDS.search(words)
    return in_seconds(found.group(1)) if found else 0.0


def limit_ends(headers: Mapping[str, str]) -> float:
    """Seconds until the limit ends that is used up: by `...ratelimit-reset...` beside `...ratelimit-remaining...`.

    Where none is said to be used up, the earliest end counts: of a limit that was not reached nothing needs to end.
    """
    ends: dict[str, float] = {}
    for name, value in headers.items():
        name = name.lower()
        if "ratelimit" in name and "reset" in name and (seconds := in_seconds(value)):
            ends[name] = seconds
    left = {name.lower(): value.strip() for name, value in headers.items() if "remaining" in name.lower()}
    used_up = [ends[name] for name in ends if left.get(name.replace("reset", "remaining")) in ("0", "0.0")]
    return max(used_up) if used_up else min(ends.values(), default=0.0)


def in_seconds(value: str) -> float:
    """A duration, a number of seconds, a time since 1970, or a date, as seconds from now; 0 for anything else."""
    value = value.strip()
    try:
        number = float(value)
    except ValueError:
        number = duration(value) or until_date(value)
    if not math.isfinite(number):
        return 0.0
    if number > EPOCH_MS:
        number = number / 1000 - time.time()
    elif number > EPOCH_S:
        number -= time.time()
    return max(number, 0.0)


def duration(value: str) -> float:
    """The seconds of "6m0s" or "26 seconds"; 0 for anything else."""
    if not DURATION.fullmatch(value):
        return 0.0
    total = 0.0
    for number, unit in PART.findall(value):
        name = unit.lower()
        total += float(number) * UNITS["ms" if name.startswith(("ms", "milli")) else name[0]]
    return total


def until_date(value: str) -> float:
    """The seconds until an HTTP or ISO 8601 date; 0 for anything else."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return moment.timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError, AttributeError):
            continue
    return 0.0
