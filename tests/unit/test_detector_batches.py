"""A batch that fails is tried again one by one, so that one image fails no other's request."""

from collections.abc import Sequence

import numpy as np

from services.detector.backends import detect_apart
from services.detector.messages import Failed, Found, Frame, Outcome


def frame(label: str) -> Frame:
    return Frame(np.zeros((2, 2, 3), dtype=np.uint8), 2, 2, {label: 0.5}, 0.5)


class Fragile:
    """A detector that raises on any batch with the label `poison`, or larger than `most`."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.batches: list[int] = []

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        self.batches.append(len(frames))
        if len(frames) > self.most:
            raise MemoryError("out of memory\nwith details")
        if any("poison" in (each.labels or ()) for each in frames):
            raise RuntimeError("cannot take this")
        return [Found((), each.width, each.height) for each in frames]


def test_a_batch_goes_through_at_once() -> None:
    detector = Fragile()
    assert detect_apart(detector, [frame("a"), frame("b")]) == [Found((), 2, 2)] * 2
    assert detector.batches == [2]


def test_one_bad_image_fails_alone_and_in_its_place() -> None:
    outcomes = detect_apart(Fragile(), [frame("a"), frame("poison"), frame("b")])
    assert outcomes == [Found((), 2, 2), Failed("RuntimeError: cannot take this"), Found((), 2, 2)]


def test_a_batch_too_large_for_the_memory_is_split() -> None:
    assert detect_apart(Fragile(most=1), [frame("a"), frame("b")]) == [Found((), 2, 2)] * 2


def test_a_reason_is_one_line() -> None:
    assert detect_apart(Fragile(most=0), [frame("a")]) == [Failed("MemoryError: out of memory with details")]
