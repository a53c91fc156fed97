"""Finding images, wherever they are, and reading them."""

from __future__ import annotations

import os
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BucketUnusable, InvalidSetting, NotFound, Unreadable
from pipeline.sources import reader as sources
from pipeline.sources.images import BadImage
from pipeline.sources.listing import Source, canonical, list_images
from pipeline.sources.objects import NoObject, Objects
from pipeline.sources.reader import Reader
from pipeline.sources.rows import Rows
from tests.parquet_reads import Reads
from tests.pictures import encoded, gradient
from tests.s3 import BUCKET, Store


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.jpg", "notes.txt", "sub/c.png", ".hidden/d.jpg", ".e.jpg", "phone.heic", "web.avif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(found: list[Source], folder: Path) -> list[str]:
    return [source.shown.removeprefix(f"{folder}/") for source in found]


def find(place: str, column: str | None = None, objects: Objects | None = None) -> list[Source]:
    return list_images(place, column, objects).sources


def test_a_folder_is_searched_through(photos: Path) -> None:
    assert names(find(str(photos)), photos) == ["a.jpg", "b.JPG", "phone.heic", "sub/c.png", "web.avif"]


def test_a_glob(photos: Path) -> None:
    assert names(find(f"{photos}/**/*.png"), photos) == ["sub/c.png"]


def test_a_link_that_leads_nowhere_is_listed_and_has_no_version(photos: Path) -> None:
    (photos / "sub" / "link.jpg").symlink_to("nowhere")
    assert [source.version is None for source in find(str(photos / "sub"))] == [False, True]


def test_one_file_of_any_name(photos: Path) -> None:
    (photos / "photo.jpg.orig").touch()
    assert names(find(str(photos / "photo.jpg.orig")), photos) == ["photo.jpg.orig"]


def test_a_name_that_is_no_utf_8(photos: Path) -> None:
    odd = os.fsencode(photos) + b"/\xff.jpg"
    Path(os.fsdecode(odd)).touch()
    assert odd in [source.path for source in find(str(photos))]


def test_a_name_that_looks_like_a_glob_is_a_file(photos: Path) -> None:
    (photos / "[1].jpg").touch()
    assert names(find(str(photos / "[1].jpg")), photos) == ["[1].jpg"]


@pytest.mark.parametrize("source", ["empty", "missing", "*.tiff"])
def test_nothing_there(photos: Path, source: str) -> None:
    (photos / "empty").mkdir()
    place = str(photos / source)
    with pytest.raises(NotFound, match=f"{re.escape(place)}.*IMAGES="):
        find(place)


def test_only_addresses_that_are_understood() -> None:
    with pytest.raises(Unreadable, match=r"gs://bucket/a: .*s3://"):
        find("gs://bucket/a")


def test_another_time_or_size_is_another_version(photos: Path) -> None:
    def version() -> str | None:
        return find(str(photos / "a.jpg"))[0].version

    first = version()
    os.utime(photos / "a.jpg", ns=(5, 5))
    second = version()
    (photos / "a.jpg").write_bytes(b"x")
    os.utime(photos / "a.jpg", ns=(5, 5))
    assert len({first, second, version()}) == 3


# --- lists ---------------------------------------------------------------------------------------------------------


def test_a_list_names_files_relative_to_itself(photos: Path) -> None:
    (photos / "lists").mkdir()
    outside = photos / "sub" / "c.png"
    text = f"\ufeff# my pictures\r\n../a.jpg\r\n\r\n  ../b.JPG  \n{outside}\nmissing.jpg\n../a.jpg\nfile://{photos}/a%2Ejpg"
    (photos / "lists" / "mine.txt").write_text(text, newline="")
    found = find(str(photos / "lists" / "mine.txt"))
    assert names(found, photos) == ["a.jpg", "b.JPG", "sub/c.png", "lists/missing.jpg"]
    assert [source.version is None for source in found] == [False, False, False, True]


