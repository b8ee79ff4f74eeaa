"""A made-up report that has everything in it."""

from __future__ import annotations

import pytest

from onnxcomp.contract import Change, PassReport, Sensitivity, Skip
from onnxcomp.cost import Cost
from onnxcomp.evaluate import Quality
from onnxcomp.pipeline import PipelineReport, Snapshot, Step
from onnxcomp.runtime.fusion import NodeFate
from onnxcomp.runtime.timing import Speedup

SPEEDUP = Speedup(2.0, 1.9, 2.1, 4.0, 2.0, 50)
BIG, SMALL = Cost(1000, 5_000_000, 4000), Cost(250, 1_000_000, 1000)


@pytest.fixture
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
        before=Snapshot(BIG, 1_000_000, 20, Quality(2000, 0.926, 0.99)),
        after=Snapshot(
            SMALL,
            250_000,
            22,
            Quality(2000, 0.923, 0.99, 0.981, {"y": 31.25, "z": float("inf")}, {"y": 0.9991, "z": 1.0}),
        ),
        speedup=SPEEDUP,
        fates=fates,
        warnings=("only 5 calibration samples",),
        failures=("top-1 drops 0.30 points, more than the 0.1 allowed",),
    )
