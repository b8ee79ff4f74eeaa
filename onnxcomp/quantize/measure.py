"""What each site alone does to the model's outputs, measured: one run over a few samples for each site.

The predicted error of a site's own output takes rounding for noise. But a global pooling averages noise away, and what
stays is systematic: a constant background that lies between two steps, weights that are rounded the same way. Where
sites are to be given back, that decides which, and is worth its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds
from onnxcomp.quantize.fusing import Placement
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan
from onnxcomp.quantize.trial import output_errors

__all__ = ["measured_errors"]

Emit = Callable[[ir.Model, Plan, Mapping[str, Parameters]], None]

_SAMPLES = 32
# Multiply-accumulates of all runs together: half a minute or so on one core.
_MACS = 10**12
# Models that are held in memory at the same time.
_AT_ONCE = 4


def measured_errors(
    model: ir.Model,
    placement: Placement,
    parameters: Mapping[str, Parameters],
    emit: Emit,
    feeds: Feeds,
    *,
    threads: int = 1,
) -> dict[str, float]:
    """Return for each site with weights the relative squared error of the worst output with only that site quantized.

    Args:
        model: The original, not modified.
        placement: Where it is quantized.
        parameters: Scale and zero point of every root of the whole placement.
        emit: Writes a plan with the given parameters into a model.
        feeds: The data; at most 32 samples are read, fewer for large models.
        threads: Intra-op threads.
    """
    whole = placement.of(model)
    known = {name: parameters[whole.root_of(tensor.value)] for name, tensor in whole.tensors.items()}
    sites = list(dict.fromkeys(w.site for w in whole.weighted))
    # Where shapes are unknown, a parameter is taken to count once.
    cost = model_cost(model)
    limit = max(1, min(_SAMPLES, _MACS // max(1, (cost.macs or cost.parameters) * len(sites))))
    errors: dict[str, float] = {}
    for start in range(0, len(sites), _AT_ONCE):
        some = sites[start : start + _AT_ONCE]
        models = [_alone(model, placement, site, known, emit) for site in some]
        errors |= zip(some, output_errors(model, models, feeds, limit=limit, threads=threads), strict=True)
    return errors


def _alone(
    model: ir.Model, placement: Placement, site: str, parameters: Mapping[str, Parameters], emit: Emit
) -> ir.Model:
    """A clone in which only the nodes of one site are quantized."""
    copy = model.clone()
    plan = placement.of(copy, only=site)
    emit(copy, plan, {root: parameters[root] for root in plan.roots})
    return copy
