"""What int4 writes, as text with CHECK lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options

from onnxcomp.contract import Context, Override, Skip
from onnxcomp.passes.int4 import Int4

GOLDEN = Path(__file__).parents[1] / "golden" / "int4.onnxtxt"


def test_golden(tmp_path: Path, in_context: Callable[..., Context]) -> None:
    lines = GOLDEN.read_text().splitlines()
    proto = onnx.parser.parse_model("\n".join(line for line in lines if not line.startswith("//")))
    rng = np.random.default_rng(0)
    for name, shape in re.findall(r"(\w+)=([\dx]+)", lines[1]):
        values = rng.standard_normal([int(n) for n in shape.split("x")]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    report = Int4().run(model, in_context(overrides=(Override("blocks", {"block": 32}),)))
    assert report.skips == (Skip("point", "too few weights (32) to gain from fewer bits"),)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    del result.graph.initializer[:]  # their shapes stay in the text, their values would fill it
    written = tmp_path / "int4.onnxtxt"
    written.write_text(onnx.printer.to_text(result))
    arguments = ["filecheck", str(GOLDEN), "--input-file", str(written)]
    assert Matcher.from_opts(parse_argv_options(arguments)).run() == 0, written.read_text()
