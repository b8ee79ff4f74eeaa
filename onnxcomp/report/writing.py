"""Write a report to a file, in the form that its suffix asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.atomic import staging
from onnxcomp.errors import InputError
from onnxcomp.report.markdown import to_markdown
from onnxcomp.report.schema import report_document
from onnxcomp.report.webpage import to_html

if TYPE_CHECKING:
    from onnxcomp.pipeline import PipelineReport

__all__ = ["check_report_path", "write_report"]


def check_report_path(path: str | Path) -> None:
    """Raise InputError where no report could be written at the path; called before anything slow begins."""
    where = Path(path)
    if where.suffix.lower() not in _RENDERERS:
        raise InputError(f"--report {str(path)!r}: the name must end in {', '.join(_RENDERERS)}")
    if where.is_dir():
        raise InputError(f"--report {str(path)!r} is a folder; give a file name")
    if not where.parent.is_dir():
        raise InputError(f"--report {str(path)!r}: the folder {str(where.parent)!r} does not exist; create it first")


def write_report(report: PipelineReport, path: str | Path) -> None:
    """Write a report, atomically.

    Raises:
        InputError: The suffix is unknown or the folder does not exist.
        OutputError: The file cannot be written.
    """
    check_report_path(path)
    text = _RENDERERS[Path(path).suffix.lower()](report_document(report))
    with staging() as files:
        files.open(Path(path)).write(text.encode())


def _to_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


_RENDERERS = {".json": _to_json, ".md": to_markdown, ".html": to_html}
