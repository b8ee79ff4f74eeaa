"""Forms of a low-bit weight that ONNX Runtime turns back into float at load, once, so that running it costs nothing.

Each form is a chain of links that read constants alone and end in float codes; a Mul by the scales follows. The runtime
folds such chains (Cast, Gather, BitShift ... of constants) but not a DequantizeLinear before a Conv, which it would run
every time. A DequantizeLinear before a MatMul or Gemm becomes one kernel with it, MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.cost import stored_bytes
from onnxcomp.graph.edit import Link
from onnxcomp.quantize.layout import Layout, is_product
from onnxcomp.quantize.storage import narrow

__all__ = [
    "CODES",
    "Form",
    "bits_in_planes",
    "block_product",
    "decoded",
    "integers",
    "packed_size",
    "signs",
    "table_of",
]

Float = NDArray[np.float64]
Form = Callable[[Float], tuple[Link, ...]]
"""From codes in their stored shape to the links whose last one, of role :data:`CODES`, gives them back as float32."""

CODES = "codes"
_FLOAT, _INT32 = int(ir.DataType.FLOAT), int(ir.DataType.INT32)
# Bytes that a node takes in a file with its short names (quantize.lean), and those of a constant without its data.
_NODE, _CONSTANT = 50, 30


def integers(bits: int) -> Form:
    """Signed integers in the smallest type of ONNX that holds them: a Cast."""

    def form(codes: Float) -> tuple[Link, ...]:
        return (Link(CODES, "Cast", (narrow(codes, bits),), {"to": _FLOAT}, None),)

    return form


def table_of(levels: Float) -> Form:
    """The number of each code's level, in 4 bits where 16 do, and the levels as a table: Cast, Gather."""

    def form(codes: Float) -> tuple[Link, ...]:
        bits = 4 if len(levels) <= 16 else 8
        index = narrow(np.searchsorted(levels, codes), bits, signed=False)
        table = levels.astype(np.float32)
        return (
            Link("index", "Cast", (index,), {"to": _INT32}, None),
            Link(CODES, "Gather", (table,), {}, ("index",), ahead=1),
        )

    return form


def signs(codes: Float) -> tuple[Link, ...]:
    """Codes -1 and 1 at one bit each: four in a 4-bit number, which picks a row of a table of 16.

    Codes whose number is no multiple of four are stored in 4 bits each.
    """
    if codes.size % 4:
        return integers(4)(codes)
    index = (codes.reshape(-1, 4) > 0) @ (1 << np.arange(4))
    table = np.where(np.arange(16)[:, None] >> np.arange(4) & 1, np.float32(1), np.float32(-1))
    return (
        Link("index", "Cast", (narrow(index, 4, signed=False),), {"to": _INT32}, None),
        Link("fours", "Gather", (table,), {}, ("index",), ahead=1),
        Link(CODES, "Reshape", (np.array(codes.shape, np.int64),), {}, ("fours",)),
    )


def bits_in_planes(bits: int) -> Form:
    """Signed integers of any width as planes of single bits, eight in a byte: 3 bits take 3/4 of what 4 do.

    BitShift and BitwiseAnd take the bits apart, a MatMul with (1, 2, 4 ...), the last one negative, adds them up (two's
    complement).
    """

    def form(codes: Float) -> tuple[Link, ...]:
        flat = codes.astype(np.int64).reshape(-1)
        planes = [np.packbits((flat >> k & 1).astype(np.uint8), bitorder="little") for k in range(bits)]
        worth = np.array([*(2.0**k for k in range(bits - 1)), -(2.0 ** (bits - 1))], np.float32)
        shifts = np.arange(8, dtype=np.uint8)[:, None]
        return (
            Link("shifted", "BitShift", (np.stack(planes, axis=1)[:, None], shifts), {"direction": "RIGHT"}, None),
            Link("bits", "BitwiseAnd", (np.array(1, np.uint8),), {}, ("shifted",)),
            Link("floats", "Cast", (), {"to": _FLOAT}, ("bits",)),
            Link("sums", "MatMul", (worth[:, None],), {}, ("floats",)),
            Link(CODES, "Reshape", (np.array(codes.shape, np.int64),), {}, ("sums",)),
        )

    def padded(codes: Float) -> tuple[Link, ...]:
        return form(codes) if codes.size % 8 == 0 else integers(bits)(codes)

    return padded


def decoded(layout: Layout, codes: Float, scales: Float, bias: NDArray[np.float32] | None, form: Form) -> list[Link]:
    """The chain that stands for a site: codes, times scales, and the site's own operator.

    Args:
        layout: The order of the codes.
        codes: Rows, (Co, d).
        scales: (Co,), or (Co, d / block).
        bias: (Co,), or None; a MatMul has none.
        form: How codes are stored.
    """
    site = layout.site
    links = [*form(layout.stored(codes)), Link("weight", "Mul", (layout.scales(scales),), {}, (CODES,))]
    if layout.stored_shape != layout.weight_shape:
        links.append(Link("shaped", "Reshape", (np.array(layout.weight_shape, np.int64),), {}, ("weight",)))
    attributes = {} if is_product(site) else site.geometry.attributes()
    tail = () if bias is None else (bias.astype(np.float32),)
    return [*links, Link(site.kind.lower(), site.kind, tail, attributes, ("", links[-1].role))]


def block_product(
    layout: Layout, codes: Float, scales: Float, bias: NDArray[np.float32] | None, bits: int
) -> list[Link]:
    """A Gemm or MatMul on the integer codes of its weight: a DequantizeLinear that the runtime fuses (MatMulNBits).

    Arguments as for :func:`decoded`; the codes fit a signed type of `bits` bits, which are 3 or more: the kernel for 2
    bits gives wrong products where the number of columns is no multiple of 4 (onnxruntime 1.31.1).
    """
    site = layout.site
    stored = narrow(codes.T, bits)
    tail = () if bias is None else (bias.astype(np.float32),)
    by_block = {"axis": 0, "block_size": layout.block} if layout.block else {"axis": 1}
    scale = np.ascontiguousarray(scales.T, np.float32)
    return [
        Link("weight", "DequantizeLinear", (stored, scale), by_block, None),
        Link(site.kind.lower(), site.kind, tail, {}, ("", "weight")),
    ]


def packed_size(chain: list[Link]) -> int:
    """Bytes of a chain in a file, about: its constants and its nodes."""
    return sum(stored_bytes(c) + _CONSTANT for link in chain for c in link.constants) + _NODE * len(chain)
