"""Passes in an order that makes no sense: each layer says why it stays, and the report where the pass should stand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.graph.earlier import earlier_maker, earlier_reason

Parsed = Callable[..., ir.Model]

NET = """g (float[N,16,8,8] x) => (float[N,16,4,4] y) {
    [first] a = Conv(x, w) r = Relu(a) [second] y = Conv(r, v) }"""


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    rng = np.random.default_rng(0)
    return parsed(NET, **{n: rng.standard_normal((16, 16, 3, 3)).astype(np.float32) for n in "wv"})


@pytest.mark.parametrize(
    ("passes", "reason", "maker"),
    [
        ("int8,int4", "already quantized by int8: put this pass before int8", "int8"),
        ("int4,pow2", "its weight is stored in codes by int4: put this pass before int4", "int4"),
        ("int3,tucker2", "its weight is stored in codes by int3: put this pass before int3", "int3"),
        ("pow2,int8,tucker2", "already quantized by int8: put this pass before int8", "int8"),
    ],
)
def test_layers_say_who_was_there_and_the_report_what_to_write(
    passes: str, reason: str, maker: str, net: ir.Model
) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((8, 16, 8, 8)).astype(np.float32)}
    report = onnxcomp.optimize(
        net, passes.replace("int3", "int3(rounding=nearest)"), data=data, objective="macs"
    ).report
    last = report.steps[-1]
    assert [(skip.site, skip.reason) for skip in last.report.skips] == [("first", reason), ("second", reason)]
    name = passes.rsplit(",", 1)[-1]
    told = [line for line in report.warnings if line.startswith(f"{name} found nothing to do: {maker} before it")]
    assert len(told) == 1 and told[0].endswith(f"2 of the 2 layers it looks at; write {name} before {maker}")
    assert not report.failures


def test_a_sensible_order_is_not_warned_of(net: ir.Model) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((8, 16, 8, 8)).astype(np.float32)}
    report = onnxcomp.optimize(net, "int4(rounding=nearest),int8", data=data, objective="macs").report
    assert not any("found nothing to do" in line for line in report.warnings)


def test_other_reasons_name_nobody(net: ir.Model) -> None:
    node = net.graph[0]
    assert node.inputs[0] is not None and earlier_reason(node, node.inputs[0], "weight") is None
    assert earlier_maker("too few weights") is None and earlier_maker("already quantized") is None
