"""What a comparison asks of a graph: what depends on the data, who reads a value, and what only follows a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import onnx
import onnx_ir as ir

from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.runtime.activations import expose
from onnxcomp.runtime.session import open_session

__all__ = [
    "WEIGHTED",
    "absorbing",
    "at_fault",
    "floats",
    "is_float",
    "kind",
    "kinds_of_readers",
    "reads",
    "segment",
    "typed",
    "varying",
    "what_readers_see",
]

# Operators that mix channels with weights of their own, and the kernels that runtimes and quantizers make of them.
WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedMatMul", "FusedGemm", "MatMulNBits", "QGemm"}
    | {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "LSTM", "GRU", "RNN"}
)
# What only follows a layer: runtimes fuse it with what comes before, passes fold it into the weights.
_FOLLOWING = frozenset(
    {
        "BatchNormalization",
        "Clip",
        "Dropout",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
    }
    | {"PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu"}
)
_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
_TYPES = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(bfloat16)": ir.DataType.BFLOAT16,
}
_SEEN_THROUGH = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


def typed(model: ir.Model) -> ir.Model:
    """A copy with the types and shapes that follow from the inputs: what can be compared, and how large it is.

    Of operators that ONNX does not know, such as those that a runtime has fused, the runtime tells.

    Raises:
        ModelError: ORT cannot load the model.
    """
    clone = model.clone()
    with suppress(onnx.shape_inference.InferenceError, ValueError):
        infer_shapes(clone)
    alive = varying(clone)
    unknown = [v for node in clone.graph for v in node.outputs if v.name and v.dtype is None and v in alive]
    if unknown:
        session = open_session(expose(clone, [value.name or "" for value in unknown]), optimize="off")
        found = {value.name: value for value in session.get_outputs()}
        for value in unknown:
            dtype = _TYPES.get(found[value.name].type)
            if dtype is not None:
                value.type = ir.TensorType(dtype)
                dims = found[value.name].shape  # empty, too, where the rank is unknown
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in dims]) if dims else None
    return clone


def is_float(value: ir.Value) -> bool:
    """Whether a value is known to be a tensor of floating-point numbers; a sequence of such is none."""
    return isinstance(value.type, ir.TensorType) and value.type.dtype.is_floating_point()


def varying(model: ir.Model) -> set[ir.Value]:
    """The values of the main graph that depend on its inputs."""
    found = {value for value in model.graph.inputs if value.name not in model.graph.initializers}
    for node in model.graph:
        if any(value in found for value in reads(node)):
            found.update(node.outputs)
    return found


def floats(model: ir.Model, alive: set[ir.Value]) -> Iterator[ir.Value]:
    """What the nodes of the main graph compute from the inputs, in order, where it is of a float type."""
    for node in model.graph:
        yield from (value for value in node.outputs if value.name and value in alive and is_float(value))


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a node, and the values that its body, where it has one, reads from around it and of its own."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def kinds_of_readers(value: ir.Value) -> frozenset[str]:
    """Kinds of operators that read a value, through quantization and casts; all weighted layers are of one kind."""
    kinds: set[str] = set()
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if current.is_graph_output():
            kinds.add("output")
        for use in current.uses():
            if use.node.op_type in _SEEN_THROUGH:
                waiting += [output for output in use.node.outputs if output not in seen]
                seen.update(use.node.outputs)
            else:
                kinds.add(kind(use.node))
    return frozenset(kinds)


def kind(node: ir.Node) -> str:
    """What a node does, whether it is quantized or not; all weighted layers are of one kind."""
    return "weighted" if node.op_type in WEIGHTED else node.op_type.removeprefix("QLinear")


def what_readers_see(value: ir.Value) -> ir.Value:
    """The value behind the QuantizeLinear and DequantizeLinear that all readers of `value` read it through."""
    while not value.is_graph_output():
        codes = _only_through(value, "QuantizeLinear")
        if len(codes) != 1 or codes[0].is_graph_output():
            break
        decoded = _only_through(codes[0], "DequantizeLinear")
        if not decoded:
            break
        value = decoded[0]  # some quantizers give every reader its own; all are equal
    return value


def _only_through(value: ir.Value, op_type: str) -> list[ir.Value]:
    """What the nodes that read a value make of it; nothing where one is of another type."""
    nodes = [use.node for use in value.uses()]
    return [node.outputs[0] for node in nodes] if all(node.op_type == op_type for node in nodes) else []


def absorbing(value: ir.Value, alive: set[ir.Value]) -> ir.Value | None:
    """What an activation, a normalization or an affine map makes of a value that nothing else reads; else None."""
    readers = {use.node for use in value.uses()}
    if len(readers) != 1 or value.is_graph_output():
        return None
    (node,) = readers
    affine = node.op_type in _AFFINE and sum(v in alive for v in node.inputs if v is not None) == 1
    following = node.op_type in _FOLLOWING and node.inputs[0] is value
    return node.outputs[0] if affine or following else None


def segment(value: ir.Value, ends: set[ir.Value], alive: set[ir.Value]) -> list[ir.Node]:
    """The nodes that a value is computed by, back to values in `ends` or the graph's inputs; the nearest first."""
    found: dict[ir.Node, None] = {}
    waiting = [node for node in (value.producer(),) if node is not None]
    while waiting:
        node = waiting.pop(0)
        if node in found:
            continue
        found[node] = None
        behind = [v for v in reads(node) if v in alive and v not in ends]
        waiting += [producer for v in behind if (producer := v.producer()) is not None]
    return list(found)


def at_fault(nodes: Sequence[ir.Node], rewritten: Mapping[ir.Node, bool]) -> list[ir.Node]:
    """Which of the nodes of a segment can have added its error: weighted ones first, rewritten ones among them."""
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    others = [node for node in nodes if node.op_type not in _FOLLOWING]
    chosen = weighted or others or list(nodes)
    return [node for node in chosen if rewritten.get(node, False)] or chosen
