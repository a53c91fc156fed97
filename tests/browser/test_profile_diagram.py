"""The diagrams of Markdown pages, drawn by the Mermaid library itself: of a profile's page and of the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipeline.metrics.daft_plan import Plan
from scripts.profile import markdown
from tests.conftest import ROOT
from tests.profiles import NASTY, make_profile


@pytest.fixture(scope="module")
def drawing_board(browser: Browser, mermaid_script: Path) -> Page:
    """A page with the library, in its strict mode, as on the sites that show Markdown."""
    page = browser.new_page()
    page.evaluate("window.alert = text => { window.executed = text }")
    page.set_content("<!doctype html><body></body>")
    page.add_script_tag(path=str(mermaid_script))
    page.evaluate("mermaid.initialize({startOnLoad: false, securityLevel: 'strict'})")
    return page


def draw(page: Page, diagram: str) -> list[str]:
    """Parse and draw a diagram; the texts of its nodes.

    Raises:
        playwright.sync_api.Error: the library refuses it.
    """
    page.evaluate("text => mermaid.parse(text)", diagram)
    page.evaluate(
        "async text => { document.body.innerHTML = (await mermaid.render('drawn', text)).svg }",
        diagram,
    )
    return [" ".join(text.split()) for text in page.locator("svg .nodeLabel").all_inner_texts()]


def diagrams(markdown_page: str) -> list[str]:
    """The diagrams of a Markdown page."""
    return re.findall(r"^```mermaid\n(.*?)^```", markdown_page, re.MULTILINE | re.DOTALL)


def test_the_operators_are_drawn_with_rows_and_times(drawing_board: Page) -> None:
    profile = make_profile()
    (diagram,) = diagrams(markdown.page(profile))
    nodes = draw(drawing_board, diagram)
    assert [node.split()[0] for node in nodes] == [
        *(stage.name for stage in profile.stages),
        *("detector", "model"),
    ]
    assert nodes[3] == "ask 360 rows busy 10.0 s p50 220 ms at once 7.9 of 8 costs 10.1 s (90%)"
    labels = drawing_board.locator("svg span.edgeLabel").all_inner_texts()
    assert any("360 rows, 2.8 MB" in label for label in labels)


@pytest.mark.parametrize(
    "name",
    [NASTY, "end", "1. one", "`code`", "-->", "s0", "%% comment", "日本語 ∞", "x" * 200, "subgraph a", "&lt;b&gt;"],
)
def test_any_name_is_drawn_as_it_is(drawing_board: Page, name: str) -> None:
    (diagram,) = diagrams(markdown.page(make_profile(names={"ask": name})))
    nodes = draw(drawing_board, diagram)
    assert nodes[3].startswith(" ".join(name.split()) + " 360 rows")
    assert len(nodes) == 7  # of the services, only the one whose stage kept its name
    assert drawing_board.evaluate("window.executed") is None


def test_dafts_own_diagram_is_drawn_beside_it(drawing_board: Page) -> None:
    plan = Plan()
    plan.plan = {
        "id": 2,
        "name": 'UDF "pipeline.stages.ask.Ask" <1> #2',
        "children": [{"id": 1, "name": "Into Batches of 8", "children": []}],
    }
    own, dafts = diagrams(markdown.page(make_profile(), daft=plan.page()))
    assert len(draw(drawing_board, own)) == 8
    nodes = draw(drawing_board, dafts)
    assert any("Into Batches of 8" in node for node in nodes)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_diagrams_of_the_documents_are_drawn(drawing_board: Page, page: Path) -> None:
    for diagram in diagrams(page.read_text()):
        assert len(draw(drawing_board, diagram)) >= 5


def test_the_library_refuses_what_is_no_diagram(drawing_board: Page) -> None:
    with pytest.raises(Exception, match=r"Parse error|Lexical error|Syntax error"):
        draw(drawing_board, 'flowchart LR\n    s0["a"b"]')
