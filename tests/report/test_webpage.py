"""The page: what it holds, what it may do, and what it must never load."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from onnxcomp.pipeline import PipelineReport
from onnxcomp.report.figures import Bars, Curve, Figure, Panels
from onnxcomp.report.schema import report_document
from onnxcomp.report.table import Listing, Table
from onnxcomp.report.view import View, view
from onnxcomp.report.webpage import to_html

TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "section",
        "nav",
        "script",
        "noscript",
    ),
    *(
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "div",
        "a",
        "strong",
        "details",
        "summary",
        "span",
        "pre",
        "figure",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "label", "input", "output"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "id",
        "href",
        "open",
        "type",
        "scope",
        "tabindex",
        "role",
    ),
    *("aria-label", "aria-labelledby", "aria-controls"),
}


class Page(HTMLParser):
    """Elements, attributes and the text of scripts, cells and listings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.figures: list[Any] = []
        self.policy = ""
        self._inside: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.add(tag)
        self.attributes |= own.keys()
        self.links += [own[name] or "" for name in ("href", "src") if name in own]
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policy = own["content"] or ""
        self._inside = own if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            return
        if self._inside.get("type") == "application/json":
            self.figures.append(json.loads(data))
        else:
            self.scripts.append(data)


def page(*tables: Table, listings: tuple[Listing, ...] = ()) -> Page:
    return Page(to_html(View("all is well", (), (), tables, listings=listings), "1.0"))


def drawn(figure: Figure) -> Any:
    figures = page(Table("t", ("a",), (("b",),), plot=figure)).figures
    return figures[0] if figures else None


def test_a_report_says_everything(report: PipelineReport) -> None:
    text = to_html(view(report_document(report), full=True), "0.1.0")
    for words in (
        "<title>onnxcomp optimize: net.onnx</title>",
        "<dt>Inputs</dt><dd>x float32[N,3,8,8]</dd>",
        "<dt>Opset</dt><dd>ai.onnx 17</dd>",
        "<dt>Passes</dt><dd>tucker2(keep=0.5), int8</dd>",
        "<strong>failed:</strong> top-1 drops 0.30 points",
        "<strong>warning:</strong> only 5 calibration samples",
        '<td class="n good">244 KB</td>',
        "absorbed bn1",
        "does not pay: 0.9x",
        "ranks: 8x8",
        "onnxcomp optimize x/net.onnx --recipe recipe.yaml",
    ):
        assert words in text, words


def test_hostile_names_are_text(hostile: PipelineReport) -> None:
    text = to_html(view(report_document(hostile), full=True), "0.1.0")
    found = Page(text)
    assert found.tags <= TAGS, found.tags - TAGS
    assert found.attributes <= ATTRIBUTES, found.attributes - ATTRIBUTES
    assert len(found.scripts) == 2
    assert {figure["kind"] for figure in found.figures} == {"curve", "panels"}
    assert "\x1b" not in text and "\u202e" not in text.replace(get_plotlyjs(), "")
    labels = next(figure for figure in found.figures if figure["kind"] == "panels")["figures"][0]["labels"]
    assert labels[0].startswith("<script>alert")  # as data, which the page's own script escapes for Plotly


def test_the_page_loads_nothing(report: PipelineReport) -> None:
    text = to_html(view(report_document(report), full=True), "0.1.0")
    found = Page(text)
    assert all(re.fullmatch(r"#s\d+", link) for link in found.links)
    own = text.replace(get_plotlyjs(), "")
    for word in ("http://", "https://", "src=", "url(", "@import", "<link"):
        assert word not in own, word
    assert found.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in found.policy and "unsafe-inline" not in found.policy.split(";")[1]


def test_only_the_scripts_of_the_page_are_allowed(report: PipelineReport) -> None:
    found = Page(to_html(view(report_document(report), full=True), "0.1.0"))
    assert found.scripts[0] == get_plotlyjs()
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in found.scripts]
    assert found.policy.split(";")[1].split() == ["script-src", *(f"'sha256-{digest}'" for digest in hashes)]


def test_without_figures_there_is_no_plotly() -> None:
    text = to_html(View("all is well", (), (), (Table("t", ("a",), (("b",),)),)), "1.0")
    assert len(text) < 40_000 and "noscript" not in text


def test_a_view_of_next_to_nothing() -> None:
    found = page()
    assert "table" not in found.tags and "nav" not in found.tags and not found.figures
    assert "pre" in page(listings=(Listing("a", "b"),)).tags


def test_bars() -> None:
    bars = drawn(Bars(("a", "b"), (("before", (1.0, None)), ("after", (0.5, float("inf")))), "ms"))
    assert bars["kind"] == "bars" and bars["labels"] == ["a", "b"]
    assert [one["values"] for one in bars["series"]] == [[1.0, None], [0.5, None]]
    assert drawn(Bars(("a",), (("before", (0.0,)), ("after", (None,))), "ms")) is None
    with pytest.raises(ValueError, match="one value for each of the 2 labels"):
        Bars(("a", "b"), (("before", (1.0,)),), "ms")


def test_a_curve_leaves_out_what_a_logarithm_cannot_show() -> None:
    curve = drawn(Curve(((1.0, 0.0), (0.5, 1e-3), (0.25, 1e-1)), 1, "share <b>", "loss", ("", "half", "less")))
    assert [point["x"] for point in curve["points"]] == [0.5, 0.25]
    assert [(point["note"], point["marked"]) for point in curve["points"]] == [("half", True), ("less", False)]
    assert drawn(Curve(((1.0, 0.0), (0.5, 0.1)), 0, "share", "loss")) is None


def test_panels_show_what_there_is_to_see() -> None:
    empty, full = Bars(("a",), (("x", (None,)),), "ms"), Bars(("a",), (("x", (1.0,)),), "MB")
    assert [one["name"] for one in drawn(Panels((("time", empty), ("size", full))))["figures"]] == ["size"]
    assert drawn(Panels((("time", empty),))) is None
