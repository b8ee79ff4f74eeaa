"""A page for each target: its scheme and rules as the code has them, and what docs/targets.md says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module

from docsite.page import Page, read, section, split_docstring, table
from onnxcomp.legality.checker import rules_of
from onnxcomp.options import attribute_docs
from onnxcomp.targets.target import Scheme, Target, load_target, target_names

__all__ = ["pages"]

_SOURCE = "docs/targets.md"


def pages() -> Iterator[Page]:
    """The overview and a page for each target."""
    text = read(_SOURCE)
    yield Page("targets/index.md", text, _SOURCE)
    for name in target_names():
        yield Page(f"targets/{name}.md", _page(load_target(name), text), _SOURCE)


def _page(target: Target, overview: str) -> str:
    module = import_module(f"onnxcomp.targets.{target.name.replace('-', '_')}")
    summary, prose, _ = split_docstring(module.__doc__)
    machines = ", ".join(f"`{machine}`" for machine in sorted(target.machines))
    timed = f"on {machines}" if machines else "nowhere: multiply-accumulates and the target's rules decide"
    parts = [
        f"# {target.name}\n",
        f"{target.title}: `--target {target.name}`. Timed {timed}.",
        summary,
        prose,
        "## How models are written for it\n",
        _notes(target.name, overview),
        "## Integers\n",
        _scheme(target.scheme) if target.scheme else f"None: {target.no_int8}.",
        f"## Rules of `onnxcomp check --target {target.name}`\n",
        _rules(target, overview),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _notes(name: str, overview: str) -> str:
    """The paragraphs of the overview that begin with the target's name in bold, up to the next target's."""
    found = re.search(
        rf"^\*\*`{name}`\.\*\* (.*?)(?=^\*\*`|\Z)", section(overview, "What differs, and why"), re.M | re.S
    )
    if not found:
        raise ValueError(f"{_SOURCE} says nothing of {name}: a paragraph that begins with **`{name}`.**")
    return found.group(1)


def _scheme(scheme: Scheme) -> str:
    helps = attribute_docs(Scheme.__doc__ or "")
    rows = [(f"`{field.name}`", _value(getattr(scheme, field.name)), helps[field.name]) for field in fields(scheme)]
    return table(("", "", "meaning"), rows)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return ", ".join(f"`{item}`" for item in sorted(map(str, value))) or "none"
    return f"`{value}`"


def _rules(target: Target, overview: str) -> str:
    """The rules that the checker has for the target, with what the overview's table says of each."""
    told = dict(re.findall(r"^\| `([\w-]+)` \| (?:error|warning) \| (.*?) \|", overview, re.M))
    rules = rules_of(target)
    if missing := [rule.name for rule in rules if rule.name not in told]:
        raise ValueError(f"{_SOURCE} lacks rules of {target.name}: {', '.join(missing)}")
    return table(("rule", "severity", "what it asks"), [(f"`{r.name}`", r.severity, told[r.name]) for r in rules])
