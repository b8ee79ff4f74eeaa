"""Every kernel that the runtime runs is named by nodes of the user's own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.graph.edit import origin_of
from onnxcomp.runtime.attribution import Attribution, attribute
from onnxcomp.runtime.optimised import optimised
from onnxcomp.runtime.settings import SessionSettings

Parsed = Callable[..., ir.Model]
Arrays = Mapping[str, NDArray[Any]]

RESIDUAL = """g (float[N,8,6,6] x) => (float[N,10] y) {
  [a] a1 = Conv<pads=[1,1,1,1]>(x, wa, ba) [act_a] a2 = Relu(a1)
  [b1] b = Conv<pads=[1,1,1,1]>(a2, wb) [act_b] b2 = Relu(b)
  [b2] c = Conv<pads=[1,1,1,1]>(b2, wc) [add] s = Add(c, a2) [act_s] r = Relu(s)
  [pool] p = GlobalAveragePool(r) [flat] f = Flatten(p) [head] y = Gemm<transB=1>(f, wh) }"""


@pytest.fixture(scope="module")
def residual(parsed: Parsed, fading: Callable[..., NDArray[np.float32]]) -> ir.Model:
    """A classifier with a residual block."""
    shapes = {"wa": (32, 8, 3, 3), "wb": (32, 32, 3, 3), "wc": (32, 32, 3, 3), "wh": (10, 32)}
    weights = {name: fading(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    return parsed(RESIDUAL, **weights, ba=np.full(32, 0.1, np.float32))


@pytest.fixture(scope="module")
def few() -> Arrays:
    """Inputs for it."""
    return {"x": np.random.default_rng(9).standard_normal((16, 8, 6, 6)).astype(np.float32)}


@pytest.fixture(scope="module")
def compressed(residual: ir.Model, few: Arrays) -> Callable[[str], ir.Model]:
    """The classifier behind some passes, of which one was kept at least."""

    @cache
    def make(passes: str) -> ir.Model:
        result = onnxcomp.optimize(residual, passes, data=few, objective="size")
        assert any(step.kept for step in result.report.steps)
        return result.model

    return make


def attributed(model: ir.Model) -> list[Attribution]:
    before = ir.to_proto(model).SerializeToString()
    found = attribute(model, list(optimised(model, SessionSettings()).graph))
    assert ir.to_proto(model).SerializeToString() == before
    return list(found)


def of(found: list[Attribution], layer: str) -> list[Attribution]:
    return [one for one in found if one.layer == layer]


def test_what_is_fused_stands_with_its_layer(residual: ir.Model) -> None:
    found = attributed(residual)
    assert [one.layer for one in found if "Conv" in one.kernel] == ["a", "b1", "b2"]
    (first,) = [one for one in of(found, "a") if "Conv" in one.kernel]
    assert first.origins == ("a", "act_a")
    assert first.nodes == ("a", "act_a")
    (last,) = [one for one in of(found, "b2") if "Conv" in one.kernel]
    assert last.origins == ("b2", "add", "act_s")
    # Every node that runs is in one kernel.
    names = [name for one in found for name in one.nodes]
    assert sorted(names) == sorted(node.name or "" for node in residual.graph)


def test_a_change_of_layout_goes_to_the_node_whose_data_it_moves(residual: ir.Model) -> None:
    moves = [one for one in attributed(residual) if one.kernel.startswith("Reorder")]
    assert moves  # the blocked layout ends somewhere
    assert all(one.nodes == () and one.layer in {"a", "b1", "b2", "pool"} for one in moves)


@pytest.mark.parametrize(
    "passes",
    [
        "tucker2(ranks=8x8),int8",
        "decompose(macs=0.6, forms=tucker2)",
        "prune(channels=0.75)",
        "drop_blocks(count=1)",
        "palettize",
        "fp16",
        "int4",
        "lowrank(keep=0.5),palettize",
    ],
)
def test_every_line_of_a_compressed_model_names_a_node_of_the_original(
    residual: ir.Model, compressed: Callable[[str], ir.Model], passes: str
) -> None:
    own = {node.name for node in residual.graph}
    found = attributed(compressed(passes))
    assert {origin for one in found for origin in one.origins} <= own
    assert {one.layer for one in found} <= own
    assert found[-1].layer == "head"


def test_chains_and_integers_tell_who_made_them(compressed: Callable[[str], ir.Model]) -> None:
    found = attributed(compressed("tucker2(ranks=8x8),int8"))
    chain = [one for one in of(found, "b1") if one.quantized]
    assert [one.kernel for one in chain] == ["QLinearConv"] * 3
    assert {name for one in chain for name in one.passes} == {"tucker2", "int8"}
    # The input's own QuantizeLinear bears the input's name; it prepares what the first layer reads.
    assert found[0].kernel == "QuantizeLinear" and found[0].layer == "a"


def test_bodies_are_part_of_the_node_that_they_belong_to(parsed: Parsed) -> None:
    model = parsed(
        """g (float[1,8] x) => (float[1,8] y) {
          [pre] p = Relu(x)
          [loop] y = Loop(n, t, p) <body = b (int64 i, bool c, float[1,8] v) => (bool c2, float[1,8] w)
            { c2 = Identity(c) [inside] w = Exp(v) }> }""",
        n=np.array(3, np.int64),
        t=np.array(True),
    )
    assert [(one.layer, one.kernel) for one in attributed(model)] == [("pre", "Relu"), ("loop", "Loop")]


def test_nodes_without_names_go_by_what_they_make(parsed: Parsed) -> None:
    model = parsed("g (float[1,8] x) => (float[1,8] y) { a = Exp(x) y = Sigmoid(a) }")
    assert [one.layer for one in attributed(model)] == ["a", "y"]
    assert [origin_of(node) for node in model.graph] == ["a", "y"]


def test_nodes_of_functions_belong_to_the_call_or_its_reader() -> None:
    weights = ",".join(["0.1"] * 64)
    text = f"""<ir_version: 9, opset_import: ["": 17, "my": 1]>
    g (float[1,8,6,6] x) => (float[1,8,6,6] y) <float[8,8,1,1] w = {{{weights}}}> {{
      [call] h = my.block(x, w) [tail] y = Exp(h) }}
    <domain: "my", opset_import: ["": 17]> block (a, b) => (c) {{ d = Conv(a, b) e = Relu(d) c = Mul(e, d) }}"""
    found = attributed(ir.from_proto(onnx.parser.parse_model(text)))
    assert {one.layer for one in found} <= {"call", "tail"}
    assert len(found) > 2
