"""The operator lists that ONNX Runtime ships with its mobile tools, read where they are installed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from onnxcomp.errors import InputError

__all__ = ["COREML", "NNAPI", "supported_operators"]

NNAPI = "nnapi_supported_ops.md"
COREML = "coreml_supported_mlprogram_ops.md"  # the ML Program form; the older Neural Network form has fewer


def supported_operators(table: str) -> dict[str, str]:
    """Return the operators of a table, ``domain:type`` in lower case, each with the table's note about it.

    Raises:
        InputError: The installed onnxruntime has no such table, or it holds no operators.
    """
    return dict(_read(table))


@cache
def _read(table: str) -> tuple[tuple[str, str], ...]:
    # In lower case, and with the colon that a row of 1.31 lacks: the tables are kept by hand.
    rows: list[tuple[str, str]] = []
    for line in _content(table).splitlines():
        cells = line.strip().split("|")
        name = cells[1].strip().lower().replace("ai.onnx.", "ai.onnx:", 1) if len(cells) == 4 else ""
        if ":" in name:
            rows.append((name, cells[2].replace("<br/>", " ").strip()))
    if not rows:
        raise InputError(f"the list of operators {table} of the installed onnxruntime cannot be read: no table in it")
    return tuple(rows)


def _content(table: str) -> str:
    place = _folder() / table
    try:
        return place.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"the installed onnxruntime has no {table} among its tools, which lists what the provider can run; "
            "install the onnxruntime wheel from PyPI (1.22 or later)"
        ) from error


def _folder() -> Traversable:
    # Not files("onnxruntime.tools.mobile_helpers"): that would import the tools.
    return files("onnxruntime") / "tools" / "mobile_helpers"
