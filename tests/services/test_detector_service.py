"""The detector service over HTTP, as it runs: every status, true batches, readiness, failures, stops."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import numpy as np
import psutil
import pytest
from PIL import Image

from samples.scenes import Box, make_scene
from tests.services.detector_process import ROOT, START_S, Launch, Start

MODEL = ROOT / "samples" / "models" / "tiny-detector"

# Boxes of one image differ in the last digits between batch sizes; a pixel is 1/480 of the smaller side.
SAME_BOX_PX = 0.05
COUNTED_S = 10.0


@dataclass(frozen=True)
class Reply:
    """A status, and either the unpacked answer or the text of an error."""

    status: int
    body: Any

    @property
    def boxes(self) -> list[dict[str, Any]]:
        assert self.status == 200, self.body
        found: list[dict[str, Any]] = self.body["boxes"]
        return found


def scene_bytes(seed: int, kind: str = "PNG", **options: Any) -> bytes:
    return encoded(make_scene(seed, dogs=3).image, kind, **options)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def request(
    image: bytes, labels: str | dict[str, float | None] | None = "dog", threshold: float | None = None
) -> bytes:
    wanted = {labels: None} if isinstance(labels, str) else labels
    body: bytes = msgpack.packb({"image": image, "labels": wanted, "threshold": threshold})
    return body


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> Reply:
    async with session.post(f"{url}/detect", data=body) as response:
        content = await response.read()
        return Reply(response.status, msgpack.unpackb(content) if response.status == 200 else content.decode())


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=START_S))


def ask(url: str, body: bytes) -> Reply:
    return ask_at_once(url, [body])[0]


def ask_at_once(url: str, bodies: Iterable[bytes]) -> list[Reply]:
    async def run() -> list[Reply]:
        async with client() as session:
            return await asyncio.gather(*(post(session, url, body) for body in bodies))

    return asyncio.run(run())


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=START_S) as response:
        text: str = response.read().decode()
    return text


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for found, value in samples if all(f'{k}="{v}"' in found for k, v in labels.items()))


def assert_soon(check: Callable[[str], bool], url: str) -> None:
    """See that the metrics come to pass a check: one may be counted after its answer was sent."""
    deadline = time.monotonic() + COUNTED_S
    while not check(text := metrics(url)):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def iou(a: Iterable[float], b: Iterable[float]) -> float:
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    overlap = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    return overlap / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap)


def assert_same(reply: Reply, other: Reply) -> None:
    assert len(reply.boxes) == len(other.boxes)
    for a, b in zip(reply.boxes, other.boxes, strict=True):
        assert a["box"] == pytest.approx(b["box"], abs=SAME_BOX_PX)
        assert a["score"] == pytest.approx(b["score"], abs=1e-3)


def found_share(boxes: list[dict[str, Any]], truth: list[Box]) -> float:
    """The share of the true boxes that a found one covers with an IoU of at least 0.5."""
    return sum(any(iou(box["box"], true) >= 0.5 for box in boxes) for true in truth) / len(truth)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# --- answers


def test_it_finds_the_dogs(detector_url: str) -> None:
    scenes = [make_scene(seed, dogs=3) for seed in range(9000, 9010)]
    replies = ask_at_once(detector_url, (request(encoded(scene.image)) for scene in scenes))
    truths = [[thing.box for thing in scene.objects if thing.label == "dog"] for scene in scenes]
    assert np.mean([found_share(reply.boxes, truth) for reply, truth in zip(replies, truths, strict=True)]) >= 0.9


def test_an_answer_has_every_field(detector_url: str) -> None:
    reply = ask(detector_url, request(scene_bytes(1)))
    assert reply.status == 200
    assert set(reply.body) == {"boxes", "width", "height", "model", "revision", "settings", "input"}
    assert reply.body["settings"] == {"threshold": 0.4, "nms_iou": 0.6, "dtype": "auto"}
    assert reply.body["input"] == [256, 192]  # pixels of the tiny detector
    assert (reply.body["width"], reply.body["height"]) == (640, 480)
    assert (reply.body["model"], reply.body["revision"]) == ("samples/models/tiny-detector/model.onnx", None)
    for item in reply.boxes:
        assert set(item) == {"box", "label", "score"}
        x1, y1, x2, y2 = item["box"]
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 480
        assert item["label"] == "dog"
    scores = [item["score"] for item in reply.boxes]
    assert scores == sorted(scores, reverse=True)


def test_no_object_is_an_answer(detector_url: str) -> None:
    assert ask(detector_url, request(encoded(Image.new("RGB", (64, 48), "gray")), threshold=0.9)).boxes == []


def test_the_threshold_of_a_request_is_its_own(detector_url: str) -> None:
    image = scene_bytes(2)
    thresholds = (0.0, 0.2, 0.4, 0.8, 1.0)
    replies = ask_at_once(detector_url, (request(image, threshold=threshold) for threshold in thresholds))
    for reply, threshold in zip(replies, thresholds, strict=True):
        assert all(item["score"] > threshold for item in reply.boxes)
    counts = [len(reply.boxes) for reply in replies]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] >= 1
    assert counts[-1] == 0


def test_duplicates_are_suppressed(detector_url: str) -> None:
    boxes = [item["box"] for item in ask(detector_url, request(scene_bytes(3), threshold=0.0)).boxes]
    assert len(boxes) > 1
    assert max(iou(a, b) for i, a in enumerate(boxes) for b in boxes[:i]) <= 0.6 + 1e-4


def test_labels_are_told_apart(detector_url: str) -> None:
    image = scene_bytes(4)
    replies = ask_at_once(detector_url, (request(image, label, 0.0) for label in ("dog", "cat", "sports ball")))
    for reply, label in zip(replies, ("dog", "cat", "sports ball"), strict=True):
        assert {item["label"] for item in reply.boxes} <= {label}


def test_several_labels_are_found_as_each_alone(detector_url: str) -> None:
    image = scene_bytes(4)
    names = ("dog", "cat", "sports ball")
    low, some, every, *alone = ask_at_once(
        detector_url,
        [
            request(image, {"dog": 0.0, "cat": None}, 1.0),
            request(image, dict.fromkeys(names), 0.1),
            request(image, None, 0.1),
            *(request(image, name, 0.1) for name in names),
        ],
    )
    assert {item["label"] for item in low.boxes} == {"dog"}
    assert_same(some, every)
    assert Counter(item["label"] for item in some.boxes) == Counter(
        {name: len(reply.boxes) for name, reply in zip(names, alone, strict=True) if reply.boxes}
    )
    assert [item["score"] for item in some.boxes] == sorted((item["score"] for item in some.boxes), reverse=True)


def test_boxes_are_in_pixels_of_the_upright_image(detector_url: str) -> None:
    upright = make_scene(5, dogs=3).image
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    straight_reply, turned_reply = ask_at_once(detector_url, [request(encoded(upright)), request(turned)])
    assert (turned_reply.body["width"], turned_reply.body["height"]) == (640, 480)
    truth = [tuple(item["box"]) for item in straight_reply.boxes]
    assert truth
    assert len(turned_reply.boxes) == len(truth)
    assert all(max(iou(item["box"], box) for box in truth) > 0.9 for item in turned_reply.boxes)


def test_boxes_follow_the_size_of_the_image(detector_url: str) -> None:
    image = make_scene(6, dogs=3).image
    large = image.resize((2560, 1920), Image.Resampling.BICUBIC)
    small_reply, large_reply = ask_at_once(detector_url, [request(encoded(image)), request(encoded(large, "JPEG"))])
    assert (large_reply.body["width"], large_reply.body["height"]) == (2560, 1920)
    scaled = [[value * 4 for value in item["box"]] for item in small_reply.boxes]
    assert scaled
    assert all(max(iou(item["box"], box) for box in scaled) > 0.9 for item in large_reply.boxes)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("P", "PNG"), ("I;16", "PNG"), ("P", "GIF"), ("RGB", "WEBP"), ("1", "PNG")]
)
def test_any_kind_of_image_is_taken(detector_url: str, mode: str, kind: str) -> None:
    image = make_scene(7).image
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    reply = ask(detector_url, request(encoded(image, kind)))
    assert (reply.status, reply.body["width"], reply.body["height"]) == (200, 640, 480)


# --- errors of the client


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"\xc1", 400, "bad request: the body is not msgpack"),
        (msgpack.packb({"labels": {"dog": None}}), 400, "bad request: image: field required"),
        (request(b"x", threshold=2.0), 400, "bad request: threshold"),
        (msgpack.packb({"image": b"x", "labels": None, "prompt": ""}), 400, "bad request: unknown field 'prompt'"),
        (msgpack.packb({"image": b"x", "label": "dog"}), 400, "bad request: 'label' is no field .* send labels"),
        (request(b"no image at all"), 400, "bad image: not an image"),
        (request(scene_bytes(8, "JPEG")[:9000]), 400, "bad image: cannot be decoded"),
        (request(encoded(Image.new("1", (10000, 10000)))), 400, "bad image: .* more than 89 megapixels"),
        (request(scene_bytes(8), "zebra"), 422, "unknown label: 'zebra' .* known are cat, dog, sports ball"),
        (request(b"x" * (30 << 20)), 413, "too large"),
    ],
    ids=["msgpack", "no image", "threshold", "field", "old form", "text", "truncated", "bomb", "label", "size"],
)
def test_each_error_has_its_status_and_one_line(detector_url: str, body: bytes, status: int, reason: str) -> None:
    reply = ask(detector_url, body)
    assert reply.status == status
    assert re.search(reason, reply.body)
    assert "\n" not in reply.body


# --- batches


def test_batches_form_and_change_no_answer(detector_url: str) -> None:
    bodies = [request(scene_bytes(seed, "JPEG"), threshold=0.1 + 0.02 * (seed % 20)) for seed in range(32)]
    alone = [ask(detector_url, body) for body in bodies]
    before = metrics(detector_url)
    together = ask_at_once(detector_url, bodies)
    after = metrics(detector_url)
    images, batches = (
        metric(after, f"detector_batch_size_{part}") - metric(before, f"detector_batch_size_{part}")
        for part in ("sum", "count")
    )
    assert images == len(bodies)
    assert images / batches > 1.5
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_a_bad_request_does_not_touch_its_neighbours(detector_url: str) -> None:
    good = request(scene_bytes(9, "JPEG"))
    bad = [request(b"no image"), request(scene_bytes(9), "zebra"), b"\xc1", request(scene_bytes(9, "JPEG")[:9000])]
    alone = ask(detector_url, good)
    replies = ask_at_once(detector_url, [body for each in bad for body in (good, each, good)] * 3)
    assert Counter(reply.status for reply in replies) == {200: 24, 400: 9, 422: 3}
    for reply in replies:
        if reply.status == 200:
            assert_same(reply, alone)


def test_an_image_that_the_model_fails_on_fails_alone(start_detector: Start, overflowing_on_white: Path) -> None:
    url = start_detector(DETECTOR_MODEL=str(overflowing_on_white), DETECTOR_MAX_WAIT_MS="500")
    white, gray = (request(encoded(Image.new("RGB", (64, 48), color))) for color in ("white", "gray"))
    replies = ask_at_once(url, [white, gray, gray, gray] * 4)
    text = metrics(url)
    assert metric(text, "detector_batch_size_sum") / metric(text, "detector_batch_size_count") > 1.5
    assert [reply.status for reply in replies] == [500, 200, 200, 200] * 4
    assert replies[0].body.startswith("detector failed: ")


# --- limits


def test_a_full_queue_and_a_small_body_limit(start_detector: Start) -> None:
    url = start_detector(DETECTOR_QUEUE="1", DETECTOR_MAX_BATCH="1", DETECTOR_MAX_BODY_MB="1")
    image = scene_bytes(10, "JPEG")
    replies = ask_at_once(url, [request(image)] * 64)
    assert {reply.status for reply in replies} == {200, 429}
    assert all("too many" in reply.body.lower() for reply in replies if reply.status == 429)
    refused = sum(reply.status == 429 for reply in replies)
    assert_soon(lambda text: metric(text, "detector_throughput_total", code="429") == refused, url)
    assert ask(url, request(image)).boxes
    assert ask(url, request(image + bytes(1 << 20))).status == 413


def test_what_takes_too_long_is_told_so(start_detector: Start) -> None:
    url = start_detector(DETECTOR_TIMEOUT_S="1", DETECTOR_QUEUE="1000", DETECTOR_MAX_BATCH="1")
    replies = ask_at_once(url, [request(scene_bytes(11, "JPEG"))] * 400)
    statuses = Counter(reply.status for reply in replies)
    assert statuses[408] > 0
    assert set(statuses) <= {200, 408}


# --- metrics and models


def test_metrics_count_statuses(detector_url: str) -> None:
    before = metrics(detector_url)
    ask(detector_url, request(scene_bytes(12)))
    ask(detector_url, request(scene_bytes(12), "zebra"))
    name = "detector_throughput_total"

    def counted(after: str) -> bool:
        ones = [metric(after, name, code=code) - metric(before, name, code=code) for code in ("200", "422")]
        return ones == [1, 1] and metric(after, "detector_remaining_task") == 0

    assert_soon(counted, detector_url)


def test_a_model_from_the_hub_carries_its_commit(start_detector: Start, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(MODEL, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    variables = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "DETECTOR_MODEL": "acme/tiny"}
    reply = ask(start_detector(**variables), request(scene_bytes(14)))
    assert reply.boxes
    assert (reply.body["model"], reply.body["revision"]) == ("acme/tiny", commit)


# --- starts that fail


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"DETECTOR_PORT": "abc"}, "error: DETECTOR_PORT='abc': "),
        ({"DETECTOR_TRESHOLD": "1"}, "did you mean DETECTOR_THRESHOLD"),
        ({"MOSEC_TIMEOUT": "1"}, "error: MOSEC_TIMEOUT is set"),
        ({"DETECTOR_MODEL": "no-such-model"}, "error: DETECTOR_MODEL='no-such-model' is neither a file nor a folder"),
        ({"DETECTOR_MODEL": "no/such-model", "HF_HUB_OFFLINE": "1"}, "error: cannot get config.json"),
        ({"DETECTOR_REVISION": "main"}, "error: DETECTOR_REVISION='main' has no meaning"),
    ],
)
def test_wrong_settings_end_at_once_with_one_line(
    launch_detector: Launch, variables: dict[str, str], reason: str
) -> None:
    service = launch_detector(**variables)
    assert service.wait() == 2
    assert reason in service.log
    assert len(service.log.splitlines()) == 1


def test_a_taken_port_ends_at_once_with_one_line(launch_detector: Launch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        service = launch_detector(DETECTOR_PORT=str(other.getsockname()[1]))
        assert service.wait() == 1
    assert re.fullmatch(r"error: DETECTOR_PORT=\d+: another process listens .*\n", service.log)


def test_truncated_weights_end_the_start(launch_detector: Launch, model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    service = launch_detector(DETECTOR_MODEL=str(model_copy))
    assert service.wait() == 1
    assert f"error: cannot load the model {model_copy}: " in service.log
    # Mosec's own last words come from another process, and may come later.
    assert any(line.startswith("error: the detector service stopped: ") for line in service.log.splitlines())


def test_a_model_whose_output_is_not_finite_ends_the_start(launch_detector: Launch, model_copy: Path) -> None:
    fill(model_copy / "model.safetensors", "backbone.*convolution.weight", float("nan"))
    service = launch_detector(DETECTOR_MODEL=str(model_copy))
    assert service.wait() == 1
    assert f"error: the model {model_copy} gives values that are not finite in torch.float32 on cpu" in service.log
    # Mosec's own last words come from another process, and may come later.
    assert any(line.startswith("error: the detector service stopped: ") for line in service.log.splitlines())


# --- readiness and stops


def test_sigterm_answers_the_open_requests_and_ends_with_0(launch_detector: Launch) -> None:
    service = launch_detector(DETECTOR_QUEUE="1000")
    service.wait_until_ready()
    body = request(scene_bytes(15, "JPEG"))
    count = 200

    async def run() -> list[Reply]:
        async with client() as session:
            sent: list[asyncio.Task[Reply]] = []
            waiting = 0.0
            while not waiting:  # a busy machine may ask so late that every request has been answered
                assert len(sent) < 10 * count
                sent += [asyncio.create_task(post(session, service.url, body)) for _ in range(count)]
                arrived = 0.0
                while arrived < len(sent):
                    async with session.get(f"{service.url}/metrics") as response:
                        text = await response.text()
                    waiting = metric(text, "detector_remaining_task")
                    arrived = waiting + metric(text, "detector_throughput_total")
            service.signal(signal.SIGTERM)
            return await asyncio.gather(*sent)

    assert {reply.status for reply in asyncio.run(run())} == {200}
    assert service.wait() == 0


def test_the_port_opens_when_the_model_is_ready_and_ctrl_c_leaves_nothing(launch_detector: Launch) -> None:
    service = launch_detector()
    deadline = time.monotonic() + START_S
    while not is_open(service.port):
        time.sleep(0.02)
        assert service.process.poll() is None, service.log
        assert time.monotonic() < deadline, service.log
    assert ask(service.url, request(scene_bytes(13))).boxes
    assert service.answers()
    family = [psutil.Process(service.process.pid), *service.workers()]
    os.killpg(service.process.pid, signal.SIGINT)  # as a terminal does it: to every process of the foreground group
    assert service.wait() == 0, service.log
    assert psutil.wait_procs(family, timeout=START_S)[1] == []
    assert "Traceback" not in service.log
    assert not is_open(service.port)


def test_a_stop_while_the_model_loads(launch_detector: Launch) -> None:
    service = launch_detector()
    deadline = time.monotonic() + START_S
    while "begin listening" not in service.log:  # the server underneath is up, the model is not
        assert time.monotonic() < deadline, service.log
        time.sleep(0.05)
    workers = service.workers()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0, service.log
    assert psutil.wait_procs(workers, timeout=START_S)[1] == []


def test_a_dead_worker_ends_the_service_with_an_error(launch_detector: Launch) -> None:
    service = launch_detector()
    service.wait_until_ready()
    max(service.workers(), key=lambda worker: worker.memory_info().rss).kill()  # the one that holds the model
    assert service.wait() == 1
    assert "error: the detector service stopped: " in service.log


# --- weights


def fill(weights: Path, name: str, value: float) -> None:
    """Overwrite the float32 tensors whose names match with one value, in a safetensors file.

    The file is 8 bytes of header length (little endian), a JSON header with each tensor's place, then the data.
    """
    content = bytearray(weights.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    places = [entry for key, entry in header.items() if re.search(name, key)]
    assert places, f"no tensor matches {name}"
    for place in places:
        assert place["dtype"] == "F32"
        start, end = (8 + length + offset for offset in place["data_offsets"])
        content[start:end] = np.full((end - start) // 4, value, dtype="<f4").tobytes()
    weights.write_bytes(content)


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be damaged."""
    return shutil.copytree(MODEL, tmp_path / "model")


@pytest.fixture
def overflowing_on_white(model_copy: Path) -> Path:
    """A model whose first convolution overflows float32 on a white image, and on no other.

    27 weights (3 x 3 x 3) of 1.5e37 sum to 4.1e38 on white, over the largest float32 (3.4e38), and to half of that on
    gray or noise. The normalisation after it multiplies by 0, so the rest of the model sees 0, or NaN.
    """
    fill(model_copy / "model.safetensors", r"embedder\.embedder\.0\.convolution\.weight", 1.5e37)
    fill(model_copy / "model.safetensors", r"embedder\.embedder\.0\.normalization\.weight", 0.0)
    return model_copy
