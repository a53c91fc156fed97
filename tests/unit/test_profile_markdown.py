"""The Markdown page: everything in it, and names as text. That its diagrams can be drawn is tested in a browser."""

from __future__ import annotations

import re

from scripts.profile import markdown
from scripts.profile.comparison import Comparison
from tests.profiles import NASTY, make_profile

DAFT = "# Daft's explain-analyze\n\n**Durations mislead**: so they do.\n\n```mermaid\nflowchart TB\n    1 --> 2\n```\n"


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table of a page, without the line under its head."""
    blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if "---" not in line]
        for block in blocks
    ]


def test_the_page_has_diagram_table_advice_and_services() -> None:
    page = markdown.page(make_profile())
    stages, advice, services = tables(page)
    assert [row[0] for row in stages[1:]] == [
        *("list", "probe", "read", "detect", "crop", "**ask**", "store", "collect", "write", "report")
    ]
    assert advice[1][:4] == ["SPOTTER_MODEL_CONCURRENCY", "8", "32", "7.6 s"]
    assert advice[2][3] == "unknown"
    assert ["model", "time to first token", "84 ms"] in services
    assert "**Bottleneck: ask**, to blame for 10.1 s (90% of the run)." in page
    assert page.count("```mermaid\n") == 1


def test_tables_have_as_many_cells_in_each_row_whatever_a_name_holds() -> None:
    page = markdown.page(make_profile(names={"ask": NASTY}))
    for table in tables(page):
        assert len({len(row) for row in table}) == 1
    outside = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    assert "<script" not in outside
    assert "&#60;script&#62;" in outside


def test_the_diagram_has_a_node_a_stage_rows_on_the_edges_and_one_bottleneck() -> None:
    diagram = re.findall(r"```mermaid\n(.*?)```", markdown.page(make_profile()), re.DOTALL)[0]
    assert len(re.findall(r"^    s\d\[", diagram, re.MULTILINE)) == 6
    assert re.findall(r'"(\w+)<br/>[^"]*"\]:::bottleneck', diagram) == ["ask"]
    assert '-->|"360 rows, 2.8 MB"|' in diagram


def test_another_run_is_beside_it() -> None:
    slow, fast = make_profile("slow"), make_profile("fast", model_slots=32)
    page = markdown.page(fast, compared=Comparison(slow, fast))
    assert "## Against slow: 2.96x faster" in page
    compared = tables(page)[2]
    assert compared[-1][:4] == ["**wall**", "11.2 s", "3.8 s", "0.34"]


def test_dafts_own_page_stands_under_it() -> None:
    page = markdown.page(make_profile(), daft=DAFT)
    assert page.endswith("## Daft's explain-analyze\n" + DAFT.split("\n", 1)[1])
    assert page.count("\n# ") == 0
