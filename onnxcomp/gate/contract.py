"""What callers of a model rely on: names, types and shapes of its inputs and outputs, and their order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcomp.gate.line import Line

__all__ = ["Port", "Signature", "changes", "contract_line", "ports_line", "signature"]

_PORT = re.compile(r"\s*([^\s\[\]]+(?:\([^\[\]]*\))?)\s*(?:\[([^\[\]]*)\])?\s*")
_ANY = "*"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output.

    Attributes:
        name: Its name.
        kind: Element type, such as ``float32``; for what is no tensor, its type in words.
        shape: A number, a symbol or ``?`` for each axis; None where even their number is unknown.
    """

    name: str
    kind: str
    shape: tuple[str, ...] | None

    @staticmethod
    def parse(name: str, text: str) -> Port:
        """Read ``float32[N,3,224,224]``; ``*`` stands for any type or size, and without brackets any shape will do.

        Raises:
            ValueError: It does not read so.
        """
        match = _PORT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a type and a shape, such as float32[N,3,224,224]")
        kind = match[1].lower() if match[1].lower() in _KINDS else match[1]
        if kind not in (*_KINDS, _ANY) and "(" not in kind:
            raise ValueError(f"there is no element type {match[1]!r}; there are {', '.join(sorted(_KINDS))}")
        if match[2] is None:
            return Port(name, kind, None)
        sizes = tuple(size.strip() for size in match[2].split(",")) if match[2].strip() else ()
        if not all(sizes):
            raise ValueError(f"{text!r} has a size that is empty; write ? for one that is unknown, * for any")
        return Port(name, kind, sizes)

    def holds(self, other: Port) -> bool:
        """Whether another port is what this one, read from a budget, asks for."""
        if self.kind not in (_ANY, other.kind):
            return False
        if self.shape is None:
            return True
        if other.shape is None or len(self.shape) != len(other.shape):
            return False
        return all(wanted in (_ANY, size) for wanted, size in zip(self.shape, other.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.kind}[{'...' if self.shape is None else ','.join(self.shape)}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs that a caller has to feed or may, and the outputs, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def signature(model: ir.Model) -> Signature:
    """Read the signature of a model.

    Before IR 4 every initializer had to be listed among the inputs though no caller could set it; those do not count.
    """
    fixed = model.graph.initializers if model.ir_version < 4 else {}
    inputs = tuple(_port(value) for value in model.graph.inputs if value.name not in fixed)
    return Signature(inputs, tuple(_port(value) for value in model.graph.outputs))


def contract_line(base: Signature, own: Signature) -> Line:
    """Judge that a model can take the place of its base."""
    found = [
        *changes("input", base.inputs, own.inputs),
        *changes("output", base.outputs, own.outputs),
    ]
    count = f"{len(own.inputs)} in, {len(own.outputs)} out"
    if not found:
        return Line("contract", "as in the base", count, "pass")
    names = tuple(dict.fromkeys(name for name, _ in found))
    return Line("contract", "as in the base", count, "fail", "; ".join(text for _, text in found), names)


def changes(what: str, base: Sequence[Port], own: Sequence[Port]) -> Iterator[tuple[str, str]]:
    """Yield (name, what changed) for one kind of port; one that keeps its place and form was renamed."""
    ours, theirs = {port.name: port for port in own}, {port.name: port for port in base}
    gone = [(place, port) for place, port in enumerate(base) if port.name not in ours]
    fresh = {place: port for place, port in enumerate(own) if port.name not in theirs}
    for place, port in gone:
        heir = fresh.get(place)
        if heir is not None and (heir.kind, heir.shape) == (port.kind, port.shape):
            del fresh[place]
            yield port.name, f"{what} '{port.name}' is now called '{heir.name}'"
        else:
            yield port.name, f"{what} '{port.name}' ({port}) is gone"
    for port in fresh.values():
        yield port.name, f"{what} '{port.name}' ({port}) is new"
    for port in base:
        now = ours.get(port.name)
        if now is not None and (now.kind, now.shape) != (port.kind, port.shape):
            yield port.name, f"{what} '{port.name}' was {port} and is {now}"
    shared = [port.name for port in base if port.name in ours]
    order = [port.name for port in own if port.name in theirs]
    if order != shared:
        yield order[0], f"the {what}s changed their order: {', '.join(shared)} became {', '.join(order)}"


def ports_line(name: str, wanted: Mapping[str, str], own: Sequence[Port]) -> Line:
    """Judge the inputs or the outputs against those of a budget; `name` is ``inputs`` or ``outputs``."""
    what = name.removesuffix("s")
    ours = {port.name: port for port in own}
    found: list[tuple[str, str]] = []
    for key, text in wanted.items():
        port = ours.get(key)
        if port is None:
            found.append((key, f"there is no {what} '{key}'"))
        elif not Port.parse(key, text).holds(port):
            found.append((key, f"{what} '{key}' is {port}, not {text}"))
    found += [
        (port.name, f"{what} '{port.name}' ({port}) is not among them") for port in own if port.name not in wanted
    ]
    shown = ", ".join(f"{key} {text}" for key, text in wanted.items())
    value = ", ".join(f"{port.name} {port}" for port in own) or "none"
    where = tuple(key for key, _ in found)
    return Line(name, shown, value, "fail" if found else "pass", "; ".join(text for _, text in found), where)


def _port(value: ir.Value) -> Port:
    shape = None if value.shape is None else tuple(_size(dim) for dim in value.shape)
    if isinstance(value.type, ir.TensorType):
        return Port(value.name or "", _kind(value.type.dtype), shape)
    return Port(value.name or "", "?" if value.type is None else str(value.type), shape)


def _size(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else str(dim.value or "?")


def _kind(dtype: ir.DataType) -> str:
    return "string" if dtype == ir.DataType.STRING else dtype.numpy().name


_KINDS = frozenset(_kind(dtype) for dtype in ir.DataType if dtype != ir.DataType.UNDEFINED)
