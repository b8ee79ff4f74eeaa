"""The verdict of check as document, view, JUnit XML, Markdown and SARIF."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp import modelio
from onnxcomp.gate.checking import check
from onnxcomp.report.checkview import check_document, check_view
from onnxcomp.report.junit import to_junit
from onnxcomp.report.markdown import to_markdown
from onnxcomp.report.sarif import to_sarif
from onnxcomp.report.schemas import load_schema

Parsed = Callable[..., ir.Model]
Document = dict[str, Any]
EVIL = "no<de>\x1b[31m|`*&\x00"


@pytest.fixture
def document(parsed: Parsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Document:
    """Of a model that fails two limits of four, and whose node has a name that means harm."""
    scale, zero = np.array(0.1, np.float32), np.array(128, np.uint8)
    text = "agraph (float[1,4] x) => (uint8[1,4] y) { h = Relu(x) y = QuantizeLinear(h, s, z) }"
    model = parsed(text, s=scale, z=zero)
    model.graph[1].name = EVIL
    monkeypatch.chdir(tmp_path)
    modelio.save(model, "my model.onnx")
    report = check(
        "my model.onnx", against="my model.onnx", target="tensorrt", max_params=1, max_size="1KB", max_macs=1
    )
    return check_document(report)


def errors(document: Document) -> list[str]:
    validator = jsonschema.Draft202012Validator(load_schema("check-2"))
    return [error.message for error in validator.iter_errors(json.loads(json.dumps(document, allow_nan=False)))]


def test_the_document_follows_its_schema(document: Document, parsed: Parsed) -> None:
    assert errors(document) == []
    assert document["passed"] is False
    small = parsed("agraph (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    data = {"x": np.ones((2, 4), np.float32)}
    assert errors(check_document(check(small, against=small, data=data, min_sqnr=1, max_size=1, max_macs=0))) == []


def holes(document: Document) -> Iterator[Document]:
    """The document with each key left out, and with one more in each object."""
    for key in document:
        yield {name: value for name, value in document.items() if name != key}
    yield {**document, "more": 1}
    for place in ("lines", "findings"):
        for key in document[place][0]:
            twin = deepcopy(document)
            del twin[place][0][key]
            yield twin
        twin = deepcopy(document)
        twin[place][0]["more"] = 1
        yield twin


def test_a_key_more_or_less_breaks_the_schema(document: Document) -> None:
    assert all(errors(broken) for broken in holes(document))


def test_what_failed_comes_first(document: Document) -> None:
    verdicts = [line["verdict"] for line in document["lines"]]
    assert verdicts == ["fail", "fail", "pass", "pass", "pass"]
    shown = check_view(document)
    assert shown.headline == "failed: 2 of 5: target, max_params"
    assert [row[0] for row in shown.tables[0].rows][:2] == ["target", "max_params"]
    assert shown.tables[1].title == "Findings"


def test_junit_has_a_case_a_limit(document: Document) -> None:
    document["lines"][1]["verdict"] = "skipped"
    root = ElementTree.fromstring(to_junit(document))
    assert (root.tag, root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == (
        "testsuites",
        "5",
        "1",
        "1",
    )
    (suite,) = root
    assert (suite.tag, suite.attrib["tests"]) == ("testsuite", "5")
    assert {"name", "tests", "failures", "errors", "skipped"} <= set(suite.attrib)
    cases = list(suite)
    assert [case.tag for case in cases] == ["testcase"] * 5
    assert [case.attrib["name"] for case in cases] == [line["name"] for line in document["lines"]]
    assert all(case.attrib["classname"] == "my model.onnx" for case in cases)
    kinds = [child.tag for case in cases for child in case]
    assert kinds == ["failure", "error", "system-out", "system-out", "system-out"]
    failure = cases[0][0]
    assert failure.attrib["type"] == "fail"
    assert failure.attrib["message"]
    assert "trt-" in (failure.text or "")
    assert "no<de>\\x1b[31m" in (failure.text or "")


def test_sarif_holds_the_findings(document: Document) -> None:
    log = json.loads(to_sarif(document))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver, results = run["tool"]["driver"], run["results"]
    assert driver["name"] == "onnxcomp"
    assert len(results) == len(document["findings"]) > 0
    for rule in driver["rules"]:
        assert rule["id"] and rule["shortDescription"]["text"] and rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning")
    assert run["artifacts"][0]["location"]["uri"] == "my%20model.onnx"
    marks = set()
    for result, finding in zip(results, document["findings"], strict=True):
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == finding["rule"]
        assert result["level"] == finding["severity"]
        assert finding["remedy"] in result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["artifactLocation"] == {"uri": "my%20model.onnx", "uriBaseId": "%SRCROOT%", "index": 0}
        assert place["region"]["startLine"] == 1
        named = [place["fullyQualifiedName"] for place in location.get("logicalLocations", [])]
        assert len(named) == bool(finding["node"])
        marks |= set(result["partialFingerprints"].values())
    assert len(marks) == len(results)
    assert to_sarif({**document, "findings": []}).count('"results": []') == 1
    elsewhere = json.loads(to_sarif({**document, "model": "/elsewhere/m.onnx"}))
    assert elsewhere["runs"][0]["artifacts"][0]["location"]["uri"] == "file:///elsewhere/m.onnx"


def test_markdown_is_a_table_that_no_name_breaks(document: Document) -> None:
    text = to_markdown(check_view(document), document["version"])
    assert text.startswith("**failed: 2 of 5: target, max\\_params**")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| limit | asked | measured | verdict | why |"
    assert "| max\\_params | at most 1 | 2 | fail |" in text
    assert "\x1b" not in text
    assert "<de>" not in text
