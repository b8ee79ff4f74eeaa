"""What a placement decides: the nodes that compute on integers and the tensors that are stored as such."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.quantize.parameters import Limits
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.targets.target import Scheme

__all__ = ["IntegerNode", "Plan", "Quantized"]


@dataclass(slots=True, eq=False)
class Quantized:
    """A tensor that is stored as integers.

    Attributes:
        value: The float tensor.
        root: The tensor whose range it shares (see Plan.root_of): itself, the input of the operator that only moved its
            values, or the result of the Concat that alone reads it.
        limits: What an absorbed activation guarantees; kept at the root.
        stored: Whether its producer (Pad) writes the integers itself.
        closed: Whether every reader, float ones included, reads the dequantized value, as an integer producer demands.
        readers: The integer nodes that read it.
    """

    value: ir.Value
    root: ir.Value
    limits: Limits = field(default_factory=Limits)
    stored: bool = False
    closed: bool = False
    readers: list[ir.Node] = field(default_factory=list[ir.Node])


@dataclass(frozen=True, slots=True, eq=False)
class IntegerNode:
    """A node without weight that will be computed on integers, and its quantized outputs."""

    node: ir.Node
    site: str


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The decision for a whole model.

    Attributes:
        scheme: The rules it was made by.
        weighted: Nodes with weights, in graph order.
        others: Integer nodes without weights, in graph order.
        tensors: Quantized tensors by name, in graph order.
        outputs: Node to the tensors that hold its quantized results (behind an absorbed activation); absent where it
            stays float.
        skips: Weighted nodes that stay float, and why.
    """

    scheme: Scheme
    weighted: tuple[Weighted, ...]
    others: tuple[IntegerNode, ...]
    tensors: dict[str, Quantized]
    outputs: dict[ir.Node, list[ir.Value]]
    skips: tuple[Skip, ...]

    @property
    def roots(self) -> list[str]:
        """Names of the tensors whose ranges have to be measured, in graph order."""
        return [name for name, tensor in self.tensors.items() if tensor.root is tensor.value]

    def root_of(self, value: ir.Value | None) -> str:
        """Name of the tensor whose range a quantized tensor uses."""
        assert value is not None and value.name
        tensor = self.tensors[value.name]
        while tensor.root is not tensor.value:
            assert tensor.root.name
            tensor = self.tensors[tensor.root.name]
        assert tensor.value.name
        return tensor.value.name
