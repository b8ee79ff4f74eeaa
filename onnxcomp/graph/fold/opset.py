"""Raise old opsets and IR versions to what the compiler works on."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx.version_converter
import onnx_ir as ir

from onnxcomp.graph.edit import ORIGIN, origin_of
from onnxcomp.graph.fold.log import Log
from onnxcomp.graph.fold.rank import rank_of
from onnxcomp.graph.fold.shapes import skeleton
from onnxcomp.graph.fold.values import is_op

__all__ = ["MINIMUM", "modernise", "raise_opset"]

MINIMUM = 17
_IR_VERSION = 8  # the IR that came with opset 17
_FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)


def modernise(model: ir.Model, log: Log) -> None:
    """Raise the opset and the IR version, and note what was done or why not."""
    opset, version = model.opset_imports.get(""), model.ir_version
    reason = raise_opset(model)
    listed = _free_initializers(model)
    if model.opset_imports.get("") != opset:
        log.general.append(f"opset raised from {opset} to {model.opset_imports.get('')}")
    if reason:
        log.remarks.append(f"opset stays {opset}: {reason}")
    if model.ir_version != version:
        line = f"IR version raised from {version} to {model.ir_version}"
        log.general.append(f"{line}; {listed} initializers are no longer listed as inputs" if listed else line)


def _free_initializers(model: ir.Model) -> int:
    """Drop initializers from the inputs below IR 4, where all are listed and none can be set; return how many."""
    if model.ir_version >= 4:
        return 0
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    listed = len(model.graph.inputs) - len(inputs)
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    model.ir_version = _IR_VERSION
    return listed


def raise_opset(model: ir.Model, minimum: int = MINIMUM) -> str | None:
    """Convert the ONNX domain of a model to opset `minimum` in place, by onnx.version_converter; newer models are left
    alone.

    The converter sees a copy without weights. Names, metadata, doc strings, types, shapes and weights, all of which it
    may drop, are put back. A node that it adds is named after the node it serves, and says so in its metadata.

    Returns:
        None where the model now has at least that opset; else the reason why it stays as it was, untouched.
    """
    version = model.opset_imports.get("")
    if version is None or version >= minimum:
        return None
    if model.functions:
        return "functions cannot be converted"
    if version < 9 and any(is_op(node, "Scan") for node in model.graph.all_nodes()):
        return "Scan changed its meaning at opset 9, and the converter does not know"
    try:
        proto = onnx.shape_inference.infer_shapes(skeleton(model, shapes=True), strict_mode=False, data_prop=True)
        _tell_ranks(model.graph, proto.graph)
        converted = onnx.version_converter.convert_version(proto, minimum)
        onnx.checker.check_model(converted)
    except _FAILURES as error:
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    graph = ir.from_proto(converted).graph
    _restore_graph(model.graph, graph)
    _restore_signature(model.graph, graph)
    model.graph = graph
    model.ir_version = max(model.ir_version, _IR_VERSION) if model.ir_version >= 4 else model.ir_version
    return None


def _tell_ranks(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Give the converter the rank of each Softmax input: where it knows the axis to be the last, it adds no nodes."""
    infos = (*proto.input, *proto.value_info, *proto.output)
    known = {v.name: len(t.shape.dim) for v in infos if (t := v.type.tensor_type).HasField("shape")}
    known.update((t.name, len(t.dims)) for t in proto.initializer)
    for node in graph:
        value = node.inputs[0] if is_op(node, "Softmax", "LogSoftmax", "Hardmax") else None
        rank = rank_of(value, known)
        if value is None or not value.name or rank is None or value.name in known:
            continue
        for info in [info for info in proto.value_info if info.name == value.name]:
            proto.value_info.remove(info)
        dtype = onnx.TensorProto.FLOAT if value.dtype is None else int(value.dtype)
        proto.value_info.append(onnx.helper.make_tensor_value_info(value.name, dtype, [None] * rank))


def _restore_signature(old: ir.Graph, new: ir.Graph) -> None:
    """Initializers with their (possibly external) data, and the inputs as they were listed."""
    values = {v.name: v for v in new.inputs} | dict(new.initializers)
    for name, value in old.initializers.items():
        kept = values.get(name)
        if kept is None:
            kept = ir.Value(name=name)
        kept.const_value, kept.type, kept.shape = value.const_value, value.type, value.shape
        _copy_value(value, kept)
        if name not in new.initializers:
            new.initializers.add(kept)
    inputs = [values[v.name] for v in old.inputs]
    new.inputs.clear()
    new.inputs.extend(inputs)


def _restore_graph(old: ir.Graph, new: ir.Graph) -> None:
    new.doc_string, new.name = old.doc_string, old.name
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    known = {v.name: v for v in (*old.inputs, *(o for node in old for o in node.outputs))}
    for value in (*new.inputs, *(o for node in new for o in node.outputs)):
        if value.name in known:
            _copy_value(known[value.name], value)
            value.type, value.shape = known[value.name].type, known[value.name].shape
    _restore_nodes(old, new)


def _copy_value(old: ir.Value, new: ir.Value) -> None:
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)


def _restore_nodes(old: ir.Graph, new: ir.Graph) -> None:
    names = Counter(node.name for node in old)
    by_name = {node.name: node for node in old if node.name and names[node.name] == 1}
    by_output = {node.outputs[0].name: node for node in old if node.outputs}
    added: list[ir.Node] = []
    for node in new:
        before = by_output.get(node.outputs[0].name) if node.outputs else None
        if before is None or (before.op_type, node.op_type) not in {(node.op_type,) * 2, ("Upsample", "Resize")}:
            before = by_name.get(node.name or "")
        if before is None:
            added.append(node)
            continue
        node.name, node.doc_string = before.name, before.doc_string
        node.metadata_props.update(before.metadata_props)
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH and name in before.attributes:
                _restore_graph(before.attributes[name].as_graph(), attribute.as_graph())
    for node in reversed(added):  # an added node feeds the one it serves, or ends a group under the old node's output
        _name_added(node, by_output.get(node.outputs[0].name))


def _name_added(node: ir.Node, before: ir.Node | None) -> None:
    """Call a node that the converter added after the node of the user's model that it serves."""
    output = node.outputs[0]
    host = before if before is not None else next((use.node for use in output.uses()), None)
    if host is not None and not node.name:
        node.metadata_props[ORIGIN] = origin_of(host)
        node.name = f"{origin_of(host)}.{node.op_type}.{output.name}"
