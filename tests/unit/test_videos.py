"""Videos as frames: which are taken, their pixels, numbers and times, and what becomes of damaged files."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.errors import InvalidSetting, NotFound, Unreadable
from pipeline.output.manifest import Result
from pipeline.results.export import export
from pipeline.results.exports import coco
from pipeline.results.finished_run import Tally, read_run
from pipeline.run import run
from pipeline.sources import frames as frames_module
from pipeline.sources import videos
from pipeline.sources.frames import Cursor, Frames, encoded
from pipeline.sources.images import BadImage
from pipeline.sources.listing import Listing, Source, list_images
from pipeline.sources.objects import Objects
from pipeline.sources.reader import Reader
from pipeline.sources.videos import Every, examine
from scripts.docker.job import tell
from scripts.environments import LOCKS
from scripts.settings import InvalidStackSetting, JobCommand
from scripts.stack.process_engine import job_environment
from tests.conftest import Cli
from tests.doubles.simulated import Simulated
from tests.pictures import encoded as encoded_image
from tests.pictures import gradient
from tests.s3 import BUCKET, Store
from tests.videos import colour, picture, turned, write_sound, write_video

SCALER = VideoReformatter()


def listed(place: Path, every: str) -> list[Source]:
    return list_images(str(place), every=every).sources


def numbers(sources: list[Source]) -> list[int]:
    return [source.row.number for source in sources if source.row and not source.fault]


def read(sources: list[Source], reader: Reader | None = None) -> list[Image.Image]:
    reader = reader or Reader(Objects())
    return [Image.open(io.BytesIO(reader.read(source.path, source.row))) for source in sources]


def near(pixel: Any, expected: tuple[int, int, int], tolerance: int = 14) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(pixel, expected, strict=True))


@pytest.mark.parametrize(
    ("every", "taken"),
    [
        ("1s", [0, 30]),
        ("0.5s", [0, 15, 30, 45]),
        ("0.1s", list(range(0, 60, 3))),
        ("25f", [0, 25, 50]),
        ("1f", list(range(60))),
        ("99s", [0]),
    ],
)
def test_which_frames_are_taken(tmp_path: Path, every: str, taken: list[int]) -> None:
    sources = listed(write_video(tmp_path / "a.mp4"), every)
    assert numbers(sources) == taken
    assert [source.shown for source in sources] == [f"{tmp_path}/a.mp4#{number:08}" for number in taken]
    assert [source.time_s for source in sources] == pytest.approx([number / 30 for number in taken], abs=1e-4)


def test_frames_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    cursor = Cursor(str(write_video(tmp_path / "a.mp4")), Every.of("1f"))
    gc.collect()
    before = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    gc.disable()
    try:
        for number in range(40):
            cursor.get(number)
        held = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    finally:
        gc.enable()
    assert held - before <= 4


@pytest.mark.parametrize("text", ["", "1", "0s", "0f", "-1s", "1.5f", "1 s", "keys", "s"])
def test_an_interval_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSetting, match=r"SPOTTER_EVERY.*expected 1s"):
        list_images(str(tmp_path), every=text)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.mp4", "libx264"), ("a.mp4", "libx265"), ("a.mp4", "libsvtav1"), ("a.mov", "libx264")),
        ("a.m4v", "libx264"),
        *(("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")),
    ],
)
def test_frames_have_their_own_pixels(tmp_path: Path, name: str, codec: str) -> None:
    """The number tells the picture, also of codecs that store frames in another order than they are shown."""
    sources = listed(write_video(tmp_path / name, codec), "7f")
    assert numbers(sources) == list(range(0, 60, 7))
    for number, image in zip(range(0, 60, 7), read(sources), strict=True):
        assert (image.format, image.size) == ("JPEG", (64, 48))
        assert near(image.getpixel((40, 30)), colour(number)), (number, image.getpixel((40, 30)))
        assert near(image.getpixel((6, 5)), (255, 255, 255))


def test_frames_of_a_variable_rate(tmp_path: Path) -> None:
    """Frames 0 to 9 within the first second, none in the third, then one each 0.4 s."""
    times = [number / 10 for number in range(10)] + [1.25, 3.0, 3.4, 3.8, 4.2, 4.6]
    for name in ("a.mp4", "a.mkv"):
        sources = listed(write_video(tmp_path / name, times=times), "1s")
        assert numbers(sources) == [0, 10, 11, 14]
        assert [source.time_s for source in sources] == pytest.approx([0, 1.25, 3.0, 4.2], abs=0.001)
        assert all(
            near(image.getpixel((40, 30)), colour(n)) for image, n in zip(read(sources), [0, 10, 11, 14], strict=True)
        )


def test_key_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", encoder={"x264-params": "scenecut=0"})
    with av.open(path) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    sources = listed(path, "key")
    assert numbers(sources) == keys
    assert len(keys) >= 5
    assert all(near(image.getpixel((40, 30)), colour(n)) for image, n in zip(read(sources), keys, strict=True))


def test_frames_without_stamps_of_their_own_are_counted(tmp_path: Path) -> None:
    """Two frames within a thousandth of a second, which is Matroska's unit, have the same stamp."""
    times = [number / 30 for number in range(60)]
    times[4] = times[3] + 0.0002
    path = write_video(tmp_path / "a.mkv", times=times)
    assert examine(str(path), Every.of("1f")).counted
    sources = listed(path, "10f")
    assert [source.time_s for source in sources] == pytest.approx([number / 3 for number in range(6)], abs=0.001)
    for image, number in zip(read(sources), range(0, 60, 10), strict=True):
        assert near(image.getpixel((40, 30)), colour(number))


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((0, 1, -1, 0), (48, 64), (42, 6)),
        ((-1, 0, 0, -1), (64, 48), (58, 42)),
        ((0, -1, 1, 0), (48, 64), (5, 58)),
        ((-1, 0, 0, 1), (64, 48), (58, 5)),
        ((1, 0, 0, -1), (64, 48), (6, 42)),
        ((0, 1, 1, 0), (48, 64), (5, 6)),
        ((0, -1, -1, 0), (48, 64), (42, 58)),
    ],
)
def test_the_display_matrix_is_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], corner: tuple[int, int]
) -> None:
    """The white corner of the stored frame, at its top left, comes where the matrix says: phones lie on their side."""
    path = write_video(tmp_path / "a.mp4", times=[0])
    path.write_bytes(turned(path.read_bytes(), matrix))
    (image,) = read(listed(path, "1f"))
    assert image.size == size
    assert near(image.getpixel(corner), (255, 255, 255))
    assert near(image.getpixel((24, 30)), colour(0))


