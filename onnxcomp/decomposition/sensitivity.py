"""How much of a layer's error reaches the outputs of the model, measured layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from onnxcomp.contract import Context
from onnxcomp.cost import model_cost
from onnxcomp.decomposition.probe import Probe
from onnxcomp.decomposition.scoring import SiteScores
from onnxcomp.graph.edit import Link, replace_by_chain
from onnxcomp.graph.sites import Site
from onnxcomp.sensitivity import compare_versions

__all__ = ["sensitivities"]

# Multiply-accumulates of all runs together: half a minute or so on one core.
_MACS = 10**12
_SAMPLES = 128
# Models that are held in memory at the same time.
_AT_ONCE = 4


def sensitivities(model: ir.Model, scores: Sequence[SiteScores], context: Context) -> dict[str, float]:
    """Return, by the name of a site, the relative error of the worst output for one of the site's own output.

    Each site in turn is replaced by its probe and the model is run on calibration samples (on made-up ones without).
    Evaluation data have no part in it. Sites without a probe have none.
    """
    feeds = context.data or context.stand_in
    if feeds is None:
        return {}
    cost = model_cost(model)
    affordable = _MACS // max(1, (cost.macs or cost.parameters) * len(scores))
    limit = int(min(_SAMPLES, max(affordable, 1)))
    found: dict[str, float] = {}
    probed = ((own.site, own.probe) for own in scores if own.probe is not None)
    while some := list(islice(probed, _AT_ONCE)):
        versions = {site.name: _probed(model, site, probe) for site, probe in some}
        measured = compare_versions(model, versions, feeds, limit, context.threads)
        errors = {own.site: own.error for own in measured}
        found.update({site.name: errors[site.name] / probe.error for site, probe in some})
    return found


def _probed(model: ir.Model, site: Site, probe: Probe) -> ir.Model:
    """A clone in which one site has the weight of its probe."""
    output = site.node.outputs[0].name
    clone = model.clone()
    node = next(n for n in _nodes(clone) if n.outputs and n.outputs[0].name == output)
    groups = [np.swapaxes(w, 0, 1) if site.geometry.transposed else w for w in probe.weight]
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


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph
