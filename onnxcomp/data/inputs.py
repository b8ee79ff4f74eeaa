"""What a model asks to be fed: the graph inputs that need data, their dtypes and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import DataError

__all__ = ["Batch", "ModelInput", "did_you_mean", "model_inputs"]

Batch = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A graph input that needs data.

    Attributes:
        name: Its name in the model.
        dtype: NumPy dtype that the runtime expects.
        shape: One entry an axis: an int where fixed, a name where symbolic, None where unknown; None: unknown rank.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...] | None

    @property
    def fixed_batch(self) -> int | None:
        """Extent of the first axis where the model fixes it; None where it is free (or there is no axis)."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None

    @property
    def free(self) -> bool:
        """Whether more than the batch is unknown, so that no sample can be made up."""
        return self.shape is None or not all(isinstance(extent, int) for extent in self.shape[1:])

    def shapes_flag(self) -> str:
        """Return the ``--shapes`` flag that settles the input, with dots where the caller has to know the size."""
        rest = ("...",) if self.shape is None else self.shape[1:]
        sizes = (self.fixed_batch or 1, *(extent if isinstance(extent, int) else "..." for extent in rest))
        return f"--shapes {self.name}:{'x'.join(map(str, sizes))}"

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype.name}[...]"
        return f"{self.dtype.name}[{','.join('?' if d is None else str(d) for d in self.shape)}]"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest of `known`, or nothing."""
    close = get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def model_inputs(model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[ModelInput, ...]:
    """Return the inputs that need data, in the model's order.

    A graph input that also has an initializer is only a default that may be overridden; it needs no data.

    Args:
        model: The model.
        shapes: Shapes by input name that take the place of symbolic or unknown axes (``--shapes``).

    Raises:
        DataError: `shapes` names no input or contradicts the model; an input is no tensor or has no dtype; no input.
    """
    given = dict(shapes or {})
    found = tuple(
        _describe(value, given.pop(value.name or "", None))
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    )
    if given:
        names = [i.name for i in found]
        wrong = next(iter(given))
        raise DataError(
            f"shapes: the model has no input {wrong!r}; it has: {', '.join(names)}{did_you_mean(wrong, names)}"
        )
    if not found:
        raise DataError(
            "the model has no input that could be fed: every graph input has an initializer, or there is none"
        )
    return found


def _describe(value: ir.Value, given: tuple[int, ...] | None) -> ModelInput:
    name = value.name or ""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise DataError(f"input {name!r} is no tensor ({value.type}); only tensor inputs can be fed")
    if value.dtype is None:
        raise DataError(f"input {name!r} has no element type in the model; the model is incomplete")
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    if given is not None:
        _check_given(name, shape, given)
        shape = given
    return ModelInput(name, np.dtype(value.dtype.numpy()), shape)


def _check_given(name: str, shape: tuple[int | str | None, ...] | None, given: tuple[int, ...]) -> None:
    if any(d < 1 for d in given):
        raise DataError(f"shapes: {name}:{'x'.join(map(str, given))} has an axis below 1")
    if shape is None:
        return
    if len(given) != len(shape) or any(isinstance(d, int) and d != g for d, g in zip(shape, given, strict=True)):
        model_shape = ",".join("?" if d is None else str(d) for d in shape)
        raise DataError(f"shapes: {name}:{'x'.join(map(str, given))} contradicts the model's [{model_shape}]")
