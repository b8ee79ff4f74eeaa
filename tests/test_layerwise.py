"""What became of every layer: layers add up to the model, and errors grow with what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.cost import Cost, model_cost
from onnxcomp.graph.fold import canonicalise
from onnxcomp.layerwise import Layer, layer_costs
from onnxcomp.runtime.timing import Speedup

Arrays = Mapping[str, NDArray[Any]]


def total(costs: list[Cost]) -> Cost:
    return sum(costs, Cost(0, 0, 0))


@pytest.mark.parametrize("passes", ["int8", "tucker2(keep=0.5),int8", "prune(channels=0.8)", "cluster", "fold"])
def test_layers_add_up_to_the_model(stack: ir.Model, samples: Arrays, passes: str) -> None:
    report = onnxcomp.optimize(stack, passes, data=samples, objective="size", layers=True).report
    assert total([layer.before for layer in report.layers]) == report.before.cost
    assert total([layer.after for layer in report.layers]) == report.after.cost
    names = [node.name for node in stack.graph]
    assert [layer.name for layer in report.layers][: len(names)] == names


def by_name(model: ir.Model, passes: str, **options: Any) -> dict[str, Layer]:
    result = onnxcomp.optimize(model, passes, objective="macs", layers=True, **options)
    return {layer.name: layer for layer in result.report.layers}


def test_a_layer_says_what_was_done_to_it(stack: ir.Model, samples: Arrays) -> None:
    layers = by_name(stack, "tucker2(keep=0.5),int8", data=samples, exclude=["c"])
    assert layers["b"].passes == ("tucker2", "int8") and layers["c"].passes == ()
    assert layers["b"].nodes > 3 and layers["b"].after.bytes < layers["b"].before.bytes / 2
    assert layers["c"].after == layers["c"].before and layers["c"].op_type == "Conv"
    assert all(layer.before_ms is None is layer.after_ms for layer in layers.values())  # the objective is no latency


def test_errors_are_measured_where_there_are_data(stack: ir.Model, samples: Arrays) -> None:
    rough = by_name(stack, "tucker2(keep=0.2)", data=samples)
    fine = by_name(stack, "tucker2(keep=0.7)", data=samples)
    assert all(0 < float(rough[name].sqnr or 0) < float(fine[name].sqnr or 0) for name in ("b", "c", "head"))
    assert all(layer.sqnr is None for layer in by_name(stack, "tucker2(keep=0.5)").values())
    assert all(layer.sqnr is None for layer in by_name(stack, "tucker2", data=samples, exclude=["*"]).values())


def test_nothing_is_measured_unasked(stack: ir.Model, samples: Arrays) -> None:
    assert onnxcomp.optimize(stack, "tucker2", data=samples, objective="macs").report.layers == ()


SHARED = """agraph (float[N, 4] x) => (float[N, 4] y)
    <float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
    { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"""


def test_what_several_layers_share_is_counted_once(parsed: Callable[..., ir.Model]) -> None:
    model = parsed(SHARED)
    result = model.clone()
    canonicalise(result)
    first, middle, last = layer_costs(model, result, [("fold", ["a"])])
    assert (first.name, middle.name, last.name) == ("a", "b", "y")  # nodes without names go by their outputs
    assert (first.before, last.before) == (Cost(16, 16, 64), Cost(0, 16, 0))
    assert middle.op_type == "Relu"
    assert first.passes == ("fold",) and middle.passes == ()
    assert model_cost(model) == total([layer.before for layer in (first, middle, last)])


def test_layers_that_are_gone_and_nodes_that_are_new(parsed: Callable[..., ir.Model]) -> None:
    model = parsed(SHARED)
    result = model.clone()
    node = ir.node("Identity", [result.graph.inputs[0]], name="new")
    node.outputs[0].name = "copy"
    result.graph.insert_before(result.graph[0], node)
    result.graph[1].replace_input_with(0, node.outputs[0])
    result.graph[2].outputs[0].replace_all_uses_with(result.graph[1].outputs[0])
    result.graph.remove(result.graph[2])
    found = {layer.name: layer for layer in layer_costs(model, result, [])}
    assert list(found) == ["a", "b", "y", "new"]
    assert found["b"].nodes == 0 and found["new"].nodes == 1 and found["new"].before == Cost(0, 0, 0)


def test_layers_are_timed_where_the_model_is(stack: ir.Model, samples: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    def faster(*models: object, **options: object) -> Speedup:
        return Speedup(1.5, 1.4, 1.6, 1.5, 1.0, 100)

    monkeypatch.setattr("onnxcomp.pipeline.paired", faster)
    result = onnxcomp.optimize(stack, "int8", data=samples, layers=True)
    layers = {layer.name: layer for layer in result.report.layers}
    assert (layers["b"].before_ms or 0) > 0 and (layers["b"].after_ms or 0) > 0 and layers["b"].nodes > 1
    again = onnxcomp.optimize(stack, "int8", data=samples, layers=True, replay=result.report.choices)
    assert all(layer.before_ms is None for layer in again.report.layers)
