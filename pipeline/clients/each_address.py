"""Ask each address of a service the same before a run: all have to be alike, and one that is away is left out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import ServiceRefuses, ServiceUnreachable, UsageError

T = TypeVar("T")

# When one address has answered, the others may take this many times as long, and this many seconds at least.
TIMES, LEAST_S = 4.0, 10.0


@dataclass(frozen=True, slots=True)
class Reached:
    """The addresses of a service that answered; none where it was not asked."""

    urls: tuple[str, ...] = ()
    left_out: Sequence[str] = ()
    """A line for each of the others."""


async def ask_each(
    service: str, urls: Sequence[str], ask: Callable[[str], Awaitable[T]]
) -> tuple[dict[str, T], list[str]]:
    """What each address answers, without those that are away; and a line for each of these.

    Raises:
        UsageError: an address refuses, or all are away.
    """
    if len(urls) == 1:
        return {urls[0]: await ask(urls[0])}, []
    tasks = {asyncio.ensure_future(ask(url)): url for url in urls}
    waiting, patience_s, began = set(tasks), None, time.monotonic()
    while waiting:
        done, waiting = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        if patience_s is None and any(task.exception() is None for task in done):
            patience_s = max(LEAST_S, TIMES * (time.monotonic() - began))
    for task in waiting:
        task.cancel()
    answers, left_out = {}, []
    for task, url in tasks.items():
        if task in waiting:
            left_out.append(f"{service} {url} is left out: no answer within {time.monotonic() - began:.0f} s")
        elif (error := task.exception()) is None:
            answers[url] = task.result()
        elif isinstance(error, ServiceUnreachable):
            left_out.append(f"left out: {error}")
        elif isinstance(error, UsageError) and url not in str(error):
            raise type(error)(f"{service} {url}: {error}") from error
        else:
            raise error
    if not answers:
        raise next(error for task in tasks if (error := task.exception()))
    return answers, left_out


def refuse_odd(service: str, setting: str, said: Mapping[str, str]) -> None:
    """See that all addresses say the same of themselves.

    Raises:
        ServiceRefuses: one does not; it is named.
    """
    usual, _ = Counter(said.values()).most_common(1)[0]
    for url, words in said.items():
        if words != usual:
            raise ServiceRefuses(
                f"{service} {url} has {words}, the others have {usual}: set {setting} to addresses that answer alike"
            )