def test_a_list_with_bytes_that_are_no_utf_8_and_one_of_windows(photos: Path) -> None:
    (photos / "bytes.txt").write_bytes(b"\xff.jpg\n")
    assert find(str(photos / "bytes.txt"))[0].path == os.fsencode(photos) + b"/\xff.jpg"
    (photos / "wide.txt").write_bytes("größe.jpg\r\na.jpg\r\n".encode("utf-16"))
    assert names(find(str(photos / "wide.txt")), photos) == ["größe.jpg", "a.jpg"]


def test_a_list_may_name_addresses(photos: Path) -> None:
    (photos / "l.txt").write_text("s3://bucket/a b.jpg\nhttps://example.com/x.jpg?size=1\n")
    assert names(find(str(photos / "l.txt")), photos) == [
        "s3://bucket/a b.jpg",
        "https://example.com/x.jpg?size=1",
    ]


def test_a_list_is_only_what_was_named_as_one(photos: Path) -> None:
    """A text that a glob happens to find is a file like others, and fails as one row when it is read."""
    (photos / "notes.txt").write_text("The pictures of our holidays.\nSee also the other folder.\n")
    assert names(find(f"{photos}/[an]*"), photos) == ["a.jpg", "notes.txt"]
    (photos / "notes.txt").write_text("a.jpg\n")
    (photos / "more.TXT").write_text("sub/c.png\n")
    assert names(find(f"{photos}/*.txt"), photos) == ["a.jpg"]
    assert names(find(f"{photos}/more.TXT"), photos) == ["sub/c.png"]


def test_an_empty_list(photos: Path) -> None:
    (photos / "l.txt").write_text("\n# nothing\n")
    with pytest.raises(NotFound, match=r"l\.txt"):
        find(str(photos / "l.txt"))


# --- Parquet -------------------------------------------------------------------------------------------------------

PICTURES = [encoded(gradient(40 + number, 30)) for number in range(20)]


def read_all(found: list[Source]) -> list[bytes]:
    reader = Reader(Objects())
    return [reader.read(source.path, source.row) for source in found]


