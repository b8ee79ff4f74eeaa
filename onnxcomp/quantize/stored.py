"""Weights that stay in codes of another pass while the arithmetic becomes int8.

What decodes such a weight reads constants alone. A QuantizeLinear behind it does too, so ONNX Runtime folds both when
it loads the model, and what it then sees is an int8 weight like any other: the file stays as small as it was. While a
model is quantized, float initializers stand in for the decoded weights; nobody else has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.decoding import decoded_bytes, decoders, is_decoded
from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, drop_unused, names_of, unique_name
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.constants import dequantizer
from onnxcomp.quantize.weighted import WEIGHTED, Weighted
from onnxcomp.quantize.weights import QuantizedWeight, quantize_weight
from onnxcomp.runtime.session import open_session, run
from onnxcomp.targets.target import Scheme

__all__ = ["Stored", "evaluate_decoded", "quantize_stored", "restore", "stand_in", "stored_weights", "write_out"]


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A decoded weight for which an initializer stands in.

    Attributes:
        decoded: The value that nodes compute from constants.
        substitute: The float32 initializer of the same content.
        bytes: Bytes of the constants that it is computed from.
    """

    decoded: ir.Value
    substitute: ir.Value
    bytes: int


def stored_weights(model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None]) -> list[ir.Value]:
    """The decoded float weights of the nodes that the target may compute on integers, each once, in graph order.

    None where the target does not fold what computes a weight. What a DequantizeLinear makes is quantized already: the
    runtime has kernels for it.
    """
    found: dict[ir.Value, None] = {}
    for node in model.graph if scheme.narrow_weights else ():
        if not is_default_domain(node, *WEIGHTED) or node.op_type not in scheme.weighted or refuse(node) is not None:
            continue
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        producer = weight.producer() if weight is not None else None
        if weight is None or producer is None or producer.op_type == "DequantizeLinear":
            continue
        if node.outputs[0].dtype in (None, ir.DataType.FLOAT) and is_decoded(weight):
            found[weight] = None
    return list(found)


def evaluate_decoded(model: ir.Model, values: Sequence[ir.Value]) -> list[NDArray[np.float32]]:
    """What decoded float32 values of the main graph hold, by the runtime's own kernels.

    Raises:
        ModelError: The runtime cannot compute them.
    """
    if not values:
        return []
    nodes = decoders(model, values)
    constants = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None and v.producer() is None)
    view = ir.GraphView(
        (), values, nodes=nodes, initializers=list(constants), opset_imports=model.graph.opset_imports, name="decoded"
    )
    graph = view.clone()
    for value in graph.outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    arrays: list[NDArray[np.float32]] = run(open_session(part, optimize="off"), {})
    return arrays


def stand_in(model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None]) -> dict[str, Stored]:
    """Let the layers whose weights are decoded read initializers of the same content, in place.

    Returns:
        What :func:`restore` needs, by the names of the initializers.
    """
    values = stored_weights(model, scheme, refuse)
    taken = names_of(model.graph) if values else set[str]()
    made: dict[str, Stored] = {}
    for value, array in zip(values, evaluate_decoded(model, values), strict=True):
        name = unique_name(model.graph, f"{value.name}.decoded", taken)
        substitute = add_initializer(model.graph, name, array)
        _reroute(value, substitute)
        made[name] = Stored(value, substitute, decoded_bytes(value))
    return made


def write_out(model: ir.Model, scheme: Scheme | None = None) -> None:
    """Let every QuantizeLinear of a decoded weight read an initializer of the same content, in place.

    With a scheme by which the target does not fold what computes a weight, layers in float read such initializers too.
    """
    quantized = [n.inputs[0] for n in model.graph if n.op_type == "QuantizeLinear" and is_decoded(n.inputs[0])]
    values = list(dict.fromkeys(value for value in quantized if value is not None))
    if scheme is not None and not scheme.narrow_weights:
        values += stored_weights(model, replace(scheme, narrow_weights=True), lambda node: None)
    taken = names_of(model.graph) if values else set[str]()
    for value, array in zip(values, evaluate_decoded(model, values), strict=True):
        _reroute(value, add_initializer(model.graph, unique_name(model.graph, f"{value.name}.decoded", taken), array))


def quantize_stored(weight: NDArray[np.float32], axis: int, bits: int) -> QuantizedWeight:
    """The integers of a decoded weight: those that a QuantizeLinear makes of it at the same scales.

    A weight that lies on a grid of few enough steps is held exactly. 8 bits saturate as the runtime does, at -128; of 7
    the largest weight is the last level, as a QuantizeLinear knows no narrower type than int8.
    """
    made = quantize_weight(weight, axis, bits=bits, method="mse")
    top = 2 ** (bits - 1) - 1
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    levels = np.round(weight / made.scales.reshape(shape))
    if bits == 8:
        return QuantizedWeight(np.clip(levels, -128, 127).astype(np.int8), made.scales, axis)
    if np.abs(levels).max(initial=0.0) <= top:
        return made
    return quantize_weight(weight, axis, bits=bits, method="minmax")


def restore(model: ir.Model, stored: Mapping[str, Stored], weighted: Sequence[Weighted], pass_name: str) -> None:
    """Put the stored forms back, in place, with a QuantizeLinear between them and the layers on integers.

    Args:
        model: A model that was quantized, or was not, since :func:`stand_in`.
        stored: What that returned.
        weighted: The layers that were quantized.
        pass_name: Name of the pass, for provenance.
    """
    taken = names_of(model.graph) if stored else set[str]()
    pairs = {dequantizer(w.node, 1): w for w in weighted if w.weight.name in stored}
    for pair, w in pairs.items():
        codes, scale, zero = pair.inputs
        assert codes is not None and w.weight.name is not None
        decoded = stored[w.weight.name].decoded
        attributes = {"axis": pair.attributes.get_int("axis", 1)}
        made = ir.node("QuantizeLinear", [decoded, scale, zero], attributes=attributes)
        made.name = unique_name(model.graph, f"{decoded.name}.Q", taken)
        made.outputs[0].name = unique_name(model.graph, f"{decoded.name}.q", taken)
        made.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        pair.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        made.outputs[0].shape = pair.outputs[0].shape = w.weight.shape
        made.metadata_props.update({ORIGIN: w.site, PASS: pass_name})
        model.graph.insert_before(pair, [made])
        pair.replace_input_with(0, made.outputs[0])
        drop_unused(model.graph, [codes])
    for one in stored.values():
        _reroute(one.substitute, one.decoded)
        drop_unused(model.graph, [one.substitute])


def _reroute(old: ir.Value, new: ir.Value) -> None:
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
