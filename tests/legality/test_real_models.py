"""Trained models as they are: legal where they run; TensorRT refuses quantized operators and an opset of 2018."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcomp import modelio
from onnxcomp.legality.checker import check_model
from onnxcomp.targets.target import target_names

MODELS = Path(__file__).parents[3] / "shared" / "models"
OURS = Path(__file__).parents[2] / "models"
REFUSED = {("mobilenet_v2_cifar10_int8_qop", "tensorrt"), ("mnist_8", "tensorrt")}


def errors(path: Path, target: str) -> set[str]:
    return {finding.rule for finding in check_model(modelio.load(path), target) if finding.severity == "error"}


@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("name", ["digits_resnet", "digits_vgg"])
def test_the_samples_are_legal_everywhere(name: str, target: str) -> None:
    assert errors(OURS / f"{name}.onnx", target) == set()


@pytest.mark.realdata
@pytest.mark.parametrize("target", target_names())
def test_the_real_models_are_legal(target: str) -> None:
    found = sorted(MODELS.glob("*.onnx"))
    if not found:
        pytest.skip(f"needs the real models in {MODELS}")
    wrong = {(path.stem, target) for path in found if errors(path, target)}
    assert wrong == {pair for pair in REFUSED if pair[1] == target}
