"""What the layers of the original model read, one after the other, for scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import onnx_ir as ir

from onnxcomp.calibration.frontier import Frontier, data_input, lifetimes
from onnxcomp.calibration.gram import PatchGram, site_gram
from onnxcomp.contract import Context
from onnxcomp.graph.products import rows_of
from onnxcomp.graph.sites import Site

__all__ = ["grams_of"]

# Patches a dimension: to rank candidates takes fewer than to fit the one that is chosen.
_PATCHES = 4
# Bytes of activations in memory; the Grams need the rest.
_MEMORY = 1 << 28


def grams_of(model: ir.Model, sites: Sequence[Site], context: Context) -> Iterator[tuple[Site, PatchGram]]:
    """Yield the patch statistics of each site's input, without targets; of ConvTranspose single positions are patches.

    Args:
        model: The original; not modified.
        sites: Some of its sites, in topological order.
        context: Of the run, with calibration data.
    """
    assert context.data is not None, "there is something to read"
    kinds = {site.kind for site in sites}
    alive = lifetimes(model.graph, lambda node: node.op_type in kinds)
    order = {node: index for index, node in enumerate(model.graph)}
    with closing(Frontier(model, alive, context.data, context.workdir, [_MEMORY])) as frontier:
        for site in sites:
            name = data_input(site.node)
            frontier.advance(order[site.node], [name])
            gram = site_gram(site, len(context.data), context.seed, a_dimension=_PATCHES)
            for batch in frontier.values(name):
                gram.update(rows_of(site, batch))
                if gram.full:
                    break
            yield site, gram
