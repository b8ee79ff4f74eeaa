"""int8 activations as uint8 and back: the same grid, so the same numbers.

A tensor stored as int8 with zero point z and one stored as uint8 with zero point z + 128, at the same scale, dequantize
to the same values: quantization rounds x / scale before it adds the zero point, and saturates at the same two values.
x86 processors have fast kernels for uint8 activations only, ARM processors for int8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import ModelError
from onnxcomp.graph.edit import add_initializer, drop_unused, names_of, unique_name
from onnxcomp.quantize.integers import constant_of, dequantizers, integer_values, is_pair, quantizers, stored_type
from onnxcomp.targets.target import ActivationType

__all__ = ["flip"]

_SHIFT = 128
_TYPES: dict[ActivationType, ir.DataType] = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8}
_OTHER: dict[ActivationType, ActivationType] = {"uint8": "int8", "int8": "uint8"}


def flip(model: ir.Model, to: ActivationType) -> int:
    """Store every 8-bit activation of a model in QDQ form as `to`, in place; constants must be initializers.

    uint8 weights become int8 with int8 activations, which have no kernels for them; other weights stay.

    Returns:
        The number of tensors that changed; 0 where all were stored like that.

    Raises:
        ModelError: An operator computes on the integers outside of a pair, they are an input or an output of the
            model, or a zero point is not constant.
    """
    source = _TYPES[_OTHER[to]]
    starts = [node.outputs[0] for node in quantizers(model) if stored_type(node) == source]
    if to == "int8":
        starts += _unsigned_weights(model)
    values = integer_values(starts)
    job = _Flip(to)
    for value in values:
        job.visit(value, set(values))
    job.apply()
    return len(values)


def _unsigned_weights(model: ir.Model) -> list[ir.Value]:
    """Constants, and constants that are quantized at load, that are stored as uint8."""
    found: list[ir.Value] = []
    for node in dequantizers(model):
        stored = node.inputs[0]
        producer = stored.producer() if stored is not None else None
        if producer is not None and is_pair(producer, "QuantizeLinear"):
            constant = constant_of(producer.inputs[0]) is not None and stored_type(producer) == ir.DataType.UINT8
        else:
            array = constant_of(stored)
            constant = array is not None and array.dtype == np.uint8
        if stored is not None and constant:
            found.append(stored)
    return list(dict.fromkeys(found))


@dataclass
class _Flip:
    """Collects what has to change, then changes it: nothing is touched where something is refused."""

    to: ActivationType
    slots: dict[tuple[ir.Node, int], ir.Value | None] = field(
        default_factory=dict["tuple[ir.Node, int]", "ir.Value | None"]
    )
    constants: list[ir.Value] = field(default_factory=list[ir.Value])
    values: list[ir.Value] = field(default_factory=list[ir.Value])

    def visit(self, value: ir.Value, inside: set[ir.Value]) -> None:
        self.values.append(value)
        producer = value.producer()
        if producer is None:
            if constant_of(value) is None:
                raise ModelError(f"the input {value.name!r} is of integers: another target's type would change it")
            self.constants.append(value)
        elif is_pair(producer, "QuantizeLinear"):
            self._slot(producer, 2)
        for node, _ in value.uses():
            if is_pair(node, "DequantizeLinear") or _fills(node):
                self._slot(node, 2)
            elif node.op_type == "Concat":
                for index, other in enumerate(node.inputs):
                    if other not in inside:
                        self._slot(node, index)

    def _slot(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None and constant_of(value) is None:
            raise ModelError(f"{value.name!r}, read by {node.name or node.op_type!r}, is not constant")
        self.slots[node, index] = value

    def apply(self) -> None:
        """Make the changes."""
        for constant in self.constants:
            _replace(constant, self._shifted(constant))
        by_value: dict[ir.Value | None, list[tuple[ir.Node, int]]] = {}
        for slot, value in self.slots.items():
            by_value.setdefault(value, []).append(slot)
        for value, slots in by_value.items():
            if value is not None and set(value.uses()) <= set(slots):
                _replace(value, self._shifted(value))
            else:
                self._share(value, slots)
        for node, index in self.slots:
            if _fills(node) and index == 2:
                _leave_out_zero(node)
        for stored in self.values:
            stored.type = ir.TensorType(_TYPES[self.to])
            producer = stored.producer()
            if producer is not None:
                producer.attributes.pop("output_dtype", None)

    def _share(self, value: ir.Value | None, slots: Iterable[tuple[ir.Node, int]]) -> None:
        """Give slots a constant of their own, in place of one that others read too or of none (which means 0)."""
        made: dict[ir.Graph, ir.Value] = {}
        for node, index in slots:
            graph = node.graph
            assert isinstance(graph, ir.Graph), "nodes of functions are not looked at"
            if graph not in made:
                array = np.array(self._offset, self.to) if value is None else self._shifted(value)
                name = "zero_point" if value is None else value.name or "zero_point"
                made[graph] = add_initializer(graph, unique_name(graph, f"{name}.{self.to}", names_of(graph)), array)
            node.resize_inputs(max(len(node.inputs), index + 1))
            node.replace_input_with(index, made[graph])

    @property
    def _offset(self) -> int:
        return _SHIFT if self.to == "uint8" else -_SHIFT

    def _shifted(self, value: ir.Value) -> NDArray[np.generic]:
        array = constant_of(value)
        assert array is not None, "checked by _slot"
        return (array.astype(np.int16) + self._offset).astype(self.to)


def _fills(node: ir.Node) -> bool:
    """Whether a node puts a constant around its input."""
    return node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant"


def _leave_out_zero(pad: ir.Node) -> None:
    """A fill value of 0 is the default."""
    fill = pad.inputs[2]
    array = constant_of(fill)
    if fill is not None and array is not None and not array.any():
        pad.replace_input_with(2, None)
        if isinstance(pad.graph, ir.Graph):
            drop_unused(pad.graph, [fill])


def _replace(value: ir.Value, array: NDArray[np.generic]) -> None:
    value.const_value = ir.tensor(array, name=value.name)
    value.type = ir.TensorType(value.const_value.dtype)
