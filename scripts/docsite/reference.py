"""Reference pages made of the code: the command line, the Python API, the JSON Schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from inspect import cleandoc, isfunction
from typing import Any

import click

import onnxcomp
from docsite.page import Page, table
from onnxcomp.cli.main import cli
from onnxcomp.report.schemas import load_schema, schema_names

__all__ = ["pages", "schema_files"]

_EXAMPLE = re.compile(r"^\x08\n((?:.+\n)+)", re.M)
_FOR_AUTHORS = ("onnxcomp.options.Bounds", "onnxcomp.graph.edit.Link", "onnxcomp.graph.sites.Site", "onnxcomp.testing")


def pages() -> Iterator[Page]:
    """The pages."""
    yield Page("cli.md", _command_line())
    yield Page("api.md", _interface())
    yield Page("schemas.md", _schemas())


def schema_files() -> Iterator[tuple[str, str]]:
    """The published schemas: where each lies on the site, and its text."""
    for name in schema_names():
        yield f"schemas/{name}.schema.json", json.dumps(load_schema(name), indent=2) + "\n"


def _fence_examples(command: click.Command) -> None:
    """Make blocks of code of what click is not to wrap, in the help of a command and of those below it."""
    command.help = _EXAMPLE.sub(r"```text\n\1```\n", cleandoc(command.help or "") + "\n")
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _fence_examples(inner)


def _command_line() -> str:
    _fence_examples(cli)
    return (
        "# Command line\n\nThe same as `onnxcomp COMMAND --help`.\n\n"
        "::: mkdocs-click\n    :module: onnxcomp.cli.main\n    :command: cli\n    :prog_name: onnxcomp\n"
        "    :depth: 1\n    :style: plain\n"
    )


def _interface() -> str:
    values = {name: getattr(onnxcomp, name) for name in onnxcomp.__all__}
    errors = [name for name, value in values.items() if isinstance(value, type) and issubclass(value, Exception)]
    functions = [name for name, value in values.items() if isfunction(value)]
    classes = [name for name in values if name not in errors and name not in functions]
    groups = {"Functions": functions, "Classes": classes, "Errors": errors}
    text = "# Python API\n\nEverything that `onnxcomp` exports. How it is used: [Python](python.md).\n"
    for heading, names in groups.items():
        text += f"\n## {heading}\n\n" + "\n\n".join(f"::: onnxcomp.{name}" for name in names) + "\n"
    text += "\n## For authors of passes\n\nWhat [a pass of your own](writing-a-pass.md) is written and tested with.\n\n"
    return text + "\n\n".join(f"::: {name}" for name in _FOR_AUTHORS) + "\n"


def _schemas() -> str:
    text = (
        "# JSON Schemas\n\nWhat commands print with `--json` and write as `.json`, for programs that read it "
        "(draft 2020-12). A document names its schema in the key `schema`: `onnxcomp.report/2` follows `report-2`. "
        "`onnxcomp schema report-2` prints one.\n"
    )
    for name in schema_names():
        schema, file = load_schema(name), f"{name}.schema.json"
        text += f"\n## {name}\n\n{schema['description']}\n\n[`{file}`](schemas/{file})\n\n{_keys(name, schema, schema)}"
        for inner, part in schema.get("$defs", {}).items():
            if "properties" in part:
                described = f"{part['description']}\n\n" if "description" in part else ""
                text += f"\n### {inner} {{ #{name}-{inner} }}\n\n{described}{_keys(name, schema, part)}"
    return text


def _keys(name: str, schema: dict[str, Any], part: dict[str, Any]) -> str:
    """The keys of an object that a schema describes."""
    required = set(part.get("required", ()))
    rows: list[tuple[str, str, str]] = []
    for key, value in part.get("properties", {}).items():
        target = schema.get("$defs", {}).get(str(value.get("$ref", "")).rsplit("/", 1)[-1], {})
        told = value.get("description", target.get("description", ""))
        rows.append((f"`{key}`", _type_of(name, schema, value), told if key in required else f"May be missing. {told}"))
    return table(("key", "type", "content"), rows) if rows else ""


def _type_of(name: str, schema: dict[str, Any], value: dict[str, Any]) -> str:
    """The type that a schema asks for, in a few words; objects that have a table of their own are linked to."""
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    if "$ref" in value:
        inner = str(value["$ref"]).rsplit("/", 1)[-1]
        return f"[{inner}](#{name}-{inner})" if "properties" in schema["$defs"][inner] else inner
    if alternatives := value.get("oneOf", value.get("anyOf")):
        return " or ".join(_type_of(name, schema, one) for one in alternatives)
    kind = value.get("type", "any")
    of = value.get("items", value.get("additionalProperties"))
    return (kind if isinstance(kind, str) else " or ".join(kind)) + (
        f" of {_type_of(name, schema, of)}" if isinstance(of, dict) else ""
    )
