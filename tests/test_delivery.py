"""What is told of a file is what is written: its bytes, what they deflate to, and that it was loaded."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.delivery import deliveries
from onnxcomp.report.schema import report_document
from onnxcomp.report.view import view

Parsed = Callable[..., ir.Model]


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    text = "g (float[N,16,8,8] x) => (float[N,16,4,4] y) { [a] h = Conv(x, w) r = Relu(h) [b] y = Conv(r, v) }"
    rng = np.random.default_rng(0)
    return parsed(text, **{n: rng.standard_normal((16, 16, 3, 3)).astype(np.float32) for n in "wv"})


def compressed(net: ir.Model, passes: str, **options: Any) -> onnxcomp.Result:
    data = {"x": np.random.default_rng(1).standard_normal((16, 16, 8, 8)).astype(np.float32)}
    return onnxcomp.optimize(net, passes, data=data, objective="macs", **options)


@pytest.mark.parametrize("passes", ["int4(rounding=nearest)", "int4(rounding=nearest),int8"])
def test_the_file_is_what_the_report_says(passes: str, net: ir.Model, tmp_path: Path) -> None:
    result = compressed(net, passes)
    result.save(tmp_path / "m.onnx")
    after, before = result.report.after, result.report.before
    assert (tmp_path / "m.onnx").stat().st_size == after.bytes
    assert after.transfer == len(zlib.compress((tmp_path / "m.onnx").read_bytes(), 6))
    assert before.load_ms is not None and after.load_ms is not None and min(before.load_ms, after.load_ms) > 0
    assert before.transfer is not None and after.transfer is not None and before.transfer > after.transfer
    rows = {row[0]: row for row in view(report_document(result.report), full=False).tables[0].rows}
    assert rows["zipped"][3] == f"{before.transfer / after.transfer:.2f}x" and rows["load time"][1].endswith(" ms")


@pytest.mark.parametrize(("passes", "options"), [("int8", {}), ("int4", {"exclude": ["*"]})])
def test_nothing_is_told_where_no_pass_saved_bytes(passes: str, options: Any, net: ir.Model) -> None:
    report = compressed(net, passes, **options).report
    assert report.after.transfer is None and report.after.load_ms is None
    assert {"zipped", "load time"}.isdisjoint(row[0] for row in view(report_document(report), full=True).tables[0].rows)


def test_a_replay_and_another_machine_time_no_load(net: ir.Model) -> None:
    first = compressed(net, "int4(rounding=nearest)", target="ort-mobile").report
    again = compressed(net, "int4(rounding=nearest)", replay=first.choices).report
    assert first.after.load_ms is None and again.after.load_ms is None
    assert first.after.transfer is not None and again.after.transfer is not None


def test_each_model_counts_by_itself(net: ir.Model, tmp_path: Path) -> None:
    once, twice = (deliveries([net] * n, tmp_path, threads=1, timed=False) for n in (1, 2))
    assert twice == once * 2 and once[0].transfer > 4 * 16 * 16 * 9
