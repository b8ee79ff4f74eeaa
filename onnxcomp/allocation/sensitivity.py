"""How much of a layer's error reaches the outputs of the model, measured layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log

import numpy as np
import onnx_ir as ir

from onnxcomp import progress
from onnxcomp.allocation.probe import Probe, probed_weight
from onnxcomp.allocation.problem import key_of, problems_of
from onnxcomp.allocation.scoring import SiteScores
from onnxcomp.contract import Context
from onnxcomp.cost import model_cost
from onnxcomp.graph.edit import Link, replace_by_chain
from onnxcomp.graph.sites import Site
from onnxcomp.sensitivity import compare_versions

__all__ = ["Response", "gives_floats", "sensitivities"]

# Multiply-accumulates of all runs together: half a minute or so on one core.
_MACS = 10**12
_SAMPLES = 128
# Models that are held in memory at the same time.
_AT_ONCE = 4
_NONE, _LOST = 1e-9, 1e3


@dataclass(frozen=True, slots=True)
class Response:
    """What an error of a layer's output does to the worst output of the model, both as relative squared errors.

    Attributes:
        points: What was measured, (error of the layer, error of the output), rising in both; empty: taken to be equal.
    """

    points: tuple[tuple[float, float], ...] = ()

    def __call__(self, error: float) -> float:
        """The error of the output: between points along a power law, outside in proportion."""
        if error <= 0.0 or not self.points:
            return error
        errors, losses = (np.array(values) for values in zip(*self.points, strict=True))
        at = min(max(error, errors[0]), errors[-1])
        return float(exp(np.interp(log(at), np.log(errors), np.log(losses))) * error / at)


def sensitivities(model: ir.Model, scores: Sequence[SiteScores], context: Context) -> dict[str, Response]:
    """Return, by the key of a site, what its errors do to the outputs.

    Each site in turn is replaced by its probes and the model is run on calibration samples (on made-up ones without).
    Evaluation data have no part in it. Nothing is known of models without an output of floats, on which errors show.
    """
    feeds = context.data or context.stand_in
    if feeds is None or not gives_floats(model):
        return {}
    cost = model_cost(model)
    probes = [(own.site, probe) for own in scores for probe in own.probes]
    affordable = _MACS // max(1, (cost.macs or cost.parameters) * len(probes))
    limit = int(min(_SAMPLES, max(affordable, 1)))
    found: dict[str, list[tuple[float, float]]] = {}
    for some in progress.each([probes[i : i + _AT_ONCE] for i in range(0, len(probes), _AT_ONCE)], "probe layers"):
        versions = {str(i): _probed(model, *pair) for i, pair in enumerate(some)}
        measured = compare_versions(model, versions, feeds, limit, context.threads)
        for (site, probe), own in zip(some, measured, strict=True):
            loss = min(max(own.error, _NONE), _LOST) if isfinite(own.error) else _LOST
            found.setdefault(key_of(site), []).append((probe.error, loss))
    return {name: _rising(points) for name, points in found.items()}


def gives_floats(model: ir.Model) -> bool:
    """Whether an output is computed that tells how large an error is, and not only whether there is one."""
    return any(value.dtype == ir.DataType.FLOAT and value.producer() is not None for value in model.graph.outputs)


def _rising(points: Sequence[tuple[float, float]]) -> Response:
    """Sorted, and no loss below that of a smaller error."""
    ordered = sorted(points)
    losses = np.maximum.accumulate([loss for _, loss in ordered]).tolist()
    return Response(tuple((error, loss) for (error, _), loss in zip(ordered, losses, strict=True)))


def _probed(model: ir.Model, site: Site, probe: Probe) -> ir.Model:
    """A clone in which one site has the weight of its probe."""
    output = site.node.outputs[0].name
    clone = model.clone()
    node = next(n for n in clone.graph if n.outputs and n.outputs[0].name == output)
    weights = probed_weight([problem.weight for problem in problems_of(site, None)], probe)
    groups = [np.swapaxes(w, 0, 1) if site.geometry.transposed else w for w in weights]
    weight = np.concatenate(groups).astype(np.float32)
    bias = site.bias if probe.bias is None else probe.bias.astype(np.float32)
    constants = (weight,) if bias is None else (weight, bias)
    if site.kind in ("Conv", "ConvTranspose"):
        links = [Link("probe", site.kind, constants, site.geometry.attributes())]
    else:
        links = [Link("probe", "MatMul", (np.ascontiguousarray(weight[..., 0].T),))]
        if bias is not None:
            links.append(Link("bias", "Add", (bias,)))
    replace_by_chain(node, links, "probe")
    return clone