def ten_bits(luma: int, transfer: int) -> Image.Image:
    """A frame of 10 bits without colour as it is encoded, by its luma of 64 to 940."""
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, value in zip(frame.planes, (luma, 512, 512), strict=True):
        plane.update(value.to_bytes(2, "little") * (plane.buffer_size // 2))
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 9, 9, transfer, 1
    return Image.open(io.BytesIO(encoded(frame, SCALER)))


@pytest.mark.slow
def test_ten_bits_and_hdr() -> None:
    """ITU-R BT.2408: the reference white of HDR is PQ 58 % and HLG 75 %; both become white, and half of it grey."""
    assert near(ten_bits(502, 1).getpixel((9, 9)), (128, 128, 128), 2)
    assert near(ten_bits(round(64 + 0.58 * 876), 16).getpixel((9, 9)), (254, 254, 254), 3)
    assert near(ten_bits(round(64 + 0.75 * 876), 18).getpixel((9, 9)), (254, 254, 254), 3)
    # PQ 40 % is 32.5 cd/m2, 0.16 of the reference white: sRGB 112.
    assert near(ten_bits(round(64 + 0.40 * 876), 16).getpixel((9, 9)), (112, 112, 112), 10)


def test_untagged_colours_are_those_of_the_size(tmp_path: Path) -> None:
    """Red of BT.601 in standard definition, of BT.709 above."""
    for height, luma, cb, cr in ((480, 81, 90, 240), (720, 63, 102, 240)):
        frame = av.VideoFrame(64, height, "yuv420p")
        for plane, value in zip(frame.planes, (luma, cb, cr), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        assert near(Image.open(io.BytesIO(encoded(frame, VideoReformatter()))).getpixel((9, 9)), (255, 0, 0), 4), height


# --- damage ---------------------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> Path:
    os.truncate(path, int(path.stat().st_size * share))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {}),
    ],
)
def test_a_video_that_is_cut_short_keeps_the_frames_before(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    """What is left is listed and read; one more source has the number of the first frame that is not there."""
    path = write_video(tmp_path / name, codec, options=options)
    if options.get("movflags") == "faststart":
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"mdat") + 1000])
    else:
        cut(path, 0.75)
    *kept, broken = listed(path, "1f")
    assert 0 < len(kept) < 60
    assert numbers(kept) == list(range(len(kept)))
    assert broken.row is not None
    assert broken.row.number == len(kept)
    assert broken.time_s == kept[-1].time_s
    assert str(broken.fault).startswith(f"the video ends early, after frame {len(kept) - 1} (")
    assert "cut short" in str(broken.fault) or "within a frame" in str(broken.fault)
    for number, image in enumerate(read(kept)):
        assert near(image.getpixel((40, 30)), colour(number))


