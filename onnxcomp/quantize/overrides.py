"""Reading onnxruntime's TensorQuantOverrides: what a user fixes about the quantization of single tensors.

The file is the JSON that onnxruntime.quantization takes: tensor name to a list with one entry, or, for a weight with
scales of its own for each channel, one entry a channel (the first one, or the only one, names the axis)::

    {"conv1_out": [{"rmin": 0.0, "rmax": 5.5}],
     "conv1.weight": [{"axis": 0, "scale": 0.01, "zero_point": 0}, {"scale": 0.02, "zero_point": 0}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, cast

import onnx_ir as ir

from onnxcomp.errors import InputError
from onnxcomp.options import did_you_mean

__all__ = ["Entry", "TensorOverride", "check_names", "read_overrides", "tensor_names"]

_NUMBERS = ("scale", "rmin", "rmax")
_SWITCHES = ("symmetric", "reduce_range")
_KEYS = ("quant_type", "scale", "zero_point", "axis", "symmetric", "reduce_range", "rmin", "rmax", "convert")
# What onnxruntime allows beside a scale: nothing that would ask for another one.
_NOT_WITH_SCALE = ("symmetric", "reduce_range", "rmin", "rmax")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is fixed for one tensor, or for one channel of a weight; None: nothing."""

    quant_type: Literal["QUInt8", "QInt8"] | None = None
    scale: float | None = None
    zero_point: int | None = None
    rmin: float | None = None
    rmax: float | None = None
    symmetric: bool | None = None
    reduce_range: bool | None = None


@dataclass(frozen=True, slots=True)
class TensorOverride:
    """The entries of one tensor: one, or one a channel along `axis`."""

    tensor: str
    axis: int | None
    entries: tuple[Entry, ...]


def read_overrides(path: str | Path) -> dict[str, TensorOverride]:
    """Read a file of overrides, by tensor name.

    Raises:
        InputError: The file cannot be read, is not such JSON, or holds what an int8 form cannot honour (``convert``, 16
            bits ...); the message names tensor and key.
    """
    try:
        found: object = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the overrides {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"the overrides {path} are not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"the overrides {path} are not an object of tensor names; see TensorQuantOverrides")
    return {name: _tensor(name, value) for name, value in cast("dict[str, object]", found).items()}


def check_names(overrides: Iterable[str], known: Iterable[str], path: str | Path) -> None:
    """Raise InputError where a tensor is not in the model; the message proposes the closest name."""
    names = set(known)
    missing = [name for name in overrides if name not in names]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{path}: the model has no tensor {missing[0]!r}{more}{did_you_mean(missing[0], names)}")


def tensor_names(model: ir.Model) -> set[str]:
    """Names of all tensors of the main graph: inputs, initializers and what its nodes make."""
    made = {value.name for node in model.graph for value in node.outputs}
    return {name for name in made | {v.name for v in model.graph.inputs} if name} | set(model.graph.initializers)


def _tensor(name: str, value: object) -> TensorOverride:
    if not isinstance(value, list) or not value:
        raise InputError(f"overrides of {name!r}: a list of one entry, or of one a channel, is expected")
    raw = [_mapping(name, entry) for entry in cast("list[object]", value)]
    axis = raw[0].get("axis")
    if axis is None and len(raw) > 1:
        raise InputError(f"overrides of {name!r}: {len(raw)} entries need an 'axis' in the first one")
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
        raise _bad(name, "axis", axis, "a whole number")
    for other in raw[1:]:
        for key in ("axis", "quant_type", *_SWITCHES):
            if key in other and other[key] != raw[0].get(key):
                raise InputError(f"overrides of {name!r}: {key!r} is not the same for all channels")
    common = {key: raw[0][key] for key in ("quant_type", *_SWITCHES) if key in raw[0]}
    return TensorOverride(name, axis, tuple(_entry(name, {**common, **entry}) for entry in raw))


def _mapping(name: str, entry: object) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise InputError(f"overrides of {name!r}: an entry is {entry!r}, not an object")
    known = cast("dict[str, Any]", entry)
    for key in known:
        if key not in _KEYS:
            raise InputError(f"overrides of {name!r}: no key {key!r}{did_you_mean(key, _KEYS)}")
    if "convert" in known:
        raise InputError(f"overrides of {name!r}: 'convert' is refused: a tensor has one 8-bit type in an int8 model")
    return known


def _entry(name: str, raw: Mapping[str, Any]) -> Entry:
    for pair in (("scale", "zero_point"), ("rmin", "rmax")):
        if (pair[0] in raw) != (pair[1] in raw):
            raise InputError(f"overrides of {name!r}: {pair[0]!r} and {pair[1]!r} come together")
    idle = [key for key in _NOT_WITH_SCALE if key in raw]
    if "scale" in raw and idle:
        raise InputError(f"overrides of {name!r}: {idle[0]!r} counts for nothing beside 'scale'")
    numbers = {key: _number(name, key, raw[key]) for key in _NUMBERS if key in raw}
    if numbers.get("scale", 1.0) <= 0:
        raise _bad(name, "scale", raw["scale"], "a positive number")
    if numbers.get("rmin", 0.0) > numbers.get("rmax", 0.0):
        raise InputError(f"overrides of {name!r}: 'rmin' is above 'rmax'")
    switches: dict[str, bool] = {}
    for key in _SWITCHES:
        if key in raw:
            if not isinstance(raw[key], bool):
                raise _bad(name, key, raw[key], "true or false")
            switches[key] = raw[key]
    return Entry(
        quant_type=_quant_type(name, raw["quant_type"]) if "quant_type" in raw else None,
        zero_point=_zero_point(name, raw["zero_point"]) if "zero_point" in raw else None,
        scale=numbers.get("scale"),
        rmin=numbers.get("rmin"),
        rmax=numbers.get("rmax"),
        symmetric=switches.get("symmetric"),
        reduce_range=switches.get("reduce_range"),
    )


def _number(name: str, key: str, value: object) -> float:
    value = _only(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _bad(name, key, value, "a finite number")
    return float(value)


def _zero_point(name: str, value: object) -> int:
    value = _only(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -128 <= value <= 255:
        raise _bad(name, "zero_point", value, "a whole number of 8 bits")
    return value


def _only(value: object) -> object:
    """The element of a list of one, which onnxruntime takes for a number."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return items[0] if len(items) == 1 else value


def _quant_type(name: str, value: object) -> Literal["QUInt8", "QInt8"]:
    known: tuple[Literal["QUInt8", "QInt8"], ...] = ("QUInt8", "QInt8")
    for kind in known:
        if isinstance(value, str) and value.lower() == kind.lower():
            return kind
    raise _bad(name, "quant_type", value, "QUInt8 or QInt8: int8 stores 8 bits")


def _bad(name: str, key: str, value: object, wanted: str) -> InputError:
    return InputError(f"overrides of {name!r}: {key!r} is {value!r}, not {wanted}")
