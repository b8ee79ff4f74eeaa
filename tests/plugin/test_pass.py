"""The pass of the third-party package, tested as its author would: with nothing but the checks that onnxcomp gives."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from onnxcomp.testing import assert_preserves, assert_refuses, conv_model


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package, imported from its source tree."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "src")
    yield importlib.import_module("onnxcomp_prune_demo")
    monkeypatch.delitem(sys.modules, "onnxcomp_prune_demo", raising=False)


def test_weights_that_are_zero_already_cost_nothing(demo: ModuleType) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3))
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.5)] = 0
    (change,) = assert_preserves(demo.SmallWeights(amount=0.4), conv_model(weight), tolerance=0).changes
    assert change.summary == "230 weights are zero"


def test_a_computed_weight_is_left_alone(demo: ModuleType) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1,2,8,8] x, float[2,2,3,3] w) => (float[1,2,6,6] y) {[conv] y = Conv(x, w)}"""
    assert_refuses(demo.SmallWeights(), ir.from_proto(parser.parse_model(text)), "conv", "not a constant")
