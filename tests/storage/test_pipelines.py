"""Passes that store weights, in company: under budgets and recipes, in replays, and beside what looks like theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import RECIPE, Result
from onnxcomp.contract import Override
from onnxcomp.errors import OptionError
from onnxcomp.registry import build_pipeline
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]
Array = NDArray[Any]

NET = """g (float[N,8,8,8] x) => (float[N,12] y) {
    [first] a = Conv<pads=[1,1,1,1]>(x, w, b) ra = Relu(a)
    [middle] c = Conv<pads=[1,1,1,1]>(ra, v, vb) rc = Relu(c)
    p = GlobalAveragePool(rc) f = Flatten(p) [last] y = Gemm<transB=1>(f, m, mb)
}"""
SHAPES = {"w": (32, 8, 3, 3), "b": (32,), "v": (32, 32, 3, 3), "vb": (32,), "m": (12, 32), "mb": (12,)}


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    rng = np.random.default_rng(0)
    made = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in SHAPES.items()}
    return parsed(NET, **made)


def _data() -> Mapping[str, Array]:
    x = np.random.default_rng(0).standard_normal((64, 8, 8, 8)).astype(np.float32)
    return {"x": (x + np.roll(x, 1, 1) + np.roll(x, 1, 2)).astype(np.float32)}


def _run(model: ir.Model, passes: str, **options: Any) -> Result:
    given: dict[str, Any] = {"objective": "macs", "data": _data()}
    return onnxcomp.optimize(model, passes, **(given | options))


def _replayed(model: ir.Model, result: Result) -> Result:
    recipe: Any = result.report.recipe
    layers = recipe.get("layers", [{} for _ in recipe["passes"]])
    return onnxcomp.optimize(
        model,
        [item for spec in recipe["passes"] for item in build_pipeline(spec)],
        data=_data(),
        objective=recipe["objective"],
        min_sqnr=recipe.get("min_sqnr"),
        overrides=[[Override(match, options) for match, options in own.items()] for own in layers],
        replay=result.report.choices,
    )


def _bytes(result: Result) -> bytes:
    return ir.to_proto(result.model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("passes", "least"),
    [("sparsity", 25.0), ("cluster(bits=4,coefficients=int4,scope=layer)", 24.0), ("pack(forms=palettize)", 30.0)],
)
def test_a_run_under_a_budget_replays_to_the_same_bytes(net: ir.Model, passes: str, least: float) -> None:
    """What was turned and what was relieved is in the recipe, in the report and in the file alike."""
    result = _run(net, passes, min_sqnr=least)
    assert result.report.failures == () and result.model.metadata_props[RECIPE]
    assert _bytes(_replayed(net, result)) == _bytes(result)


def test_templates_of_a_layer_that_another_pass_has_split_replay(net: ir.Model) -> None:
    result = _run(net, "spatial(rank=5),cluster(bits=3)")
    assert result.report.steps[1].report.changes
    assert _bytes(_replayed(net, result)) == _bytes(result)


def test_a_layer_of_its_own_amount_beside_those_that_share_one(net: ir.Model) -> None:
    overrides = [[Override("first", {"amount": 0.2})]]
    result = _run(net, "sparsity(amount=0.7,allocation=global,store=dense)", overrides=overrides)
    amounts = {change.site: change.choice["amount"] for change in result.report.steps[0].report.changes}
    assert amounts["first"] == 0.2 and float(str(amounts["middle"])) > 0.6


def test_a_scope_is_of_the_whole_pass(net: ir.Model) -> None:
    with pytest.raises(OptionError, match="a layer cannot have its own"):
        _run(net, "cluster(bits=4)", overrides=[[Override("first", {"scope": "layer"})]])


def test_two_of_four_stays_as_asked_though_no_byte_is_saved(net: ir.Model) -> None:
    report = _run(net, "sparsity(pattern=2:4)", objective="size", target="tensorrt").report
    assert report.steps[0].kept and report.after.bytes > 0.99 * report.before.bytes


def test_zeros_are_not_stored_in_half_precision_either(net: ir.Model) -> None:
    both, zeros = (_run(net, passes) for passes in ("sparsity(amount=0.8),fp16", "sparsity(amount=0.8)"))
    assert both.report.after.bytes < 0.8 * zeros.report.after.bytes
    x = {"x": _data()["x"][:4]}
    half, full = (run(open_session(r.model), x)[0] for r in (both, zeros))
    np.testing.assert_allclose(half, full, rtol=0.02, atol=0.01)


def test_equal_layers_stay_two(parsed: Parsed) -> None:
    """Only what decodes a weight is shared, never a layer."""
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    text = "g (float[N,40] x) => (float[N,40] y, float[N,40] z) { [a] y = MatMul(x, v) [b] z = MatMul(x, w) }"
    result = _run(parsed(text, v=weight, w=weight.copy()), "palettize", data=None)
    assert [node.op_type for node in result.model.graph].count("MatMul") == 2
    x = {"x": np.ones((2, 40), np.float32)}
    first, second = run(open_session(result.model), x)
    np.testing.assert_array_equal(first, second)


def test_a_body_that_reads_activations_is_no_weight(parsed: Parsed) -> None:
    text = """g (float[1,8,6,6] x) => (float[1,8,4,4] y) {
        s = ReduceMean<keepdims=0>(x)
        k = Loop (n, go, w) <body = b (int64 i, bool c, float[8,8,3,3] a) => (bool d, float[8,8,3,3] e) {
            d = Identity(c) e = Mul(a, s) }>
        [conv] y = Conv(x, k) }"""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 8, 3, 3)).astype(np.float32)
    model = parsed(text, n=np.array(2), go=np.array(True), w=weight)
    data = {"x": rng.standard_normal((16, 8, 6, 6)).astype(np.float32)}
    report = _run(model, "int8", data=data).report
    assert [skip.site for skip in report.steps[0].report.skips] == ["conv"]
