"""A page for each pass: what its class says, and what docs/passes.md knows of it beside.

The options of a page are those of the class, with types; the tables in docs/passes.md, which a test holds against the
class, are left out for them. Links to sections of docs/passes.md lead to the page that has the section.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docsite.page import Page, read, split_docstring, table
from onnxcomp.contract import Pass, SitePass
from onnxcomp.options import describe
from onnxcomp.registry import available, load_pass

__all__ = ["pages", "pass_names"]

_SOURCE = "docs/passes.md"
_SAVES = {
    "latency": "time: under `--objective latency` it is kept where the model gets faster",
    "bytes": "bytes: it is kept where the file shrinks and the model is not slower",
    "nothing": "nothing by itself",
}
_OPTION_ROW = re.compile(r"^\|.*\n", re.M)


def pass_names() -> list[str]:
    """The passes of this package."""
    return [name for name, entry in available().items() if entry.value.startswith("onnxcomp.passes.")]


def pages() -> Iterator[Page]:
    """The overview and a page for each pass."""
    intro, *sections = re.split(r"^(?=## )", read(_SOURCE), flags=re.M)
    rest = {_name_of(text): text for text in sections}
    names = pass_names()
    if unknown := rest.keys() - set(names):
        raise ValueError(f"{_SOURCE} has sections of no pass: {', '.join(sorted(unknown))}")
    yield Page("passes/index.md", intro, _SOURCE)
    for name in names:
        yield Page(f"passes/{name}.md", _page(name, load_pass(name), rest.get(name, "")), _SOURCE)


def _name_of(text: str) -> str:
    """The pass that a section is about: its heading, or the one whose options it lists."""
    heading = text.split("\n", 1)[0].removeprefix("## ")
    listed = re.search(r"^### Options of `(\w+)`$", text, re.M)
    return listed.group(1) if listed and " " in heading else heading


def _page(name: str, loaded: type[Pass], notes: str) -> str:
    summary, prose, sources = split_docstring(loaded.__doc__)
    heading, _, notes = notes.partition("\n")
    before, options, after = _around_options(notes, name)
    parts = [f"# {name}\n\n{summary}\n", _facts(loaded), prose]
    parts += [f"## Options of `{name}`\n", _options(loaded), options]
    title = heading.removeprefix("## ")
    parts += [f"## {'In use' if title == name else title}\n", before, after] if (before + after).strip() else []
    parts += [f"## Sources\n\n{sources}\n"] if sources else []
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _around_options(notes: str, name: str) -> tuple[str, str, str]:
    """What a section has before its options, beside the table of options, and behind them; headings one level up."""
    before, found, rest = notes.partition(f"### Options of `{name}`\n")
    if not found:
        raise ValueError(f"{_SOURCE} has no options of {name}")
    options, heading, after = rest.partition("\n### ")
    beside = "" if options.strip() == "None." else _OPTION_ROW.sub("", options + "\n")
    return before.replace("\n### ", "\n## "), beside, (heading + after).replace("\n### ", "\n## ")


def _facts(loaded: type[Pass]) -> str:
    rows = [("works on", "the model as a whole")]
    if issubclass(loaded, SitePass):
        operators = ", ".join(f"`{kind}`" for kind in loaded.kinds)
        rows = [("works on", "single layers, each by itself"), ("operators", operators)]
    rows.append(("saves", _SAVES[loaded.saves]))
    rows.append(("in the terminal", f"`onnxcomp passes {loaded.name}`"))
    return table(("", ""), rows)


def _options(loaded: type[Pass]) -> str:
    options = describe(loaded)
    if not options:
        return "None."
    rows = [(f"`{o.name}`", o.type, "required" if o.default is None else f"`{o.default}`", o.help) for o in options]
    text = table(("option", "values", "default", "meaning"), rows)
    known = [option.name for option in options]
    for group in loaded.alternatives:
        names = ", ".join(f"`{name}`" for name in known if name in group)
        text += f"\nOne at a time: {names}.\n"
    return text
