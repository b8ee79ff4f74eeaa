"""Give a rebuilt model back what the library that rebuilt it does not carry."""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.graph.edit import ORIGIN, PASS, origin_of

__all__ = ["node_key", "restore"]

_INITIALIZERS_ARE_INPUTS_BEFORE = 4  # IR version 3 demands an input for every initializer


def restore(model: ir.Model, like: ir.Model, pass_name: str) -> None:
    """Restore in place what `model` lost on its way from `like`.

    Identity, metadata and annotations of the model and its graph; annotations of the nodes, values and functions that
    are still there; inputs that initializers may override; unused initializers; and the very tensors of initializers
    that hold the same bytes. Nodes that `like` does not have are marked as made by `pass_name`.
    """
    model.producer_name, model.producer_version = like.producer_name, like.producer_version
    model.domain, model.model_version, model.doc_string = like.domain, like.model_version, like.doc_string
    model.metadata_props.update(like.metadata_props)
    model.graph.meta.update(like.graph.meta)
    for domain in set(model.opset_imports) - set(like.opset_imports):
        if all(node.domain != domain for node in model.graph.all_nodes()):
            del model.opset_imports[domain]
    _restore_inputs(model, like)
    _restore_graph(model.graph, like.graph, pass_name)
    for key, function in model.functions.items():
        if key in like.functions:
            function.metadata_props.update(like.functions[key].metadata_props)
            function.doc_string = like.functions[key].doc_string
            _restore_graph(function.graph, like.functions[key].graph, pass_name)


def node_key(node: ir.Node) -> tuple[str | None, ...]:
    """What a node is recognised by: the values it writes."""
    return tuple(value.name for value in node.outputs)


def _restore_inputs(model: ir.Model, like: ir.Model) -> None:
    graph = model.graph
    for name, value in like.graph.initializers.items():
        if name not in graph.initializers and not value.uses() and not value.is_graph_output():
            fresh = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
            graph.register_initializer(fresh)
    present = {value.name: value for value in graph.inputs}
    known = {value.name for value in like.graph.inputs}
    ordered = [
        graph.initializers.get(value.name or "") or present.get(value.name)
        for value in like.graph.inputs
        if value.name in present or value.name in graph.initializers
    ]
    extra = [value for value in graph.inputs if value.name not in known]
    graph.inputs[:] = [value for value in (*ordered, *extra) if value is not None]
    if model.ir_version < _INITIALIZERS_ARE_INPUTS_BEFORE and any(
        not value.is_graph_input() for value in graph.initializers.values()
    ):
        model.ir_version = _INITIALIZERS_ARE_INPUTS_BEFORE


def _restore_graph(graph: ir.Graph, like: ir.Graph, pass_name: str) -> None:
    graph.doc_string = like.doc_string
    graph.metadata_props.update(like.metadata_props)
    kept = [name for name in like.initializers if name in graph.initializers]
    added = [name for name in graph.initializers if name not in like.initializers]
    for name in (*kept, *added):
        graph.initializers[name] = graph.initializers.pop(name)  # to the end, one by one: the original order comes back
    before = _values(like)
    for name, value in _values(graph).items():
        if name in before:
            _restore_value(value, before[name])
    for name, value in graph.initializers.items():
        old = like.initializers.get(name)
        if old is not None and _same(value.const_value, old.const_value):
            value.const_value = old.const_value
    nodes = {node_key(node): node for node in like}
    writers = {value.name: node for node in like for value in node.outputs if value.name}
    for node in graph:
        twin = nodes.get(node_key(node))
        if twin is not None and (twin.op_type, twin.domain) == (node.op_type, node.domain):
            _restore_node(node, twin, pass_name)
        else:
            node.metadata_props[PASS] = pass_name
            ancestor = next((writers[value.name] for value in node.outputs if value.name in writers), None)
            if ancestor is not None:
                node.metadata_props[ORIGIN] = origin_of(ancestor)


def _restore_node(node: ir.Node, twin: ir.Node, pass_name: str) -> None:
    node.doc_string = twin.doc_string
    node.metadata_props.update(twin.metadata_props)
    for name, attribute in list(node.attributes.items()):
        old = twin.attributes.get(name)
        if old is None or old.type != attribute.type:
            continue
        attribute.doc_string = old.doc_string
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            _restore_graph(attribute.as_graph(), old.as_graph(), pass_name)
        elif attribute.type == ir.AttributeType.TENSOR and _same(attribute.value, old.value):
            node.attributes[name] = old


def _restore_value(value: ir.Value, old: ir.Value) -> None:
    value.doc_string = old.doc_string
    value.metadata_props.update(old.metadata_props)
    value.meta.update(old.meta)
    if value.type is None or value.type == old.type:
        value.type = old.type
    if (value.shape is None or value.shape == old.shape) and old.shape is not None:
        value.shape = old.shape.copy()


def _same(one: ir.TensorProtocol | None, two: ir.TensorProtocol | None) -> bool:
    if one is None or two is None:
        return False
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    nodes = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *nodes) if value.name}
