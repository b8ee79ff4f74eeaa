"""What int8 has to know of a model's tensors: which ones, from the data or from a statistics file.

All tensors that the scheme of any target may quantize are observed together, whatever the target of the run: so one
calibration serves every target, and statistics give the very same ranges as the data they were taken from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.extremes import collect_extremes
from onnxcomp.calibration.ranges import collect_histograms, collect_means
from onnxcomp.calibration.statsfile import Statistics, TensorStatistics
from onnxcomp.contract import Context
from onnxcomp.data import Feeds
from onnxcomp.data.inputs import model_inputs
from onnxcomp.errors import DataError, InputError, OptionError
from onnxcomp.graph.fingerprint import fingerprints, model_fingerprint, structures
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.watch import watched
from onnxcomp.quantize.weighted import WEIGHTED
from onnxcomp.targets.target import load_target, target_names

__all__ = ["MEAN_SAMPLES", "Observed", "gather", "observable", "observe"]

MEAN_SAMPLES = 64
"""Means settle much sooner than ranges do: they are taken over that many samples at most."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What is known of the tensors of a plan, and where from.

    Attributes:
        histograms: Of every root of the plan and every other tensor that some target quantizes, by name.
        means: Channel means, float64 [C], of the inputs of convolutions and Gemms, by name.
        feeds: Data to compare alternatives on; None where there are only statistics.
        synthetic: Whether the data were made up.
        samples: Number of samples behind the histograms.
        notes: What the report should say of it.
    """

    histograms: Mapping[str, Histogram]
    means: Mapping[str, NDArray[np.float64]]
    feeds: Feeds | None
    synthetic: bool
    samples: int
    notes: tuple[str, ...] = ()


def observe(
    model: ir.Model, plan: Plan, context: Context, *, samples: int | None = None, extremes: bool = False
) -> Observed:
    """Return what is known of the tensors of a plan: from the context's statistics, and from its data for the rest.

    Args:
        model: The model that `plan` was made for.
        plan: Where it is quantized.
        context: Statistics and data of the run.
        samples: Calibrate on at most that many samples; None: on all.
        extremes: Only the least and greatest values have to be those of all samples: faster.

    Raises:
        InputError: The statistics lack a tensor and there are no data.
        OptionError: `samples` is given with statistics, which have a number of their own.
        DataError: There are neither statistics nor data, or the data do not fit.
    """
    if context.statistics is not None:
        return _from_statistics(model, plan, context, context.statistics, samples)
    feeds = _feeds(model, context)
    names = _merged(model, plan)
    collect = _collect_extremes if extremes else _collect
    key = ("observed", model_fingerprint(model), tuple(names), samples, extremes)
    found = context.memo.once(key, lambda: collect(model, names, feeds, context.threads, samples))
    count = min(len(feeds), samples or len(feeds))
    return Observed(_histograms(found), _means(found), feeds, feeds.synthetic, count)


def gather(model: ir.Model, feeds: Feeds, *, threads: int = 1, samples: int | None = None) -> Statistics:
    """Calibrate once, for all targets: run the data through the model and keep what int8 reads of it.

    Args:
        model: A canonical model; not modified.
        feeds: The data.
        threads: Intra-op threads.
        samples: At most that many samples; None: all.

    Raises:
        InputError: The model has nothing that any target would quantize.
        DataError: The data do not fit, or a tensor holds NaN or infinite values on them.
    """
    names = observable(model)
    if not names:
        raise InputError("no target would quantize anything in this model: there is nothing to calibrate")
    seen, watch = watched(model, names)
    found = _collect(model, names, feeds, threads, samples)
    prints = fingerprints(seen)
    keys = {name: prints[watched_name] for name, watched_name in watch.items()}
    return Statistics(
        model=model_fingerprint(model),
        samples=min(len(feeds), samples or len(feeds)),
        data=feeds.describe(),
        names={keys[name]: name for name in found},
        tensors={keys[name]: entry for name, entry in found.items()},
    )


def observable(model: ir.Model) -> list[str]:
    """Names of the tensors that the scheme of some target may quantize, in graph order.

    These are the roots of every target's placement, and what nodes with weights read.
    """
    wanted: set[str] = set()
    for name in target_names():
        scheme = load_target(name).scheme
        if scheme is None:
            continue
        plan = place(model, scheme, close=lambda node: True)
        read = (w.node.inputs[0] for w in plan.weighted)
        wanted.update([*plan.roots, *(v.name for v in read if v is not None and v.name)])
    values = [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
    return [v.name for v in values if v.name in wanted and v.name]


def _from_statistics(
    model: ir.Model, plan: Plan, context: Context, statistics: Statistics, samples: int | None
) -> Observed:
    if samples is not None and samples != statistics.samples:
        raise OptionError(
            f"int8.samples={samples} counts with --data only: the statistics hold {statistics.samples} samples;"
            " give the number to onnxcomp calibrate"
        )
    names = _merged(model, plan)
    found = _known(model, names, statistics)
    missing = [name for name in names if name not in found]
    lacking = [name for name in plan.roots if name not in found]
    notes = [f"ranges are those of the statistics: {statistics.samples:,} samples"]
    if lacking and context.data is None:
        raise InputError(
            f"the statistics hold nothing of {len(lacking)} of {len(plan.roots)} tensors that int8 quantizes, such as"
            f" {lacking[0]!r}:\na pass before int8 changed what they are computed from, or a node was excluded;"
            " give --data as well, or run int8 without the passes before it"
        )
    if missing and context.data is not None:
        found |= _collect(model, missing, context.data, context.threads, samples)
        notes.append(f"{len(missing)} tensors that the statistics do not hold were calibrated on the data")
    return Observed(_histograms(found), _means(found), context.data, False, statistics.samples, tuple(notes))


def _known(model: ir.Model, names: Sequence[str], statistics: Statistics) -> dict[str, TensorStatistics]:
    seen, watch = watched(model, names)
    of = statistics.of(seen)
    return {name: of[watch[name]] for name in names if watch[name] in of}


def _merged(model: ir.Model, plan: Plan) -> list[str]:
    """What every target quantizes, and what this plan does besides (around nodes that the user excluded)."""
    return list(dict.fromkeys([*observable(model), *plan.roots]))


def _collect(
    model: ir.Model, names: Sequence[str], feeds: Feeds, threads: int, samples: int | None
) -> dict[str, TensorStatistics]:
    seen, watch = watched(model, names)
    histograms = collect_histograms(seen, list(watch.values()), feeds, threads=threads, limit=samples)
    averaged = _averaged(model, names)
    limit = min(samples or MEAN_SAMPLES, MEAN_SAMPLES)
    means = collect_means(model, averaged, feeds, threads=threads, limit=limit) if averaged else {}
    shape = structures(seen)
    return {name: TensorStatistics(histograms[watch[name]], shape[watch[name]], means.get(name)) for name in names}


def _collect_extremes(
    model: ir.Model, names: Sequence[str], feeds: Feeds, threads: int, samples: int | None
) -> dict[str, TensorStatistics]:
    """The same for rules that read no more than extremes; the means are of the same run over the data."""
    seen, watch = watched(model, names)
    histograms, means = collect_extremes(
        seen,
        list(watch.values()),
        feeds,
        averaged=_averaged(model, names),
        mean_samples=MEAN_SAMPLES,
        threads=threads,
        limit=samples,
    )
    shape = structures(seen)
    return {name: TensorStatistics(histograms[watch[name]], shape[watch[name]], means.get(name)) for name in names}


def _averaged(model: ir.Model, names: Iterable[str]) -> list[str]:
    """The tensors whose channel means the correction of a bias reads."""
    wanted = set(names)
    read = (node.inputs[0] for node in model.graph if is_default_domain(node, *WEIGHTED) and node.op_type != "MatMul")
    return list(dict.fromkeys(v.name for v in read if v is not None and v.name in wanted and v.name))


def _feeds(model: ir.Model, context: Context) -> Feeds:
    feeds = context.data if context.data is not None else context.stand_in
    if feeds is None:
        flags = " ".join(wanted.shapes_flag() for wanted in model_inputs(model) if wanted.free)
        made_up = f", or {flags} so that data can be made up" if flags else ""
        raise DataError(f"int8 needs calibration data: give --data{made_up}")
    return feeds


def _histograms(found: Mapping[str, TensorStatistics]) -> dict[str, Histogram]:
    return {name: entry.histogram for name, entry in found.items()}


def _means(found: Mapping[str, TensorStatistics]) -> dict[str, NDArray[np.float64]]:
    return {name: entry.means for name, entry in found.items() if entry.means is not None}
