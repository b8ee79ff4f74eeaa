"""Fusion proof: what ONNX Runtime really makes of each node, read off its own optimised graph.

The model is loaded with every optimisation, the runtime's graph is dumped and read back
(:mod:`onnxcomp.runtime.optimised`).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.runtime.optimised import kernel_name, nodes_of, optimised, tokens
from onnxcomp.runtime.qdq import is_quantized_kernel, reason_for_float, touches_pairs
from onnxcomp.runtime.settings import INT8_KERNELS, SessionSettings

__all__ = ["NodeFate", "fusion_proof"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class NodeFate:
    """What the runtime does with one node.

    Attributes:
        node: The node's name in the model that was asked about.
        op_type: Its operator.
        kernel: The operator that the runtime runs in its place; "" where that cannot be told.
        integer: Whether it computes on integers.
        reason: Why it does not; "" where it does.
    """

    node: str
    op_type: str
    kernel: str
    integer: bool
    reason: str


def fusion_proof(model: ir.Model, *, int8_kernels: bool = False) -> tuple[NodeFate, ...]:
    """Load the model in ONNX Runtime and report every weighted node, and every other node between Q and DQ, in graph
    order.

    Args:
        model: The model; not modified.
        int8_kernels: Fuse int8 activations as ORT does on ARM; see :func:`open_session`.

    Raises:
        ModelError: The runtime cannot load the model.
    """
    number = {node: i for i, node in enumerate(nodes_of(model))}
    watched = [node for node in number if _is_watched(node)]
    if not watched:
        return ()
    kernels = _Kernels(optimised(model, SessionSettings(entries=INT8_KERNELS if int8_kernels else ())))
    fates = ((node, _fate(node, kernels, number)) for node in watched)
    return tuple(fate for node, fate in fates if node.op_type not in _ACTIVATIONS or fate.kernel == node.op_type)


def _fate(node: ir.Node, kernels: _Kernels, number: dict[ir.Node, int]) -> NodeFate:
    found = kernels.of(number[node])
    follower = node
    while found is None and (after := _absorber(follower)) is not None:
        follower = after
        found = kernels.of(number[follower])
        if found is not None and found.op_type == follower.op_type and follower.op_type not in ("Add", "Sum"):
            found = None  # the activation runs by itself: nothing of `node` is in it
    name = _name(node)
    if found is None and node.op_type in _MOVING and not reason_for_float(node):
        return NodeFate(name, node.op_type, "(merged into a change of layout)", True, "")
    if found is None:
        reason = reason_for_float(node) or "the runtime merged it into another operator or removed it"
        return NodeFate(name, node.op_type, "", False, reason)
    if kernels.integer(found):
        return NodeFate(name, node.op_type, found.op_type, True, "")
    return NodeFate(
        name, node.op_type, kernel_name(found), False, reason_for_float(node) or "the runtime did not fuse it"
    )


def _is_watched(node: ir.Node) -> bool:
    if node.outputs and is_decoded(node.outputs[0]):
        return False  # it runs once, when the model is loaded
    if is_default_domain(node, *_WEIGHTED) or is_quantized_kernel(node):
        return True
    return node.op_type not in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") and touches_pairs(node)


def _name(node: ir.Node) -> str:
    return node.name or origin_of(node)


def _absorber(node: ir.Node) -> ir.Node | None:
    """The only reader of a node, which a fusion may have named the result after."""
    uses = list(node.outputs[0].uses()) if node.outputs else []
    return uses[0][0] if len(uses) == 1 and uses[0][0].op_type in _FUSIBLE else None


# An activation is only worth a line where it still runs.
_ACTIVATIONS = ("Relu", "Clip")
_FUSIBLE = ("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Add", "Sum", "QuantizeLinear")


class _Kernels:
    """The runtime's nodes, by the token they carry."""

    def __init__(self, optimised: ir.Model) -> None:
        self._by_name: dict[int, ir.Node] = {}
        self._by_output: dict[int, ir.Node] = {}
        for node in optimised.graph.all_nodes():
            if node.op_type in _PLUMBING:
                continue
            self._note(self._by_name, node.name or "", node)
            for value in (
                () if node.op_type == "Transpose" else node.outputs
            ):  # a change of layout bears its source's name
                self._note(self._by_output, value.name or "", node)

    @staticmethod
    def _note(table: dict[int, ir.Node], text: str, node: ir.Node) -> None:
        for token in tokens(text):
            table.setdefault(token.node, node)

    def of(self, number: int) -> ir.Node | None:
        """The kernel made from that node."""
        return self._by_name.get(number) or self._by_output.get(number)

    def integer(self, kernel: ir.Node) -> bool:
        """Whether a kernel computes on integers; one that only moves values does if it is given integers."""
        if is_quantized_kernel(kernel):
            return True
        if kernel.op_type in _MOVING:
            source = kernel.inputs[0].producer() if kernel.inputs and kernel.inputs[0] is not None else None
            while source is not None and source.op_type in (*_MOVING, "Transpose"):
                source = source.inputs[0].producer() if source.inputs[0] is not None else None
            return source is not None and (source.op_type == "QuantizeLinear" or is_quantized_kernel(source))
        return False


_PLUMBING = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")
_MOVING = (
    "MaxPool",
    "NhwcMaxPool",
    "Resize",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Gather",
    "GatherElements",
    "Pad",
    "Expand",
    "Tile",
)
