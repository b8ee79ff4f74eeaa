"""What the error of a layer does to the outputs: read off a curve that was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.scoring import SiteScores, score_sites
from onnxcomp.allocation.sensitivity import Response, sensitivities
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.passes.lowrank import Lowrank
from onnxcomp.passes.tucker2 import Tucker2

InContext = Callable[..., Context]
Arrays = Mapping[str, NDArray[Any]]


def test_a_response_goes_through_its_points() -> None:
    response = Response(((0.001, 0.0001), (0.1, 0.01)))
    assert response(0.001) == pytest.approx(1e-4) and response(0.1) == pytest.approx(1e-2)
    assert response(0.01) == pytest.approx(1e-3)  # a power law between them
    assert response(0.2) == pytest.approx(0.02) and response(1e-5) == pytest.approx(1e-6)
    assert response(0.0) == 0.0 and Response()(0.3) == 0.3


@given(st.lists(st.tuples(st.floats(1e-6, 0.5), st.floats(1e-9, 10)), min_size=1, max_size=4), st.floats(1e-6, 0.7))
def test_more_error_is_no_less_loss(points: list[tuple[float, float]], error: float) -> None:
    errors = sorted({e for e, _ in points})
    losses = sorted(loss for _, loss in points)[: len(errors)]
    response = Response(tuple(zip(errors, losses, strict=True)))
    assert 0.0 <= response(error) <= response(1.5 * error) * (1 + 1e-9)


def _scores(model: ir.Model, context: Context) -> list[SiteScores]:
    sites = [s for s in weighted_sites(model, ("Conv", "Gemm")) if isinstance(s, Site)]
    return score_sites(model, sites, [Tucker2(), Lowrank()], context, 4)


def test_the_last_layer_is_the_output(stack: ir.Model, samples: Arrays, in_context: InContext) -> None:
    """Its error reaches the output as it is, but that the output counts with its mean; earlier ones fade or grow."""
    context = in_context(data=open_feeds(samples, stack), objective="macs")
    scores = _scores(stack, context)
    found = sensitivities(stack, scores, context)
    assert set(found) == {key_of(own.site) for own in scores}
    head = found["y"]
    assert 0.01 < head(0.01) / 0.01 <= 1.001
    assert all(response(0.01) > 0 for response in found.values())
    assert sensitivities(stack, scores, context) == found


def test_made_up_samples_stand_in_and_nothing_is_measured_without(
    stack: ir.Model, samples: Arrays, in_context: InContext
) -> None:
    nothing = in_context(objective="macs")
    scores = _scores(stack, nothing)
    assert sensitivities(stack, scores, nothing) == {}
    stand_in = in_context(objective="macs", stand_in=open_feeds(samples, stack))
    assert set(sensitivities(stack, scores, stand_in)) == {key_of(own.site) for own in scores}


def test_classes_alone_tell_nothing_of_errors(parsed: Callable[..., ir.Model], in_context: InContext) -> None:
    """A model that gives whole numbers seems to lose nothing: the layers' own errors count then."""
    rng = np.random.default_rng(0)
    text = """g (float[N,3,5,5] x) => (int64[N,1,5,5] y) {
      [u] u = Conv(x, w) r = Relu(u) [v] v = Conv(r, w2) y = ArgMax<axis=1>(v) }"""
    shapes = {"w": (8, 3, 1, 1), "w2": (4, 8, 1, 1)}
    model = parsed(text, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    data = open_feeds({"x": rng.standard_normal((8, 3, 5, 5)).astype(np.float32)}, model)
    context = in_context(data=data, objective="macs")
    assert sensitivities(model, _scores(model, context), context) == {}
