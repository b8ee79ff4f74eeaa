"""Every real trained model goes through the main pipeline without data: smaller, valid, its signature kept."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp import modelio
from onnxcomp.data import synthetic_feeds

MODELS = Path(__file__).parents[2] / "shared" / "models"
PIPELINE = "tucker2,int8"
SHAPES = {"silero_vad_16k": {"input": (1, 576), "state": (2, 1, 128)}}

# Least SQNR in dB of the worst output, on synthetic samples of another seed than the calibration's.
LEAST = 10.0
HARD = {
    # The last convolution sees a single frame: the weights alone do not tell that two of its three taps meet only
    # padding, so a fit without data spends its rank on them. The outputs are finite and no more is promised.
    "silero_vad_16k": None,
    "yolox_nano_coco": 5.0,  # depthwise layers of wide range under SiLU
}
NAMES = (
    "fastestdet_coco",
    "mnist_8",
    "mobilenet_v1_050_160_imagenet",
    "mobilenet_v2_100_224_imagenet",
    "resnet20_bn_cifar10",
    "resnet20_cifar10",
    "resnet32_cifar10",
    "resnet8_cifar10",
    "silero_vad_16k",
    "squeezenet1_1_imagenet",
    "ultraface_rfb320",
    "unet_sed",
    "vgg16_cifar10",
    "vit_pgd_2_3_16_cifar10",
    "vnncomp_unet_upsample",
    "vww_mobilenet_v1_025_96",
)
SLOW = ("deeplabv3_mnv2_dm05_pascal", "yolox_nano_coco")  # large inputs: over ten seconds each

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not MODELS.is_dir(), reason="the real models of ../shared/models are not here"),
]


def model_path(name: str, folder: Path) -> Path:
    """The model's file; VGG16 is stored in half precision and comes out of its own script."""
    if name != "vgg16_cifar10":
        return MODELS / f"{name}.onnx"
    build = runpy.run_path(str(MODELS / "expand.py"))["build"]
    path = folder / f"{name}.onnx"
    with np.load(MODELS / "vgg16_cifar10_fp16.npz") as weights:
        onnx.save(build(weights), path)
    return path


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def signature(of: ort.InferenceSession) -> list[tuple[str, str, list[int | str]]]:
    return [(port.name, port.type, port.shape) for port in (*of.get_inputs(), *of.get_outputs())]


def outputs(of: ort.InferenceSession, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [np.asarray(output) for output in of.run(None, feed)]


def sqnr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    a, b = reference.astype(np.float64), other.astype(np.float64)
    noise = float(((a - b) ** 2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10((a**2).sum() / noise))


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_model_comes_out_smaller_and_whole(name: str, tmp_path: Path) -> None:
    path, out = model_path(name, tmp_path), tmp_path / "out.onnx"
    shapes = SHAPES.get(name)
    result = onnxcomp.optimize(path, PIPELINE, objective="macs", shapes=shapes)
    result.save(out)

    assert result.report.synthetic
    assert result.report.steps[-1].kept and result.report.steps[-1].report.changes
    onnx.checker.check_model(str(out), full_check=True)
    assert out.stat().st_size < 0.75 * path.stat().st_size
    before, after = session(path), session(out)
    assert signature(before) == signature(after)
    for feed in synthetic_feeds(modelio.load(path), 1, 2, shapes=shapes).batches():
        for old, new in zip(outputs(before, feed), outputs(after, feed), strict=True):
            assert old.shape == new.shape and old.dtype == new.dtype
            assert np.isfinite(new).all()
            least = HARD.get(name, LEAST)
            assert least is None or sqnr(old, new) > least


def test_a_quantized_model_stays_as_it_is(tmp_path: Path) -> None:
    path, out = MODELS / "mobilenet_v2_cifar10_int8_qop.onnx", tmp_path / "out.onnx"
    result = onnxcomp.optimize(path, PIPELINE, objective="macs")
    result.save(out)
    assert not any(step.report.changes for step in result.report.steps)
    before, after = session(path), session(out)
    assert signature(before) == signature(after)
    feed = synthetic_feeds(modelio.load(path), 1, 1).first(1)
    for old, new in zip(outputs(before, feed), outputs(after, feed), strict=True):
        np.testing.assert_array_equal(old, new)
