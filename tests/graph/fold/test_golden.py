"""What a fold makes of a small model, as text with CHECK lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx.parser
import onnx.printer
import onnx_ir as ir
import pytest
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options

from onnxcomp.graph.fold import Log

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("fold_*.onnxtxt"))


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_golden(path: Path, tmp_path: Path, check: Callable[..., Log]) -> None:
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("//"))
    model = ir.from_proto(onnx.parser.parse_model(text))
    check(model)
    folded = tmp_path / "folded.onnxtxt"
    folded.write_text(onnx.printer.to_text(ir.to_proto(model)))
    arguments = ["filecheck", str(path), "--input-file", str(folded)]
    assert Matcher.from_opts(parse_argv_options(arguments)).run() == 0, folded.read_text()


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) >= 4
