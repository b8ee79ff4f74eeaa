"""Constant zero Pad becomes part of the Conv or AveragePool that reads it.

onnxscript's rule is not used: it makes a new Conv without the old one's metadata, and knows no AveragePool.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxcomp.cost import Cost
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fold.log import Log, Rewrite
from onnxcomp.graph.fold.shapes import Dims
from onnxcomp.graph.fold.values import constant, is_op, title
from onnxcomp.graph.geometry import Geometry
from onnxcomp.graph.sites import geometry_of, static_shape

__all__ = ["absorb_pads"]

_NOTHING = Cost(0, None, 0)


def absorb_pads(graph: ir.Graph, version: int, sizes: Mapping[str, Dims], log: Log) -> None:
    """Move zero padding of spatial axes into the `pads` of each Conv (or AveragePool) that reads it.

    A Pad that others read as well stays for them. Refused are other modes and values, negative pads, padded batch or
    channel axes, and where auto_pad is SAME and the size is not known. An AveragePool takes pads below its kernel size
    only, with explicit pads of its own that count (or are zero), without ceil_mode, and then counts the padding; ORT
    allows no other.
    """
    for node in graph:
        if not is_op(node, "Conv", "AveragePool"):
            continue
        while (pad := _pad_before(node, graph)) is not None:
            pads = _merged(node, pad, version, sizes)
            if pads is None:
                break
            node.attributes.pop("auto_pad", None)
            node.attributes.add(ir.AttrInt64s("pads", pads))
            if is_op(node, "AveragePool"):
                node.attributes.add(ir.AttrInt64("count_include_pad", 1))
            summary = f"absorbed {title(pad)}"
            node.replace_input_with(0, pad.inputs[0])
            if not pad.outputs[0].uses() and not pad.outputs[0].is_graph_output():
                graph.remove(pad, safe=True)
            log.rewrites.append(Rewrite(origin_of(node), summary, _NOTHING, _NOTHING))


def _pad_before(node: ir.Node, graph: ir.Graph) -> ir.Node | None:
    source = node.inputs[0] if node.inputs else None
    producer = source.producer() if source is not None else None
    return producer if producer is not None and is_op(producer, "Pad") and producer.graph is graph else None


def _merged(node: ir.Node, pad: ir.Node, version: int, sizes: Mapping[str, Dims]) -> list[int] | None:
    """The pads of `node` with those of `pad` added, or None where they cannot be."""
    geometry = _geometry(node, sizes.get(pad.outputs[0].name or "", ()))
    if geometry is None or geometry.auto_pad != "NOTSET":
        return None
    extra = _spatial_pads(pad, geometry.rank + 2, version)
    if extra is None or len(geometry.pads) != len(extra):
        return None
    pads = [a + b for a, b in zip(geometry.pads, extra, strict=True)]
    if is_op(node, "AveragePool"):
        ceil_mode = node.attributes.get_int("ceil_mode", 0)
        include = node.attributes.get_int("count_include_pad", 0)
        counts = include == 1 or not any(geometry.pads)
        if not counts or ceil_mode or any(p >= k for p, k in zip(pads, geometry.kernel * 2, strict=True)):
            return None
    return pads


def _geometry(node: ir.Node, padded: Dims) -> Geometry | None:
    if is_op(node, "AveragePool"):
        kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
        if not kernel or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
    else:
        weight = node.inputs[1]
        if weight is None or weight.shape is None or len(weight.shape) < 3:
            return None
        dims = tuple(node.attributes.get_ints("kernel_shape", ())) or static_shape(weight)[2:]
        if any(d is None for d in dims) or len(dims) != len(weight.shape) - 2:
            return None
        kernel = tuple(d for d in dims if d is not None)
    return geometry_of(node, (0, 0, *kernel), padded)


def _spatial_pads(pad: ir.Node, rank: int, version: int) -> tuple[int, ...] | None:
    """Begins, then ends, of the spatial axes; None where the Pad does anything but add zeros there."""
    attributes = pad.attributes
    if attributes.get_string("mode", "constant") != "constant":
        return None
    if version < 11:
        pads, axes, fill = list(attributes.get_ints("pads", ())), list(range(rank)), attributes.get_float("value", 0.0)
    else:
        found = _inputs(pad, rank)
        if found is None:
            return None
        pads, axes, fill = found
    if fill != 0 or len(pads) != 2 * len(axes) or any(p < 0 for p in pads):
        return None
    full = [0] * (2 * rank)
    for k, axis in enumerate(axes):
        if not -rank <= axis < rank:
            return None
        full[axis % rank] = pads[k]
        full[axis % rank + rank] = pads[k + len(axes)]
    if any(full[axis] for axis in (0, 1, rank, rank + 1)):
        return None
    return (*full[2:rank], *full[rank + 2 :])


def _inputs(pad: ir.Node, rank: int) -> tuple[list[int], list[int], float] | None:
    inputs = [*pad.inputs, None, None, None][:4]
    arrays = [constant(v) for v in inputs[1:]]
    if arrays[0] is None or any(a is None and v is not None for a, v in zip(arrays[1:], inputs[2:], strict=True)):
        return None
    fill = 0.0 if arrays[1] is None or not arrays[1].size else float(arrays[1].ravel()[0])
    axes = list(range(rank)) if arrays[2] is None else [int(a) for a in arrays[2]]
    return [int(p) for p in arrays[0].ravel()], axes, fill
