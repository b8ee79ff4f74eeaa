"""What a replacement chain costs: parameters, MACs and bytes, link by link."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcomp.cost import Cost, stored_bytes
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site

__all__ = ["chain_cost", "chain_weights", "describe_chain"]

Spatial = tuple[int, ...] | None


def chain_cost(site: Site, chain: Sequence[Link]) -> Cost:
    """Sum the cost of a chain that replaces `site`.

    Only Conv, ConvTranspose, Gemm and MatMul links have MACs; any other operator is counted
    with its constants alone. MACs are None where the site's input size is unknown. A link that reads its weight from
    other links has as many weights as the site.
    """
    dims = site.input_shape[2:]
    known = bool(site.input_shape) and all(d is not None for d in dims)
    sizes: dict[str, Spatial] = {"": tuple(d for d in dims if d is not None) if known else None}
    parameters, macs, size = 0, 0, 0
    unknown = False
    previous = ""
    decoders: set[str] = set()
    for link in chain:
        parameters += sum(c.size for c in link.constants)
        size += sum(stored_bytes(c) for c in link.constants)
        if link.inputs is None or (link.inputs and link.inputs[0] in decoders):
            decoders.add(link.role)
            continue
        source = sizes[link.inputs[0] if link.inputs else previous]
        sizes[link.role], positions = _flow(link, source, site)
        if positions is None:
            unknown = True
        elif positions:
            macs += positions * _weight_of(link, site).size
        previous = link.role
    return Cost(parameters, None if unknown else macs, size)


def chain_weights(site: Site, chain: Sequence[Link]) -> int:
    """Count the weights of a chain that replaces `site`: of every Conv, ConvTranspose, Gemm and MatMul, without biases.

    A link that reads its weight from other links has as many weights as the site; what decodes it has none.
    """
    total = 0
    decoders: set[str] = set()
    for link in chain:
        if link.inputs is None or (link.inputs and link.inputs[0] in decoders):
            decoders.add(link.role)
        elif link.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            total += _weight_of(link, site).size
    return total


def _weight_of(link: Link, site: Site) -> NDArray[np.generic]:
    """The weight of a link; one that reads it from other links has one like the site's."""
    return site.weight if link.inputs is not None and len(link.inputs) > 1 else link.constants[0]


def _flow(link: Link, source: Spatial, site: Site) -> tuple[Spatial, int | None]:
    """Output size of a link and the positions at which each of its weights is used (0 where it multiplies nothing)."""
    if link.op_type in ("Gemm", "MatMul"):
        return source, None if source is None else prod(source)
    if link.op_type not in ("Conv", "ConvTranspose", "AveragePool"):
        return source, 0
    if source is None:
        return None, 0 if link.op_type == "AveragePool" else None
    rank = len(source)
    pools = link.op_type == "AveragePool"
    kernel = _ints(link, "kernel_shape", (1,) * rank) if pools else _weight_of(link, site).shape[2:]
    strides = _ints(link, "strides", (1,) * rank)
    if link.op_type == "ConvTranspose":
        return tuple(d for d in site.output_shape[2:] if d is not None), prod(source)
    if str(link.attributes.get("auto_pad", "NOTSET")).startswith("SAME"):
        out = tuple(-(-s // t) for s, t in zip(source, strides, strict=True))
        return out, prod(out)
    dilations = _ints(link, "dilations", (1,) * rank)
    pads = _ints(link, "pads", (0,) * (2 * rank))
    out = tuple(
        (size + pads[a] + pads[a + rank] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a, size in enumerate(source)
    )
    return out, 0 if pools else prod(out)


def _ints(link: Link, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = link.attributes.get(name, default)
    return value if isinstance(value, tuple) else default


def describe_chain(chain: Sequence[Link]) -> str:
    """The links in words, such as ``1x1 64>32, 3x3 32>48, 1x1 48>128``; equal branches are counted once."""
    words = [_words(link) for link in chain if link.op_type != "Add"]
    branches = sum(link.op_type == "Add" for link in chain) + 1
    if branches > 1 and len(words) % branches == 0:
        own = len(words) // branches
        if words == words[:own] * branches:
            return f"{branches} x ({', '.join(words[:own])})"
    return ", ".join(words)


def _words(link: Link) -> str:
    if not link.constants or link.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        kernel = link.attributes.get("kernel_shape")
        return f"{link.op_type} {'x'.join(map(str, kernel))}" if isinstance(kernel, tuple) else link.op_type
    shape = link.constants[0].shape
    if link.op_type in ("Gemm", "MatMul"):
        ends = reversed(shape) if link.attributes.get("transB") else shape
        return f"{link.op_type} {'>'.join(map(str, ends))}"
    group = link.attributes.get("group", 1)
    groups = group if isinstance(group, int) else 1
    ends = shape[1] * groups, shape[0]
    if link.op_type == "ConvTranspose":
        ends = shape[0], shape[1] * groups
    kernel = "x".join(map(str, shape[2:]))
    if groups > 1 and groups == ends[0] == ends[1]:
        return f"dw {kernel} {groups}"
    return f"{kernel} {ends[0]}>{ends[1]}"