def test_a_video_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    """Frames that cannot be decoded fail, each with its number and time; those before and after are right."""
    path = write_video(tmp_path / "a.mp4", "mpeg4")
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for packet in packets[24:36]:  # from a key frame to before the next
        assert packet.pos is not None
        content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    cursor = Cursor(str(path), Every.of("1f"))
    outcomes: list[str] = []
    for number in range(60):
        try:
            image = Image.open(io.BytesIO(cursor.get(number)))
            outcomes.append("right" if near(image.getpixel((40, 30)), colour(number)) else "wrong")
        except BadImage as error:
            outcomes.append("failed" if f"frame {number} ({number / 30:.3f} s) " in str(error) else str(error))
    assert outcomes == ["right"] * 24 + ["failed"] * 12 + ["right"] * 24


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a video of a known container"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video of a known container"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "cannot be opened: "),
        (b"\x1aE\xdf\xa3" + b"\0" * 500, "cannot be opened: "),
        (b"RIFF\xff\xff\xff\x7fAVI " + b"\0" * 500, "cut short: 512 of 2147483655 bytes"),
    ],
)
def test_a_file_that_is_no_video(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    (source,) = listed(tmp_path / "a.mp4", "1s")
    assert source.shown == f"{tmp_path}/a.mp4#00000000"
    assert reason in str(source.fault)


def test_sound_alone_and_covers(tmp_path: Path) -> None:
    (source,) = listed(write_sound(tmp_path / "a.mp4"), "1s")
    assert source.fault == "it has no video stream"


def test_the_pictures_are_found_among_other_streams(tmp_path: Path) -> None:
    sources = listed(write_video(tmp_path / "a.mkv", audio=True), "30f")
    assert numbers(sources) == [0, 30]
    assert near(read(sources)[1].getpixel((40, 30)), colour(30))


def test_a_codec_that_is_not_decoded(tmp_path: Path) -> None:
    (source,) = listed(write_video(tmp_path / "a.avi", "flv"), "1s")
    assert source.fault == "codec flv is not decoded: convert the video to H.264"


def test_a_video_without_a_duration_in_its_header(tmp_path: Path) -> None:
    """As a browser records: Matroska that was never finished, so neither length nor index."""
    written = io.BytesIO()
    written.seekable = lambda: False  # type: ignore[method-assign]

    class Pipe:
        name = "a.webm"

        def write(self, data: bytes) -> int:
            return written.write(data)

    with av.open(Pipe(), "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(40):
            container.mux(stream.encode(picture(number)))
        container.mux(stream.encode(None))
    path = tmp_path / "a.webm"
    path.write_bytes(written.getvalue())
    with av.open(path) as opened:
        assert opened.duration is None
    sources = listed(path, "10f")
    assert numbers(sources) == [0, 10, 20, 30]
    assert not any(source.fault for source in sources)
    assert near(read(sources)[3].getpixel((40, 30)), colour(30))


def test_a_video_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(videos, "MOST_FRAMES", 20)
    *kept, broken = listed(path, "10f")
    assert (numbers(kept), broken.row and broken.row.number) == ([0, 10], 20)
    assert "more than 20 frames: cut it into several" in str(broken.fault)


def test_bytes_without_a_frame_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Matroska file that goes on with what is no frame: the demuxer would look through all of it."""
    monkeypatch.setattr(videos, "MOST_BYTES", 2 * 1024**2)
    path = write_video(tmp_path / "a.mkv", options={"live": "1"})
    with path.open("ab") as handle:
        handle.truncate(64 * 1024**2)  # sparse
    *kept, broken = listed(path, "30f")
    assert numbers(kept) == [0, 30]
    assert "2 MiB without a frame" in str(broken.fault)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    (source,) = listed(tmp_path / "a.mp4", "1s")
    assert source.fault == "not a regular file"


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_frame_is_the_same_however_it_is_reached(tmp_path: Path) -> None:
    """From the start, after a jump, and backwards: the same bytes, so the same key, and a resumed run agrees."""
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9"), ("a.avi", "libx264")):
        path = write_video(tmp_path / name, codec, times=[number / 30 for number in range(200)])
        in_order = Cursor(str(path), Every.of("1f"))
        whole = [in_order.get(number) for number in range(200)]
        for number in (150, 151, 199, 3, 90, 89, 0):
            assert Cursor(str(path), Every.of("1f")).get(number) == whole[number], (name, number)
        jumping = Cursor(str(path), Every.of("1f"))
        assert [jumping.get(number) for number in (150, 3, 151, 90, 199, 89)] == [
            whole[number] for number in (150, 3, 151, 90, 199, 89)
        ], name


def test_a_video_is_decoded_once_for_threads_that_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    begun: list[int] = []
    decode = Cursor.decode

    def counted(self: Cursor, place: int) -> Any:
        begun.append(place)
        return decode(self, place)

    monkeypatch.setattr(Cursor, "decode", counted)
    frames = Frames()
    for number in (8, 9, 0, 10, 1, 2, 11, *range(12, 60), *range(3, 8)):
        assert near(Image.open(io.BytesIO(frames.get(str(path), "1f", number))).getpixel((40, 30)), colour(number))
    assert begun == [0]


def test_frames_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 4000)
    cursor = Cursor(str(write_video(tmp_path / "a.mp4")), Every.of("1f"))
    cursor.get(50)
    assert sum(map(len, cursor.kept.values())) <= 4000
    assert near(Image.open(io.BytesIO(cursor.get(2))).getpixel((40, 30)), colour(2))


def test_a_video_that_changed_since_is_said(tmp_path: Path) -> None:
    (*_, last) = listed(write_video(tmp_path / "a.mp4"), "1f")
    write_video(tmp_path / "a.mp4", times=[0, 0.1])
    with pytest.raises(BadImage, match="has changed since it was listed: it has no frame 59"):
        read([last])


# --- places ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_videos_and_images(tmp_path: Path) -> None:
    write_video(tmp_path / "b.mp4")
    (tmp_path / "sub").mkdir()
    write_video(tmp_path / "sub" / "c.MKV")
    (tmp_path / "a.jpg").write_bytes(encoded_image(gradient()))
    found = list_images(str(tmp_path), every="1s")
    names = [source.shown.removeprefix(f"{tmp_path}/") for source in found.sources]
    assert names == ["a.jpg", "b.mp4#00000000", "b.mp4#00000030", "sub/c.MKV#00000000", "sub/c.MKV#00000030"]
    assert (found.videos(), found.left_out) == ("videos: 2, 4 frames of them by SPOTTER_EVERY=1s", {})


def test_without_every_videos_are_left_out_and_said(tmp_path: Path) -> None:
    write_video(tmp_path / "b.mp4")
    with pytest.raises(NotFound, match=r"no image in the folder .*left out: 1 \.mp4 \(set EVERY=1s to take frames\)"):
        list_images(str(tmp_path))
    with pytest.raises(Unreadable, match=r"b\.mp4' is a video: set EVERY=1s to take a frame of each second"):
        list_images(str(tmp_path / "b.mp4"))
    (tmp_path / "a.jpg").write_bytes(encoded_image(gradient()))
    assert list_images(str(tmp_path)).summary() == "left out: 1 .mp4 (set EVERY=1s to take frames)"


def test_a_glob_and_a_list_of_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4\ngone.mp4\n")
    assert numbers(list_images(f"{tmp_path}/*.mp4", every="1s").sources) == [0, 30]
    first, second, gone = listed(tmp_path / "list.txt", "1s")
    assert numbers([first, second]) == [0, 30]
    assert "No such file" in str(gone.fault)


def test_tables_and_buckets_are_refused(tmp_path: Path, store: Store) -> None:
    table = tmp_path / "a.csv"
    table.write_text("image\na.mp4\n")
    with pytest.raises(InvalidSetting, match="is a table, and SPOTTER_EVERY takes frames of video files"):
        list_images(str(table), every="1s")
    store.put("p/a.mp4", b"video")
    store.put("p/b.jpg", encoded_image(gradient()))
    with pytest.raises(Unreadable, match="is a video in a bucket: copy it to this host"):
        list_images(f"s3://{BUCKET}/p/a.mp4", None, Objects(store.endpoint), every="1s")
    found: Listing = list_images(f"s3://{BUCKET}/p", None, Objects(store.endpoint), every="1s")
    assert found.left_out == {"video in a bucket": 1}


# --- runs -----------------------------------------------------------------------------------------------------------

RunJob = Callable[..., Result]


@pytest.fixture
def run_job(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunJob:
    """Run the bundled job over a place, with the simulated servers."""

    def do(images: Path, *options: str) -> Result:
        for name, value in simulated.settings.items():
            monkeypatch.setenv(name, value)
        arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), *options]
        return run(pipeline_settings.load(arguments), Console(file=io.StringIO()))

    return do


def rows(done: Result, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(done.folder / f"{name}.parquet").to_pylist()
    return found


def test_a_run_over_a_video_from_end_to_end(simulated: Simulated, tmp_path: Path, cli: Cli) -> None:
    """As a user starts it: a cut video beside a picture; the columns of both tables, the copies' names, the report."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "z.jpg").write_bytes(encoded_image(gradient()))
    cut(write_video(place / "a.mkv"), 0.9)
    done = cli(
        "--images", str(place), "--output", str(tmp_path / "runs"), env={**simulated.settings, "SPOTTER_EVERY": "0.5s"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "videos: 1, 5 frames of them by SPOTTER_EVERY=0.5s" in done.stdout
    folder = (tmp_path / "runs" / "latest").resolve()
    images = pq.read_table(folder / "images.parquet").to_pylist()
    frames = [row for row in images if row["video"]]
    assert [row["frame"] for row in frames[:-1]] == [0, 15, 30, 45]
    assert [row["time_s"] for row in frames[:-1]] == pytest.approx([0, 0.5, 1.0, 1.5], abs=0.001)
    assert {row["video"] for row in frames} == {f"{place}/a.mkv"}
    assert (frames[-1]["outcome"], frames[-1]["stage"]) == ("failed", "read")
    assert "the video ends early, after frame" in frames[-1]["reason"]
    assert [row["video"] for row in images if row["path"].endswith("z.jpg")] == [None]
    detections = pq.read_table(folder / "detections.parquet").to_pylist()
    assert [(row["frame"], row["path"][-9:]) for row in detections if row["video"]] == [
        (number, f"#{number:08}") for number in (0, 15, 30, 45)
    ]
    copies = sorted(path.name for path in (folder / "annotated").iterdir())
    assert [name[:10] for name in copies[:4]] == ["a-00000000", "a-00000015", "a-00000030", "a-00000045"]
    chunk = next(folder.glob("report/rows-*.js"), None) or next(
        path for path in folder.rglob("*.js") if b"time_s" in path.read_bytes()
    )
    assert '"time_s":' in chunk.read_text()


def test_frames_that_do_not_change_are_asked_once(run_job: RunJob, simulated: Simulated, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pictures=[picture(7) for _ in range(60)])
    done = run_job(path, "--every", "10f")
    images = rows(done, "images")
    assert len(images) == 6
    assert simulated.model.requests < 6
    duplicates = [row for row in images if row["duplicate_of"]]
    assert duplicates
    assert [row["frame"] for row in images] == [0, 10, 20, 30, 40, 50]
    assert [row["frame"] for row in rows(done, "detections")] == [0, 10, 20, 30, 40, 50]


def test_a_run_continues_in_the_middle_of_a_video(run_job: RunJob, simulated: Simulated, tmp_path: Path) -> None:
    """A trial's frames are a run of their own; other frames of the same video are added to the run."""
    path = write_video(tmp_path / "a.mp4")
    first = run_job(path, "--every", "20f")
    asked = simulated.detector.requests
    second = run_job(path, "--every", "10f")
    assert first.folder == second.folder
    assert simulated.detector.requests - asked == 3 + 1  # one looks whether the service answers
    images = rows(second, "images")
    assert [row["frame"] for row in images] == [0, 10, 20, 30, 40, 50]
    assert json.loads((second.folder / "run.json").read_text())["done_before"] == 3


def test_exports_have_the_frames_columns(run_job: RunJob, tmp_path: Path) -> None:
    done = run_job(write_video(tmp_path / "a.mp4"), "--every", "30f")
    images = coco.dataset(read_run(done.folder), Tally())["images"]
    assert [(image["file_name"][-9:], image["frame"], round(image["time_s"], 2)) for image in images] == [
        ("#00000000", 0, 0.0),
        ("#00000030", 30, 1.0),
    ]
    for name in ("hf", "csv"):
        export(read_run(done.folder), name, tmp_path / name)
    table = pq.read_table(next((tmp_path / "hf" / "images").glob("*.parquet")))
    assert table["video"].to_pylist() == [f"{tmp_path}/a.mp4"] * 2
    assert "time_s" in (tmp_path / "csv" / "detections.csv").read_text().splitlines()[0]


# --- the stack ------------------------------------------------------------------------------------------------------


def test_pyav_is_where_videos_are_wanted(tmp_path: Path) -> None:
    """An environment of its own on a host; an image has none, and says so before anything starts."""
    settings = pipeline_settings.Settings(every="1s", images=str(tmp_path))
    assert job_environment(settings) == "video"
    assert job_environment(pipeline_settings.Settings(images=str(tmp_path))) == "operator"
    assert "\nav==" in (LOCKS / "video.lock").read_text()
    assert not any("\nav==" in (LOCKS / f"{name}.lock").read_text() for name in ("pipeline", "operator"))
    with pytest.raises(
        InvalidStackSetting, match="SPOTTER_EVERY=1s: the job's image has no PyAV: set STACK_ENGINE=process"
    ):
        tell(JobCommand(settings), {}, tmp_path)


def test_without_pyav_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidSetting, match=r"SPOTTER_EVERY: PyAV cannot be loaded .*: unset RUNNER and use"):
        listed(path, "1s")
