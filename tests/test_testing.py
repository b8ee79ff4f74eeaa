"""The checks for passes: they accept what holds, and fail on each thing that does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.contract import Change, Context, Pass, PassReport, Saves, Skip
from onnxcomp.cost import Cost
from onnxcomp.data import synthetic_feeds
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.testing import assert_preserves, assert_refuses, context, conv_model

NOTHING = Cost(0, 0, 0)
_RUNS: list[int] = []


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the weights of the convolution; damage what `damage` names."""

    name: ClassVar[str] = "scale"
    saves: ClassVar[Saves] = "nothing"

    factor: float = 1.0
    damage: str = ""

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Scale, damage, report."""
        if self.damage == "nothing done":
            return PassReport(skips=(Skip("conv", "not today"),))
        if self.damage == "needs data" and context.data is None:
            return PassReport(skips=(Skip("conv", "no data"),))
        weight = next(value for value in model.graph.initializers.values() if value.name == "w")
        assert weight.const_value is not None
        factor = self.factor
        if self.damage == "not deterministic":
            _RUNS.append(0)
            factor += 1e-7 * len(_RUNS)
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name="w")
        if self.damage == "signature":
            model.graph.outputs[0].name = "z"
        if self.damage == "hidden":
            return PassReport(skips=(Skip("conv", "left alone"),))
        both = self.damage == "both"
        return PassReport((Change("conv", "scaled", NOTHING, NOTHING),), (Skip("conv", "and not"),) if both else ())


def test_what_holds_passes_and_the_model_stays() -> None:
    model = conv_model()
    before = ir.to_proto(model).SerializeToString()
    report = assert_preserves(Scale(), model)
    assert [change.site for change in report.changes] == ["conv"]
    assert ir.to_proto(model).SerializeToString() == before


def test_the_tolerance_is_relative_to_the_output() -> None:
    assert_preserves(Scale(1.001), conv_model(), tolerance=1.1e-3)
    with pytest.raises(AssertionError, match=r"output 'y' is off by 0.001, more than 0.0009"):
        assert_preserves(Scale(1.001), conv_model(), tolerance=0.9e-3)
    with pytest.raises(AssertionError, match="output 'y' is off by inf"):
        assert_preserves(Scale(float("nan")), conv_model())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("nothing done", r"scale changed nothing \(conv: not today\)"),
        ("signature", "scale: the signature changed"),
        ("not deterministic", "a second run gave other bytes"),
    ],
)
def test_each_fault_is_found(damage: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert_preserves(Scale(damage=damage), conv_model())


def test_feeds_are_real_data_to_the_pass() -> None:
    model = conv_model()
    assert_preserves(Scale(damage="needs data"), model, synthetic_feeds(model, 1))
    with pytest.raises(AssertionError, match="no data"):
        assert_preserves(Scale(damage="needs data"), model)


def test_refusals() -> None:
    assert_refuses(Scale(damage="nothing done"), conv_model(), "conv", "today")
    for damage, site, words in (
        ("nothing done", "conv9", "did not skip 'conv9'"),
        ("", "conv", "did not skip 'conv'"),
        ("nothing done", "conv", "'tomorrow' is not in"),
    ):
        with pytest.raises(AssertionError, match=words):
            assert_refuses(Scale(damage=damage), conv_model(), site, "tomorrow")
    with pytest.raises(AssertionError, match="changed 'conv' and skipped it"):
        assert_refuses(Scale(damage="both"), conv_model(), "conv", "and not")
    with pytest.raises(AssertionError, match="reports no change, but the model is another one"):
        assert_refuses(Scale(2.0, damage="hidden"), conv_model(), "conv", "left alone")


def test_a_site_pass_runs_as_in_the_compiler() -> None:
    rng = np.random.default_rng(0)
    weight = np.einsum(
        "oa,abpq,bi->oipq", rng.normal(size=(64, 8)), rng.normal(size=(8, 8, 3, 3)), rng.normal(size=(8, 64))
    )
    (change,) = assert_preserves(Tucker2(ranks="8x8"), conv_model(weight, pads=[1, 1, 1, 1]), tolerance=1e-4).changes
    assert change.site == "conv"
    assert_refuses(Tucker2(), conv_model(np.ones((64, 64, 1, 1))), "conv", "1x1")


def test_the_model_and_the_context_are_as_asked(tmp_path: Path) -> None:
    model = conv_model(np.ones((4, 2, 3, 3)), np.zeros(4), name="stem", size=9, group=2, strides=[2, 2])
    (stem, relu) = model.graph
    assert (stem.name, stem.op_type, len(stem.inputs), relu.op_type) == ("stem", "Conv", 3, "Relu")
    assert str(model.graph.inputs[0].shape) == "[N,4,9,9]"
    assert stem.attributes.get_ints("strides", []) == (2, 2)
    given = context(tmp_path, seed=3)
    assert (given.workdir, given.objective, given.target.name, given.seed) == (tmp_path, "macs", "ort-x86", 3)
