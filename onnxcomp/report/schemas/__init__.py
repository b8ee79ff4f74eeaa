"""The published JSON Schemas of what the commands print with ``--json`` and write as ``.json``.

One file a document and version, ``NAME-VERSION.schema.json`` (draft 2020-12); a document says which one it follows in
its key ``schema``: ``onnxcomp.report/2`` follows ``report-2``.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from onnxcomp.errors import InputError

__all__ = ["load_schema", "schema_names"]

_SUFFIX = ".schema.json"
_HERE = files("onnxcomp.report.schemas")


def schema_names() -> tuple[str, ...]:
    """Return the names of all published schemas, such as ``report-2``."""
    found = (entry.name for entry in _HERE.iterdir())
    return tuple(sorted((name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)), key=_order))


def load_schema(name: str) -> dict[str, Any]:
    """Return a published JSON Schema.

    Args:
        name: Such as ``report-2``; ``report`` is the newest of them, and what a document has in its key ``schema``,
            such as ``onnxcomp.report/2``, will do as well.

    Raises:
        InputError: There is none of that name.
    """
    names = schema_names()
    wanted = name.removeprefix("onnxcomp.").replace("/", "-")
    match = [known for known in names if wanted in (known, _order(known)[0])]
    if not match:
        raise InputError(f"no schema {name!r}; there are {', '.join(names)}")
    schema: dict[str, Any] = json.loads((_HERE / f"{match[-1]}{_SUFFIX}").read_text("utf-8"))
    return schema


def _order(name: str) -> tuple[str, int]:
    document, _, version = name.rpartition("-")
    return document, int(version)
