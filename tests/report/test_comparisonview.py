"""What a person reads of a comparison, from documents alone."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import jsonschema
import pytest

from onnxcomp.compare import Comparison, LayerNoise, NotCompared
from onnxcomp.comparison.outputs import Flip, OutputNoise, Outputs
from onnxcomp.evaluate import Quality
from onnxcomp.report.comparison import comparison_document
from onnxcomp.report.comparisonview import comparison_view
from onnxcomp.report.schemas import load_schema


def layer(name: str, added: float | None, share: float, sqnr: float = 30.0, **fields: Any) -> LayerNoise:
    given: dict[str, Any] = {
        "tensor": f"{name}.out",
        "counterpart": f"{name}.out",
        "match": "name",
        "layer": name,
        "nodes": (),
        "other": name,
        "op_type": "Conv",
        "rewrites": ("tucker2(ranks=4x8)", "int8"),
        "channels": None,
        "rescaled": False,
        "sqnr": sqnr,
        "cosine": 0.999,
        "max_error": 0.1,
        "relative": 0.05,
        "bias": 0.0,
        "lost": 0,
        "unknown": 0,
    }
    given |= {"added": added, "share": share, **fields}
    return LayerNoise(**given)


def comparison(*layers: LayerNoise, outputs: tuple[OutputNoise, ...] | None = None, **fields: Any) -> Comparison:
    one = OutputNoise("y", "float32", 30.0, 0.999, 0.1, 0.05, 0.0)
    found = Outputs((one,) if outputs is None else outputs, {}, 200, 0.99, 2, (Flip(0.5, 7, 1, 2), Flip(0.1, 3, 0, -1)))
    ranked = Comparison(found, layers, (), None, 128, 16).ranked
    given: dict[str, Any] = {"missing": (), "fault": next(iter(ranked), None), "samples": 128, "attributed": 16}
    return Comparison(outputs=found, layers=layers, **{**given, **fields})


def document(found: Comparison, **fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"base": "a.onnx", "other": "b.onnx", "data": "200 samples", "synthetic": False}
    given |= {"version": "1", **fields}
    made = comparison_document(found, **given)
    jsonschema.validate(made, load_schema("comparison-2"))
    return made


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            comparison(layer("a", 1e-3, 0.6), layer("b", 1e-2, 0.4)),
            "outputs agree to 30.0 dB; a (tucker2(ranks=4x8), then int8) adds most, 60.0 % of the noise",
        ),
        (
            comparison(layer("a", 1e-3, 1.2, rewrites=()), layer("b", 1e-2, -0.2)),
            "outputs agree to 30.0 dB; a adds most, 120.0 % of the noise, some of which others make up for",
        ),
        (
            comparison(layer("a", 1e-3, 0.9), layer("b", inf, 0.1, sqnr=-inf, cosine=nan, rewrites=("fp16",))),
            "outputs agree to 30.0 dB; b (fp16) makes NaN or Inf of finite values",
        ),
        (
            comparison(layer("a", 0.0, 0.0), outputs=(OutputNoise("y", "float32", inf, 1.0, 0.0, 0.0, 0.0),)),
            "outputs are equal; no layer differs beyond rounding",
        ),
        (
            comparison(outputs=(OutputNoise("top", "int64", equal=0.75),)),
            "75.00 % of discrete elements are equal; no layer could be compared",
        ),
        (
            comparison(
                outputs=(OutputNoise("y", "float32", 40.0), OutputNoise("z", "float32", -inf, nan, lost=3)),
            ),
            "output 'z' is lost; no layer could be compared",
        ),
    ],
)
def test_the_verdict_comes_first(found: Comparison, line: str) -> None:
    if any(output.sqnr is not None and output.cosine is None for output in found.outputs.outputs):
        found = comparison(outputs=tuple(filled(output) for output in found.outputs.outputs))
    assert document(found)["headline"] == line
    made_up = document(found, synthetic=True)["headline"]
    assert made_up == f"no real data was used: {line}; give --data"


def filled(output: OutputNoise) -> OutputNoise:
    return OutputNoise(output.name, output.dtype, output.sqnr, 0.9, 0.1, 0.1, 0.0, None, output.lost)


def test_a_terminal_gets_the_first_and_a_file_all() -> None:
    layers = [layer(f"n{i}", 1e-3, 0.05) for i in range(20)]
    gone = tuple(NotCompared(f"t{i}", f"g{i}", "Relu", "no counterpart") for i in range(5))
    made = document(comparison(*layers, missing=gone))
    few, whole = comparison_view(made, 3), comparison_view(made, None)
    titles = {table.title: table for table in few.tables}
    ranked = titles["Layers by the error they add (3 of 20)"]
    assert [row[0] for row in ranked.rows] == ["n0", "n1", "n2"]
    assert titles["Not compared"].rows == (("no counterpart", "5", "g0, g1, g2 and 2 more"),)
    titles = {table.title: table for table in whole.tables}
    assert len(titles["Layers by the error they add"].rows) == len(titles["All compared tensors"].rows) == 20
    assert len(titles["Not compared"].rows) == 5
    assert titles["Layers by the error they add"].plot is not None
    assert (few.facts, whole.facts) == ((), (("base", "a.onnx"), ("other", "b.onnx")))
    assert len(titles["Samples of another class, the surest first"].rows) == 2


def test_accuracy_has_an_interval() -> None:
    quality = Quality(200, top1=0.9, drop_points=2.0, drop_low=2.0 - 1.645)
    made = document(comparison(layer("a", 1e-3, 1.0)), quality=quality)
    assert made["accuracy"] == pytest.approx(
        {"samples": 200, "base": 0.92, "other": 0.9, "drop_points": 2.0, "low": 0.04, "high": 3.96}
    )
    assert any("a drop of 2.00 points (0.04 to 3.96 with 95 %)" in note for note in comparison_view(made, 5).notes)


def test_what_to_be_warned_of() -> None:
    outputs = (OutputNoise("y", "float32", 30.0, 0.9, 0.1, 0.1, 0.0, None, 3, 4),)
    gone = tuple(NotCompared(f"t{i}", f"g{i}", "Relu", "no counterpart") for i in range(9))
    found = document(comparison(layer("a", 1e-3, 1.0), outputs=outputs, missing=gone, own=("prune", "int8")))
    own, unrelated, unknown, lost = found["warnings"]
    assert own.startswith("the base went through prune, int8 and the other model did not")
    assert unrelated.startswith("only 1 of 10 tensors of the base are in the other model")
    assert unknown == "output 'y' of the base holds 4 NaN or Inf; left out"
    assert lost == "output 'y' has 3 NaN or Inf where the base has numbers"
