"""What int8 leaves alone, and the reason that it gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.contract import Override, PassReport
from onnxcomp.errors import InputError
from onnxcomp.quantize.placement import place
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.targets.target import Scheme, load_target

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]

TWO = "g (float[N,8,8,8] x) => (float[N,8,B,C] y) { [first] a = Conv(x, v)  b = Relu(a)  [second] y = Conv(b, w) }"
SHAPES = {"v": (8, 8, 1, 1), "w": (8, 8, 3, 3)}


def scheme() -> Scheme:
    found = load_target("ort-x86").scheme
    assert found is not None
    return found


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def reasons(report: PassReport) -> dict[str, str]:
    return {skip.site: skip.reason for skip in report.skips}


def test_small_products_at_the_end_stay_float(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,10] y)"
        "{ a = Conv(x, v)  p = GlobalAveragePool(a)  f = Flatten(p)  [head] y = Gemm(f, w) }",
        {"v": (8, 8, 1, 1), "w": (8, 10)},
    )
    quantized, report = quantize(model)
    assert "ends the network" in reasons(report)["head"]
    assert ops(quantized)[-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ConvTranspose(x, w)", "no integer kernel for ConvTranspose"),
        ("Conv(x, z)", "not a constant"),
        ("Gemm<transA=1>(q, g)", "transA is set"),
        ("Gemm<alpha=0.5>(q, g)", "alpha is not 1"),
        ("MatMul(q, q)", "product of two activations"),
        ("MatMul(x, cube)", "3 axes"),
    ],
)
def test_what_is_refused(text: str, reason: str, build: Builder) -> None:
    graph = f"g (float[1,8,8,8] x, float[8,8,3,3] z, float[200,200] q) => (y) {{ [site] y = {text} }}"
    shapes = {"w": (8, 8, 3, 3), "g": (200, 200), "cube": (8, 8, 8)}
    model = build(graph.replace("(y)", "(float[A,B] y)" if "q" in text else "(float[A,B,C,D] y)"), shapes)
    plan = place(model, scheme())
    assert not plan.weighted
    assert not plan.tensors
    assert [skip.site for skip in plan.skips] == ["site"]
    assert reason in plan.skips[0].reason


def test_nan_and_overridable_weights_are_refused(build: Builder) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { [nan] a = Conv(x, u)  [over] b = Conv(a, v)  y = Conv(b, w) }",
        dict.fromkeys("uvw", (8, 8, 1, 1)),
    )
    values = model.graph.initializers
    values["u"].const_value = ir.tensor(np.full((8, 8, 1, 1), np.nan, np.float32), name="u")
    model.graph.inputs.append(values["v"])
    plan = place(model, scheme())
    assert {s.site: s.reason for s in plan.skips} == {
        "nan": "the weight holds NaN or Inf",
        "over": "the weight 'v' can be overridden by a graph input",
    }
    assert len(plan.weighted) == 1


def test_what_is_quantized_already_is_left_as_it_is(build: Builder, quantize: Quantizer) -> None:
    once, _ = quantize(build(TWO, SHAPES))
    twice, report = quantize(once)
    assert not report.changes
    assert set(reasons(report).values()) == {"already quantized"}
    assert ir.to_proto(once).SerializeToString() == ir.to_proto(twice).SerializeToString()


def test_bodies_are_left_alone(build: Builder, quantize: Quantizer) -> None:
    model = build(
        """g (float[1,8,8,8] x) => (float[1,8,8,8] y) <bool flag = {1}> {
            [outside] a = Conv(x, v)
            y = If (flag) <
                then_branch = t () => (float[1,8,8,8] p) { [inside] p = Conv(a, v) },
                else_branch = e () => (float[1,8,8,8] q) { q = Relu(a) }
            >
        }""",
        {"v": (8, 8, 1, 1)},
    )
    quantized, report = quantize(model)
    assert "inside a subgraph" in reasons(report)["inside"]
    kernels = {f.node: f.kernel for f in fusion_proof(quantized)}
    assert kernels["outside"] == "QLinearConv"


def test_globs_and_recipes_leave_layers_alone_and_set_options(build: Builder, quantize: Quantizer) -> None:
    model = build(TWO, SHAPES)
    _, report = quantize(model, context={"exclude": ("fir*",)})
    assert reasons(report) == {"first": "excluded by the user"}
    _, report = quantize(
        model, context={"overrides": (Override("Conv", None), Override("second", {"calibration": "minmax"}))}
    )
    assert reasons(report) == {"first": "left alone by the recipe"}
    assert report.changes[0].facts["output.method"] == "minmax"
    with pytest.raises(InputError, match=r"int8\.calibration: 'best' is not"):
        quantize(model, context={"overrides": (Override("second", {"calibration": "best"}),)})
