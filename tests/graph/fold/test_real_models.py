"""Real trained models come out with the same outputs, the same signature and no old opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.fold import fold

MODELS = Path(__file__).parents[4] / "shared" / "models"
FREE = {"sequence": 512}  # sizes of named dimensions; every other one is 2
NAMES = """deeplabv3_mnv2_dm05_pascal fastestdet_coco mnist_8 mobilenet_v1_050_160_imagenet
    mobilenet_v2_100_224_imagenet mobilenet_v2_cifar10_int8_qop resnet20_bn_cifar10 resnet20_cifar10
    resnet32_cifar10 resnet8_cifar10 silero_vad_16k squeezenet1_1_imagenet ultraface_rfb320 unet_sed
    vit_pgd_2_3_16_cifar10 vnncomp_unet_upsample vww_mobilenet_v1_025_96 yolox_nano_coco"""

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not MODELS.is_dir(), reason="the real models of ../shared/models are not here"),
]


def session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def feeds(target: ort.InferenceSession) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    drawn: dict[str, NDArray[np.generic]] = {}
    for port in target.get_inputs():
        shape = [d if isinstance(d, int) else FREE.get(d, 2) for d in port.shape]
        drawn[port.name] = np.array(16000) if port.name == "sr" else rng.standard_normal(shape).astype(np.float32)
    return drawn


def signature(target: ort.InferenceSession) -> list[tuple[str, str, list[int | str]]]:
    return [(port.name, port.type, port.shape) for port in (*target.get_inputs(), *target.get_outputs())]


@pytest.mark.parametrize("name", NAMES.split())
def test_outputs_stay(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    model = ir.load(path)
    names = {node.name for node in model.graph if node.name}
    fold(model)
    folded = ir.to_proto(model)
    onnx.checker.check_model(folded, full_check=True)
    assert model.opset_imports[""] >= 17
    assert {node.name for node in model.graph if node.name} <= names
    before, after = session(path.read_bytes()), session(folded.SerializeToString())
    assert signature(before) == signature(after)
    drawn = feeds(before)
    for a, b in zip(before.run(None, drawn), after.run(None, drawn), strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x)
    assert fold(model) == ()


def test_the_unfolded_export_becomes_the_folded_one() -> None:
    """The same network exported with BatchNormalization and size arithmetic, and without."""
    counts: list[int] = []
    for name in ("resnet20_bn_cifar10", "resnet20_cifar10"):
        model = ir.load(MODELS / f"{name}.onnx")
        fold(model)
        counts.append(len(model.graph))
    assert counts[0] == counts[1] == 56
