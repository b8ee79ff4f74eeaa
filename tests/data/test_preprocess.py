from __future__ import annotations

from pathlib import Path

import pytest

from onnxcomp.data import Preprocess
from onnxcomp.errors import DataError

IMAGENET = Preprocess(size=(224, 224), crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "text",
    [
        "size=224,crop=0.875,scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225",
        "size=224, crop=7/8, mean=[0.485, 0.456, 0.406], std=[0.229,0.224,0.225]",
        "size=224x224,crop=.875,mean=0.485:0.456:0.406,std=0.229 0.224 0.225,order=rgb,label_offset=0",
    ],
)
def test_every_way_to_write_a_list_means_the_same(text: str) -> None:
    parsed = Preprocess.parse(text)
    assert parsed.mean == IMAGENET.mean and parsed.std == IMAGENET.std
    assert (parsed.size, parsed.crop) == (IMAGENET.size, 0.875)
    assert parsed.scale == pytest.approx(1 / 255, rel=1e-15)


def test_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("size: [192, 256]\nscale: 1/127.5\nmean: 1\norder: BGR\nlayout: nhwc\nlabel_offset: 1\n")
    assert Preprocess.parse(str(path)) == Preprocess(
        size=(192, 256), scale=1 / 127.5, mean=(1.0,), order="bgr", layout="nhwc", label_offset=1
    )


def test_values_are_spread_over_the_channels() -> None:
    assert Preprocess(mean=(0.5,)).values("mean", 3) == (0.5, 0.5, 0.5)
    assert IMAGENET.values("std", 3) == IMAGENET.std
    with pytest.raises(DataError, match="mean has 3 values, but the model's images have 1 channels"):
        IMAGENET.values("mean", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("siez=224", r"unknown key 'siez'.*did you mean 'size'\?"),
        ("224", "'224' is not key=value"),
        ("", "not key=value"),
        ("size=224,size=225", "size is given twice"),
        ("size=big", "size=big must be a side"),
        ("size=1x2x3", "must be a side"),
        ("size=0", "size=0x0 must be positive"),
        ("crop=1.5", "crop=1.5 must be above 0 and at most 1"),
        ("crop=0", "must be above 0"),
        ("crop=0.5,0.6", "crop takes one number, not 2"),
        ("scale=1/0", "scale=1/0 is not a number"),
        ("scale=0", "scale not 0"),
        ("mean=nan", "not a number"),
        ("std=0", "std must be above 0"),
        ("std=0.2,x,0.1", "std=0.2 x 0.1 is not a number or a list of numbers"),
        ("mean=", "mean and std need at least one value"),
        ("order=rbg", "order=rbg must be one of rgb, bgr"),
        ("layout=chw", r"must be one of nchw, nhwc; did you mean 'nchw'\?"),
        ("label_offset=0.5", "must be a whole number"),
        ("nowhere.yaml", "cannot read nowhere.yaml"),
    ],
)
def test_what_does_not_parse(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Preprocess.parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"), [("[1, 2]", "must hold keys"), ("{a", "cannot read"), ("siz: 1", "siz")]
)
def test_broken_yaml(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.yml"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Preprocess.parse(str(path))


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        IMAGENET,
        Preprocess((192, 256), 1 / 3, 1e-05, (-1.5,), (1 / 7, 1e20, 3), "bgr", "nhwc", -1),
        Preprocess.parse("scale=1/127.5,mean=1"),
    ],
)
def test_its_text_reads_back_to_the_same(preprocess: Preprocess) -> None:
    assert Preprocess.parse(str(preprocess)) == preprocess


def test_its_text_says_every_value_that_is_set() -> None:
    expected = "size=224x224,crop=0.875,scale=0.00392156862745098,mean=0.485:0.456:0.406,std=0.229:0.224:0.225"
    assert str(IMAGENET) == f"{expected},order=rgb,label_offset=0"
