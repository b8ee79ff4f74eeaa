"""A made-up report that has everything in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxcomp.contract import Change, FrontierPoint, Offer, PassReport, Sensitivity, Skip
from onnxcomp.cost import Cost
from onnxcomp.evaluate import Quality
from onnxcomp.layerwise import Layer
from onnxcomp.pipeline import PipelineReport, Snapshot, Step
from onnxcomp.runtime.fusion import NodeFate
from onnxcomp.runtime.timing import Speedup
from onnxcomp.subject import Subject

SPEEDUP = Speedup(2.0, 1.9, 2.1, 4.0, 2.0, 50)
BIG, SMALL = Cost(1000, 5_000_000, 4000), Cost(250, 1_000_000, 1000)
NONE = Cost(0, 0, 0)
HOSTILE = (
    """<script>alert("1")</script> |a| `b` **c** [d](http://e) \x1b[31m [red]f[/] &amp; @g #h\nnext \u202e"""
    """ </script><img src=x onerror='alert(2)'> {{ 7 * 6 }} %{x} <!-- <a href="javascript:alert(3)"> """ + "long" * 75
)


@pytest.fixture(scope="session")
def report() -> PipelineReport:
    """Two passes, one kept and one rolled back."""
    first = PassReport(
        (Change("conv1", "1x1 3x3 1x1", BIG, SMALL, 0.0123, 1.7, {"ranks": "8x8"}, {"note": "x"}),),
        (
            Skip("conv2", "does not pay: 0.9x"),
            Skip("conv3", "does not pay: 0.8x"),
            Skip("head", "not a convolution: Gemm"),
        ),
        ("two things to know",),
        (
            Sensitivity("conv2", 0.1, 10.0, 0.5, 1.5, 32),
            Sensitivity("conv1", 0.01, 20.0, 0.25, -0.25, 32),
            *(Sensitivity(f"small{i}", 0.0, float("inf"), 0.0, 0.0, 32) for i in range(10)),
        ),
    )
    second = PassReport(tuple(Change(f"conv{i}", "Conv on uint8", SMALL, SMALL) for i in range(60)))
    steps = (
        Step("tucker2(keep=0.5)", first, True, "", BIG, SMALL, SPEEDUP, 1.5),
        Step("int8", second, False, "slower: 0.80x of the speed before", SMALL, SMALL, None, 0.5),
    )
    fates = (
        NodeFate("conv1", "Conv", "QLinearConv", True, ""),
        NodeFate("head", "Gemm", "Gemm", False, "not quantized"),
    )
    return PipelineReport(
        version="0.1.0",
        recipe={"passes": ["tucker2(keep=0.5)", "int8"], "target": "ort-x86", "objective": "latency", "seed": 0},
        data="100 samples from x.npz",
        synthetic=False,
        folded=("conv1: absorbed bn1",),
        steps=steps,
        before=Snapshot(
            BIG, 1_000_000, 20, Quality(2000, 0.926, 0.99), operators={"Conv": 8, "Relu": 8, "Add": 2, "Constant": 2}
        ),
        after=Snapshot(
            SMALL,
            250_000,
            22,
            Quality(2000, 0.923, 0.99, 0.981, {"y": 31.25, "z": float("inf")}, {"y": 0.9991, "z": 1.0}),
            operators={"Conv": 12, "Relu": 8, "Add": 2},
        ),
        speedup=SPEEDUP,
        fates=fates,
        warnings=("only 5 calibration samples",),
        failures=("top-1 drops 0.30 points, more than the 0.1 allowed",),
        model=Subject(
            "x/net.onnx", "pytorch 2.4", 8, {"ai.onnx": 17}, {"x": "float32[N,3,8,8]"}, {"y": "float32[N,10]"}
        ),
        layers=(
            Layer("conv1", "Conv", BIG, SMALL, 3, ("tucker2",), 2.0, 1.0, 20.0),
            Layer("relu1", "Relu", NONE, NONE, 1, (), 0.25, 0.125, float("inf")),
            Layer("reshape", "Reshape", NONE, NONE, 1, ()),
        ),
    )


@pytest.fixture(scope="session")
def hostile(report: PipelineReport) -> PipelineReport:
    """The report with a name from hell in every place where names go."""
    step = report.steps[0]
    change = replace(step.report.changes[0], site=HOSTILE, summary=HOSTILE, facts={HOSTILE: HOSTILE})
    offers = tuple(Offer(HOSTILE, HOSTILE, 1, 1, 4, 0.5, 1.0, 0.1, 0.1, not why, why) for why in ("", HOSTILE))
    frontier = (FrontierPoint(2, 8, 2.0, 0.0, False), *(FrontierPoint(1, 4, 1.0, 0.1, own) for own in (True, False)))
    worse = PassReport((change,), (Skip(HOSTILE, HOSTILE),), (HOSTILE,), (), offers, frontier)
    fate = replace(report.fates[0], node=HOSTILE, reason=HOSTILE)
    return replace(
        report,
        steps=(replace(step, report=worse),),
        fates=(fate,),
        warnings=(HOSTILE,),
        failures=(HOSTILE,),
        folded=(HOSTILE,),
        data=HOSTILE,
        model=Subject(HOSTILE, HOSTILE, 8, {HOSTILE: 1}, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}),
        layers=tuple(replace(layer, name=HOSTILE, op_type=HOSTILE) for layer in report.layers),
    )
