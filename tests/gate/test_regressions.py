"""Seeded regressions: each fails the gate with the right line, which names the right thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.gate import families, pairing
from onnxcomp.gate.checking import GateReport, check
from onnxcomp.gate.layers import LayerTimes
from onnxcomp.gate.line import Line
from onnxcomp.runtime.latency import paired_speed
from onnxcomp.runtime.measuring import Effort
from onnxcomp.runtime.session import open_session

Parsed = Callable[..., ir.Model]
MakeMachine = Callable[..., Any]

NETWORK = """agraph (float[N,3,16,16] x) => (float[N,10] y) {
    [stem] a = Conv<pads=[1,1,1,1]>(x, w1)
    [stem_act] b = Relu(a)
    [body] c = Conv<pads=[%d,%d,%d,%d]>(b, w2)
    [body_act] d = Relu(c)
    [pool] e = GlobalAveragePool(d)
    [flat] f = Flatten(e)
    [head] y = Gemm<transB=1>(f, w3)
}"""


def weights(*shape: int, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    return values.astype(np.float32)


def network(parsed: Parsed, kernel: int = 3, **replaced: NDArray[np.float32]) -> ir.Model:
    """A classifier; its second convolution has `kernel` x `kernel` taps, the outer ones zero."""
    small = weights(64, 64, 3, 3, seed=1)
    reach = (kernel - 3) // 2
    body = np.pad(small, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    arrays = {"w1": weights(64, 3, 3, 3, seed=0), "w2": body, "w3": weights(10, 64, seed=2)}
    pad = kernel // 2
    return parsed(NETWORK % (pad, pad, pad, pad), **{**arrays, **replaced})


def line(report: GateReport, name: str) -> Line:
    return next(line for line in report.lines if line.name == name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for tenths of a second what differs by far."""

    def speed(*openers: Any, against: float, sessions: int, swapped: bool, seed: int) -> Any:
        del sessions, seed
        return paired_speed(*openers, against=against, swapped=swapped, rounds=8, sessions=2)

    monkeypatch.setattr(families, "paired_speed", speed)
    monkeypatch.setattr(pairing, "_EFFORT", Effort(runs=40, warmup=2, budget_s=1.0))


@pytest.mark.usefixtures("quick")
def test_a_layer_that_does_more_work(parsed: Parsed) -> None:
    report = check(network(parsed, kernel=7), against=network(parsed), max_layer_slowdown=20)
    slow = line(report, "max_layer_slowdown")
    assert not report.passed
    assert (slow.verdict, slow.where) == ("fail", ("body",)), slow
    assert slow.figures["value"] > 100
    assert "body +" in slow.why


@pytest.mark.usefixtures("quick")
def test_a_model_that_became_slower_and_the_layer_at_fault(parsed: Parsed) -> None:
    report = check(network(parsed, kernel=7), against=network(parsed), min_speedup=1.0)
    slow = line(report, "min_speedup")
    assert (slow.verdict, slow.where[0]) == ("fail", "body"), slow
    assert "slowed most: body (" in slow.why


