"""Budget files: limits in YAML, kept beside the model.

::

    target: ort-x86
    max_size: 4MB
    max_latency: 12ms
    min_speedup: 1.2
    max_drop: 0.5
    fusion:
      required: true
      allow_float: ["head/*"]
    ops:
      deny: ["com.microsoft:*", Loop]
    opset: {min: 17, max: 21}
    inputs:
      input: float32[N,3,224,224]
    outputs:
      logits: float32[N,1000]
    metadata:
      author: "*"

Scalars follow YAML 1.2. Every error names the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from onnxcomp.errors import InputError
from onnxcomp.gate.contract import Port
from onnxcomp.gate.limits import UNITS, Limits
from onnxcomp.gate.operators import known_operators
from onnxcomp.options import did_you_mean
from onnxcomp.yamlnodes import composed, is_null, line_of, mapping

__all__ = ["budget_from_yaml", "load_budget"]

_SECTIONS = ("target", "fusion", "ops", "opset", "inputs", "outputs", "metadata")
# A budget is a page of text; a file of another kind is not worth parsing, and aliases of aliases are a bomb.
_MOST = 1 << 20
_DEEPEST = 4


def load_budget(path: str | Path) -> Limits:
    """Read a budget file.

    Raises:
        InputError: It cannot be read or says something it cannot; the message names the line.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the budget {str(path)!r}: {reason}") from None
    if len(content) > _MOST:
        raise InputError(f"the budget {str(path)!r} is over 1 MB; is it a budget file?")
    return budget_from_yaml(text)


def budget_from_yaml(text: str) -> Limits:
    """Read a budget.

    Raises:
        InputError: Not YAML, an alias, an unknown or repeated key, or a value of the wrong kind; with the line.
    """
    root = _composed(text)
    values: dict[str, Any] = {}
    for key, node in _mapping(root, "the budget", (*UNITS, *_SECTIONS)).items():
        match key:
            case "target":
                values["target"] = _text(node, key)
            case "fusion":
                own = _mapping(node, key, ("required", "allow_float"))
                values["require_fused"] = "required" not in own or _switch(own["required"], "required")
                if values["require_fused"] and "allow_float" in own:
                    values["allow_float"] = _texts(own["allow_float"], "allow_float")
            case "ops":
                own = _mapping(node, key, ("allow", "deny"))
                values |= {f"{name}_ops": _operators(item, name) for name, item in own.items()}
            case "opset":
                own = _mapping(node, key, ("min", "max"))
                ends = {name: _opset(item, name) for name, item in own.items()}
                if ends.get("min", 0) > ends.get("max", math.inf):
                    raise _error(node, f"opset: no operator set is at least {ends['min']} and at most {ends['max']}")
                values |= {f"{name}_opset": end for name, end in ends.items()}
            case "inputs" | "outputs":
                values[key] = {name: _port(item, name) for name, item in _mapping(node, key).items()}
            case "metadata":
                own = _mapping(node, key)
                values[key] = {name: "*" if is_null(item) else _text(item, name) for name, item in own.items()}
            case _:
                values[key] = _number(node, key)
    return Limits(**values)


def _composed(text: str) -> yaml.Node:
    with suppress(yaml.YAMLError):  # what is no YAML is told of below
        _check_depth(text)
    root = composed(text, "budget", InputError)
    if root is None:
        raise InputError("budget: the file sets no limit; one line is a budget, such as 'max_size: 4MB'")
    return root


def _check_depth(text: str) -> None:
    """Refuse aliases and deep nesting from the events, before anything is built of them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise InputError("budget: nested too deeply; a budget has sections, and lists in them")
        if isinstance(event, yaml.AliasEvent):
            where = "" if event.start_mark is None else f", line {event.start_mark.line + 1}"
            raise InputError(f"budget{where}: an alias (*{event.anchor}); write the value out")


def _mapping(node: yaml.Node, where: str, known: Sequence[str] | None = None) -> Mapping[str, yaml.Node]:
    found = mapping(node, where, _error, known)
    if not found:
        raise _error(node, f"{where} is empty")
    return found


def _text(node: yaml.Node, where: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        raise _error(node, f"{where}: expected one value")
    return str(node.value)


def _texts(node: yaml.Node, where: str) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _error(node, f"{where}: expected a list, such as [Conv, Gemm]")
    return tuple(_text(item, where) for item in node.value)


def _number(node: yaml.Node, key: str) -> float:
    try:
        return UNITS[key].parse(_text(node, key))
    except ValueError as error:
        raise _error(node, f"{key}: {error}") from None


def _switch(node: yaml.Node, key: str) -> bool:
    text = _text(node, key)
    if text not in ("true", "True", "TRUE", "false", "False", "FALSE"):
        raise _error(node, f"{key}: {text!r} is not true or false")
    return text.lower() == "true"


def _operators(node: yaml.Node, key: str) -> tuple[str, ...]:
    globs = _texts(node, key)
    known = known_operators()
    assert isinstance(node, yaml.SequenceNode)
    for glob, item in zip(globs, node.value, strict=True):
        if ":" not in glob and not any(fnmatchcase(name, glob) for name in known):
            problem = f"ONNX has no operator {glob!r}{did_you_mean(glob, known)}"
            raise _error(item, f"ops, {key}: {problem}; those of other domains are domain:Operator")
    return globs


def _opset(node: yaml.Node, key: str) -> int:
    text = _text(node, key)
    if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text)):
        raise _error(node, f"opset, {key}: {text!r} is not the number of an operator set, such as 17")
    return int(text)


def _port(node: yaml.Node, name: str) -> str:
    text = _text(node, name)
    try:
        Port.parse(name, text)
    except ValueError as error:
        raise _error(node, f"{name}: {error}") from None
    return text


def _error(node: yaml.Node, problem: str) -> InputError:
    return InputError(f"budget, line {line_of(node)}: {problem}")
