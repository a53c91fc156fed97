"""Tables of images as libraries write them: each Arrow type, CSV, JSON Lines, and columns that say what they lack."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.errors import NotFound, Unreadable
from pipeline.sources.images import BadImage
from pipeline.sources.listing import Source, has_entries, list_images
from pipeline.sources.objects import Objects
from pipeline.sources.reader import Reader
from tests.pictures import encoded, gradient
from tests.s3 import BUCKET, Store

PICTURES = [encoded(gradient(40 + number, 30)) for number in range(12)]
PATHS = [f"img/{number}.jpg" for number in range(12)]
BASE64 = [base64.b64encode(picture).decode() for picture in PICTURES]
ROWS = [f"#{number:08}" for number in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures as files."""
    (tmp_path / "img").mkdir()
    for path, picture in zip(PATHS, PICTURES, strict=True):
        (tmp_path / path).write_bytes(picture)
    return tmp_path


def find(place: object, column: str | None = None, objects: Objects | None = None) -> list[Source]:
    return list_images(str(place), column, objects).sources


def read(found: list[Source], objects: Objects | None = None) -> list[bytes]:
    reader = Reader(objects or Objects())
    return [reader.read(source.path, source.row) for source in found]


def names(found: list[Source], folder: Path) -> list[str]:
    return [source.shown.removeprefix(f"{folder}/").removeprefix("t.parquet") for source in found]


BYTES = {
    "plain: DuckDB, pandas": pa.array(PICTURES, pa.binary()),
    "large: Polars": pa.array(PICTURES, pa.large_binary()),
    "view: Polars to Arrow": pa.array(PICTURES, pa.binary_view()),
    "dictionary": pa.array(PICTURES, pa.binary()).dictionary_encode(),
    "fixed size": pa.array([picture.ljust(5000) for picture in PICTURES], pa.binary(5000)),
    "list of one: Polars": pa.array([[picture] for picture in PICTURES], pa.large_list(pa.large_binary())),
    "list of uint8: Polars, NumPy": pa.array([list(picture) for picture in PICTURES], pa.large_list(pa.uint8())),
    "list of int8": pa.array([[n - 256 * (n > 127) for n in picture] for picture in PICTURES], pa.list_(pa.int8())),
    "struct": pa.array([{"bytes": picture, "path": None} for picture in PICTURES]),
    "struct with large types: Polars": pa.array(
        [{"bytes": picture, "path": "x.jpg"} for picture in PICTURES],
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
    ),
    "struct with other names": pa.array([{"mime": "image/jpeg", "data": picture} for picture in PICTURES]),
    "struct in a struct": pa.array([{"id": 1, "image": {"bytes": picture, "path": None}} for picture in PICTURES]),
    "list of one struct: datasets": pa.array([[{"bytes": picture, "path": None}] for picture in PICTURES]),
    "bytes beside paths that are null": pa.array(
        [{"bytes": PICTURES[n] if n % 2 else None, "path": None if n % 2 else PATHS[n]} for n in range(12)]
    ),
    "base64: DuckDB": pa.array(BASE64),
    "base64 for addresses, without padding": pa.array(
        [base64.urlsafe_b64encode(picture).decode().rstrip("=") for picture in PICTURES]
    ),
    "base64 over several lines": pa.array([base64.encodebytes(picture).decode() for picture in PICTURES]),
    "data URLs": pa.array([f"data:image/jpeg;base64,{text}" for text in BASE64], pa.large_string()),
}


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_in_parquet(folder: Path, kind: str) -> None:
    table = pa.table({"n": range(12), "caption": ["a.b"] * 12, "picture": BYTES[kind]})
    pq.write_table(table, folder / "t.parquet", row_group_size=5)
    found = find(folder / "t.parquet")
    assert names(found, folder) == ROWS
    assert [data.rstrip(b" ") for data in read(found)] == PICTURES
    assert [data.rstrip(b" ") for data in read(found[::-1])] == PICTURES[::-1]


PATH_COLUMNS = {
    "plain: DuckDB": pa.array(PATHS),
    "large: pandas, Polars": pa.array(PATHS, pa.large_string()),
    "view: Polars to Arrow": pa.array(PATHS, pa.string_view()),
    "dictionary: pandas categories": pa.array(PATHS).dictionary_encode(),
    "with blanks around": pa.array([f" {path}\n" for path in PATHS]),
    "list of one": pa.array([[path] for path in PATHS]),
    "struct of a path": pa.array([{"path": path} for path in PATHS]),
    "struct without bytes: datasets": pa.array(
        [{"bytes": None, "path": path} for path in PATHS], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    ),
    "struct in a struct": pa.array(
        [{"image": {"bytes": None, "path": path}} for path in PATHS],
        pa.struct([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]),
    ),
}


@pytest.mark.parametrize("kind", PATH_COLUMNS)
def test_paths_in_parquet(folder: Path, kind: str) -> None:
    pq.write_table(pa.table({"n": range(12), "picture": PATH_COLUMNS[kind]}), folder / "t.parquet", row_group_size=5)
    found = find(folder / "t.parquet")
    assert names(found, folder) == PATHS
    assert all(source.version and source.row is None for source in found)
    assert read(found) == PICTURES