def test_a_layer_a_fifth_slower(parsed: Parsed, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def layer_times(exam: object, attempt: int) -> LayerTimes:
        del exam, attempt
        base = np.array([[1.0], [4.0], [0.5]]) * np.exp(rng.normal(0, 0.05, (3, 80)))
        other = np.array([[1.0], [4.8], [0.5]]) * np.exp(rng.normal(0, 0.05, (3, 80)))
        return LayerTimes(("stem", "body", "head"), base, other)

    monkeypatch.setattr(families, "_layer_times", layer_times)
    report = check(network(parsed), against=network(parsed), max_layer_slowdown=10)
    slow = line(report, "max_layer_slowdown")
    assert (slow.verdict, slow.where) == ("fail", ("body",)), slow
    assert slow.figures["value"] == pytest.approx(20, abs=4)


def test_a_model_a_fifth_slower(parsed: Parsed, monkeypatch: pytest.MonkeyPatch, machine: MakeMachine) -> None:
    simulated = machine(1)

    def speed(*openers: object, **arguments: Any) -> Any:
        del openers
        timed = simulated.opener(0.02), simulated.opener(0.024)
        return paired_speed(*timed, **arguments, clock=simulated.clock)

    def layer_times(exam: object, attempt: int) -> LayerTimes:
        del exam, attempt
        base, other = np.array([[1.0], [4.0]]), np.array([[1.0], [8.0]])
        return LayerTimes(("stem", "body"), base * np.ones(9), other * np.ones(9))

    monkeypatch.setattr(families, "paired_speed", speed)
    monkeypatch.setattr(families, "_layer_times", layer_times)
    report = check(network(parsed), against=network(parsed), min_speedup=1.0)
    slow = line(report, "min_speedup")
    assert (slow.verdict, slow.where) == ("fail", ("body",))
    assert "slowed most: body (4 -> 8 ms)" in slow.why


def labelled(model: ir.Model, count: int = 400) -> dict[str, NDArray[Any]]:
    """Inputs, and as labels the classes that the model gives; the first is another, so that nothing is perfect."""
    session = open_session(model)
    x = np.random.default_rng(4).normal(size=(count, 3, 16, 16)).astype(np.float32)
    labels = np.asarray(session.run(None, {"x": x})[0]).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 10
    return {"x": x, "labels": labels}


def test_accuracy_a_point_lower(parsed: Parsed) -> None:
    base = network(parsed)
    data = labelled(base)
    head = weights(10, 64, seed=2)
    scores = np.asarray(open_session(base).run(None, {"x": data["x"]})[0])
    # Raise the scores of one class until about one sample in a hundred goes over to it.
    margins = np.sort(scores.max(axis=1) - scores[:, 3])
    lost = margins[margins > 0][4:6].mean()
    bias = np.zeros(10, np.float32)
    bias[3] = lost
    text = (NETWORK % (1, 1, 1, 1)).replace("(f, w3)", "(f, w3, b3)")
    arrays = {"w1": weights(64, 3, 3, 3, seed=0), "w2": weights(64, 64, 3, 3, seed=1), "w3": head, "b3": bias}
    worse = parsed(text, **arrays)
    report = check(worse, against=base, eval=data, max_drop=0.5)
    drop = line(report, "max_drop")
    assert (drop.verdict, report.passed) == ("fail", False)
    assert 0.5 < drop.figures["value"] < 2.0
    assert "99.75 % ->" in drop.why
    assert check(base, against=base, eval=data, max_drop=0.5).passed


def test_an_operator_that_tensorrt_refuses(parsed: Parsed) -> None:
    text = "agraph (float[1,4] x) => (uint8[1,4] y) { [act] h = Relu(x) [code] y = QuantizeLinear(h, s, z) }"
    report = check(parsed(text, s=np.array(0.1, np.float32), z=np.array(128, np.uint8)), target="tensorrt")
    target = line(report, "target")
    assert (target.verdict, report.passed) == ("fail", False)
    assert "code" in target.where
    assert "trt-" in target.why
    assert check(network(parsed), target="tensorrt").passed


def test_an_output_renamed(parsed: Parsed) -> None:
    base = network(parsed)
    renamed = network(parsed)
    renamed.graph.outputs[0].name = "logits"
    report = check(renamed, against=base, data={"x": np.zeros((4, 3, 16, 16), np.float32)}, min_sqnr=20)
    changed = line(report, "contract")
    assert (changed.verdict, changed.where) == ("fail", ("y",))
    assert "output 'y' is now called 'logits'" in changed.why
    assert line(report, "min_sqnr").verdict == "skipped"


def test_a_layer_that_fell_back_to_float(parsed: Parsed) -> None:
    """Two convolutions between pairs, of which one lacks the pair of its output."""
    text = """agraph (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        [q0] a = QuantizeLinear(x, s, z) [d0] b = DequantizeLinear(a, s, z)
        [dw] w = DequantizeLinear(w8, s, o)
        [fused] c = Conv(b, w) [q1] d = QuantizeLinear(c, s, z) [d1] e = DequantizeLinear(d, s, z)
        [loose] f = Conv(e, w) [act] g = Sigmoid(f)
        [q2] h = QuantizeLinear(g, s, z) [d2] y = DequantizeLinear(h, s, z)
    }"""
    arrays = {
        "w8": np.random.default_rng(0).integers(-127, 127, (4, 4, 1, 1)).astype(np.int8),
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "o": np.array(0, np.int8),
    }
    model = parsed(text, **arrays)
    report = check(model, require_fused=True)
    fused = line(report, "fusion")
    assert (fused.verdict, fused.where) == ("fail", ("loose",)), fused
    assert "loose runs as" in fused.why
    assert line(check(model, allow_float=["l*se"]), "fusion").verdict == "pass"
    idle = check(model, allow_float=["lose", "l*"])
    assert idle.warnings == ("--allow-float 'lose' matches no layer; did you mean 'loose'?",)


@pytest.mark.parametrize("domain, operator", [("", "LSTM"), ("com.microsoft", "FusedConv")])
def test_layers_that_never_run_on_integers_are_in_float(domain: str, operator: str) -> None:
    arrays = {"w": weights(1, 16, 4, seed=0), "r": weights(1, 16, 4, seed=1)}
    inputs, shape = ["x", "w", "r"], [3, 1, 4]
    if domain:
        arrays, inputs, shape = {"w": weights(4, 4, 1, 1, seed=0)}, ["x", "w"], [1, 4, 8, 8]
    node = helper.make_node(operator, inputs, ["y"], name="cell", domain=domain)
    if not domain:
        node.attribute.append(helper.make_attribute("hidden_size", 4))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, own) for name, own in (("x", shape), ("y", None))]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], constants)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=sets, ir_version=9))
    fused = line(check(model, require_fused=True), "fusion")
    assert (fused.verdict, fused.where, fused.value) == ("fail", ("cell",), "1 of 1 in float")
    assert line(check(model, allow_float=["cell"]), "fusion").verdict == "pass"
