"""What an allocator chose from, in every form of a report."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from onnxcomp.contract import FrontierPoint, Offer
from onnxcomp.pipeline import PipelineReport
from onnxcomp.report.figures import Curve
from onnxcomp.report.frontier import candidates_table, frontier_line, frontier_table
from onnxcomp.report.markdown import to_markdown
from onnxcomp.report.schema import report_document
from onnxcomp.report.table import Table
from onnxcomp.report.terminal import print_report
from onnxcomp.report.view import view
from onnxcomp.report.webpage import to_html


def markdown_of(document: dict[str, Any]) -> str:
    return to_markdown(view(document, full=True), document["version"])


def html_of(document: dict[str, Any]) -> str:
    return to_html(view(document, full=True), document["version"])


def offer(site: str, form: str, macs: int, loss: float, why: str = "", *, chosen: bool = False) -> Offer:
    return Offer(site, form, macs, macs // 10, macs // 2, macs / 1000, 2.0, loss / 2, loss, chosen, why)


OFFERS = (
    offer("conv1", "tucker2(ranks=8x8)", 200, 0.02, chosen=True),
    offer("conv1", "spatial(rank=8)", 400, 0.01),
    offer("conv1", "spatial(rank=16)", 500, 0.03),
    offer("conv1", "cp(rank=9)", 300, 0.09, "does not pay: 0.98x"),
    offer("conv1", "cp(rank=5)", 200, 0.2, "does not pay: 0.99x"),
    offer("conv1", "channel(rank=9)", 990, 0.001, "past break-even"),
    offer("conv2", "spatial(rank=4)", 100, 0.5),
)
# A convex fall of the MACs from 1000 to 20; the bytes fall as well, not as convexly.
POINTS = tuple(
    FrontierPoint(1000 - 20 * i, 4000 - 80 * i + (40 if i % 2 else 0), None, 1e-6 * 1.3**i if i else 0.0, i == 30)
    for i in range(50)
)


@pytest.fixture
def allocated(report: PipelineReport) -> PipelineReport:
    """The report with an allocation in its first step."""
    step = report.steps[0]
    own = replace(step.report, offers=OFFERS, frontier=POINTS)
    return replace(report, steps=(replace(step, spec="decompose(macs=0.4)", report=own), *report.steps[1:]))


def step_of(report: PipelineReport) -> dict[str, Any]:
    step: dict[str, Any] = report_document(report)["steps"][0]
    return step


def tables_of(report: PipelineReport) -> dict[str, Table]:
    return {table.title: table for table in view(report_document(report), full=True).tables}


def test_the_document_has_everything(allocated: PipelineReport) -> None:
    step = json.loads(json.dumps(step_of(allocated), allow_nan=False))
    assert len(step["offers"]) == 7 and len(step["frontier"]) == 50
    assert step["offers"][3] == {
        "site": "conv1",
        "form": "cp(rank=9)",
        "macs": 300,
        "parameters": 30,
        "bytes": 150,
        "time": 0.3,
        "site_ms": 2.0,
        "error": 0.045,
        "loss": 0.09,
        "chosen": False,
        "why": "does not pay: 0.98x",
    }
    assert step["frontier"][0] == {"macs": 1000, "bytes": 4000, "time_ms": None, "loss": 0.0, "chosen": False}


def test_the_terminal_has_one_line(allocated: PipelineReport) -> None:
    out = io.StringIO()
    print_report(report_document(allocated), Console(file=out, width=160, highlight=False, force_terminal=False))
    line = (
        "decompose(macs=0.4): chosen: 0.40 of its layers' MACs at an expected loss of 0.0026; "
        "next: 0.36 at 0.0044, 0.46 at 0.0012"
    )
    assert line in out.getvalue().splitlines()
    assert "candidates" not in out.getvalue()


def test_the_frontier_is_thinned_around_the_chosen_point(allocated: PipelineReport) -> None:
    table = tables_of(allocated)["decompose(macs=0.4): frontier"]
    assert table.columns == ("share of MACs", "MACs", "bytes", "expected loss", "")
    assert [float(row[0]) for row in table.rows] == [
        *(1.0, 0.94, 0.58, 0.46, 0.42),
        0.4,
        *(0.38, 0.34, 0.22, 0.02),
    ]
    assert table.rows[5] == ("0.400", "400", "1.56 KB", "0.0026", "chosen")
    assert [row[-1] for row in table.rows].count("chosen") == 1
    assert isinstance(table.plot, Curve) and len(table.plot.points) == 50


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(9, 10, 4.0, 0.0), (9, 7, 2.0, 0.1), (8, 3, 1.0, 0.3)], "0.50 of its layers' time"),
        ([(9, 10, 4.0, 0.0), (5, 10, 6.0, 0.1), (2, 3, 1.0, 0.3)], "0.56 of its layers' MACs"),
        ([(9, 10, 4.0, 0.0), (9, 7, 4.0, 0.1), (9, 5, 1.0, 0.3)], "0.70 of its layers' bytes"),
        ([(None, 10, None, 0.0), (None, 10, None, 0.1), (None, 9, None, 0.3)], "1.00 of its layers' bytes"),
    ],
)
def test_shares_are_of_what_was_scarce(
    allocated: PipelineReport, points: list[tuple[int | None, int, float | None, float]], words: str
) -> None:
    path = [FrontierPoint(*point, chosen=False) for point in points]
    step = allocated.steps[0]
    report = replace(step.report, frontier=(path[0], replace(path[1], chosen=True), *path[1:]))
    assert words in frontier_line(step_of(replace(allocated, steps=(replace(step, report=report),))))


def test_candidates_are_the_front_of_each_layer(allocated: PipelineReport) -> None:
    table = tables_of(allocated)["decompose(macs=0.4): candidates"]
    assert table.columns[-1] == "" and table.columns[4] == "speed"
    assert [(row[0], row[1], row[4], row[-1]) for row in table.rows] == [
        ("conv1", "spatial(rank=8)", "2.50x", ""),
        ("conv1", "tucker2(ranks=8x8)", "5.00x", "chosen"),
        ("conv1", "cp(rank=9)", "3.33x", "does not pay: 0.98x (and 1 more of this form)"),
        ("conv1", "channel(rank=9)", "1.01x", "past break-even"),
        ("conv2", "spatial(rank=4)", "10.00x", ""),
    ]
    assert table.rows[1][2:4] == ("200", "20")
    assert table.rows[1][5:7] == ("0.01", "0.02")


def test_the_chosen_one_is_shown_even_where_another_beats_it(allocated: PipelineReport) -> None:
    step = step_of(allocated)
    step["offers"][2]["chosen"] = True
    shown = {row[1]: row[-1] for row in candidates_table(step).rows}
    assert shown["spatial(rank=16)"] == "chosen"


def test_files_show_both(allocated: PipelineReport) -> None:
    document = report_document(allocated)
    markdown, page = markdown_of(document), html_of(document)
    for text in (markdown, page):
        assert "decompose(macs=0.4): frontier" in text.replace("\\", "")
        assert "past break-even" in text
    assert '"kind": "curve"' in page and "Plotly" not in markdown


def test_where_nothing_was_allocated_nothing_is_shown(report: PipelineReport) -> None:
    step = step_of(report)
    assert frontier_line(step) == ""
    assert frontier_table(step).rows == candidates_table(step).rows == ()
    assert '"kind": "curve"' not in html_of(report_document(report))


def test_what_was_rolled_back_was_tried(allocated: PipelineReport) -> None:
    step = step_of(allocated)
    step["kept"] = False
    assert frontier_line(step).startswith("tried, then rolled back: 0.40 of")


def test_old_documents_have_none(allocated: PipelineReport) -> None:
    step = step_of(allocated)
    del step["offers"], step["frontier"]
    assert frontier_line(step) == ""
    assert not candidates_table(step).rows


def test_without_times_there_is_no_column_for_them(allocated: PipelineReport) -> None:
    step = step_of(allocated)
    for entry in step["offers"]:
        entry["time"] = None
    assert "speed" not in candidates_table(step).columns
