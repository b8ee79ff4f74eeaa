"""Weights with many zeros in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.cost import model_cost
from onnxcomp.graph.edit import ORIGIN, PASS
from onnxcomp.runtime.session import open_session, run
from onnxcomp.storage.zeros import STORE, stored, stored_size
from onnxcomp.targets.target import load_target
from onnxcomp.testing import conv_model

HOST = load_target("ort-x86")


def _sparse(shape: tuple[int, ...], amount: float) -> ir.Model:
    rng = np.random.default_rng(0)
    weight: NDArray[np.float64] = rng.standard_normal(shape) * (rng.random(shape) >= amount)
    model = conv_model(weight.astype(np.float32))
    next(iter(model.graph)).metadata_props[STORE] = "auto"
    return model


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (61, 31, 3, 3)], ids=["whole bytes", "a remainder"])
def test_the_file_shrinks_and_the_outputs_are_the_same_bits(shape: tuple[int, ...]) -> None:
    model = _sparse(shape, 0.8)
    small = stored(model, HOST)
    before, after = modelio.serialized_bytes(model), modelio.serialized_bytes(small)
    assert after < 0.3 * before
    assert after <= stored_size(int(np.prod(shape)), round(0.2 * np.prod(shape) * 1.03), 4) + 600
    x = np.random.default_rng(1).standard_normal((2, shape[1], 8, 8)).astype(np.float32)
    wanted, got = (run(open_session(m), {"x": x})[0] for m in (model, small))
    np.testing.assert_array_equal(got, wanted)
    assert model_cost(small).macs == model_cost(model).macs


def test_the_runtime_sees_a_plain_convolution(tmp_path: Path) -> None:
    dump = tmp_path / "loaded.onnx"
    open_session(stored(_sparse((64, 32, 3, 3), 0.8), HOST), dump=dump)
    assert {node.op_type for node in ir.load(dump).graph} <= {
        "Conv",
        "FusedConv",
        "Relu",
        "ReorderInput",
        "ReorderOutput",
    }


def test_what_decodes_says_where_it_came_from() -> None:
    small = stored(_sparse((64, 32, 3, 3), 0.8), HOST)
    decoders = [node for node in small.graph if node.op_type not in ("Conv", "Relu")]
    assert {node.metadata_props[ORIGIN] for node in decoders} == {"conv"}
    assert {node.metadata_props[PASS] for node in decoders} == {"sparsity"}


@pytest.mark.parametrize("target", ["tensorrt", "coreml"])
def test_other_runtimes_get_dense_weights(target: str) -> None:
    model = _sparse((64, 32, 3, 3), 0.8)
    assert stored(model, load_target(target)) is model


def test_nothing_is_done_where_it_gains_nothing_or_was_not_asked_for() -> None:
    dense, small = _sparse((64, 32, 3, 3), 0.0), _sparse((8, 4, 3, 3), 0.8)
    assert stored(dense, HOST) is dense
    assert stored(small, HOST) is small
    unmarked = _sparse((64, 32, 3, 3), 0.8)
    del next(iter(unmarked.graph)).metadata_props[STORE]
    assert stored(unmarked, HOST) is unmarked
