"""``onnxcomp schema``: the published schemas of what ``--json`` prints."""

from __future__ import annotations

import click

from onnxcomp.cli import talk

__all__ = ["schema"]


@click.command(short_help="Print the JSON Schema of a result, or list them.")
@click.argument("name", required=False)
@talk.common
def schema(name: str | None, as_json: bool, quiet: bool) -> None:
    """Print the JSON Schema NAME, such as 'report-2'; 'report' is the newest. Without NAME, list what is published."""
    from onnxcomp.report.schemas import load_schema, schema_names

    del quiet
    if name is not None:
        talk.print_json(load_schema(name))
        return
    found = [{"name": known, "title": load_schema(known)["title"]} for known in schema_names()]
    if as_json:
        talk.print_json(found)
        return
    for entry in found:
        print(f"{entry['name']:<16} {entry['title']}")
