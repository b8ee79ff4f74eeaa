"""How a session is opened: threads, optimization level, execution provider, the runtime's own options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import onnxruntime as ort

from onnxcomp.errors import InputError

__all__ = ["CPU", "INT8_KERNELS", "Optimize", "SessionSettings", "parse_entries"]

Optimize = Literal["all", "extended", "basic", "off"]

CPU = "CPUExecutionProvider"
# Int8 activations go into integer kernels as they are, as on ARM; on x86 ORT would rewrite them to uint8 where it can.
INT8_KERNELS = (("session.qdqisint8allowed", "1"),)
_SUFFIX = "ExecutionProvider"
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# Worker threads spin while a run lasts, as they do in deployment, but stop when it ends: an idle session must not
# disturb the one that is measured next.
_SPINNING = ("session.force_spinning_stop", "1")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session of ONNX Runtime is opened with.

    Attributes:
        threads: Intra-op threads, 1 or more.
        inter_op_threads: Above 1, nodes that do not depend on each other run side by side.
        optimization: How far the runtime rewrites the graph when it loads it.
        provider: Execution provider, as :func:`onnxruntime.get_available_providers` names it, or without
            ``ExecutionProvider`` and in any case: ``cpu``. Nodes that it lacks run on the CPU.
        entries: Configuration entries of the session, (key, value).
        arena: Keep freed buffers for the next run: faster. False returns them to the system: the smallest peak memory.

    Raises:
        InputError: A number below 1, an unknown level, or a provider that this build of the runtime does not have.
    """

    threads: int = 1
    inter_op_threads: int = 1
    optimization: Optimize = "all"
    provider: str = CPU
    entries: tuple[tuple[str, str], ...] = ()
    arena: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1 or self.inter_op_threads < 1:
            raise InputError("a session needs 1 thread at least")
        if self.optimization not in _LEVELS:
            raise InputError(f"optimization level {self.optimization!r} is not one of {', '.join(_LEVELS)}")
        object.__setattr__(self, "provider", _provider(self.provider))

    @property
    def providers(self) -> list[str]:
        """The execution providers in the order in which the runtime asks them."""
        return list(dict.fromkeys((self.provider, CPU)))

    def options(self) -> Any:
        """Return the runtime's ``SessionOptions``; they may be added to."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = self.inter_op_threads
        if self.inter_op_threads > 1:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.graph_optimization_level = _LEVELS[self.optimization]
        options.enable_cpu_mem_arena = self.arena
        for key, value in dict((_SPINNING, *self.entries)).items():
            options.add_session_config_entry(key, value)
        return options


def parse_entries(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Read ``KEY=VALUE`` items, such as ``session.disable_prepacking=1``.

    Raises:
        InputError: An item has no ``=`` or no key, or a key comes twice.
    """
    entries: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"session option {text!r} is not KEY=VALUE, such as session.disable_prepacking=1")
        if key in entries:
            raise InputError(f"session option {key!r} is given twice")
        entries[key.strip()] = value
    return tuple(entries.items())


def _provider(wanted: str) -> str:
    available = [str(name) for name in ort.get_available_providers()]
    known = {name.removesuffix(_SUFFIX).lower(): name for name in available}
    found = known.get(wanted.removesuffix(_SUFFIX).lower())
    if found is None:
        raise InputError(
            f"this build of ONNX Runtime has no execution provider {wanted!r}; it has: {', '.join(sorted(available))}"
        )
    return found
