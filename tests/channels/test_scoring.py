"""Errors along the order of removal against least squares on the samples themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.channels.applying import layers_of
from onnxcomp.channels.scoring import score_groups
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.graph.groups import find_groups

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Float = NDArray[np.float64]

rng = np.random.default_rng(6)
X = rng.standard_normal((40, 3, 5, 5)).astype(np.float32)
WEIGHTS = {"w": (6, 3, 1, 1), "b": (6,), "v": (4, 6, 2, 2), "o": (2, 4, 1, 1), "e": (5, 6, 1, 1), "f": (2, 5, 1, 1)}
ARRAYS = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in WEIGHTS.items()}
ONE = "g (float[N,3,5,5] x) => (float[N,4,4,4] y) { [w] u = Conv(x, w, b) r = Relu(u) [v] y = Conv(r, v) }"
TWO = """g (float[N,3,5,5] x) => (float[N,4,4,4] y, float[N,5,5,5] z) {
  [w] u = Conv(x, w, b) r = Relu(u) [v] y = Conv(r, v) [e] z = Conv(r, e) }"""


@pytest.fixture(autouse=True)
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are those on the samples at hand, however few: nothing is added for what was not seen."""
    monkeypatch.setattr("onnxcomp.channels.scoring._UNSEEN", 0.0, raising=False)


def model_of(parsed: Parsed, text: str) -> ir.Model:
    return parsed(text, **{name: array for name, array in ARRAYS.items() if f" {name})" in text or f" {name}," in text})


def patches() -> Float:
    """What the 2x2 convolution reads, (samples, 6 * 4)."""
    hidden = np.einsum("ncij,oc->noij", X, ARRAYS["w"][..., 0, 0]) + ARRAYS["b"][:, None, None]
    windows = np.lib.stride_tricks.sliding_window_view(np.maximum(hidden, 0), (2, 2), (2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 24).astype(np.float64)


def lost(gone: tuple[int, ...]) -> float:
    """Relative squared error of the best linear fit, with a bias, without some channels."""
    x = patches() - patches().mean(0)
    y = x @ ARRAYS["v"].reshape(4, -1).T
    left = x.reshape(len(x), 6, 4)[:, [k for k in range(6) if k not in gone]].reshape(len(x), -1)
    solution = np.linalg.lstsq(left, y, rcond=None)[0]
    return float(np.square(y - left @ solution).sum() / np.square(y).sum())


def test_errors_are_those_of_least_squares(parsed: Parsed, in_context: InContext) -> None:
    model = model_of(parsed, ONE)
    groups = find_groups(model)
    context = in_context(data=open_feeds({"x": X}, model))
    (own,) = score_groups(model, groups, layers_of(model), "obs", context).groups
    assert own.size == 6 and own.errors.shape == (1, 6) and own.errors[0, 0] == pytest.approx(0.0, abs=1e-9)
    (labels,) = (groups.writes[node] for node in groups.writes if node.outputs[0].name == "u")
    order = [labels.tolist().index(number) for number in own.order]
    for count in range(1, 6):  # noise that is assumed, and single precision, make a little more of it
        assert own.errors[0, count] == pytest.approx(lost(tuple(order[:count])), rel=0.05, abs=0.004)
    best = min(lost(some) for some in combinations(range(6), 2))
    assert lost(tuple(order[:2])) < 1.5 * best + 0.01
    assert lost(tuple(order[:1])) == pytest.approx(min(lost((k,)) for k in range(6)), rel=0.02)


@pytest.mark.parametrize("criterion", ["thinet", "he", "taylor", "l1", "l2"])
def test_other_orders_are_scored_in_the_same_way(parsed: Parsed, in_context: InContext, criterion: Any) -> None:
    model = model_of(parsed, ONE)
    groups = find_groups(model)
    context = in_context(data=open_feeds({"x": X}, model))
    (own,) = score_groups(model, groups, layers_of(model), criterion, context).groups
    assert sorted(own.order.tolist()) != [] and len(set(own.order.tolist())) == 5
    order = [int(number) - 1 for number in own.order]
    assert own.errors[0, 3] == pytest.approx(lost(tuple(order[:3])), rel=0.05, abs=0.004)
    if criterion in ("l1", "l2"):
        norm = np.abs(ARRAYS["w"][..., 0, 0]) ** (1 if criterion == "l1" else 2)
        assert order == np.argsort(norm.sum(1), kind="stable")[:5].tolist()


def test_every_reader_has_its_own_errors(parsed: Parsed, in_context: InContext) -> None:
    model = model_of(parsed, TWO)
    groups = find_groups(model)
    context = in_context(data=open_feeds({"x": X}, model))
    scores = score_groups(model, groups, layers_of(model), "auto", context)
    (own,) = scores.groups
    assert {probed.site.name for probed in scores.sites} == {"v", "e"}
    assert [site.name for site in own.readers] == ["v", "e"] and own.errors.shape == (2, 6)
    assert (np.diff(own.errors, axis=1) > -1e-9).all()
    order = [int(number) - 1 for number in own.order]
    assert own.errors[0, 2] == pytest.approx(lost(tuple(order[:2])), rel=0.05, abs=0.004)


def test_channels_that_nothing_reads_cost_nothing(parsed: Parsed, in_context: InContext) -> None:
    text = """g (float[N,3,5,5] x) => (float[N,2,5,5] y) {
      [w] u = Conv(x, w, b) s = Slice(u, one, four, one) [o] y = Conv(s, o) }"""
    given = {"one": np.array([1]), "four": np.array([5])}
    model = parsed(text, **{name: ARRAYS[name] for name in ("w", "b", "o")}, **given)
    groups = find_groups(model)
    for data in (None, open_feeds({"x": X}, model)):
        scores = score_groups(model, groups, layers_of(model), "auto", in_context(data=data))
        free = [own for own in scores.groups if not own.readers]
        assert [own.errors.shape for own in free] == [(0, own.size) for own in free]
        assert sum(own.size for own in free) == 2


def test_without_a_fit_errors_are_those_of_the_weights_that_are_left(parsed: Parsed, in_context: InContext) -> None:
    model = model_of(parsed, ONE)
    groups = find_groups(model)
    context = in_context(data=open_feeds({"x": X}, model))
    (own,) = score_groups(model, groups, layers_of(model), "taylor", context, refit=False).groups
    gone = [int(number) - 1 for number in own.order[:2]]
    x = patches() - patches().mean(0)
    weight = ARRAYS["v"].reshape(4, 6, 4).astype(np.float64)
    part = np.einsum("nkt,okt->no", x.reshape(len(x), 6, 4)[:, gone], weight[:, gone])
    whole = x @ weight.reshape(4, -1).T
    assert own.errors[0, 2] == pytest.approx(float(np.square(part).sum() / np.square(whole).sum()), rel=0.05, abs=0.004)
