"""The JSON schema and the headline."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from onnxcomp.evaluate import Quality
from onnxcomp.pipeline import PipelineReport
from onnxcomp.recipe import Recipe
from onnxcomp.recipe_yaml import from_yaml
from onnxcomp.report.schema import headline, plain, report_document


def test_the_document_is_json_with_all_keys(report: PipelineReport) -> None:
    document = json.loads(json.dumps(report_document(report), allow_nan=False))
    assert list(document) == [
        "schema",
        "version",
        "headline",
        "data",
        "synthetic",
        "model",
        "recipe",
        "before",
        "after",
        "speedup",
        "folded",
        "steps",
        "layers",
        "fates",
        "warnings",
        "failures",
    ]
    assert document["schema"] == "onnxcomp.report/2"
    assert document["before"]["macs"] == 5_000_000
    assert document["after"]["quality"]["sqnr"] == {"y": 31.25, "z": "inf"}
    assert document["speedup"]["ratio"] == 2.0
    step = document["steps"][0]
    assert (step["spec"], step["kept"], step["why"]) == ("tucker2(keep=0.5)", True, "")
    assert step["changes"][0]["site"] == "conv1"
    assert step["changes"][0]["choice"] == {"ranks": "8x8"}
    assert [skip["site"] for skip in step["skips"]] == ["conv2", "conv3", "head"]
    assert [(own["site"], own["sqnr"], own["kl"]) for own in step["sensitivity"]][:2] == [
        ("conv2", 10.0, 0.5),
        ("conv1", 20.0, 0.25),
    ]
    assert document["steps"][1]["sensitivity"] == [] and document["steps"][1]["changes"][0]["milder"] == {}
    assert document["steps"][1]["why"] == "slower: 0.80x of the speed before"
    assert document["fates"][0]["kernel"] == "QLinearConv"


def test_the_document_replays(report: PipelineReport) -> None:
    recipe = from_yaml(json.dumps(report_document(report)))
    assert isinstance(recipe, Recipe)
    assert recipe.replay == ({"conv1": {"ranks": "8x8"}}, {})
    assert [str(entry.spec) for entry in recipe.passes] == ["tucker2(keep=0.5)", "int8"]


def test_a_document_of_version_1_replays_as_well(report: PipelineReport) -> None:
    document = report_document(report)
    old = {key: value for key, value in document.items() if key not in ("model", "layers")}
    old["schema"] = "onnxcomp.report/1"
    assert from_yaml(json.dumps(old)) == from_yaml(json.dumps(document))


DRIFT = Quality(64, sqnr={"a": 40.0, "b": 20.0}, agreement=0.75)


@pytest.mark.parametrize(
    ("before", "after", "synthetic", "words"),
    [
        (Quality(9, 0.926), Quality(9, 0.923), False, "top-1 accuracy 92.60 % -> 92.30 % (-0.30 points) on 9 samples"),
        (
            Quality(9, 0.5),
            Quality(9, 0.625),
            True,
            "top-1 accuracy 50.00 % -> 62.50 % (+12.50 points) on 9 samples; no real data was used to calibrate",
        ),
        (None, None, True, "no real data was used to calibrate and accuracy is unknown; give --data and --eval"),
        (None, None, False, "accuracy was not measured; give --eval with labels"),
        (
            None,
            DRIFT,
            False,
            "accuracy was not measured (worst output SQNR 20.0 dB, same top-1 class for 75.00 %, 64 samples); "
            "give --eval with labels",
        ),
        (
            None,
            Quality(64, sqnr={"a": float("inf")}),
            False,
            "accuracy was not measured (outputs are equal, 64 samples); give --eval with labels",
        ),
        (
            None,
            Quality(64, sqnr={"a": float("inf")}, equal={"class": 0.5}),
            False,
            "accuracy was not measured (worst output SQNR exact, 64 samples); give --eval with labels",
        ),
    ],
)
def test_the_headline(
    report: PipelineReport, before: Quality | None, after: Quality | None, synthetic: bool, words: str
) -> None:
    changed = replace(
        report,
        before=replace(report.before, quality=before),
        after=replace(report.after, quality=after),
        synthetic=synthetic,
    )
    assert headline(changed) == words


def test_plain_values() -> None:
    assert plain({"a": (1, None, True, "x", np.float32(0.5), float("nan"))}) == {"a": [1, None, True, "x", 0.5, "nan"]}
    assert plain(np.int64(3)) == 3
