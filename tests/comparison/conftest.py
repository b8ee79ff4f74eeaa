"""A network with everything that noise meets on its way: residual sums, a concatenation, a gate, a normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.data import Feeds, open_feeds

NET = """g (float[N,8,8,8] x) => (float[N,10] y) {
  [stem] s = Conv<pads=[1,1,1,1]>(x, ws, bs) [act] s1 = Relu(s)
  [left] l = Conv<pads=[1,1,1,1]>(s1, wl, bl) [norm] n = BatchNormalization(l, g, o, m, v) [act_l] l1 = Relu(n)
  [right] r = Conv<pads=[1,1,1,1]>(l1, wr, br) [join] j = Add(r, s1) [act_j] j1 = Relu(j)
  [deep] d = Conv<pads=[1,1,1,1], group=16>(j1, wd, bd) [act_d] d1 = Relu(d)
  [thin] t = Conv(d1, wt, bt) [again] a = Add(t, j1)
  [side] e = Conv(j1, we, be) [both] c = Concat<axis=1>(a, e)
  [gate] q = Conv(c, wq, bq) [squash] q1 = Sigmoid(q) [scale] k = Mul(c, q1)
  [last] z = Conv<pads=[1,1,1,1]>(k, wz, bz) [act_z] z1 = Relu(z)
  [pool] p = GlobalAveragePool(z1) [flat] f = Flatten(p) [head] y = Gemm<transB=1>(f, wh, bh) }"""
SHAPES = {
    "ws": (16, 8, 3, 3),
    "wl": (16, 16, 3, 3),
    "wr": (16, 16, 3, 3),
    "wd": (16, 1, 3, 3),
    "wt": (16, 16, 1, 1),
    "we": (8, 16, 1, 1),
    "wq": (24, 24, 1, 1),
    "wz": (24, 24, 3, 3),
    "wh": (10, 24),
}
Changed = Callable[..., ir.Model]


@pytest.fixture(scope="session")
def net(parsed: Any) -> ir.Model:
    """The network; its layers with weights are those with a bias."""
    rng = np.random.default_rng(4)
    arrays = {
        name: (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    for name, shape in SHAPES.items():
        arrays[f"b{name[1:]}"] = (0.3 + 0.1 * rng.standard_normal(shape[0])).astype(np.float32)
    arrays |= {name: rng.uniform(0.5, 1.5, 16).astype(np.float32) for name in "gomv"}
    model: ir.Model = parsed(NET, **arrays)
    return model


@pytest.fixture(scope="session")
def images() -> Any:
    """Inputs of the network, and its labels nobody reads."""
    return np.random.default_rng(5).standard_normal((24, 8, 8, 8)).astype(np.float32)


@pytest.fixture
def feeds(net: ir.Model, images: Any) -> Feeds:
    """The same as feeds."""
    return open_feeds({"x": images}, net)


@pytest.fixture(scope="session")
def quantized(net: ir.Model, images: Any) -> ir.Model:
    """The network in int8; not to be changed."""
    return onnxcomp.optimize(net, "int8", data={"x": images}, objective="size", target="ort-x86").model


@pytest.fixture(scope="session")
def changed() -> Changed:
    """A copy of a model with other constants."""

    def change(model: ir.Model, **arrays: Any) -> ir.Model:
        clone = model.clone()
        for name, array in arrays.items():
            clone.graph.initializers[name].const_value = ir.tensor(np.asarray(array, np.float32), name=name)
        return clone

    return change
