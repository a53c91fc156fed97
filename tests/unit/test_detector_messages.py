"""What the detector service accepts as a request, and what it answers."""

from typing import Any

import msgpack
import pytest

from services.detector.checkpoint import Checkpoint, InputSize
from services.detector.messages import (
    Detection,
    Found,
    MalformedRequest,
    Request,
    UnknownLabel,
    answer,
    check_label,
    parse_request,
)


def packed(**fields: Any) -> bytes:
    body: bytes = msgpack.packb({"image": b"bytes", "label": "dog", **fields})
    return body


def test_a_request() -> None:
    assert parse_request(packed(threshold=0.25)) == Request(image=b"bytes", label="dog", threshold=0.25)


def test_threshold_may_be_nil_or_left_out() -> None:
    assert parse_request(packed(threshold=None)) == parse_request(packed()) == Request(image=b"bytes", label="dog")


@pytest.mark.parametrize("threshold", [0, 1])
def test_threshold_may_be_a_whole_number(threshold: int) -> None:
    assert parse_request(packed(threshold=threshold)).threshold == threshold


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b'{"image": ""}', "not msgpack"),
        (packed()[:-1], "not msgpack"),
        (msgpack.packb([1, 2]), "list"),
        (msgpack.packb({"label": "dog"}), "image"),
        (packed(image="text"), "image"),
        (packed(image=b""), "image"),
        (packed(label=None), "label"),
        (packed(label=""), "label"),
        (packed(label="x" * 101), "label"),
        (packed(threshold=1.5), "threshold"),
        (packed(threshold=-0.1), "threshold"),
        (packed(threshold=float("nan")), "threshold"),
        (packed(threshold="0.5"), "threshold"),
        (packed(threshold=True), "threshold"),
        (packed(treshold=0.5), "unknown field 'treshold'"),
    ],
)
def test_anything_else_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedRequest, match=reason):
        parse_request(body)


def test_an_unknown_label_names_the_known_ones() -> None:
    with pytest.raises(UnknownLabel, match="'zebra' is not a label of this model: known are cat, dog"):
        check_label("zebra", frozenset({"dog", "cat"}))


def test_a_model_without_fixed_labels_takes_any() -> None:
    check_label("zebra", None)


def test_an_answer() -> None:
    found = Found((Detection((1.0, 2.0, 3.0, 4.0), "dog", 0.5), Detection((0.0, 0.0, 1.0, 1.0), "dog", None)), 640, 480)
    settings = {"threshold": 0.4, "nms_iou": 0.6, "dtype": "auto"}
    checkpoint = Checkpoint("some/model", None, frozenset({"dog"}), InputSize(exact=(256, 192)))
    assert msgpack.unpackb(msgpack.packb(answer(found, checkpoint, settings))) == {
        "boxes": [
            {"box": [1.0, 2.0, 3.0, 4.0], "label": "dog", "score": 0.5},
            {"box": [0.0, 0.0, 1.0, 1.0], "label": "dog", "score": None},
        ],
        "width": 640,
        "height": 480,
        "input": [256, 192],
        "model": "some/model",
        "revision": None,
        "settings": settings,
    }
