"""What the detector service accepts as a request, and what it answers."""

from typing import Any

import msgpack
import numpy as np
import pytest

from services.detector.checkpoint import Checkpoint, InputSize
from services.detector.messages import (
    Detection,
    Found,
    Frame,
    MalformedRequest,
    Request,
    UnknownLabel,
    answer,
    check_labels,
    parse_request,
)


def packed(**fields: Any) -> bytes:
    body: bytes = msgpack.packb({"image": b"bytes", "labels": {"dog": None}, **fields})
    return body


def test_a_request() -> None:
    assert parse_request(packed(threshold=0.25)) == Request(image=b"bytes", labels={"dog": None}, threshold=0.25)


def test_threshold_may_be_nil_or_left_out() -> None:
    assert (
        parse_request(packed(threshold=None))
        == parse_request(packed())
        == Request(image=b"bytes", labels={"dog": None})
    )


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
        (msgpack.packb({"labels": {"dog": None}}), "image"),
        (packed(image="text"), "image"),
        (packed(image=b""), "image"),
        (msgpack.packb({"image": b"bytes"}), "labels"),
        (msgpack.packb({"image": b"bytes", "label": "dog"}), "'label' is no field of a request: send labels"),
        (packed(label="dog"), "'label' is no field of a request: send labels"),
        (packed(labels="dog"), "labels"),
        (packed(labels=["dog"]), "labels"),
        (packed(labels={}), "labels"),
        (packed(labels={"": None}), "labels"),
        (packed(labels={"x" * 101: None}), "labels"),
        (packed(labels={"dog": 1.5}), "labels"),
        (packed(labels={"dog": "0.5"}), "labels"),
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
    with pytest.raises(UnknownLabel, match=r"^'zebra' is not a label of this model: known are cat, dog$"):
        check_labels({"zebra": None}, frozenset({"dog", "cat"}))


def test_all_unknown_labels_are_named_with_known_ones_like_them() -> None:
    known = frozenset({"dog", "cat", "sports ball"})
    with pytest.raises(UnknownLabel) as raised:
        check_labels({"Dog": None, "cat": 0.5, "sport ball": None, "zebra": None}, known)
    assert str(raised.value) == (
        "'Dog' (did you mean 'dog'?), 'sport ball' (did you mean 'sports ball'?), 'zebra' are not labels of this "
        "model: known are cat, dog, sports ball"
    )


def test_a_long_list_of_labels_is_cut() -> None:
    with pytest.raises(UnknownLabel, match=r"label 099 and 1900 more$"):
        check_labels({"zebra": None}, frozenset(f"label {number:03}" for number in range(2000)))


def test_a_model_without_fixed_labels_takes_any_text_but_needs_some() -> None:
    check_labels({"zebra": None}, None)
    with pytest.raises(UnknownLabel, match="takes free text"):
        check_labels(None, None)


def test_a_model_with_fixed_labels_can_be_asked_for_all() -> None:
    check_labels(None, frozenset({"dog"}))


def test_a_request_for_any_label() -> None:
    assert parse_request(packed(labels=None)).labels is None


def test_lowest_scores_of_a_frame() -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    some, every = Frame(pixels, 2, 2, {"dog": 0.5, "cat": 0.2}, 0.4), Frame(pixels, 2, 2, None, 0.4)
    assert [some.least(label) for label in ("dog", "cat", "cow")] == [0.5, 0.2, None]
    assert [every.least(label) for label in ("dog", "cow")] == [0.4, 0.4]
    assert (some.lowest, every.lowest) == (0.2, 0.4)


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
