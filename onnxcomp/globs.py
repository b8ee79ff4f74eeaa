"""Globs that name nodes: those that match nothing are most often misspelt, and the user is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxcomp.contract import Override
from onnxcomp.graph.edit import origin_of
from onnxcomp.options import did_you_mean

__all__ = ["idle_globs"]

_WORD = re.compile(r"[^\W_]+")


def idle_globs(model: ir.Model, exclude: Iterable[str], overrides: Iterable[Sequence[Override]]) -> list[str]:
    """Return one warning for each exclusion that matches no node, and each override that matches no node or operator.

    Args:
        model: The model; its nodes are matched by the names they have in the user's model, bodies included.
        exclude: Globs of node names.
        overrides: Per pass, the per-layer options of a recipe.
    """
    names = {origin_of(node) for node in model.graph.all_nodes()}
    operators = {node.op_type for node in model.graph.all_nodes()}
    wanted = [("--exclude", glob, names) for glob in exclude]
    wanted += [("the recipe's layer", override.match, names | operators) for own in overrides for override in own]
    return [
        f"{what} {glob!r} matches nothing in the model{_hint(glob, sorted(known))}"
        for what, glob, known in dict.fromkeys((what, glob, frozenset(known)) for what, glob, known in wanted)
        if not any(fnmatchcase(name, glob) for name in known)
    ]


def _hint(glob: str, known: Sequence[str]) -> str:
    """Suggest a name; for a glob, the glob with each misspelt word replaced, where that matches something."""
    if not re.search(r"[*?\[]", glob):
        return did_you_mean(glob, known)
    words = {word.lower(): word for name in known for word in _WORD.findall(name)}

    def corrected(match: re.Match[str]) -> str:
        close = get_close_matches(match.group().lower(), words, n=1)
        return words[close[0]] if close else match.group()

    suggestion = _WORD.sub(corrected, glob)
    found = any(fnmatchcase(name, suggestion) for name in known)
    return f"; did you mean {suggestion!r}?" if found else ""
