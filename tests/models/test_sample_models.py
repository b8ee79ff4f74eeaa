"""The sample models that the repository ships: they load, they are small, and they know their digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxcomp.data import Feeds, open_feeds, overlap

MODELS = Path(__file__).parents[2] / "models"
NAMES = ("digits_vgg", "digits_resnet")
LIMIT = 4 << 20


def opened(kind: str, name: str = "digits_vgg") -> Feeds:
    model = ir.load(MODELS / f"{name}.onnx")
    return open_feeds(MODELS / f"digits_{kind}.npz", model, need_labels=True)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_accuracy_is_over_97_percent(name: str) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(MODELS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    feeds = opened("eval", name)
    predicted = np.concatenate([np.asarray(session.run(None, dict(b))[0]).argmax(axis=1) for b in feeds.batches()])
    assert len(feeds) == 540
    assert (predicted == feeds.labels).mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_models_are_valid_small_and_named(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    assert path.stat().st_size < LIMIT
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    names = [n.name for n in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert [i.name for i in model.graph.input] == ["input"] and [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    kinds = {n.op_type for n in model.graph.node}
    assert ("BatchNormalization" in kinds) == (name == "digits_resnet")


def test_nothing_that_calibrates_is_evaluated_on() -> None:
    calibration, held_out = opened("calibration"), opened("eval")
    assert len(calibration) == 512
    assert overlap(calibration, held_out) == 0


@pytest.mark.parametrize("kind", ["calibration", "eval"])
def test_every_digit_is_there(kind: str) -> None:
    labels = opened(kind).require_labels()
    assert set(labels.tolist()) == set(range(10))
    assert np.bincount(labels).min() >= 30
    assert (MODELS / f"digits_{kind}.npz").stat().st_size < 1_500_000
