"""Shape inference that never freezes a symbolic dimension."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir import serde

__all__ = ["Dims", "infer_shapes", "skeleton"]

Dims = tuple[int | None, ...]

_SMALL = 1024  # bytes; inference reads the values of small initializers only (shapes, axes, scales)


def skeleton(model: ir.Model, *, shapes: bool = False) -> onnx.ModelProto:
    """The model without the data of large initializers, which become graph inputs; well below protobuf's 2 GB limit.

    Args:
        model: The model; it is not modified.
        shapes: Whether to carry the known shapes of intermediate values and of the outputs along.
    """
    graph = onnx.GraphProto(name=model.graph.name or "graph")
    for value in model.graph.inputs:
        serde.serialize_value_into(graph.input.add(), value)
    given = set(model.graph.inputs)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value in given or tensor is None:
            continue
        if tensor.nbytes <= _SMALL:
            serde.serialize_tensor_into(graph.initializer.add(), tensor)
            graph.initializer[-1].name = value.name or ""
        else:
            dims = [int(d) for d in tensor.shape.numpy()]
            graph.input.append(onnx.helper.make_tensor_value_info(value.name or "", int(tensor.dtype), dims))
    for node in model.graph:
        serde.serialize_node_into(graph.node.add(), node)
    for value in model.graph.outputs:
        serde.serialize_value_into(graph.output.add(), value)
        if not shapes and graph.output[-1].type.HasField("tensor_type"):
            graph.output[-1].type.tensor_type.ClearField("shape")
    if shapes:
        _add_value_info(model.graph, graph)
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 8), graph=graph)
    proto.functions.extend(serde.serialize_function(function) for function in model.functions.values())
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items())
    return proto


def _add_value_info(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    for node in graph:
        for value in node.outputs:
            if value.name and value.type is not None and value.shape is not None and not value.is_graph_output():
                serde.serialize_value_into(proto.value_info.add(), value)


def infer_shapes(model: ir.Model) -> dict[str, Dims]:
    """Infer the shapes of the main graph's values and write them into the model.

    What the file says of intermediate values is not believed: a tool may have left the sizes of one example behind.
    Everything is inferred anew from the graph's inputs. Where that finds a size or a named dimension, it is written;
    where it finds none, the file's word stays. Inputs and outputs of the graph and bodies of If/Loop are never touched.

    Returns:
        For each value of the main graph, the dimensions that follow from the graph's inputs alone; None for each that
        is free.

    Raises:
        onnx.shape_inference.InferenceError: The model does not type-check.
    """
    inferred = onnx.shape_inference.infer_shapes(skeleton(model), strict_mode=False, data_prop=True).graph
    found = {
        info.name: info.type.tensor_type
        for part in (inferred.input, inferred.value_info, inferred.output)
        for info in part
    }
    found = {name: t for name, t in found.items() if t.HasField("shape")}
    own = {dim.dim_param for info in inferred.input for dim in info.type.tensor_type.shape.dim if dim.dim_param}
    for node in model.graph:
        for value in node.outputs:
            tensor = found.get(value.name or "")
            if tensor is not None and not value.is_graph_output():
                value.shape = _merged(value.shape, tensor, own)
                if value.type is None:
                    value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    trusted = {name: tuple(_size(dim) for dim in t.shape.dim) for name, t in found.items()}
    for value in model.graph.initializers.values():
        if value.name and value.const_value is not None and not value.is_graph_input():
            trusted[value.name] = tuple(int(d) for d in value.const_value.shape.numpy())
    return trusted


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") else None


def _merged(old: ir.Shape | None, tensor: onnx.TypeProto.Tensor, own: set[str]) -> ir.Shape:
    """Inferred sizes and the inputs' symbols first, else what was known; symbols that inference invents go."""
    dims: list[int | str | None] = []
    known = list(old) if old is not None and len(old) == len(tensor.shape.dim) else [None] * len(tensor.shape.dim)
    for dim, before in zip(tensor.shape.dim, known, strict=True):
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value)
        elif dim.dim_param in own and dim.dim_param:
            dims.append(dim.dim_param)
        else:
            dims.append(before.value if isinstance(before, ir.SymbolicDim) else before)
    return ir.Shape(dims)
