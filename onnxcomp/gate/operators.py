"""Which operators a model may use, and which version of the operator set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache

import onnx
import onnx_ir as ir

from onnxcomp.gate.line import Line, listed
from onnxcomp.graph.edit import origin_of

__all__ = ["known_operators", "operator_lines", "opset_line"]

_DEFAULT = ("", "ai.onnx")


@cache
def known_operators() -> frozenset[str]:
    """Return the names of ONNX's own operators, those of earlier operator sets included."""
    return frozenset(one.name for one in onnx.defs.get_all_schemas_with_history() if one.domain in _DEFAULT)


def operator_lines(model: ir.Model, allow: Sequence[str], deny: Sequence[str]) -> Iterator[Line]:
    """Judge the operators of the main graph, the bodies of If and Loop, and functions.

    Args:
        model: The model.
        allow: Globs of ``Operator`` or ``domain:Operator``; those of ONNX itself go by either. Empty: all.
        deny: Globs of those that are refused, whatever `allow` says.
    """
    used = _operators(model)
    if allow:
        yield _line("allow_ops", allow, used, {name for name in used if not _matches(name, allow)})
    if deny:
        yield _line("deny_ops", deny, used, {name for name in used if _matches(name, deny)})


def opset_line(model: ir.Model, least: int | None, most: int | None) -> Line:
    """Judge the version of ONNX's own operator set."""
    limit = f"{least} to {most}" if least and most else f"at least {least}" if least else f"at most {most}"
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if version is None:
        return Line("opset", limit, "none", "fail", "the model imports no version of ONNX's operators")
    figures = {"value": float(version)}
    figures |= {key: float(end) for key, end in (("low", least), ("high", most)) if end is not None}
    low, high = least is not None and version < least, most is not None and version > most
    why = "the operator set is too old" if low else "the operator set is too new" if high else ""
    return Line("opset", limit, str(version), "fail" if why else "pass", why, (), figures)


def _line(name: str, globs: Sequence[str], used: dict[str, list[str]], wrong: set[str]) -> Line:
    limit = f"{'only' if name == 'allow_ops' else 'none of'} {listed(globs)}"
    nodes = [node for operator in used if operator in wrong for node in used[operator]]
    count = f"{len(used)} operator{'s'[: len(used) != 1]}"
    if not wrong:
        return Line(name, limit, count, "pass")
    shown = [f"{operator} ({listed(used[operator])})" for operator in used if operator in wrong]
    return Line(name, limit, f"{len(wrong)} of {count}", "fail", f"not allowed: {', '.join(shown)}", tuple(nodes))


def _operators(model: ir.Model) -> dict[str, list[str]]:
    """Operators to the nodes that use them, by the names of the user's model."""
    used: dict[str, list[str]] = defaultdict(list)
    inside = (node for function in model.functions.values() for node in function.all_nodes())
    for node in (*model.graph.all_nodes(), *inside):
        name = node.op_type if node.domain in _DEFAULT else f"{node.domain}:{node.op_type}"
        used[name].append(origin_of(node) or node.op_type)
    return dict(sorted(used.items()))


def _matches(name: str, globs: Sequence[str]) -> bool:
    names = (name,) if ":" in name else (name, f"ai.onnx:{name}")
    return any(fnmatchcase(own, glob) for own in names for glob in globs)
