"""Numbers of few bits as initializers, and the links that turn them back when a model is loaded.

Numbers of 2, 4 and 8 bits have types of ONNX; many others, up to 16, are stored as planes of single bits, eight in a
byte.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.cost import Cost
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.quantize.forms import packed_size
from onnxcomp.quantize.layout import Layout, is_product
from onnxcomp.quantize.storage import narrow

__all__ = ["index_links", "numbers_link", "operator_links", "spread_links", "storage_cost", "stored_bits"]

Index = NDArray[np.intp]
_FLOAT, _INT32 = int(ir.DataType.FLOAT), int(ir.DataType.INT32)
# Bytes that the nodes take which put planes together.
_PLANES = 400


def stored_bits(bits: int, count: int) -> int:
    """The bits that each of `count` numbers of `bits` bits takes: as planes of bits only where that saves bytes."""
    wider = next(known for known in (2, 4, 8, 16) if known >= bits)
    return bits if count % 8 == 0 and (wider - bits) * count // 8 > _PLANES else wider


def index_links(role: str, index: Index, bits: int) -> list[Link]:
    """Links from stored indices to an int32 tensor of their shape; the last one has the role asked for."""
    stored = stored_bits(bits, index.size)
    if stored in (2, 4, 8, 16):
        numbers = index.astype(np.uint16) if stored == 16 else narrow(index, stored, signed=False)
        return [Link(role, "Cast", (numbers,), {"to": _INT32}, None)]
    flat = index.reshape(-1)
    planes = [np.packbits((flat >> k & 1).astype(np.uint8), bitorder="little") for k in range(bits)]
    worth = (2.0 ** np.arange(bits)).astype(np.float32)[:, None]
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    return [
        Link(f"{role}.shifted", "BitShift", (np.stack(planes, axis=1)[:, None], shifts), {"direction": "RIGHT"}, None),
        Link(f"{role}.bits", "BitwiseAnd", (np.array(1, np.uint8),), {}, (f"{role}.shifted",)),
        Link(f"{role}.floats", "Cast", (), {"to": _FLOAT}, (f"{role}.bits",)),
        Link(f"{role}.sums", "MatMul", (worth,), {}, (f"{role}.floats",)),
        Link(f"{role}.flat", "Cast", (), {"to": _INT32}, (f"{role}.sums",)),
        Link(role, "Reshape", (np.array(index.shape, np.int64),), {}, (f"{role}.flat",)),
    ]


def spread_links(values: str, keep: NDArray[np.bool_]) -> list[Link]:
    """Links that put values in a row at the places of a mask, zeros elsewhere; the last one has the role ``spread``.

    The mask takes a bit an entry. A running sum of it numbers the values.

    Args:
        values: Role of a link that gives as many float32 values as there are places.
        keep: Where they go.
    """
    kept = np.zeros(-(-keep.size // 8) * 8, np.bool_)
    kept[: keep.size] = keep.reshape(-1)
    bits = np.packbits(kept.reshape(-1, 8), axis=1, bitorder="little")
    line = np.array([-1], np.int64)
    return [
        Link("mask.shifted", "BitShift", (bits, np.arange(8, dtype=np.uint8)), {"direction": "RIGHT"}, None),
        Link("mask.bits", "BitwiseAnd", (np.array(1, np.uint8),), {}, ("mask.shifted",)),
        Link("mask.numbers", "Cast", (), {"to": _INT32}, ("mask.bits",)),
        Link("mask.line", "Reshape", (line,), {}, ("mask.numbers",)),
        Link("mask", "Slice", (np.array([0], np.int64), np.array([keep.size], np.int64)), {}, ("mask.line",)),
        Link("mask.sum", "CumSum", (np.array(0, np.int64),), {}, ("mask",)),
        Link("mask.next", "Sub", (), {}, ("mask.sum", "mask")),
        Link("mask.place", "Mul", (), {}, ("mask.next", "mask")),
        Link("dense", "Gather", (), {}, (values, "mask.place")),
        Link("mask.floats", "Cast", (), {"to": _FLOAT}, ("mask",)),
        Link("flat", "Mul", (), {}, ("dense", "mask.floats")),
        Link("spread", "Reshape", (np.array(keep.shape, np.int64),), {}, ("flat",)),
    ]


def numbers_link(role: str, numbers: NDArray[np.generic]) -> Link:
    """A link from a stored tensor (int8, int4, float16 ...) to the same in float32."""
    return Link(role, "Cast", (numbers,), {"to": _FLOAT}, None)


def operator_links(layout: Layout, weight: str, bias: NDArray[np.float32] | None, *, rows: bool) -> list[Link]:
    """Links from a decoded weight to the site's own operator.

    Args:
        layout: Of the site.
        weight: Role of the link that gives the weight.
        bias: (Co,), or None.
        rows: Whether that link gives rows, (Co, ..., v), in place of the layout's stored shape.
    """
    site = layout.site
    links: list[Link] = []
    if rows:
        shape = site.weight.shape[:2] if is_product(site) else site.weight.shape
        links.append(Link("shaped", "Reshape", (np.array(shape, np.int64),), {}, (weight,)))
        if is_product(site):
            links.append(Link("turned", "Transpose", (), {"perm": (1, 0)}, ("shaped",)))
    elif layout.stored_shape != layout.weight_shape:
        links.append(Link("shaped", "Reshape", (np.array(layout.weight_shape, np.int64),), {}, (weight,)))
    attributes = {} if is_product(site) else site.geometry.attributes()
    tail = () if bias is None else (bias.astype(np.float32),)
    source = links[-1].role if links else weight
    return [*links, Link(site.kind.lower(), site.kind, tail, attributes, ("", source))]


def storage_cost(site: Site, chain: list[Link]) -> Cost:
    """Cost of a chain that stores a weight; its bytes count what the chain takes beside its constants, too."""
    constants = (site.weight,) if site.bias is None else (site.weight, site.bias)
    beside = packed_size([Link("plain", site.kind, constants)]) - site.cost.bytes
    cost = chain_cost(site, chain)
    return Cost(cost.parameters, cost.macs, packed_size(chain) - beside)
