"""Tables on terminals of every width: nothing is cut off, short cells stay whole, a pipe gets no codes."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from onnxcomp.report.table import Table
from onnxcomp.report.terminal import print_table, print_view
from onnxcomp.report.view import View

TABLE = Table(
    "What became of the layers",
    ("layer", "became", "parameters", "MACs", "predicted error", "speed, with int8 after"),
    (
        ("/model/features/features.17/conv/conv.1/Conv", "1x1 64>16, 3x3 16>16", "8.36x", "8.47x", "4e-5", "2.9x"),
        ("conv2", "", "13.42x", "13.71x", "0.000872", "2.70x (2.61 to 2.84)"),
        ("层层层层层层层层层层层层层层", "[red]as it was", "", "", "", ""),
    ),
    frozenset(range(2, 6)),
)  # fmt: skip


def printed(table: Table, width: int) -> str:
    out = io.StringIO()
    print_table(table, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 120, 160, 300])
def test_all_letters_are_there_and_lines_fit(width: int) -> None:
    shown = printed(TABLE, width)
    cells = "".join(cell for row in TABLE.rows for cell in row)
    for letter in set(cells) - {" "}:
        assert shown.count(letter) >= cells.count(letter), letter
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [80, 120, 160])
def test_short_cells_are_not_folded(width: int) -> None:
    shown = printed(TABLE, width)
    for cell in ("conv2", "8.36x", "13.71x", "0.000872", "parameters", "predicted"):
        assert cell in shown


def test_what_has_no_columns_has_no_line_above() -> None:
    table = Table("Model", ("", ""), (("file size", "3 MB"), ("nodes", "7")))
    assert [line.rstrip() for line in printed(table, 80).splitlines()] == ["Model", "file size  3 MB", "nodes      7"]


def test_rows_one_under_the_other_say_what_is_what() -> None:
    lines = printed(TABLE, 40).splitlines()
    start = lines.index("  became: 1x1 64>16, 3x3 16>16")
    assert lines[start + 1 : start + 4] == ["  parameters: 8.36x", "  MACs: 8.47x", "  predicted error: 4e-5"]
    assert printed(TABLE, 40).count("parameters:") == 2  # none where there is nothing to say


@pytest.mark.parametrize("width", [40, 160])
def test_a_name_cannot_break_a_line(width: int) -> None:
    name = "conv\n\x1b[31mpassed: 9 of 9"
    table = Table(name, ("layer", "now"), ((name, name),))
    out = io.StringIO()
    print_view(View(name, (name,), (), (table,), (name,)), Console(file=out, width=width, highlight=False))
    lines = out.getvalue().splitlines()
    assert not [line for line in lines if line.startswith("passed")]
    assert out.getvalue().replace("\n", "").count(r"conv\n\x1b") == 6
