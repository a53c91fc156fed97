"""The bench on photographs: what a picture shows by its name, and what counts as found, invented and right."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.command import BenchFailed
from scripts.bench.photo_truth import classes_of, read_truth
from scripts.bench.real_photos import judge

BREEDS = [["collie"], ["Border collie"], ["toy poodle"], ["standard poodle"], ["basset", "basset hound"]]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("Collie", {"collie"}),
        ("border_collie", {"Border collie"}),
        ("Poodle", {"toy poodle", "standard poodle"}),
        ("Basset_hound", {"basset"}),
        ("cat", set()),
        ("", set()),
        ("fox_squirrel", set()),
    ],
)
def test_a_name_means_its_own_class_or_those_that_end_with_it(name: str, classes: set[str]) -> None:
    assert classes_of(name, BREEDS) == classes


def test_file_and_folder_names_say_what_a_picture_shows_unless_a_table_does(tmp_path: Path) -> None:
    for name in ("Collie_01.jpg", "cat_02.png", "n02110-basset/n02110_7.jpg", "a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = tmp_path / "truth.csv"
    table.write_text("file,breed\na.jpg,Poodle\ncat_02.png,\n")
    truth = read_truth(tmp_path, table, BREEDS)
    poodles = {"toy poodle", "standard poodle"}
    by_folder = {"n02110-basset/n02110_7.jpg": {"basset"}}
    assert truth == {"Collie_01.jpg": {"collie"}, "cat_02.png": set(), "a.jpg": poodles, **by_folder}
    table.write_text("file,breed\na.jpg,wolf\n")
    with pytest.raises(BenchFailed, match="wolf"):
        read_truth(tmp_path, table, BREEDS)


def test_the_best_box_decides_the_breed() -> None:
    truth: dict[str, set[str]] = {"a": {"collie"}, "b": {"basset"}, "c": {"basset"}, "cat": set(), "owl": set()}
    found = {"a": [{"breed": "collie"}], "b": [{"breed": "collie"}, {"breed": "basset"}], "owl": [{"breed": "basset"}]}
    figures = judge("m", truth, found)
    assert (figures.dogs, figures.found, figures.exactly_one, figures.right) == (3, 2, 1, 1)
    assert (figures.others, figures.invented) == (2, 1)