@pytest.mark.parametrize("group", [1000, 3], ids=["one row group", "many"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(PICTURES, pa.binary()),
        pa.array(PICTURES, pa.large_binary()),
        pa.array([{"bytes": picture, "path": "x.jpg"} for picture in PICTURES]),
    ],
    ids=["binary", "large binary", "as Hugging Face has it"],
)
def test_parquet_with_bytes(tmp_path: Path, column: pa.Array, group: int) -> None:
    table = pa.table({"caption": ["a"] * 20, "picture": column, "number": list(range(20))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    found = find(str(tmp_path))
    assert names(found, tmp_path) == [f"t.parquet#{number:08}" for number in range(20)]
    assert read_all(found) == PICTURES
    assert read_all(found[::-1]) == PICTURES[::-1]


def test_rows_are_read_right_by_several_threads(tmp_path: Path) -> None:
    values = [str(number).encode() for number in range(3000)]
    for name in "ab":
        table = pa.table({"picture": pa.array([name.encode() + value for value in values], pa.binary())})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=700)
    found, reader, wrong = find(str(tmp_path)), Reader(Objects()), []

    def work(start: int) -> None:
        for at in range(start, len(found), 4):
            name, number = "ab"[at // 3000].encode(), at % 3000
            if reader.read(found[at].path, found[at].row) != name + values[number]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("group", [20, 50, 400])
def test_rows_that_two_threads_ask_for_in_turns_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """Each has a batch of 8, and the later batch comes first; batches lie across the starts of row groups."""
    values = [f"{number}".encode() for number in range(400)]
    pq.write_table(pa.table({"picture": pa.array(values, pa.binary())}), tmp_path / "t.parquet", row_group_size=group)
    reads = Reads(monkeypatch)
    rows = Rows(Objects())
    for start in range(0, 400, 16):
        for row in [*range(start + 8, start + 16), *range(start, start + 8)]:
            assert rows.get(str(tmp_path / "t.parquet"), "picture", row) == values[row]
    assert reads.rows == 400


def test_rows_far_apart_are_read_without_the_row_groups_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = pa.array([f"{number}".encode() for number in range(4000)], pa.binary())
    pq.write_table(pa.table({"picture": values}), tmp_path / "t.parquet", row_group_size=1000)
    reads = Reads(monkeypatch)
    rows = Rows(Objects())
    assert [rows.get(str(tmp_path / "t.parquet"), "picture", row) for row in (0, 3001)] == [b"0", b"3001"]
    assert reads.taken_up == [0, 3]


def test_parquet_with_paths(photos: Path) -> None:
    values = ["a.jpg", None, "sub/c.png", "s3://bucket/x.jpg", "", "missing.jpg"]
    pq.write_table(pa.table({"file": values, "number": range(6)}), photos / "sub" / "t.parquet")
    found = find(str(photos / "sub" / "t.parquet"))
    assert names(found, photos) == [
        "sub/a.jpg",
        "sub/t.parquet#00000001",
        "sub/sub/c.png",
        "s3://bucket/x.jpg",
        "sub/t.parquet#00000004",
        "sub/missing.jpg",
    ]
    with pytest.raises(BadImage, match="column file is empty in this row"):
        Reader(Objects()).read(found[1].path, found[1].row)


def test_a_null_among_the_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": pa.array([PICTURES[0], None], pa.binary())}), tmp_path / "t.parquet")
    found = find(str(tmp_path / "t.parquet"))
    assert read_all(found[:1]) == PICTURES[:1]
    with pytest.raises(BadImage, match="column picture is empty in this row"):
        read_all(found[1:])


def test_which_column_is_said_or_has_to_be(tmp_path: Path) -> None:
    place = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": ["x.jpg"], "b": ["y.jpg"], "n": [1]}), place)
    with pytest.raises(InvalidSetting, match=r"\(a, b\).*SPOTTER_COLUMN"):
        find(place)
    assert names(find(place, "b"), tmp_path) == ["y.jpg"]
    with pytest.raises(NotFound, match=r"'n'.* a \(string\), b"):
        find(place, "n")
    pq.write_table(pa.table({"n": [1]}), place)
    with pytest.raises(NotFound, match=r" n \(int64"):
        find(place)
    (tmp_path / "p.jpg").touch()
    with pytest.raises(InvalidSetting, match=r"p\.jpg.*SPOTTER_COLUMN"):
        find(str(tmp_path / "p.jpg"), "b")


def test_what_only_calls_itself_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(Unreadable, match=r"t\.parquet .*Parquet"):
        find(str(tmp_path))


def test_pictures_come_before_parquet_in_a_folder(photos: Path) -> None:
    pq.write_table(pa.table({"file": ["x.jpg"]}), photos / "t.parquet")
    assert "t.parquet" not in " ".join(names(find(str(photos)), photos))


# --- files that are none -------------------------------------------------------------------------------------------


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadImage, match="not a regular file"):
        read_all(find(str(tmp_path)))


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 3 * 1024**2)
    with (tmp_path / "huge.jpg").open("wb") as handle:
        handle.truncate(1024**4)
    with pytest.raises(BadImage, match="more than 3 MiB"):
        read_all(find(str(tmp_path)))


# --- buckets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(store: Store) -> str:
    """A bucket with pictures of awkward names."""
    for key in ("p/a.jpg", "p/b c.jpg", "p/sub/ü#?%25.png", "p/.hidden/x.jpg", "p/[1].jpg", "p/notes.md", "q.jpg"):
        store.put(key, key.encode())
    return f"s3://{BUCKET}"


def listed(place: str, store: Store) -> list[str]:
    found = find(place, None, Objects(store.endpoint))
    return [source.shown.removeprefix(f"s3://{BUCKET}/") for source in found]


@pytest.mark.parametrize("prefix", ["p", "p/"])
def test_a_prefix_is_searched_through(store: Store, bucket: str, prefix: str) -> None:
    assert listed(f"{bucket}/{prefix}", store) == ["p/[1].jpg", "p/a.jpg", "p/b c.jpg", "p/sub/ü#?%25.png"]


