"""One share of the weights for each layer, that all of them together keep a given share at the least loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.scoring import SiteScores, score_sites
from onnxcomp.allocation.sensitivity import Response, sensitivities
from onnxcomp.contract import Context
from onnxcomp.graph.fingerprint import model_fingerprint
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.allocation import allocate
from onnxcomp.options import spec_of

__all__ = ["shares_of"]

_PARTS = 10**6


def shares_of(
    model: ir.Model, sites: Sequence[Site], form: Offering, kept: float, context: Context, *, measured: bool
) -> dict[str, float]:
    """The share of its weights that each layer keeps.

    Args:
        model: The original; not modified.
        sites: Its layers, in topological order.
        form: The pass, with no amount given; the first rank of its settings is what they keep, in parts of a million.
        kept: Share of the weights of all sites together.
        context: The run's context.
        measured: Whether errors are weighed by what they do to the outputs of the model; else they count alike.

    Returns:
        Shares by the sites' keys; of a layer that has nothing to offer, the common one.
    """
    key = (model_fingerprint(model), spec_of(form), tuple(site.name for site in sites), measured)

    def make() -> tuple[list[SiteScores], dict[str, Response]]:
        scores = score_sites(model, sites, [form], context, 1)
        return scores, sensitivities(model, scores, context) if measured else {}

    scores, responses = context.memo.once(key, make)
    scores = [own for own in scores if own.offers]
    if not scores:
        return {}
    alike = Response()
    options = [[(1.0, 0.0), *((o.setting.ranks[0] / _PARTS, o.error) for o in own.offers)] for own in scores]
    sizes = [own.site.weight.size for own in scores]
    costs = [np.array([share * size for share, _ in some]) for some, size in zip(options, sizes, strict=True)]
    losses = [
        np.array([responses.get(key_of(own.site), alike)(error) for _, error in some])
        for own, some in zip(scores, options, strict=True)
    ]
    budget = kept * sum(sizes)
    picks = allocate(costs, losses, max(budget, float(sum(cost.min() for cost in costs))))
    assert picks is not None, "the cheapest options fit"
    taken = np.array([some[pick][0] for some, pick in zip(options, picks, strict=True)])
    return dict(zip((key_of(own.site) for own in scores), _filled(taken, np.array(sizes), budget), strict=True))


def _filled(shares: np.ndarray, sizes: np.ndarray, budget: float) -> list[float]:
    """The shares, moved by a common factor until they use the budget up; the menus are coarse."""
    for _ in range(20):
        total = float(shares @ sizes)
        if abs(total - budget) <= 1e-6 * budget:
            break
        free = (shares < 1.0) | (total > budget)
        fixed = float(shares[~free] @ sizes[~free])
        shares = np.where(free, np.minimum(shares * (budget - fixed) / (total - fixed), 1.0), shares)
    return [float(share) for share in shares]
