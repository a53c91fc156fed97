"""Ctrl-C during a run: once is enough, and nothing keeps it from writing down what was done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.interrupts import INTERRUPTED, SIGNALS, OneInterrupt


def ctrl_c(number: int = signal.SIGINT) -> None:
    """What a terminal does."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_pulls_the_brake_and_nothing_is_raised(number: int) -> None:
    stop, done = CancellationToken(), []
    with OneInterrupt(stop):
        ctrl_c(number)
        done.append(stop.reason)
        ctrl_c(number)
        done.append("written down")
    assert done == [INTERRUPTED, "written down"]


def test_an_interrupt_while_the_brake_is_pulled_waits_for_nothing() -> None:
    stop = CancellationToken()
    with OneInterrupt(stop), stop._lock:
        ctrl_c()
    assert stop.reason == INTERRUPTED


def interrupted_while_held(then: Callable[[], None]) -> None:
    """Ctrl-C in what is to be done to its end, and what comes after it there."""
    stop = CancellationToken()
    with OneInterrupt(stop) as interrupt:
        interrupt.hold()
        ctrl_c()
        assert stop.reason is None
        then()


def test_an_interrupt_that_is_held_is_raised_at_the_end() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_while_held(lambda: done.append("written down"))
    assert done == ["written down"]


def test_an_error_is_not_hidden_by_an_interrupt() -> None:
    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        interrupted_while_held(fail)


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with OneInterrupt(CancellationToken()):
        assert not {signal.getsignal(number) for number in SIGNALS} & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before
