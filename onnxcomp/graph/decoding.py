"""Values that are computed from constants alone, such as a weight that is decoded from codes when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

__all__ = ["decoded_bytes", "decoders", "is_decoded"]

# What computes on activations and never on constants alone, which are folded: the way back to an input ends there.
_LAYERS = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("BatchNormalization", "LayerNormalization", "Softmax", "Sigmoid", "Erf", "LSTM", "GRU", "Resize"),
    }
)
_RANDOM = ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def is_decoded(value: ir.Value | None) -> bool:
    """Whether nodes compute a value from initializers alone, none of which an input of the model can override."""
    if value is None or value.producer() is None:
        return False
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if not _is_fixed(current):
            return False
        producer = current.producer()
        new = {v for v in (producer.inputs if producer is not None else ()) if v is not None} - seen
        seen |= new
        waiting.extend(new)
    return True


def decoders(model: ir.Model, values: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes of the main graph that compute decoded values, in graph order."""
    behind = {source.producer() for source in _sources(values)}
    return [node for node in model.graph if node in behind]


def decoded_bytes(value: ir.Value) -> int:
    """Bytes of all that a decoded value is computed from; what others are computed from as well counts in full."""
    constants = (source.const_value for source in _sources([value]) if source.producer() is None)
    return sum(tensor.nbytes for tensor in constants if tensor is not None)


def _sources(values: Iterable[ir.Value]) -> dict[ir.Value, None]:
    """The values and all that they are computed from."""
    waiting, seen = list(values), dict[ir.Value, None]()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen[value] = None
        producer = value.producer()
        waiting.extend(v for v in (producer.inputs if producer is not None else ()) if v is not None)
    return seen


def _is_fixed(value: ir.Value) -> bool:
    """Whether a value is an initializer or made of others by a node; one that reads nothing may draw at random."""
    producer = value.producer()
    if producer is None:
        return value.is_initializer() and not value.is_graph_input()
    if producer.op_type in _LAYERS or producer.op_type in _RANDOM:
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in producer.attributes.values()):
        return False  # a body may read anything
    return producer.op_type == "Constant" or any(v is not None for v in producer.inputs)
