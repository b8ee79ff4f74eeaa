"""Any channels of real models can be removed: what is left loads, runs and keeps its signature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.data import synthetic_feeds
from onnxcomp.graph.fold import canonicalise
from onnxcomp.graph.groups import Groups, find_groups
from onnxcomp.graph.shrinking import remove_classes
from onnxcomp.runtime.session import open_session, run

AnyRemoved = Callable[[Groups, int], NDArray[np.bool_]]
Blind = Callable[[Groups, NDArray[np.bool_]], None]

MODELS = Path(__file__).parents[3] / "shared" / "models"
SHAPES = {"silero_vad_16k": {"input": (1, 576), "state": (2, 1, 128)}}

# How many layers there are with weights, how many of them have channels to remove on either side, and how
# many classes there are.
LAYERS = {
    "fastestdet_coco": (70, 70, 1415),
    "deeplabv3_mnv2_dm05_pascal": (55, 55, 4692),
    "mobilenet_v2_100_224_imagenet": (53, 53, 9128),
    "mobilenet_v2_cifar10_int8_qop": (53, 0, 0),
    "yolox_nano_coco": (113, 113, 5472),
    "resnet20_bn_cifar10": (20, 20, 400),
    "silero_vad_16k": (6, 5, 385),
    "squeezenet1_1_imagenet": (26, 26, 2944),
    "ultraface_rfb320": (52, 52, 1716),
    "unet_sed": (13, 13, 368),
    "vit_pgd_2_3_16_cifar10": (14, 4, 192),
    "vnncomp_unet_upsample": (6, 6, 448),
    "vww_mobilenet_v1_025_96": (28, 28, 1496),
}

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not MODELS.is_dir(), reason="the real models of ../shared/models are not here"),
]


@pytest.mark.parametrize("name", LAYERS)
def test_what_no_layer_of_a_real_model_reads_can_go(name: str, any_removed: AnyRemoved, blind: Blind) -> None:
    model = modelio.load(MODELS / f"{name}.onnx")
    canonicalise(model)
    feed = synthetic_feeds(model, 0, 1, shapes=SHAPES.get(name)).first(1)
    groups = find_groups(model)
    sides = [*groups.reads.items(), *groups.writes.items(), *groups.channelwise.items()]
    assert LAYERS[name] == (
        len({node for node, _ in sides} | set(groups.reasons)),
        len({node for node, labels in sides if labels.any()}),
        groups.count,
    )
    removed = any_removed(groups, 1)
    blind(groups, removed)
    before = run(open_session(model, optimize="off"), feed)
    remove_classes(model, groups, removed)
    after = run(open_session(model, optimize="off"), feed)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-4 * max(np.abs(old).max(), 1e-3))
