"""Size, cost, operators, operator set, metadata: what shows without running the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.cost import Cost
from onnxcomp.errors import InputError
from onnxcomp.gate.costing import cost_of
from onnxcomp.gate.limits import Limits
from onnxcomp.gate.line import Line, listed
from onnxcomp.gate.metadata import metadata_line
from onnxcomp.gate.operators import operator_lines, opset_line
from onnxcomp.gate.static import cost_lines, size_line

Parsed = Callable[..., ir.Model]


def test_size_is_that_of_all_files() -> None:
    assert size_line(100, 100, None).verdict == "pass"
    line = size_line(3 << 20, 2 << 20, 4 << 20)
    assert (line.verdict, line.value, line.limit, line.why) == ("fail", "3 MB", "at most 2 MB", line.why)
    assert line.why == "3,145,728 bytes to 2,097,152; the base takes 4 MB"
    assert line.figures == {"limit": 2 << 20, "value": 3 << 20}


def test_parameters_and_macs() -> None:
    limits = Limits(max_params=1000, max_macs=2e6)
    kept = list(cost_lines(Cost(1000, 2_000_000, 0), False, limits))
    assert [line.verdict for line in kept] == ["pass", "pass"]
    broken = list(cost_lines(Cost(1001, 2_000_001, 0), False, limits))
    assert [line.verdict for line in broken] == ["fail", "fail"]
    assert "1,001 to 1,000" in broken[0].why  # where rounding hides the difference
    unknown = list(cost_lines(Cost(1, None, 0), False, limits))[1]
    assert (unknown.verdict, unknown.passed) == ("skipped", False)
    assert "--shapes" in unknown.why


def test_layers_behind_operators_of_the_runtime_cost_what_a_run_shows(parsed: Parsed) -> None:
    text = "agraph (float[N,8,10,10] x) => (float[N,4,a,b] y) { p = Relu(x) y = Conv(p, w) }"
    own = parsed(text, w=np.ones((4, 8, 3, 3), np.float32))
    first = own.graph[0]
    first.op_type, first.domain = "FastGelu", "com.microsoft"
    own.opset_imports["com.microsoft"] = 1
    for value in (first.outputs[0], own.graph[1].outputs[0]):
        value.shape = None
    feed = {"x": np.zeros((1, 8, 10, 10), np.float32)}
    cost, ran = cost_of(own, lambda: feed)
    assert (cost.macs, ran) == (288 * 64, True)
    assert "a run on one sample" in next(iter(cost_lines(cost, ran, Limits(max_macs=1e9)))).why
    assert own.graph[1].outputs[0].shape is None

    def no_feed() -> dict[str, np.ndarray]:
        raise InputError("the input's shape is free")

    assert cost_of(own, no_feed) == (Cost(288, None, 4 * 288), False)


@pytest.fixture
def model(parsed: Parsed) -> ir.Model:
    text = """agraph (float[N,4] x, bool b) => (float[N,4] y) {
        [fc] h = MatMul(x, w)
        [choice] y = If(b) <
            then_branch = t () => (float[N,4] yt) { [deep] yt = Softplus(h) },
            else_branch = e () => (float[N,4] ye) { ye = Relu(h) }
        >
    }"""
    return parsed(text, w=np.eye(4, dtype=np.float32))


def test_operators_in_bodies_count(model: ir.Model) -> None:
    assert [line.verdict for line in operator_lines(model, ["*"], ["Loop"])] == ["pass", "pass"]
    denied = next(operator_lines(model, [], ["Soft*", "If"]))
    assert (denied.verdict, denied.where) == ("fail", ("choice", "deep"))
    assert "not allowed: If (choice), Softplus (deep)" in denied.why
    allowed = next(operator_lines(model, ["MatMul", "ai.onnx:If", "Relu"], []))
    assert (allowed.name, allowed.where) == ("allow_ops", ("deep",))
    assert list(operator_lines(model, [], [])) == []


def test_operators_of_other_domains_go_by_their_domain() -> None:
    value = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.Node("com.microsoft", "Gelu", [value], name="act")
    graph = ir.Graph([value], [node.outputs[0]], nodes=[node], opset_imports={"": 17, "com.microsoft": 1}, name="g")
    model = ir.Model(graph, ir_version=9)
    assert next(operator_lines(model, [], ["com.microsoft:*"])).where == ("act",)
    assert next(operator_lines(model, [], ["Gelu"])).verdict == "pass"
    assert next(operator_lines(model, ["Gelu"], [])).verdict == "fail"


@pytest.mark.parametrize(
    ("ends", "verdict"), [((17, None), "pass"), ((18, None), "fail"), ((None, 16), "fail"), ((13, 17), "pass")]
)
def test_the_operator_set_lies_in_a_range(model: ir.Model, ends: tuple[int | None, int | None], verdict: str) -> None:
    line = opset_line(model, *ends)
    assert (line.verdict, line.value) == (verdict, "17")
    assert bool(line.why) is (verdict == "fail")


def test_metadata_is_there_and_matches() -> None:
    held = {"author": "me and you", "long": "x" * 1000}
    assert metadata_line("author", "*", held).verdict == "pass"
    assert metadata_line("author", "me*", held).verdict == "pass"
    line = metadata_line("author", "you*", held)
    assert (line.verdict, line.where, line.value) == ("fail", ("author",), "'me and you'")
    missing = metadata_line("autor", "*", held)
    assert (missing.verdict, missing.value) == ("fail", "absent")
    assert "did you mean 'author'?" in missing.why
    assert "the model has none" in metadata_line("a", "*", {}).why
    assert len(metadata_line("long", "y", held).value) < 80


def test_names_are_listed_briefly() -> None:
    assert listed(["a", "a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c and 3 more"
    assert Line("x", "", "", "inconclusive").passed
