"""Models that decompose must bear: it rewrites what it can, says why it leaves the rest, and never fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.errors import InputError

Parsed = Callable[..., ir.Model]
Fading = Callable[..., NDArray[np.float32]]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
SPEC = "decompose(loss=0.05)"


def _run(model: ir.Model, spec: str = SPEC, **options: Any) -> Result:
    given: dict[str, Any] = {"objective": "macs"}
    return onnxcomp.optimize(model, spec, **(given | options))


def _changed(result: Result) -> list[str]:
    return [change.site for change in result.report.steps[0].report.changes]


def _skipped(result: Result) -> dict[str, str]:
    return {skip.site: skip.reason for skip in result.report.steps[0].report.skips}


def _graph(model: ir.Model) -> bytes:
    return ir.to_proto(model).graph.SerializeToString(deterministic=True)


def _noise(*shape: int, seed: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _error(outputs_of: OutputsOf, before: ir.Model, after: ir.Model, feed: Mapping[str, NDArray[Any]]) -> float:
    wanted, got = outputs_of(before, feed), outputs_of(after, feed)
    return max(float(np.square(got[k] - wanted[k]).sum() / np.square(wanted[k]).sum()) for k in wanted)


def test_a_model_without_sites(parsed: Parsed) -> None:
    model = parsed("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    result = _run(model)
    assert _graph(result.model) == _graph(model) and not result.report.steps[0].report.skips
    assert result.report.steps[0].report.offers == () and result.report.failures == ()


CASES = {
    "conv1d": ("float[N,16,40] x", "Conv<pads=[2,2]>(x, w)", (24, 16, 5)),
    "conv3d": ("float[N,16,5,5,5] x", "Conv(x, w)", (16, 16, 3, 3, 3)),
    "grouped": ("float[N,32,8,8] x", "Conv<group=2>(x, w)", (32, 16, 3, 3)),
    "dilated": ("float[N,16,12,12] x", "Conv<dilations=[2,1], strides=[2,2]>(x, w)", (24, 16, 3, 3)),
    "matmul": ("float[N,6,32] x", "MatMul(x, w)", (32, 48)),
    "gemm": ("float[N,32] x", "Gemm<transB=1>(x, w)", (48, 32)),
    "transposed": ("float[N,24,6,6] x", "ConvTranspose<strides=[2,2]>(x, w)", (24, 16, 4, 4)),
}


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer(parsed: Parsed, fading: Fading, outputs_of: OutputsOf, case: str, data: bool) -> None:
    source, node, shape = CASES[case]
    target = ",".join("Nabcd"[: source.count(",") + 1])
    model = parsed(f"g ({source}) => (float[{target}] y) {{ [site] h = {node} y = Relu(h) }}", w=fading(shape))
    feed = {"x": _noise(32, *(int(d) for d in source.split("[")[1].split("]")[0].split(",")[1:]))}
    result = _run(model, data=feed if data else None)
    assert _changed(result) == ["site"], _skipped(result)
    assert _error(outputs_of, model, result.model, feed) < (0.15 if data else 0.3)
    assert (result.report.steps[0].after.macs or 0) < 0.9 * (result.report.steps[0].before.macs or 0)


def test_dynamic_shapes(parsed: Parsed, fading: Fading) -> None:
    """No MACs and no times are known: weights are counted."""
    model = parsed(
        "g (float[N,24,H,W] x) => (float[N,32,a,b] y) { [site] h = Conv(x, w) y = Relu(h) }", w=fading((32, 24, 3, 3))
    )
    feed = {"x": _noise(16, 24, 8, 8)}
    for objective in ("macs", "size"):
        result = _run(model, data=feed, objective=objective)
        assert _changed(result) == ["site"], _skipped(result)
    result = _run(model, "decompose(macs=0.4)", data=feed)
    step = result.report.steps[0]
    assert step.after.parameters <= 0.4 * step.before.parameters and step.before.macs is None
    assert step.report.notes == ("MACs are not known, with dynamic shapes: weights were counted instead",)
    (note,) = _run(model, "decompose(speedup=2)", data=feed, objective="latency").report.steps[0].report.notes
    assert note == "no layer could be timed, so that none was changed for speed"


def test_shared_weights_and_bodies_are_left_alone(parsed: Parsed, fading: Fading) -> None:
    model = parsed(
        """g (float[N,32,8,8] x, bool c) => (float[N,32,a,b] y) {
          [one] h = Conv(x, w) [two] k = Conv(h, w) [three] m = Conv<pads=[1,1,1,1]>(k, v)
          y = If(c) <then_branch = t () => (float[N,32,a,b] o) { [inside] o = Conv<pads=[1,1,1,1]>(m, u) },
                     else_branch = e () => (float[N,32,a,b] p) { p = Identity(m) }> }""",
        w=fading((32, 32, 3, 3)),
        v=fading((32, 32, 3, 3), 1),
        u=fading((32, 32, 3, 3), 2),
    )
    result = _run(model)
    assert _changed(result) == ["three"]
    skipped = _skipped(result)
    assert "shared" in skipped["one"] and "shared" in skipped["two"] and "inside" in skipped


TRANSFORMER = """g (float[N,12,32] x) => (float[N,12,32] y, int64[N,12] which) {
  [q] q = MatMul(x, wq) [k] k = MatMul(x, wk) [v] v = MatMul(x, wv)
  kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s) o = MatMul(p, v)
  [up] u = MatMul(o, wu) ub = Add(u, bu) r = Relu(ub) [down] d = MatMul(r, wd) y = Add(d, x)
  which = ArgMax<axis=2, keepdims=0>(y) }"""


def test_a_transformer_with_an_output_of_integers(parsed: Parsed, fading: Fading, outputs_of: OutputsOf) -> None:
    arrays = {name: 0.5 * fading((32, 32), i) for i, name in enumerate(("wq", "wk", "wv"))}
    arrays |= {"wu": fading((32, 96), 7), "bu": np.zeros(96, np.float32), "wd": fading((96, 32), 8)}
    model = parsed(TRANSFORMER, **arrays)
    feed = {"x": _noise(32, 12, 32)}
    result = _run(model, "decompose(macs=0.6)", data=feed)
    assert {"up", "down"} <= set(_changed(result)) <= {"q", "k", "v", "up", "down"}
    got, wanted = outputs_of(result.model, feed), outputs_of(model, feed)
    assert np.square(got["y"] - wanted["y"]).sum() < 0.2 * np.square(wanted["y"]).sum()
    assert (result.report.steps[0].after.macs or 0) <= 0.6 * (result.report.steps[0].before.macs or 0)


def test_outputs_that_are_all_integers(parsed: Parsed, fading: Fading) -> None:
    model = parsed(
        """g (float[N,24,8,8] x) => (int64[N,8,8] y) {
          [site] h = Conv<pads=[1,1,1,1]>(x, w) y = ArgMax<axis=1, keepdims=0>(h) }""",
        w=fading((32, 24, 3, 3)),
    )
    result = _run(model, data={"x": _noise(16, 24, 8, 8)})
    assert _changed(result) == ["site"]


def test_weights_that_are_nan_or_zero(stack: ir.Model, samples: Mapping[str, NDArray[Any]]) -> None:
    def with_weight(name: str, value: float) -> ir.Model:
        model = stack.clone()
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        array = tensor.numpy().copy()
        array[...] = value
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        return model

    for options in ({"data": samples}, {}):
        zero = _run(with_weight("wb", 0.0), "decompose(macs=0.7)", **options)
        assert "a" in _changed(zero) and {*_changed(zero), *_skipped(zero)} == {"a", "b", "c", "head"}
    nan = _run(with_weight("wa", np.nan), "decompose(macs=0.7)")
    assert _skipped(nan)["a"] == "the weight holds NaN or Inf" and _changed(nan)


def test_data_with_nan(stack: ir.Model, samples: Mapping[str, NDArray[Any]]) -> None:
    broken = samples["x"].copy()
    broken[3, 2, 1, 0] = np.nan
    with pytest.raises(InputError, match=r"(?i)nan|not finite"):
        _run(stack, data={"x": broken})


def test_constant_data(stack: ir.Model) -> None:
    result = _run(stack, "decompose(macs=0.5)", data={"x": np.zeros((8, 16, 8, 8), np.float32)})
    assert result.report.failures == ()


@pytest.mark.parametrize(("dtype", "name"), [(np.float64, "double"), (np.float16, "float16")])
def test_other_precisions_are_left_alone(parsed: Parsed, fading: Fading, dtype: Any, name: str) -> None:
    model = parsed(
        f"g ({name}[N,24] x) => ({name}[N,32] y) {{ [site] y = MatMul(x, w) }}", w=fading((24, 32)).astype(dtype)
    )
    result = _run(model, data={"x": _noise(16, 24).astype(dtype)})
    assert _changed(result) == [] and "not float32" in _skipped(result)["site"]


def test_where_nothing_pays_nothing_changes(parsed: Parsed) -> None:
    """Pointwise and depthwise layers with flat spectra, as in a mobile network: what is written is what fold leaves."""
    model = parsed(
        """g (float[N,16,8,8] x) => (float[N,24,8,8] y) {
          [dw] d = Conv<group=16, pads=[1,1,1,1]>(x, wd) r = Clip(d, zero, six) [pw] y = Conv(r, wp) }""",
        wd=_noise(16, 1, 3, 3),
        wp=_noise(24, 16, 1, 1),
        zero=np.float32(0),
        six=np.float32(6),
    )
    result = _run(model, "decompose(loss=0.0001)", data={"x": _noise(32, 16, 8, 8)})
    plain = _run(model, "fold")
    assert _changed(result) == [] and set(_skipped(result)) == {"dw", "pw"}
    assert _graph(result.model) == _graph(plain.model)
