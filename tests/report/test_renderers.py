"""Tables in the terminal, Markdown and HTML."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onnxcomp.contract import PassReport, Skip
from onnxcomp.errors import InputError, OutputError
from onnxcomp.pipeline import PipelineReport
from onnxcomp.report.markdown import to_markdown
from onnxcomp.report.schema import report_document
from onnxcomp.report.terminal import print_report
from onnxcomp.report.view import view
from onnxcomp.report.webpage import to_html
from onnxcomp.report.writing import check_report_path, write_report


def markdown_of(document: dict[str, Any]) -> str:
    return to_markdown(view(document, full=True), document["version"])


def html_of(document: dict[str, Any]) -> str:
    return to_html(view(document, full=True), document["version"])


def printed(report: PipelineReport, width: int = 160) -> str:
    out = io.StringIO()
    print_report(report_document(report), Console(file=out, width=width, highlight=False, force_terminal=False))
    return out.getvalue()


def test_the_terminal_starts_with_the_headline_and_shows_what_matters(report: PipelineReport) -> None:
    lines = printed(report).splitlines()
    assert lines[0] == "top-1 accuracy 92.60 % -> 92.30 % (-0.30 points) on 2,000 samples"
    assert lines[1] == "failed: top-1 drops 0.30 points, more than the 0.1 allowed"
    rows = [" ".join(line.split()) for line in lines]
    for row in (
        "file size 977 KB 244 KB 4.00x",
        "parameters 1 k 250 4.00x",
        "MACs 5 M 1 M 5.00x",
        "latency 4 ms 2 ms 2.00x (1.90 to 2.10)",
        "top-1 accuracy 92.60 % 92.30 % -0.30 points",
        "SQNR of y 31.2 dB cosine 0.999100",
        "SQNR of z exact cosine 1.000000",
        "nodes 20 22",
        "Conv 8 12",
        "Constant 2 0",
        "2 other operators 10 10",
        "tucker2(keep=0.5) kept 1 3 4.00x 5.00x 2.00x (1.90 to 2.10), with int8 after 1.5 s",
        "int8 rolled back: slower: 0.80x of the speed before 60 0 1.00x 1.00x not timed 0.5 s",
        "conv1 1x1 3x3 1x1 4.00x 5.00x 0.0123 1.70x",
        "does not pay 2 conv2, conv3",
        "not a convolution: Gemm 1 head",
        "Conv on uint8 60 conv0, conv1, conv2 and 57 more",
        "Conv QLinearConv integer 1 conv1",
        "Gemm Gemm float 1 not quantized head",
        "site became parameters MACs predicted error speed, with int8 after",
        "rank site SQNR of the outputs KL, nats top-1 drop in the file",
        "1 conv2 10.0 dB 0.5 +1.50 points left alone",
        "2 conv1 20.0 dB 0.25 -0.25 points 1x1 3x3 1x1",
        "3 small0 exact 0 +0.00 points left alone",
        "... and 2 more",
        "tucker2(keep=0.5): two things to know",
        "canonicalised: conv1: absorbed bn1",
    ):
        assert row in rows, row


def test_files_list_every_site(report: PipelineReport) -> None:
    document = report_document(report)
    for text in (markdown_of(document), html_of(document)):
        for i in range(60):
            assert f"conv{i}" in text
        assert "0.9x" in text
        assert "absorbed bn1" in text
        assert "note=x" in text


def test_files_rank_every_site_and_leave_out_what_was_not_measured(report: PipelineReport) -> None:
    document = report_document(report)
    assert all("small9" in text for text in (markdown_of(document), html_of(document)))
    assert "small9" not in printed(report) and "small7" in printed(report)
    for entry in document["steps"][0]["sensitivity"]:
        entry.update(kl=None, drop_points=None)
    table = next(t for t in view(document, full=True).tables if "sensitivity" in t.title)
    assert table.columns == ("rank", "site", "SQNR of the outputs", "in the file")


def test_a_long_list_is_cut_in_the_terminal_and_says_so(report: PipelineReport) -> None:
    step = report.steps[0]
    many = tuple(replace(step.report.changes[0], site=f"c{i}") for i in range(50))
    shown = printed(replace(report, steps=(replace(step, report=PassReport(many)),)))
    assert "... and 10 more" in shown
    assert "c39" in shown
    assert "c40" not in shown


def test_hostile_names_in_the_terminal(hostile: PipelineReport) -> None:
    text = printed(hostile)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]f[/]" in text
    assert "\\x1b[31m" in text


def test_hostile_names_in_markdown(hostile: PipelineReport) -> None:
    text, recipe = markdown_of(report_document(hostile)).split("<details><summary>Recipe to replay</summary>\n\n")
    assert "<" not in text
    code, rest = recipe.split("\n\n</details>\n\n")
    assert all(line.startswith("    ") for line in code.splitlines()) and "<" not in rest
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "](" not in text.replace("\\](", "")
    assert "http:" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables if "alert" in line}
    heads = {line.count("|") for line in tables if "site" in line or "reason" in line or "operator" in line}
    assert widths <= heads


def test_empty_tables_are_left_out(report: PipelineReport) -> None:
    shown = view(report_document(replace(report, steps=(), fates=(), layers=())), full=True)
    assert [table.title for table in shown.tables] == ["Before and after", "Operators"]


@pytest.mark.parametrize("suffix", [".json", ".md", ".html", ".JSON"])
def test_a_report_is_written_in_the_form_of_its_suffix(report: PipelineReport, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    write_report(report, path)
    text = path.read_text("utf-8")
    starts = {".json": "{", ".md": "**top-1 accuracy", ".html": "<!doctype html>"}
    assert text.startswith(starts[suffix.lower()])
    if suffix == ".json":
        assert json.loads(text) == json.loads(json.dumps(report_document(report)))


def test_places_where_no_report_can_be(report: PipelineReport, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.json, \.md, \.html"):
        check_report_path(tmp_path / "r.pdf")
    with pytest.raises(InputError, match="does not exist; create it first"):
        write_report(report, tmp_path / "missing" / "r.json")
    (tmp_path / "r.md").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_report(report, tmp_path / "r.md")


def test_a_failed_write_leaves_the_old_report(
    report: PipelineReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxcomp.atomic.os.fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_report(report, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_what_was_canonicalised_is_begun_in_the_terminal(report: PipelineReport) -> None:
    shown = printed(replace(report, folded=tuple(f"conv{i}: absorbed bn{i}" for i in range(5))))
    assert "canonicalised: conv2: absorbed bn2\ncanonicalised: ... and 2 more (listed in the report file)\n" in shown
    assert "bn3" not in shown


def decomposed(report: PipelineReport) -> PipelineReport:
    """The report with a second pass that met the three nodes of a decomposition, which share one name."""
    first, second = report.steps
    change = second.report.changes[0]
    facts = {"scale": 0.0123456789, "zero": 3}
    changes = tuple(replace(change, site="conv1", summary=f"form {i % 2}", facts=facts) for i in range(3))
    skips = (*(Skip("conv2", "it stays float") for _ in range(3)), Skip("conv3", "it stays float"))
    return replace(report, steps=(first, replace(second, report=PassReport(changes, skips))))


def test_a_name_that_stands_for_several_nodes_is_shown_once_with_their_number(report: PipelineReport) -> None:
    rows = [" ".join(line.split()) for line in printed(decomposed(report)).splitlines()]
    assert "it stays float 4 conv2 (x3), conv3" in rows
    assert "form 0 2 conv1 (x2)" in rows


def test_files_tell_such_nodes_apart_and_round_their_facts(report: PipelineReport) -> None:
    text = markdown_of(report_document(decomposed(report)))
    for site in ("conv1 (1 of 3)", "conv1 (2 of 3)", "conv1 (3 of 3)"):
        assert f"| {site} | form" in text
    assert "scale=0.0123457, zero=3" in text


def test_markdown_headings_read_as_they_are_written(report: PipelineReport) -> None:
    step = replace(report.steps[0], spec="tucker2(pattern=2:4)")
    lines = markdown_of(report_document(replace(report, steps=(step,)))).splitlines()
    assert lines[0] == "**top-1 accuracy 92.60 % -> 92.30 % (-0.30 points) on 2,000 samples**"
    assert "## tucker2(pattern=2:4): changed" in lines


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("see http://evil.example", "see http&#58;//evil.example"),
        ("mailto:a@b", "mailto&#58;a&#64;b"),
        (":tada: :100:", "&#58;tada: &#58;100:"),
        ("> quoted", "\\> quoted"),
        ("  > quoted", "\\> quoted"),
        ("1x1 64>48 -> x", "1x1 64>48 -> x"),
    ],
)
def test_what_markdown_would_make_of_a_name(report: PipelineReport, name: str, shown: str) -> None:
    assert f"- warning: {shown}\n" in markdown_of(report_document(replace(report, warnings=(name,))))
