"""The bundled multiple-choice questions."""

from collections import Counter

import pyarrow.parquet as pq

from samples import make_questions


def test_the_bundled_set_is_what_its_seed_says() -> None:
    assert make_questions.check(make_questions.FILE) == []
    assert make_questions.FILE.stat().st_size <= 300_000


def test_each_letter_is_right_equally_often() -> None:
    """So no letter is a better guess than another."""
    rows = pq.read_table(make_questions.FILE)["texts"].to_pylist()
    letters = Counter(text["assistant"] for texts in rows for text in texts)
    assert letters == {f"Answer: {letter}": 16 for letter in "ABCD"}


def test_the_four_choices_differ_and_the_right_one_is_among_the_drawn_values() -> None:
    for texts in pq.read_table(make_questions.FILE)["texts"].to_pylist():
        for text in texts:
            lines = text["user"].splitlines()[2:6]
            assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "]
            assert len({line[3:] for line in lines}) == 4
