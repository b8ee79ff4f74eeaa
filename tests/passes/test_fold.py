from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcomp.contract import Context, Pass, Skip
from onnxcomp.cost import Cost
from onnxcomp.passes.fold import Fold
from onnxcomp.targets.target import load_target

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,6,6] x) => (float[N,8,4,4] y, float[N,8,4,4] z) {
  [conv] c = Conv(x, w) [bn] b = BatchNormalization(c, s, s, s, s) [up] m = Add(b, k) [drop] y = Dropout(m)
  [twin] d = Conv(x, v) [nan] z = Mul(d, k) }"""


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(target=load_target("ort-x86"), workdir=tmp_path)


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    arrays = {"w": np.ones((8, 3, 3, 3)), "v": np.full((8, 3, 3, 3), np.nan), "s": np.ones(8), "k": np.ones(1)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    return ir.from_proto(proto)


def test_every_site_is_one_change_or_one_skip(model: ir.Model, context: Context) -> None:
    report = Fold().run(model, context)
    (change,) = report.changes
    assert (change.site, change.summary) == ("conv", "absorbed BatchNormalization bn; absorbed Add up")
    assert change.before == Cost(216 + 4 * 8, None, 4 * (216 + 4 * 8))
    assert change.after == Cost(216 + 8, None, 4 * (216 + 8))
    assert report.skips == (Skip("twin", "cannot absorb Mul nan: the weight 'v' holds NaN or Inf"),)
    assert report.notes == ("removed Dropout drop", "removed 1 unused initializer")


def test_a_canonical_model_gives_an_empty_report(model: ir.Model, context: Context) -> None:
    Fold().run(model, context)
    again = Fold().run(model, context)
    assert again.changes == () and again.notes == () and [s.site for s in again.skips] == ["twin"]


def test_an_opset_that_stays_is_noted(context: Context) -> None:
    text = '<ir_version: 8, opset_import: ["" : 13, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.same(x) }'
    text += ' <domain: "f", opset_import: ["" : 13]> same (a) => (b) { b = Relu(a) }'
    report = Fold().run(ir.from_proto(onnx.parser.parse_model(text)), context)
    assert report.notes == ("opset stays 13: functions cannot be converted",)


def test_it_is_a_pass_without_options() -> None:
    assert issubclass(Fold, Pass) and (Fold.name, Fold.saves) == ("fold", "nothing")
    assert dataclasses.fields(Fold) == () and Fold() == Fold()
