"""Refit the layers of a model that has lost channels or blocks, one after the other, to what the original computed.

The closed form of reconstruction (He, Zhang and Sun 2017, equation 4; asymmetric, so that each layer also repairs what
the layers before it have lost): with the inputs x that the rewritten model delivers and the outputs y of the original,
the weight minimises E|y - W x - b|^2 + lambda |W - W0|^2. The bias takes the means, so that what removed channels have
contributed on average stays (bias absorption).
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Problem, problems_of
from onnxcomp.calibration.beside import Beside, Kept
from onnxcomp.calibration.gram import PatchGram, site_gram
from onnxcomp.contract import Change, Context
from onnxcomp.graph.edit import names_of, replace_by_chain
from onnxcomp.graph.products import rows_of, weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.moments import predicted_error
from onnxcomp.numeric.refit import least_squares_target, remainder
from onnxcomp.pruning import Pruned, written

__all__ = ["recover"]

Float = NDArray[np.float64]

_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Pull towards the layer's own weight, in units of the mean power of an input.
_RIDGE = 0.01
# A relative squared error below this is rounding: the layer is what it was.
_EXACT = 1e-9


def recover(
    original: ir.Model, model: ir.Model, name: str, context: Context, kept: Kept | None = None
) -> tuple[Change, ...]:
    """Refit, in place, every layer whose output is no longer the original's.

    Args:
        original: The model as it was; values correspond by name.
        model: The rewritten model, with inferred shapes.
        name: Of the pass, for provenance.
        context: The run's context; without calibration data nothing is done.
        kept: Channels that are left of values, by name.

    Returns:
        One change a layer that was refitted, with the error that remains.
    """
    if context.data is None:
        return ()
    changes: list[Change] = []
    taken = names_of(model.graph)
    with closing(Beside(original, model, kept or {}, context.data, context.workdir, kinds=_KINDS)) as beside:
        for site in list(weighted_sites(model, _KINDS)):
            if not isinstance(site, Site) or site.geometry.transposed or context.excluded(site.name):
                continue
            fitted = _refitted(site, _gram(site, beside, context))
            if fitted is not None:
                replace_by_chain(site.node, written(site, fitted.rows, fitted.bias), name, taken)
                changes.append(Change(site.name, "refitted", site.cost, site.cost, fitted.error))
    return tuple(changes)


def _gram(site: Site, beside: Beside, context: Context) -> PatchGram:
    assert context.data is not None
    beside.advance(site)
    gram = site_gram(site, len(context.data), context.seed)
    for _, x, target in beside.batches(site):
        gram.update(rows_of(site, x), rows_of(site, target))
        if gram.full:
            break
    return gram


def _refitted(site: Site, gram: PatchGram) -> Pruned | None:
    """The layer with its new weight and bias, and its error; None where it is what it was."""
    if not gram.varies():
        return None
    problems = problems_of(site, gram)
    groups = len(problems)
    biases = np.split(np.zeros(site.channels_out) if site.bias is None else site.bias, groups)
    if all(_missed(problem, bias) < _EXACT for problem, bias in zip(problems, biases, strict=True)):
        return None
    biased = site.kind != "MatMul"
    fits = [_solved(problem, biased=biased) for problem in problems]
    bias = np.concatenate([own for _, own, _ in fits]).astype(np.float32) if biased else None
    return Pruned(np.concatenate([rows for rows, _, _ in fits]), bias, float(np.mean([error for *_, error in fits])))


def _missed(problem: Problem, bias: NDArray[np.floating]) -> float:
    """Relative squared error of the layer as it is."""
    assert problem.moments is not None, "there is a Gram"
    return predicted_error(problem.weight, bias, problem.moments)


def _solved(problem: Problem, *, biased: bool) -> tuple[Float, Float, float]:
    """Rows, bias and relative squared error of one group."""
    moments = problem.moments
    assert moments is not None, "there is a Gram"
    rows, _ = least_squares_target(moments, problem.weight.reshape(len(problem.weight), -1), _RIDGE, biased=biased)
    bias, error, power = remainder(moments, rows, biased=biased)
    return rows, bias, float(error.sum() / max(power.sum(), np.finfo(np.float64).tiny))
