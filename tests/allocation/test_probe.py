"""Probes lose what they say, and about what is wanted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.allocation.probe import make_probes, probed_weight
from onnxcomp.allocation.problem import Problem
from onnxcomp.numeric.moments import Moments

Float = NDArray[np.float64]
Fading = Callable[..., NDArray[np.float32]]


def _patches(seed: int) -> Float:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4000, 36)) @ rng.standard_normal((36, 36)) / 6 + 2


def _problem(weight: Float, x: Float) -> Problem:
    moments = Moments(x.T @ x / len(x), x.mean(axis=0), len(x))
    return Problem(weight, moments.with_weight(weight, np.zeros(len(weight))))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_error_is_that_of_the_output(fading: Fading, groups: int) -> None:
    weights = [fading((24, 4, 3, 3), seed).astype(np.float64) for seed in range(groups)]
    patches = [_patches(seed) for seed in range(groups)]
    probes = make_probes([_problem(w, x) for w, x in zip(weights, patches, strict=True)])
    assert len(probes) >= 2 and [p.error for p in probes] == sorted((p.error for p in probes), reverse=True)
    for probe in probes:
        assert probe.bias is not None and probe.bias.shape == (24 * groups,)
        errors: list[float] = []
        biases = np.split(probe.bias, groups)
        for weight, new, bias, x in zip(weights, probed_weight(weights, probe), biases, patches, strict=True):
            y = x @ weight.reshape(24, -1).T
            got = x @ new.reshape(24, -1).T + bias
            errors.append(float(np.square(got - y).sum() / np.square(y - y.mean(axis=0)).sum()))
        assert probe.error == pytest.approx(np.mean(errors), rel=1e-6)
        assert 0 < probe.error <= 0.05


def test_without_data_the_weight_loses(fading: Fading) -> None:
    weight = fading((24, 4, 3, 3)).astype(np.float64)
    for probe in make_probes([Problem(weight, None)]):
        (new,) = probed_weight([weight], probe)
        assert probe.bias is None
        assert probe.error == pytest.approx(np.square(new - weight).sum() / np.square(weight).sum())


def test_no_probe_where_nothing_can_be_lost() -> None:
    assert make_probes([Problem(np.ones((1, 4, 3, 3)), None)]) == ()
    assert make_probes([Problem(np.zeros((8, 4, 3, 3)), None)]) == ()
    assert make_probes([_problem(np.ones((8, 36)).reshape(8, 4, 3, 3), np.ones((50, 36)))]) == ()
