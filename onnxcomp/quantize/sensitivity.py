"""What each site alone does to the model's outputs, measured: one run over a few samples for each site.

The predicted error of a site's own output takes rounding for noise. But a global pooling averages noise away, and what
stays is systematic: a constant background that lies between two steps, weights that are rounded the same way. Where
sites are to be given back, that decides which, and is worth its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxcomp import progress
from onnxcomp.contract import Context, Sensitivity
from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds
from onnxcomp.quantize.fusing import Placement
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan
from onnxcomp.sensitivity import compare_versions

__all__ = ["sensitivities"]

Emit = Callable[[ir.Model, Plan, Mapping[str, Parameters]], None]

# Multiply-accumulates of all runs together: half a minute or so on one core.
_MACS = 10**12
_SAMPLES = 32
# A tenth of a point of accuracy takes many more samples than a decibel does.
_SCORED = 128
# Models that are held in memory at the same time.
_AT_ONCE = 4


def sensitivities(
    model: ir.Model,
    placement: Placement,
    parameters: Mapping[str, Parameters],
    emit: Emit,
    feeds: Feeds,
    context: Context,
) -> tuple[Sensitivity, ...]:
    """Return what quantizing each site with weights, and no other, does to the outputs; the worst site first.

    Args:
        model: The original, not modified.
        placement: Where it is quantized.
        parameters: Scale and zero point of every root of the whole placement.
        emit: Writes a plan with the given parameters into a model.
        feeds: Calibration data; at most 32 samples are read, fewer for large models.
        context: Its evaluation data, where there are any, take the place of `feeds`, with up to 128 samples: they are
            what a budget is judged on, and show as well what was fitted to the calibration data too closely.
    """
    whole = placement.of(model)
    known = {name: parameters[whole.root_of(tensor.value)] for name, tensor in whole.tensors.items()}
    sites = list(dict.fromkeys(w.site for w in whole.weighted))
    # Where shapes are unknown, a parameter is taken to count once.
    cost = model_cost(model)
    affordable = _MACS // max(1, (cost.macs or cost.parameters) * len(sites))
    read, most = (feeds, _SAMPLES) if context.scored is None else (context.scored, _SCORED)
    limit = min(most, max(1, affordable))
    found: list[Sensitivity] = []
    for some in progress.each([sites[i : i + _AT_ONCE] for i in range(0, len(sites), _AT_ONCE)], "probe layers"):
        models = [_alone(model, placement, site, known, emit) for site in some]
        found += compare_versions(model, dict(zip(some, models, strict=True)), read, limit, context.threads)
    return tuple(sorted(found, key=lambda own: (-own.error, own.site)))


def _alone(
    model: ir.Model, placement: Placement, site: str, parameters: Mapping[str, Parameters], emit: Emit
) -> ir.Model:
    """A clone in which only the nodes of one site are quantized."""
    copy = model.clone()
    plan = placement.of(copy, only=site)
    emit(copy, plan, {root: parameters[root] for root in plan.roots})
    return copy