@pytest.mark.parametrize("column", ["bytes", "paths", "struct"])
@pytest.mark.parametrize("kind", ["t.feather", "t.arrow", "stream.arrow"])
def test_arrow(folder: Path, kind: str, column: str) -> None:
    """Feather of pandas and Polars, which compress it; a stream is what datasets save to disk."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "bytes": pa.array(PICTURES, pa.binary_view()),
        "paths": pa.array(PATHS, pa.string_view()),
        "struct": pa.array([{"bytes": None, "path": path} for path in PATHS], struct),
    }
    table = pa.table({"caption": ["a"] * 12, "picture": columns[column]})
    if kind == "t.feather":
        feather.write_feather(table, folder / kind, compression="zstd" if column == "struct" else "uncompressed")
    else:
        new = pa.ipc.new_stream if kind == "stream.arrow" else pa.ipc.new_file
        with new(str(folder / kind), table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    found = find(folder / kind)
    assert names(found, folder) == ([f"{kind}{row}" for row in ROWS] if column == "bytes" else PATHS)
    assert read(found) == PICTURES
    assert read(found[::-1]) == PICTURES[::-1]


TEXTS: dict[str, str] = {
    "polars.csv": "file,label\n" + "".join(f"{path},dog\n" for path in PATHS),
    "pandas.csv": ",file\n" + "".join(f"{n},{path}\n" for n, path in enumerate(PATHS)),
    "excel.csv": "\ufefffile;label\r\n" + "".join(f'"{path}";"a; b"\r\n' for path in PATHS),
    "no header.csv": "".join(f"{path},dog\n" for path in PATHS),
    "only paths.csv": "".join(f"{path}\n" for path in PATHS),
    "tabs.tsv": "id\tfile\n" + "".join(f"{n}\t{path}\n" for n, path in enumerate(PATHS)),
    "datasets.csv": "image\n" + "".join(f"\"{{'bytes': None, 'path': '{path}'}}\"\n" for path in PATHS),
    "pandas.jsonl": "".join(f'{{"n":1,"p":"{path.replace("/", chr(92) + "/")}"}}\n' for path in PATHS),
    "polars.ndjson": "\n".join(json.dumps({"p": path, "text": "a dog"}) for path in PATHS) + "\n\n",
    "datasets.jsonl": "".join(json.dumps({"image": {"bytes": None, "path": path}}) + "\n" for path in PATHS),
    "duckdb.json": "".join(json.dumps({"p": path}) + "\n" for path in PATHS),
    "array.json": json.dumps([{"p": path, "n": [1]} for path in PATHS], indent=1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_paths_in_text(folder: Path, name: str) -> None:
    (folder / name).write_text(TEXTS[name], newline="")
    found = find(folder / name)
    assert names(found, folder) == PATHS
    assert read(found) == PICTURES
    assert has_entries(name)


def test_utf_16_as_excel_writes_it(folder: Path) -> None:
    (folder / "t.csv").write_bytes(TEXTS["tabs.tsv"].encode("utf-16"))
    assert names(find(folder / "t.csv"), folder) == PATHS


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_pictures_in_text(folder: Path, name: str) -> None:
    urls = [f"data:image/jpeg;base64,{text}" for text in BASE64]
    lines = [json.dumps({"image": url}) for url in urls] if name == "t.jsonl" else ["image", *(f'"{u}"' for u in urls)]
    (folder / name).write_text("\n".join(lines) + "\n")
    found = find(folder / name)
    assert names(found, folder) == [f"{name}{row}" for row in ROWS]
    assert read(found[::-1]) == PICTURES[::-1]


def test_text_tables_are_only_what_was_named(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\nimg/1.jpg,dog\n")
    (folder / "a.jpg").touch()
    assert names(find(folder), folder) == ["a.jpg", *sorted(PATHS)]
    assert names(find(f"{folder}/*.*"), folder) == ["a.jpg", "labels.csv"]
    assert names(find(f"{folder}/*.csv"), folder) == ["img/1.jpg"]


def test_a_text_table_in_a_bucket(store: Store) -> None:
    store.put("p/img/1.jpg", PICTURES[1])
    store.put("p/t.csv", b"id,file\n1,img/1.jpg\n")
    store.put("p/t.jsonl", json.dumps({"image": {"path": "img/1.jpg"}}).encode())
    objects = Objects(store.endpoint)
    for name in ("t.csv", "t.jsonl"):
        found = find(f"s3://{BUCKET}/p/{name}", None, objects)
        assert [source.shown for source in found] == [f"s3://{BUCKET}/p/img/1.jpg"]
        assert read(found, objects) == PICTURES[1:2]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow"])
def test_rows_without_an_image_and_the_same_twice(folder: Path, name: str) -> None:
    values = ["img/1.jpg", None, "img/2.jpg", " ", "img/1.jpg", "./img/1.jpg"]
    table = pa.table({"p": values, "n": range(6)})
    if name == "t.parquet":
        pq.write_table(table, folder / name)
    elif name == "t.arrow":
        feather.write_feather(table, str(folder / name))
    elif name == "t.csv":
        (folder / name).write_text("p,n\n" + "".join(f"{value or ''},1\n" for value in values))
    else:
        (folder / name).write_text("".join(json.dumps({"p": value}) + "\n" for value in values))
    found = find(folder / name)
    expected = ["img/1.jpg", f"{name}#00000001", "img/2.jpg", f"{name}#00000003"]
    assert [source.shown.removeprefix(f"{folder}/") for source in found] == expected
    for empty in (found[1], found[3]):
        with pytest.raises(BadImage, match="column p is empty in this row"):
            read([empty])


def test_several_pictures_in_a_row_fail_alone(folder: Path) -> None:
    pq.write_table(pa.table({"p": [[PICTURES[0]], PICTURES[:3], []]}), folder / "t.parquet")
    found = find(folder / "t.parquet")
    assert read(found[:1]) == PICTURES[:1]
    with pytest.raises(BadImage, match="holds 3 images: write one row for each"):
        read(found[1:2])
    with pytest.raises(BadImage, match="empty in this row"):
        read(found[2:])


def test_damaged_base64_fails_alone(folder: Path) -> None:
    pq.write_table(pa.table({"p": [BASE64[0], BASE64[1][:1000] + "!" + BASE64[1][1000:]]}), folder / "t.parquet")
    found = find(folder / "t.parquet")
    assert read(found[:1]) == PICTURES[:1]
    with pytest.raises(BadImage, match="damaged base64"):
        read(found[1:])


def test_the_column_is_told_by_its_values(folder: Path) -> None:
    """Of bytes that are no images, text that names none, and text that does, in this order."""
    columns: dict[str, Any] = {"sha": [b"\0" * 32] * 12, "caption": ["a dog. It runs."] * 12, "file": PATHS}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    assert names(find(folder / "t.parquet"), folder) == PATHS
    columns = {"page": ["https://a.org/x"] * 12, "image_url": [f"https://a.org/{path}?w=1" for path in PATHS]}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    assert read_names(find(folder / "t.parquet")) == columns["image_url"]
    columns = {"picture": PICTURES, "file": PATHS}  # as read_blob of DuckDB: the bytes are there already
    pq.write_table(pa.table(columns), folder / "t.parquet")
    assert names(find(folder / "t.parquet"), folder) == ROWS


def read_names(found: list[Source]) -> list[str]:
    return [source.shown for source in found]


def test_a_field_of_a_struct_can_be_named(folder: Path) -> None:
    rows = [{"left": {"bytes": picture}, "right": {"bytes": b"x"}} for picture in PICTURES]
    pq.write_table(pa.table({"pair": pa.array(rows), "a.b": PATHS}), folder / "t.parquet")
    for column in ("pair.left", "pair.left.bytes"):
        assert read(find(folder / "t.parquet", column)) == PICTURES
    assert names(find(folder / "t.parquet", "a.b"), folder) == PATHS


def test_two_columns_of_one_name_are_refused_where_they_are_wanted(folder: Path) -> None:
    picture = pa.array(PICTURES[:1])
    pq.write_table(pa.table([picture, picture], names=["a", "a"]), folder / "t.parquet")
    for column in (None, "a"):
        with pytest.raises(Unreadable, match=r"two .*'a'"):
            find(folder / "t.parquet", column)
    pq.write_table(pa.table([pa.array([1]), pa.array([2]), picture], names=["n", "n", "a"]), folder / "t.parquet")
    assert read(find(folder / "t.parquet")) == PICTURES[:1]


@pytest.mark.parametrize("column", [None, "n"])
def test_columns_that_cannot_be_used_say_what_they_lack(folder: Path, column: str | None) -> None:
    pixels = pa.array([[[1, 2], [3, 4]]], pa.list_(pa.list_(pa.float32())))
    table = pa.table({"n": [1], "pixels": pixels, "size": [{"w": 1, "h": 2}]})
    pq.write_table(table, folder / "t.parquet")
    with pytest.raises(NotFound) as raised:
        find(folder / "t.parquet", column)
    for fact in ("n (int64,", "pixels (list<element: list<element: float>>,", "size (struct<w: int64, h: int64>,"):
        assert fact in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", b'{"p": "a.jpg"}\n{"p": ', r"JSON Lines: line 2"),
        ("t.jsonl", b'"a.jpg"\n', "line 1 "),
        ("coco.json", b'{\n "images": []}', r"JSON Lines: line 1"),
        ("t.arrow", b"no table", "read as Arrow"),
        ("t.feather", b"", "read as Arrow"),
        ("t.json", b'[{"p": "a.jpg"}, null]', "element 2 "),
        ("t.csv", b"p,n,p\na.jpg,1,b.jpg\n", "two .*'p'"),
        ("t.csv", b"p\na.jpg\nb, c.jpg\n", "row 2 .*','"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(Unreadable, match=said) as raised:
        find(folder / name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "a,b\n"])
def test_a_table_without_values_has_no_column_of_images(folder: Path, content: str) -> None:
    (folder / "t.csv").write_text(content)
    with pytest.raises(NotFound, match=r"t\.csv"):
        find(folder / "t.csv")
