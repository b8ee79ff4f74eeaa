"""What quantizing a site adds to the error of its output, from statistics that calibration has at hand anyway.

Rounding is taken as noise without correlation to the signal. With x the input, y = W x + b the output (behind an
activation that vanished), D the weights' rounding error and n_x, n_y the expected squared rounding errors of a value of
x and y:

    error = (n_y + p (n_x |W_o|^2 + v_x |D_o|^2)) / E[y^2]

with mean squared norms over the rows o of W and D; v_x = E[x^2], or the variance of x where the bias makes up for D's
effect on the mean; p is the share of outputs that a Relu lets pass. In a chain of layers such relative errors add up,
so that they say which site costs most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import expected_error
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.quantize.weights import QuantizedWeight

__all__ = ["predicted_errors"]


def predicted_errors(
    plan: Plan,
    histograms: Mapping[str, Histogram],
    parameters: Mapping[str, Parameters],
    weight_of: Callable[[Weighted], QuantizedWeight],
    means_of: Callable[[ir.Node], Mapping[str, NDArray[np.float64]]],
) -> dict[ir.Node, float]:
    """Return for each integer node the relative squared error that it adds to its output (0: none).

    Operators that only move values add nothing.

    Args:
        plan: What is quantized; the model is still in floating point.
        histograms: Values of each root of the plan.
        parameters: Scale and zero point of each root.
        weight_of: The quantized weight of a node.
        means_of: Channel means of a node's inputs by tensor name, where its bias is corrected; empty where not.
    """
    noise = {
        root: expected_error(histogram, parameters[root].low, parameters[root].high)
        for root, histogram in histograms.items()
    }
    power = {root: _power(histogram) for root, histogram in histograms.items()}
    errors: dict[ir.Node, float] = {}
    for w in plan.weighted:
        data = w.node.inputs[0]
        source = plan.root_of(data)
        means = means_of(w.node).get((data.name if data is not None else None) or "")
        spread = power[source] - (0.0 if means is None else float(np.mean(np.square(means))))
        gain, loss = _row_norms(w, weight_of(w))
        added = noise[source] * gain + max(spread, 0.0) * loss
        results = plan.outputs.get(w.node)
        if results:
            root = plan.root_of(results[0])
            added = noise[root] + _passing(plan, root, histograms[root]) * added
            errors[w.node] = _ratio(added, power[root])
        else:
            errors[w.node] = _ratio(added, power[source] * gain)
    for other in plan.others:
        own = [v.name for v in plan.outputs.get(other.node, ()) if v.name and plan.root_of(v) == v.name]
        errors[other.node] = max((_ratio(noise[name], power[name]) for name in own), default=0.0)
    return errors


def _power(histogram: Histogram) -> float:
    """Mean square of all values, zeros included."""
    edges, mass = histogram.bins()
    if not mass.size:
        return 0.0
    squares = (edges[1:] ** 2 + edges[1:] * edges[:-1] + edges[:-1] ** 2) / 3
    return float(mass @ squares) / histogram.total


def _row_norms(w: Weighted, quantized: QuantizedWeight) -> tuple[float, float]:
    """Mean squared norm over the output channels of the weight, and of its rounding error."""
    assert w.weight.const_value is not None
    weight = w.weight.const_value.numpy()
    rounding = quantized.restored() - weight
    channels = max(weight.shape[w.axis], 1)
    return (
        float(np.sum(np.square(weight), dtype=np.float64)) / channels,
        float(np.sum(np.square(rounding), dtype=np.float64)) / channels,
    )


def _passing(plan: Plan, root: str, histogram: Histogram) -> float:
    limited = plan.tensors[root].limits.low == 0.0
    return 1 - histogram.zeros / histogram.total if limited else 1.0


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal > 0 else 0.0
