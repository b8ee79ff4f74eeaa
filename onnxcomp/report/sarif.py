"""Breaches of a target's rules as SARIF 2.1.0, which code scanning shows beside the code.

OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0; GitHub reads the part that its documentation
"SARIF support for code scanning" lists. A model has no lines, so every result is at line 1 of the file, and the node is
its logical location.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxcomp.report.text import printable

__all__ = ["to_sarif"]

Document = dict[str, Any]

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(document: Document) -> str:
    """Render the findings of what :func:`onnxcomp.report.checkview.check_document` returns."""
    findings = document["findings"]
    ids = list(dict.fromkeys(finding["rule"] for finding in findings))
    first = {rule: next(finding for finding in findings if finding["rule"] == rule) for rule in ids}
    place = _place(document["model"])
    run = {
        "tool": {
            "driver": {
                "name": "onnxcomp",
                "version": document["version"],
                "rules": [_rule(first[rule], document["target"]) for rule in ids],
            }
        },
        "artifacts": [{"location": place, "roles": ["analysisTarget"]}],
        "columnKind": "utf16CodeUnits",
        "results": [_result(finding, ids.index(finding["rule"]), place) for finding in findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _rule(finding: Document, target: str) -> Document:
    what, remedy = printable(finding["message"]), printable(finding["remedy"])
    return {
        "id": finding["rule"],
        "shortDescription": {"text": f"A rule of {target}: {finding['rule']}"},
        "fullDescription": {"text": f"{what}; {remedy}"},
        "help": {"text": f"What to do: {remedy}"},
        "defaultConfiguration": {"level": finding["severity"]},
        "properties": {"tags": ["onnx", target]},
    }


def _result(finding: Document, index: int, place: Document) -> Document:
    node = printable(finding["node"])
    location: Document = {
        "physicalLocation": {"artifactLocation": {**place, "index": 0}, "region": {"startLine": 1, "startColumn": 1}}
    }
    if node:
        location["logicalLocations"] = [{"name": node, "fullyQualifiedName": node, "kind": "element"}]
    mark = sha256(f"{finding['rule']}\0{finding['node']}\0{finding['message']}".encode("utf-8", "replace")).hexdigest()
    where = f"{node}: " if node else ""
    return {
        "ruleId": finding["rule"],
        "ruleIndex": index,
        "level": finding["severity"],
        "message": {"text": f"{where}{printable(finding['message'])}; {printable(finding['remedy'])}"},
        "locations": [location],
        "partialFingerprints": {"onnxcomp/v1": mark},
    }


def _place(model: str) -> Document:
    """The file, relative to the folder that the check ran in where it lies inside of it."""
    if not model:
        return {"uri": "model.onnx"}
    path = Path(os.path.abspath(model))  # without .., which is no place in a repository
    try:
        return {"uri": quote(path.relative_to(Path.cwd()).as_posix()), "uriBaseId": "%SRCROOT%"}
    except ValueError:
        return {"uri": path.as_uri()}
