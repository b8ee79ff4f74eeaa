"""Give a model concrete sizes where it had symbols."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from onnxcomp.errors import InputError
from onnxcomp.graph.fold.shapes import infer_shapes, skeleton

__all__ = ["fix_shapes", "free_inputs"]


def free_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that the caller has to feed and whose shape is not all numbers."""
    inputs = (v for v in model.graph.inputs if v.name not in model.graph.initializers)
    return [v for v in inputs if v.shape is None or not v.shape.is_static()]


def fix_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set the shapes of inputs in place, and infer those of all other values anew.

    A symbol that is given a number in one input gets it in every other input and output.

    Raises:
        InputError: There is no such input, the rank or a size differs, a symbol would get two numbers, or the shapes
            contradict each other further on.
    """
    inputs = {value.name: value for value in model.graph.inputs if value.name not in model.graph.initializers}
    sizes: dict[str, int] = {}
    before = _contradiction(model)
    for name, shape in shapes.items():
        if name not in inputs:
            raise InputError(f"--shapes: there is no input {name!r}; the model has {', '.join(map(repr, inputs))}")
        _bind(inputs[name], shape, sizes)
    for name, shape in shapes.items():
        inputs[name].shape = ir.Shape(shape)
    for value in (*inputs.values(), *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_bound(dim, sizes) for dim in value.shape])
    problem = _contradiction(model)
    if problem and not before:
        raise InputError(f"--shapes: the model does not go with these shapes: {problem}")
    _infer(model)


def _bind(value: ir.Value, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Note which number each symbol of an input gets."""
    old = value.shape
    if old is None:
        return
    written = f"--shapes {value.name}:{'x'.join(map(str, shape))}"
    if len(old) != len(shape):
        raise InputError(f"{written}: the input has {len(old)} dimensions, {old}")
    for dim, size in zip(old, shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise InputError(f"{written}: the input is {old}; a size that is fixed already stays")
        elif dim.value is not None and sizes.setdefault(dim.value, size) != size:
            raise InputError(f"{written}: the symbol {dim.value!r} would be {sizes[dim.value]} and {size} at once")


def _bound(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else sizes.get(dim.value, dim.value)


def _contradiction(model: ir.Model) -> str:
    """What shape inference complains of; empty where all shapes go together."""
    try:
        onnx.shape_inference.infer_shapes(skeleton(model), check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).split())[:200]
    return ""


def _infer(model: ir.Model) -> None:
    """Infer shapes from the inputs; outputs get the numbers that follow, and keep their word where none do."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    known = infer_shapes(model)
    for value in model.graph.outputs:
        inferred = known.get(value.name or "")
        if inferred is None:
            continue
        before = list(value.shape) if value.shape is not None and len(value.shape) == len(inferred) else inferred
        value.shape = ir.Shape([_merged(size, old) for size, old in zip(inferred, before, strict=True)])


def _merged(size: int | None, old: int | ir.SymbolicDim | None) -> int | str | None:
    return size if size is not None else old.value if isinstance(old, ir.SymbolicDim) else old
