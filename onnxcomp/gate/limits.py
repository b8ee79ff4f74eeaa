"""All limits that a model can be held to, and what each of them needs to be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.errors import InputError
from onnxcomp.gate import units
from onnxcomp.gate.units import Unit
from onnxcomp.options import did_you_mean
from onnxcomp.report.text import count, size

__all__ = ["UNITS", "Limits", "from_words", "in_words", "merged", "require"]

UNITS: Mapping[str, Unit] = {
    "max_size": units.byte_size,
    "max_params": units.counted,
    "max_macs": units.counted,
    "max_memory": units.megabytes,
    "max_latency": units.milliseconds,
    "max_latency_p99": units.milliseconds,
    "min_speedup": units.ratio,
    "max_layer_slowdown": units.slowdown,
    "min_accuracy": units.percentage,
    "max_drop": units.points,
    "min_agreement": units.percentage,
    "min_sqnr": units.decibels,
}
"""How the number of each limit is written; all other limits are texts and lists."""

_WORDS: Mapping[str, Callable[[float], str]] = {
    "max_size": lambda value: f"at most {size(int(value))}",
    "max_params": lambda value: f"at most {count(int(value))}",
    "max_macs": lambda value: f"at most {count(int(value))}",
    "max_memory": lambda value: f"at most {size(int(value))}",
    "max_latency": lambda value: f"at most {value:g} ms",
    "max_latency_p99": lambda value: f"at most {value:g} ms",
    "min_speedup": lambda value: f"at least {value:g}x",
    "max_layer_slowdown": lambda value: f"no layer over {value:g} % slower",
    "min_accuracy": lambda value: f"at least {value:g} %",
    "max_drop": lambda value: f"at most {value:g} points",
    "min_agreement": lambda value: f"at least {value:g} %",
    "min_sqnr": lambda value: f"at least {value:g} dB",
}

_NUMBERS = (*UNITS, "min_opset", "max_opset")
_BASE = ("min_speedup", "max_layer_slowdown", "max_drop", "min_agreement", "min_sqnr")
_LABELS = ("min_accuracy", "max_drop")
_DATA = ("min_agreement", "min_sqnr")


@dataclass(frozen=True)
class Limits:
    """What a model has to keep; None or empty: that limit is not asked for.

    Attributes:
        max_size: Bytes of the file and its external data.
        max_params: Parameters.
        max_macs: Multiply-accumulates at batch 1.
        max_memory: Bytes by which loading and one run raise the peak of resident memory.
        max_latency: Milliseconds a run, judged on the interval of the median.
        max_latency_p99: Milliseconds that 99 % of the runs keep to.
        min_speedup: Base time / time, judged on the interval of the median.
        max_layer_slowdown: Percent by which no layer may become slower than in the base.
        min_accuracy: Top-1 accuracy, percent.
        max_drop: Percentage points of top-1 accuracy lost against the base.
        min_agreement: Percent of the samples with the base's class.
        min_sqnr: Signal-to-noise ratio of the worst output against the base, dB.
        target: Name of the runtime whose rules count.
        require_fused: Whether every weighted layer has to run on integers.
        allow_float: Globs of the names of layers that may run in float; naming any asks for all others to be fused.
        allow_ops: Globs of operators; all others are refused. Those of other domains are ``domain:Operator``.
        deny_ops: Globs of operators that are refused.
        min_opset: Least version of the default operator set.
        max_opset: Largest one.
        inputs: Name to type and shape, such as ``float32[N,3,224,224]``; no other inputs are allowed.
        outputs: Likewise.
        metadata: Key that has to be in the model's metadata to a glob of its value.
    """

    max_size: float | None = None
    max_params: float | None = None
    max_macs: float | None = None
    max_memory: float | None = None
    max_latency: float | None = None
    max_latency_p99: float | None = None
    min_speedup: float | None = None
    max_layer_slowdown: float | None = None
    min_accuracy: float | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None
    target: str | None = None
    require_fused: bool = False
    allow_float: tuple[str, ...] = ()
    allow_ops: tuple[str, ...] = ()
    deny_ops: tuple[str, ...] = ()
    min_opset: int | None = None
    max_opset: int | None = None
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def asked(self) -> tuple[str, ...]:
        """Return the names of the limits that are set; a limit of 0 is one."""
        held = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return tuple(name for name, value in held.items() if value or (name in _NUMBERS and value is not None))


def from_words(words: Mapping[str, str | float]) -> Limits:
    """Read limits by name, as flags give them.

    Raises:
        InputError: There is no such limit, or its number does not read.
    """
    values: dict[str, Any] = {}
    for name, text in words.items():
        if name not in UNITS:
            raise InputError(f"there is no limit {name!r}{did_you_mean(name, UNITS)}")
        try:
            values[name] = UNITS[name].parse(text)
        except ValueError as error:
            raise InputError(f"--{name.replace('_', '-')}: {error}") from None
    return dataclasses.replace(Limits(), **values)


def merged(own: Limits, over: Limits) -> Limits:
    """Return `own` with everything that `over` sets."""
    return dataclasses.replace(own, **{name: getattr(over, name) for name in over.asked()})


def in_words(name: str, value: float) -> str:
    """Say what a limit asks for."""
    return _WORDS[name](value)


def require(limits: Limits, *, against: bool, labelled: bool, data: bool) -> None:
    """Raise InputError where a limit cannot be judged with what was given, naming the flag that is missing.

    Args:
        limits: The limits.
        against: Whether there is a base.
        labelled: Whether there are evaluation data; that they have labels shows when they are opened.
        data: Whether there are data of either kind.
    """
    for names, given, flag, what in (
        (_BASE, against, "--against BASE", "a model to compare with"),
        (_LABELS, labelled, "--eval E", "labelled evaluation data"),
        (_DATA, data or labelled, "--eval E or --data D", "data to run both models on"),
    ):
        missing = _first(limits, names)
        if missing and not given:
            raise InputError(f"the limit {missing} needs {what}; give {flag}")


def _first(limits: Limits, names: Iterable[str]) -> str:
    return next((name for name in names if getattr(limits, name) is not None), "")