def test_a_whole_bucket(store: Store, bucket: str) -> None:
    assert listed(bucket, store) == listed(f"{bucket}/", store) == [*listed(f"{bucket}/p", store), "q.jpg"]


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("p/*.jpg", ["p/[1].jpg", "p/a.jpg", "p/b c.jpg"]),
        ("p/**/*.png", ["p/sub/ü#?%25.png"]),
        ("p/b c.jpg", ["p/b c.jpg"]),
        ("p/[1].jpg", ["p/[1].jpg"]),
        ("p/notes.md", ["p/notes.md"]),
    ],
)
def test_globs_and_objects(store: Store, bucket: str, place: str, found: list[str]) -> None:
    assert listed(f"{bucket}/{place}", store) == found


def test_objects_of_any_name_are_read(store: Store, bucket: str) -> None:
    reader = Reader(Objects(store.endpoint))
    for source in find(f"{bucket}/p", None, reader.objects):
        assert reader.read(source.path, None) == source.shown.removeprefix(f"s3://{BUCKET}/").encode()
    with pytest.raises(NoObject, match="no such object"):
        reader.read(f"{bucket}/p/gone.jpg".encode(), None)


def test_another_size_is_another_version_of_an_object(store: Store, bucket: str) -> None:
    def versions() -> list[str | None]:
        return [source.version for source in find(f"{bucket}/p", None, Objects(store.endpoint))]

    before = versions()
    store.put("p/a.jpg", b"longer than before")
    assert [one == other for one, other in zip(before, versions(), strict=True)] == [True, False, True, True]


def test_lists_and_parquet_in_a_bucket(store: Store, bucket: str, tmp_path: Path) -> None:
    store.put("lists/l.txt", b"a.jpg\ns3://other/b.jpg\n")
    assert listed(f"{bucket}/lists/l.txt", store) == ["lists/a.jpg", "s3://other/b.jpg"]
    pq.write_table(pa.table({"picture": pa.array(PICTURES, pa.binary())}), tmp_path / "t.parquet", row_group_size=3)
    store.put("tables/t.parquet", (tmp_path / "t.parquet").read_bytes())
    objects = Objects(store.endpoint)
    found = find(f"{bucket}/tables/", None, objects)
    reader = Reader(objects)
    assert [reader.read(source.path, source.row) for source in found] == PICTURES
    assert found[0].shown == f"{bucket}/tables/t.parquet#00000000"


def test_an_address_of_the_web_is_read(photos: Path) -> None:
    (photos / "a b.jpg").write_bytes(b"of the web")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(photos))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        reader = Reader(Objects())
        try:
            assert reader.read(f"{base}/a%20b.jpg".encode(), None) == b"of the web"
            with pytest.raises(NoObject):
                reader.read(f"{base}/gone.jpg".encode(), None)
        finally:
            server.shutdown()
            thread.join()


def test_nothing_under_a_prefix(store: Store, bucket: str) -> None:
    with pytest.raises(NotFound, match="/nothing/"):
        listed(f"{bucket}/nothing/", store)


@pytest.mark.slow
def test_a_store_that_cannot_be_used_is_one_line(store: Store, bucket: str) -> None:
    with pytest.raises(BucketUnusable, match=r"s3://nobody/p: .*SPOTTER_S3_ENDPOINT"):
        listed("s3://nobody/p", store)
    with pytest.raises(BucketUnusable, match="Connection refused"):
        find(bucket, None, Objects("http://127.0.0.1:1"))
    store.check_credentials()
    with pytest.raises(BucketUnusable, match="AWS_ACCESS_KEY_ID"):
        listed(bucket, store)


def test_one_place_has_one_identity(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert canonical("sub", None) == canonical(str(photos / "sub"), None) == str(photos / "sub")
    assert canonical("s3://b/p", None) == "s3://b/p"
    assert canonical("sub", "x") != canonical("sub", "y")
