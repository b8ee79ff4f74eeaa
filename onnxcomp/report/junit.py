"""A verdict as JUnit XML, which CI systems show as tests: every limit is a test case.

The form is that of Apache Ant's JUnit task as Jenkins, GitLab and GitHub's test reporters read it (testsuites,
testsuite, testcase, failure, error, system-out). What failed is a ``failure``, what could not be looked at an
``error``.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from onnxcomp.report.text import printable

__all__ = ["to_junit"]

Document = dict[str, Any]


def to_junit(document: Document) -> str:
    """Render what :func:`onnxcomp.report.checkview.check_document` returns."""
    lines = document["lines"]
    counts = {
        "tests": str(len(lines)),
        "failures": str(sum(line["verdict"] == "fail" for line in lines)),
        "errors": str(sum(line["verdict"] == "skipped" for line in lines)),
    }
    root = ElementTree.Element("testsuites", {"name": "onnxcomp check", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "onnxcomp check", "skipped": "0", **counts})
    for line in lines:
        _case(suite, line, document)
    ElementTree.indent(root)
    body: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _case(suite: ElementTree.Element, line: Document, document: Document) -> None:
    names = {"name": _clean(line["name"]), "classname": _clean(document["model"] or "model")}
    case = ElementTree.SubElement(suite, "testcase", names)
    told = f"asked: {line['limit']}; measured: {line['value']}"
    detail = [told, line["why"], *(f"at: {name}" for name in line["where"])]
    if line["name"] == "target":
        detail += [
            f"{f['severity']}: {f['node']}: {f['rule']}: {f['message']}; {f['remedy']}" for f in document["findings"]
        ]
    text = _clean("\n".join(part for part in detail if part))
    kind = {"fail": "failure", "skipped": "error"}.get(line["verdict"])
    if kind is None:
        ElementTree.SubElement(case, "system-out").text = f"{line['verdict']}: {text}"
    else:
        message = _clean(f"{line['value']}, {line['limit']}" if kind == "failure" else line["why"])
        ElementTree.SubElement(case, kind, {"message": message, "type": line["verdict"]}).text = text


def _clean(text: str) -> str:
    """Text that XML can hold: it has no way to write most control characters."""
    return printable(text)
