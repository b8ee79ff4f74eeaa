"""Write a result to a file, in the form that its suffix asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.atomic import staging
from onnxcomp.errors import InputError
from onnxcomp.report.schema import report_document
from onnxcomp.report.view import View, view

if TYPE_CHECKING:
    from onnxcomp.pipeline import PipelineReport

__all__ = ["check_report_path", "write_report", "write_view"]


def check_report_path(path: str | Path, reads: Iterable[str | Path] = ()) -> None:
    """Raise InputError where no report could be written at the path; called before anything slow begins.

    Args:
        path: Where the report will be.
        reads: Files that the command reads, which it must not write over.
    """
    where = Path(path)
    if where.suffix.lower() not in _RENDERERS:
        raise InputError(f"--report {str(path)!r}: the name must end in {', '.join(_RENDERERS)}")
    if where.is_dir():
        raise InputError(f"--report {str(path)!r} is a folder; give a file name")
    if not where.parent.is_dir():
        raise InputError(f"--report {str(path)!r}: the folder {str(where.parent)!r} does not exist; create it first")
    if any(where.resolve() == Path(read).resolve() for read in reads):
        raise InputError(f"--report {str(path)!r} would be written over what the command reads; give another name")


def write_report(report: PipelineReport, path: str | Path) -> None:
    """Write the report of a run, atomically (raises as `write_view`)."""
    document = report_document(report)
    write_view(document, view(document, full=True), path)


def write_view(document: dict[str, Any], shown: View, path: str | Path) -> None:
    """Write a result, atomically: the document itself as JSON, or the view of it as Markdown or HTML.

    Args:
        document: Plain data that ``json.dumps(..., allow_nan=False)`` accepts; its `version` is that of onnxcomp.
        shown: What a person reads of it.
        path: Where to; the suffix decides, .json, .md or .html.

    Raises:
        InputError: The suffix is unknown or the folder does not exist.
        OutputError: The file cannot be written.
    """
    check_report_path(path)
    text = _RENDERERS[Path(path).suffix.lower()](document, shown)
    with staging() as files:
        files.open(Path(path)).write(text.encode())


def _json(document: dict[str, Any], shown: View) -> str:
    del shown
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _markdown(document: dict[str, Any], shown: View) -> str:
    from onnxcomp.report.markdown import to_markdown

    return to_markdown(shown, document["version"])


def _html(document: dict[str, Any], shown: View) -> str:
    from onnxcomp.report.webpage import to_html

    return to_html(shown, document["version"])


_RENDERERS = {".json": _json, ".md": _markdown, ".html": _html}
