from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.fold import Log

Build = Callable[..., ir.Model]
Check = Callable[..., Log]


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


W = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
HEAD = "g (float[N,3,8,9] x) => (float[N,2,H,V] y)"


@pytest.mark.parametrize(
    ("conv", "pads", "expected"),
    [
        ("<strides=[2,1]>", (0, 0, 1, 2, 0, 0, 3, 0), [1, 2, 3, 0]),
        ("<pads=[1,1,0,2]>", (0, 0, 0, 1, 0, 0, 1, 0), [1, 2, 1, 2]),
        ('<auto_pad="VALID">', (0, 0, 1, 1, 0, 0, 1, 1), [1, 1, 1, 1]),
        ('<auto_pad="SAME_UPPER", strides=[2,2]>', (0, 0, 0, 0, 0, 0, 2, 2), [0, 1, 3, 3]),
        ("", (0, 0, 5, 5, 0, 0, 5, 5), [5, 5, 5, 5]),
    ],
)
def test_zero_pad_into_conv(build: Build, check: Check, conv: str, pads: tuple[int, ...], expected: list[int]) -> None:
    model = build(f"{HEAD} {{ [pad] p = Pad(x, k) [conv] y = Conv{conv}(p, w) }}", k=ints(*pads), w=W)
    log = check(model)
    (node,) = model.graph
    assert log.rewrites[0].summary == "absorbed Pad pad" and node.name == "conv"
    assert list(node.attributes.get_ints("pads", ())) == expected


def test_axes_and_value_as_inputs(build: Build, check: Check) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> ' + HEAD + " { p = Pad(x, k, zero, axes) y = Conv(p, w) }"
    check(model := build(text, k=ints(1, 2), zero=np.array(0, np.float32), axes=ints(-1), w=W))
    assert [list(n.attributes.get_ints("pads", ())) for n in model.graph] == [[0, 1, 0, 2]]


def test_one_pad_for_two_convs_and_a_pad_of_a_pad(build: Build, check: Check) -> None:
    model = build(
        HEAD[:-1] + ", float[N,2,A,B] z) { q = Pad(x, k) p = Pad(q, k) y = Conv(p, w) z = Conv<strides=[2,2]>(p, w) }",
        k=ints(0, 0, 1, 1, 0, 0, 1, 1),
        w=W,
    )
    check(model)
    assert [(n.op_type, list(n.attributes.get_ints("pads", ()))) for n in model.graph] == [("Conv", [2] * 4)] * 2


def test_a_pad_that_is_read_elsewhere_stays_for_the_others(build: Build, check: Check) -> None:
    model = build(
        "g (float[N,3,8,9] x) => (float[N,2,H,V] y, float[N,3,A,B] p) { p = Pad(x, k) y = Conv(p, w) }",
        k=ints(0, 0, 1, 1, 0, 0, 1, 1),
        w=W,
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["Pad", "Conv"]
    assert model.graph.node(1).inputs[0] is model.graph.inputs[0]


@pytest.mark.parametrize(
    ("pad", "extra"),
    [
        ('Pad<mode="reflect">(x, k)', {}),
        ("Pad(x, one_k)", {"one_k": ints(0, 0, 1, 1, 0, 0, -1, 1)}),
        ("Pad(x, channels)", {"channels": ints(0, 1, 0, 0, 0, 0, 0, 0)}),
        ("Pad(x, k, one)", {"one": np.array(1, np.float32)}),
    ],
)
def test_other_pads_stay(build: Build, check: Check, pad: str, extra: dict[str, NDArray[Any]]) -> None:
    weight = np.ones((2, 4, 3, 3), np.float32) if "channels" in extra else W
    model = build(f"{HEAD} {{ p = {pad} y = Conv(p, w) }}", k=ints(0, 0, 1, 1, 0, 0, 1, 1), w=weight, **extra)
    log = check(model)
    assert [n.op_type for n in model.graph] == ["Pad", "Conv"] and not log.rewrites


def test_same_padding_of_an_unknown_size_stays(build: Build, check: Check) -> None:
    model = build(
        'g (float[1,3,H,V] x) => (float[1,2,A,B] y) { p = Pad(x, k) y = Conv<auto_pad="SAME_UPPER">(p, w) }',
        k=ints(0, 0, 1, 1, 0, 0, 1, 1),
        w=W,
    )
    check(model, free=(6, 7))
    assert [n.op_type for n in model.graph] == ["Pad", "Conv"]


POOLS = [
    ("kernel_shape=[3,3]", True),
    ("kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1", True),
    ("kernel_shape=[3,3], strides=[2,2]", True),
    ("kernel_shape=[3,3], pads=[1,1,1,1]", False),
    ("kernel_shape=[3,3], strides=[2,2], ceil_mode=1", False),
    ("kernel_shape=[1,1]", False),
    ('kernel_shape=[3,3], auto_pad="SAME_UPPER"', False),
]


@pytest.mark.parametrize(("attributes", "absorbed"), POOLS)
def test_average_pool(build: Build, check: Check, attributes: str, absorbed: bool) -> None:
    model = build(
        f"g (float[N,3,8,9] x) => (float[N,3,H,V] y) {{ p = Pad(x, k) [pool] y = AveragePool<{attributes}>(p) }}",
        k=ints(0, 0, 1, 1, 0, 0, 1, 1),
    )
    check(model)
    assert [n.op_type for n in model.graph] == (["AveragePool"] if absorbed else ["Pad", "AveragePool"])
