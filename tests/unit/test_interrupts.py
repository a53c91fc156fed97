"""Ctrl-C during a run: once is enough, and twice does not keep it from writing down what was done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pipeline.interrupts import OneInterrupt


def ctrl_c() -> None:
    """What a terminal does."""
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_is_raised_and_the_next_ones_do_nothing() -> None:
    done = []
    with OneInterrupt():
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
        ctrl_c()
        done.append("written down")
    assert done == ["written down"]


def interrupted_while_held(then: Callable[[], None]) -> None:
    """Ctrl-C in what is to be done to its end, and what comes after it there."""
    with OneInterrupt() as interrupt:
        interrupt.hold()
        ctrl_c()
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
    before = signal.getsignal(signal.SIGINT)
    with OneInterrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
