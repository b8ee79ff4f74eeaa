"""What NNAPI and CoreML leave to the CPU, by the lists that ONNX Runtime ships."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcomp.errors import InputError
from onnxcomp.legality import tables
from onnxcomp.legality.checker import check_model
from onnxcomp.legality.finding import Finding
from onnxcomp.legality.partitions import count_partitions
from onnxcomp.legality.tables import COREML, NNAPI, supported_operators

Found = Callable[..., dict[str, Finding]]


@pytest.mark.parametrize(("target", "rule"), [("ort-mobile", "mobile-shape"), ("coreml", "coreml-shape")])
def test_free_dimensions(groups: Any, found: Found, target: str, rule: str) -> None:
    text = "g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) { y = Conv(x, k) }"
    finding = found(groups.of(text), target)[rule]
    assert (finding.severity, finding.node) == ("warning", "x")
    assert "--shapes x:1x" in finding.remedy
    assert found(groups.of(text.replace("N,", "1,")), target) == {}


def test_an_operator_that_is_not_listed_cuts_the_graph(groups: Any) -> None:
    text = """
    g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
      a = Relu(x)
      [one] p = Softplus(a)
      c = Relu(p)
      [two] d = Softplus(c)
      y = Conv(d, k)
    }
    """
    (finding,) = check_model(groups.of(text), "ort-mobile")
    assert (finding.severity, finding.node, finding.rule) == ("warning", "one", "mobile-fallback")
    assert "Softplus (here and at 1 other) falls back to the CPU" in finding.message
    assert "runs the rest in 3 parts" in finding.message
    assert check_model(groups.of(text), "coreml") == ()


FORMS = [
    ("y = Conv(x, v)", "'v' is not a constant", "y = Conv(x, k)"),
    ("y = GlobalAveragePool(t)", "has 5 dimensions", "y = GlobalAveragePool(x)"),
    ('y = DepthToSpace<blocksize = 2, mode = "CRD">(x)', "not DCR", "y = DepthToSpace<blocksize = 2>(x)"),
    ("y = Pad(x, negative)", "crops", "y = Pad(x, pads)"),
    ('y = Pad<mode = "edge">(x, pads)', "not constant", "y = Pad(x, pads, zero)"),
    ("y = Gather(x, i)", "indices", "y = Gather(x, fixed)"),
    ("y = Gemm(m, n)", "transB", "y = Gemm<transB = 1>(m, n)"),
    (
        "q = QuantizeLinear(x, moving, z)\n y = DequantizeLinear(q, s, z)",
        "'moving'",
        "q = QuantizeLinear(x, s, z)\n y = DequantizeLinear(q, s, z)",
    ),
]
PORTS = (
    "float[1, 16, 8, 8] x, float[16, 16, 1, 1] v, float[1, 4, 2, 2, 2] t, int64[2] i, float[4, 4] m, float[4, 4] n, "
    "float moving"
)
CONSTANTS = {
    "negative": np.array([0, 0, -1, 0, 0, 0, 0, 0], np.int64),
    "pads": np.ones(8, np.int64),
    "zero": np.array(0, np.float32),
    "fixed": np.array([0], np.int64),
}


@pytest.mark.parametrize(("bad", "words", "good"), FORMS)
def test_forms_that_nnapi_does_not_take(groups: Any, found: Found, bad: str, words: str, good: str) -> None:
    finding = found(groups.of(_graph(bad), **CONSTANTS), "ort-mobile")["mobile-fallback"]
    assert words in finding.message
    assert "mobile-fallback" not in found(groups.of(_graph(good), **CONSTANTS), "ort-mobile")


def _graph(body: str) -> str:
    rank = 5 if "(t" in body else 2 if "Gemm" in body else 4
    return f"g ({PORTS}) => (float[{', '.join('ABCDE'[:rank])}] y) {{ {body} }}"


def test_float16_is_not_for_nnapi(groups: Any, found: Found) -> None:
    text = """
    g (float[1, 4] x) => (float[1, 4] y) {
      [down] h = Cast<to = 10>(x)
      [half] r = Relu(h)
      y = Cast<to = 1>(r)
    }
    """
    finding = found(groups.of(text), "ort-mobile")["mobile-fallback"]
    assert finding.node == "half"
    assert "float16" in finding.message
    assert found(groups.of(text), "coreml") == {}


COREML_FORMS = [
    ("y = GlobalMaxPool(t)", "only 2-D", "y = GlobalMaxPool(x)"),
    ("y = Conv(t, w3)", "1-D and 2-D", "y = Conv(x, k)"),
    ("y = Conv(x, k, bias)", "bias", "y = Conv(x, k)"),
    ("y = ConvTranspose(x, v)", "weight or bias", "y = ConvTranspose(x, k)"),
    ("y = ConvTranspose<strides = [2, 2], output_padding = [1, 1]>(x, k)", "output_padding", "y = ConvTranspose(x, k)"),
    ("y = Gemm(m, n)", "not a constant", "y = Gemm(m, square)"),
]


@pytest.mark.parametrize(("bad", "words", "good"), COREML_FORMS)
def test_forms_that_coreml_does_not_take(groups: Any, found: Found, bad: str, words: str, good: str) -> None:
    ports = f"{PORTS}, float[16] bias"
    arrays = {"w3": np.zeros((4, 4, 1, 1, 1), np.float32), "square": np.zeros((4, 4), np.float32)}
    finding = found(groups.of(_graph(bad).replace(PORTS, ports), **arrays), "coreml")["coreml-fallback"]
    assert words in finding.message
    assert "coreml-fallback" not in found(groups.of(_graph(good).replace(PORTS, ports), **arrays), "coreml")


def test_coreml_has_no_quantized_operators(groups: Any, found: Found) -> None:
    finding = found(groups(signed=True), "coreml")["coreml-quantized"]
    assert (finding.severity, finding.node) == ("warning", "quantize")
    assert "quantized operators (5 in all)" in finding.message
    assert "coreml-fallback" not in found(groups(signed=True), "coreml")


def test_constants_are_folded_before_a_provider_is_asked(groups: Any) -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) { c = ConstantOfShape(shape)\n y = Add(x, c) }"
    assert check_model(groups.of(text, shape=np.array([1, 4], np.int64)), "ort-mobile") == ()


def test_the_tables_are_those_of_the_installed_runtime() -> None:
    nnapi, coreml = supported_operators(NNAPI), supported_operators(COREML)
    assert "Only 2D Conv" in nnapi["ai.onnx:conv"]
    assert {"ai.onnx:quantizelinear", "com.microsoft:qlinearadd"} <= set(nnapi)
    assert "ai.onnx:conv" in coreml
    assert "ai.onnx:quantizelinear" not in coreml


def test_a_runtime_without_its_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, groups: Any) -> None:
    monkeypatch.setattr(tables, "_folder", lambda: tmp_path)
    tables._read.cache_clear()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InputError, match=r"has no nnapi_supported_ops.md .*install the onnxruntime wheel"):
        check_model(groups(signed=True), "ort-mobile")
    (tmp_path / NNAPI).write_text("no table")
    with pytest.raises(InputError, match="cannot be read"):
        supported_operators(NNAPI)
    tables._read.cache_clear()  # pyright: ignore[reportPrivateUsage]


def _graph_of(edges: list[tuple[str, str]], names: str) -> ir.Graph:
    """A graph of nodes named by letters, upper case where the provider does not take them; edges in order."""
    made: dict[str, ir.Node] = {}
    for name in names:
        sources = [made[a].outputs[0] for a, b in edges if b == name]
        made[name] = ir.node("Sum" if sources else "Constant", sources, name=name)
        made[name].outputs[0].name = f"v{name}"
    return ir.Graph([], [], nodes=list(made.values()), name="g", opset_imports={"": 17})


@pytest.mark.parametrize(
    ("names", "edges", "parts"),
    [
        ("abc", "ab bc", 1),
        ("aBc", "aB Bc", 2),
        ("ABC", "AB BC", 0),
        ("abCde", "ab bC Cd de ae", 2),
        ("aBcD", "aB ac BD cD", 1),
        ("", "", 0),
    ],
)
def test_partitions(names: str, edges: str, parts: int) -> None:
    graph = _graph_of([(edge[0], edge[1]) for edge in edges.split()], names)
    assert count_partitions(graph, lambda node: (node.name or "").islower()) == parts


@pytest.mark.parametrize("seed", range(20))
def test_partitions_are_counted_as_the_tool_of_the_runtime_counts_them(seed: int) -> None:
    checker = pytest.importorskip("onnxruntime.tools.mobile_helpers.usability_checker")
    rng = np.random.default_rng(seed)
    names = [chr(ord("a") + i) if rng.random() < 0.7 else chr(ord("A") + i) for i in range(20)]
    edges = [(names[j], names[i]) for i in range(1, 20) for j in {int(rng.integers(0, i)) for _ in range(2)}]
    graph = _graph_of(edges, "".join(names))

    class Lower:
        def is_op_supported(self, node: onnx.NodeProto) -> bool:
            return node.name.islower()

    model = ir.Model(graph, ir_version=9)
    info = checker.check_partitioning(ir.to_proto(model).graph, Lower(), False)
    assert count_partitions(graph, lambda node: (node.name or "").islower()) == info.num_partitions
