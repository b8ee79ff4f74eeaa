"""What readers of YAML files share: mappings by key, with errors that name the line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import yaml

from onnxcomp.errors import InputError
from onnxcomp.options import did_you_mean

__all__ = ["Fault", "composed", "is_null", "line_of", "mapping"]

Fault: TypeAlias = Callable[[yaml.Node, str], InputError]
"""Makes the error for a problem at a node."""


def composed(text: str, what: str, error: type[InputError]) -> yaml.Node | None:
    """Return the tree of a document, every scalar as text; None where it holds nothing; `error` where it is no YAML."""
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as problem:
        line = "" if problem.problem_mark is None else f", line {problem.problem_mark.line + 1}"
        raise error(f"{what}{line}: not valid YAML: {problem.problem}") from None
    except yaml.YAMLError as problem:
        raise error(f"{what}: not valid YAML: {str(problem).splitlines()[0]}") from None


def line_of(node: yaml.Node) -> int:
    """Return the line that a node begins in, from 1."""
    return int(node.start_mark.line) + 1


def is_null(node: yaml.Node) -> bool:
    """Whether a node is null, or nothing at all."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "null", "Null", "NULL", "~")


def mapping(node: yaml.Node, where: str, fault: Fault, known: Sequence[str] | None = None) -> dict[str, yaml.Node]:
    """Return the values of a mapping by key.

    Args:
        node: The mapping.
        where: What it is called in an error.
        fault: Makes the error.
        known: The keys that it may have; None: any.

    Raises:
        InputError: It is no mapping, or a key is no word, unknown or given twice.
    """
    if not isinstance(node, yaml.MappingNode):
        raise fault(node, f"{where}: expected 'key: value' pairs")
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise fault(key_node, f"{where}: a key must be a word")
        key = str(key_node.value)
        if known is not None and key not in known:
            hint = did_you_mean(key.replace("-", "_"), known)
            raise fault(key_node, f"unknown key {key!r} in {where}{hint} (keys: {', '.join(known)})")
        if key in found:
            raise fault(key_node, f"the key {key!r} is given twice in {where}")
        found[key] = value
    return found
