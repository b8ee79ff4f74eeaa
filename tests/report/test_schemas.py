"""The published schemas, and documents of real runs held against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.cli.main import main
from onnxcomp.errors import InputError
from onnxcomp.pipeline import PipelineReport
from onnxcomp.recipe_yaml import from_yaml
from onnxcomp.report.schema import report_document
from onnxcomp.report.schemas import load_schema, schema_names

ROOT = Path(__file__).parents[2]
Arrays = Mapping[str, NDArray[Any]]
Document = dict[str, Any]


def problems(document: Document) -> list[str]:
    """What breaks the schema that a document says it follows, once it went through JSON."""
    validator = jsonschema.Draft202012Validator(load_schema(document["schema"]))
    again = json.loads(json.dumps(document, allow_nan=False))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(again)]


def parts(node: Any, path: str = "") -> Iterator[tuple[str, Document]]:
    """Every object that a schema describes, with where it stands."""
    if isinstance(node, dict):
        if "type" in node:
            yield path, node
        for key, item in node.items():
            yield from parts(item, f"{path}/{key}")
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from parts(item, f"{path}/{index}")


@pytest.mark.parametrize("name", schema_names())
def test_a_published_schema_is_one(name: str) -> None:
    schema = load_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].endswith(name) and schema["title"] and schema["description"]
    assert schema["properties"]["schema"]["const"] == f"onnxcomp.{name.replace('-', '/')}"
    for path, part in parts(schema):
        if part["type"] == "object" and "properties" in part:
            assert part["additionalProperties"] is False, path


def test_the_newest_of_a_name_and_what_a_document_says() -> None:
    assert load_schema("report") == load_schema("report-2") == load_schema("onnxcomp.report/2")
    with pytest.raises(InputError, match=r"no schema 'rapport'; there are .*report-2"):
        load_schema("rapport")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "report"]) == 0
    assert json.loads(capsys.readouterr().out) == load_schema("report-2")
    assert main(["schema"]) == 0
    assert "report-2         onnxcomp report, version 2" in capsys.readouterr().out.splitlines()
    assert main(["schema", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(schema_names())
    assert main(["schema", "nothing"]) == 2


def test_a_made_up_report(report: PipelineReport, hostile: PipelineReport) -> None:
    assert problems(report_document(report)) == []
    assert problems(report_document(hostile)) == []


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "decompose": ("decompose(macs=0.6),int8", {}),
    "prune": ("prune(channels=0.8)", {}),
    "pack": ("pack", {"objective": "size"}),
    "timed": ("tucker2(keep=0.5)", {"objective": "latency"}),
    "without data": ("int8", {"data": None}),
    "another target": ("int8", {"target": "tensorrt"}),
    "nothing to do": ("tucker2", {"exclude": ["*"]}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_document_of_a_run(stack: ir.Model, samples: Arrays, name: str) -> None:
    passes, options = RUNS[name]
    given: dict[str, Any] = {"objective": "macs", "data": samples, "layers": True}
    report = onnxcomp.optimize(stack, passes, **(given | options)).report
    document = report_document(report)
    assert problems(document) == []
    assert document["layers"]
    if name == "decompose":
        assert document["steps"][0]["offers"] and document["steps"][0]["frontier"]
    assert len(from_yaml(json.dumps(document)).replay or ()) == len(document["steps"])


def test_the_document_of_a_run_that_failed() -> None:
    path, data = ROOT / "models/digits_resnet.onnx", np.load(ROOT / "models/digits_calibration.npz")["input"][:64]
    report = onnxcomp.optimize(path, "fold", objective="macs", data={"input": data}, min_sqnr=200.0, layers=True).report
    document = report_document(report)
    assert problems(document) == [] and document["failures"]  # what canonicalisation rounds is enough
    assert document["model"]["inputs"] == {"input": "float32[N,1,32,32]"}
    assert document["before"]["operators"]["BatchNormalization"] == 9


def changed(document: Document, edit: Callable[[Document], object]) -> list[str]:
    copy = json.loads(json.dumps(document))
    edit(copy)
    return problems(copy)


def test_a_key_more_or_less_breaks_it(report: PipelineReport) -> None:
    document = report_document(report)
    edits: list[Callable[[Document], object]] = [
        lambda own: own.update(more=1),
        lambda own: own.pop("model"),
        lambda own: own["layers"][0].pop("sqnr"),
        lambda own: own["steps"][0]["changes"][0].update(more=1),
        lambda own: own["before"].pop("operators"),
        lambda own: own["before"].update(bytes="many"),
        lambda own: own["recipe"].update(unheard_of=1),
        lambda own: own["after"]["quality"].update(top1=99.0),
        lambda own: own.update(speedup={"ratio": "fast"}),
    ]
    for edit in edits:
        assert changed(document, edit)
