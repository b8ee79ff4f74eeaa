"""Where two models of one origin part: every output, every layer, and which layer adds how much of the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxcomp.comparison.attribution import affordable, measured_shares
from onnxcomp.comparison.channels import Adapter, Kept, kept_channels
from onnxcomp.comparison.equalized import scales
from onnxcomp.comparison.forced import cut_points
from onnxcomp.comparison.graphs import floats, typed, varying
from onnxcomp.comparison.matching import match, misfits
from onnxcomp.comparison.measuring import Measured, Subjects, fit_factors, measure
from onnxcomp.comparison.outputs import compare_outputs
from onnxcomp.comparison.reading import check_inputs, footprints
from onnxcomp.comparison.recipes import Step, own_steps, steps_between
from onnxcomp.comparison.result import ROUNDING, Comparison, LayerNoise, NotCompared
from onnxcomp.comparison.telling import Telling
from onnxcomp.comparison.tracing import shares
from onnxcomp.data import Feeds

__all__ = ["SAMPLES", "Comparison", "LayerNoise", "NotCompared", "compare_models"]

SAMPLES = 128
"""Layers are compared on so many samples unless the caller says otherwise."""
# Bytes of all tensors of the base in a batch that outputs are compared on; fewer are alive at a time.
_BYTES = 384 << 20


def compare_models(
    base: ir.Model,
    other: ir.Model,
    feeds: Feeds,
    *,
    samples: int | None = SAMPLES,
    attribute: int | None = None,
    threads: int = 1,
) -> Comparison:
    """Compare outputs and inner tensors, streaming: memory does not grow with the samples.

    Outputs are measured on the models as they are, over all samples. Inner tensors are read by making them outputs,
    which can keep the runtime from fusing an operator. What a layer adds is measured: the base runs a second time, with
    the tensors of the other model fed into each of its layers, and what the other model computes is compared with that.
    What of it arrives at the outputs is measured by letting the layers of the base give way to the other model's one
    after the other, on a few samples; where even that takes too long, it is estimated from the noise on the way.

    Args:
        base: The model to compare with.
        other: A model made from it; what passes of onnxcomp did to it is read from its metadata.
        feeds: The data, opened for `comparison.reading.check_inputs(base, other)`; labels are not read.
        samples: Layers are compared on at most that many samples; None: all.
        attribute: Shares are measured on so many samples; 0: they are estimated; None: as many as take some seconds.
        threads: Intra-op threads.

    Raises:
        InputError: The models have different inputs, or no output in common.
        DataError: There are no samples, or they do not fit a model.
        ModelError: ORT cannot run a model.
    """
    check_inputs(base, other)
    steps, own = steps_between(base, other), tuple(step.spec.name for step in own_steps(base, other))
    inferred = typed(base)
    sizes, cut = footprints(inferred, feeds)
    rows = max(1, _BYTES // max(1, sum(sizes.values()))) if cut else None
    outputs = compare_outputs(base, other, feeds, rows=rows, threads=threads)
    base, other = inferred, typed(other)
    matching = match(base, other)
    kept = kept_channels(base, steps)
    matching.drop(misfits(base, other, matching, {name: (axis, len(left)) for name, (axis, left) in kept.items()}))
    subjects = Subjects(base, other, matching.pairs, {}, feeds, sizes, cut, samples, threads)
    subjects = _adapted(subjects, kept, steps)
    alive = varying(base)
    values = list(floats(base, alive))
    ends = cut_points(values, matching.pairs, alive)
    measured = measure(subjects, [value.name or "" for value in values], {value.name or "" for value in ends})
    found, seen = _shares(subjects, measured, values, ends, attribute)
    told = Telling(subjects, matching, measured, ends, alive, steps, found)
    layers = tuple(told.layer(value) for value in values if told.compared(value))
    missing = tuple(told.missing(value) for value in values if not told.compared(value))
    comparison = Comparison(outputs, layers, missing, None, measured.samples, seen, own)
    return replace(comparison, fault=next(iter(comparison.ranked), None))


def _adapted(subjects: Subjects, kept: Kept, steps: Sequence[Step]) -> Subjects:
    """The same with adapters for channels that were removed or scaled."""
    adapters = {name: Adapter(axis, left) for name, (axis, left) in kept.items() if name in subjects.pairs}
    subjects = replace(subjects, adapters=adapters)
    factors = scales(subjects.base, steps)
    if factors is None:
        return subjects
    fit_factors(subjects, factors)
    settled = factors.settled(subjects.other, subjects.threads)
    ranks = {v.name: len(v.shape) for node in subjects.base.graph for v in node.outputs if v.shape is not None}
    for name in subjects.pairs:
        if name in factors.labels and name in ranks:
            adapter = adapters.get(name, Adapter())
            labels = factors.labels_of(name, ranks[name], adapter)
            adapters[name] = replace(adapter, factors=settled[labels])
    return subjects


def _shares(
    subjects: Subjects, measured: Measured, values: Sequence[ir.Value], ends: set[ir.Value], samples: int | None
) -> tuple[dict[str, float], int]:
    """Which share of the noise at the outputs each layer adds, and on how many samples that was measured."""
    sums, misfits = measured.sums, measured.misfits
    names = [value.name or "" for value in values if value in ends and value.name not in misfits]
    adding = {name for name in names if sums[name].added > ROUNDING}
    outputs = [value.name or "" for value in values if value.is_graph_output() and value.name in names]
    lost = any(sums[name].lost or sums[name].unknown for name in names)
    count = affordable(subjects, names, len(adding)) if samples is None else samples
    if adding and outputs and count and not lost:
        found = measured_shares(subjects, names, adding, outputs, count)
        if found:
            return found, min(count, measured.samples)
    return shares(subjects.base, sums, ends, ROUNDING), 0
