"""The range of each activation by what its quantization does to the layers that read it.

The error of a tensor itself says little about the error behind it: a Relu hides part of it, a layer of small weights
damps it, and a few large values that a range cuts off may be all that the next layer looks at. So every rule's range is
tried on one tensor at a time, in the original model: the layers that read the tensor run on it as it is and on its
quantized form, and the relative squared errors of their outputs are summed, sum |f(x) - f(Q(x))|^2 / |f(x)|^2 over the
outputs f (the search of a clipping threshold by the output of a layer, as in Nagel et al., A White Paper on Neural
Network Quantization, 2021, section 3.1, with the candidates of :mod:`onnxcomp.numeric.ranges`).

What clipping takes away follows the signal, at every layer alike: such errors add up in amplitude over the depth of a
network, while those of rounding add up in power. The part of an error that is a multiple of the output itself, sample
by sample, <e, f>^2 / |f|^2, therefore counts once more for every 4 tensors that are quantized.

An output counts behind the activation that follows its layer. What only moves values, such as a pool, a reshape or a
Concat, is looked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import Range, choose_range
from onnxcomp.quantize.behind import Reach, reaches
from onnxcomp.quantize.parameters import Parameters, as_run_here, parameters_for
from onnxcomp.quantize.placement import Plan
from onnxcomp.runtime.activations import Tap
from onnxcomp.runtime.session import open_session, run

__all__ = ["candidates", "choose_ranges", "reader_errors"]

Feed = dict[str, NDArray[Any]]

# On 32 images the choice fits those images: a CIFAR network lost 0.4 to 0.7 dB on others.
_SAMPLES = 256
_FEWEST = 4
# Multiply-accumulates of all runs together: some seconds on one core.
_MACS = 10**11
# Activations of a batch that are held in memory.
_BATCH_BYTES = 64 << 20
_PERCENTS = (99.99, 99.999)
_OPSET = 13
# How often an error that follows the signal counts, for each tensor of the plan.
_IN_AMPLITUDE = 1 / 4


def choose_ranges(
    model: ir.Model, plan: Plan, histograms: Mapping[str, Histogram], feeds: Feeds, *, threads: int = 1
) -> dict[str, Range]:
    """Return for each tensor the range of least error at the layers that read it; ``mse`` where several are as good.

    Args:
        model: The original, not modified.
        plan: Where it is quantized.
        histograms: Of the roots to choose for, by name.
        feeds: The data; at most 256 samples are read, fewer for large models.
        threads: Intra-op threads.

    Raises:
        DataError: The data do not fit the model.
        ModelError: ORT cannot run the model.
    """
    tried = {name: candidates(plan, name, histogram) for name, histogram in histograms.items()}
    parameters = {name: [p for _, p in some] for name, some in tried.items()}
    errors = reader_errors(model, plan, parameters, feeds, threads=threads)
    return {name: some[int(np.argmin(errors[name]))][0] for name, some in tried.items()}


def candidates(plan: Plan, name: str, histogram: Histogram) -> list[tuple[Range, Parameters]]:
    """The ranges of a root by every rule, ``mse`` first, without those that come to the same scale and zero point."""
    scheme = plan.scheme

    def chosen() -> Iterator[Range]:
        for method in ("mse", "minmax", "entropy"):
            yield choose_range(histogram, method, levels=scheme.levels, symmetric=scheme.symmetric)
        for percent in _PERCENTS:
            yield choose_range(
                histogram, "percentile", percent=percent, levels=scheme.levels, symmetric=scheme.symmetric
            )

    found: dict[Parameters, Range] = {}
    for one in chosen():
        made = {name: parameters_for(scheme, one.low, one.high, plan.tensors[name].limits)}
        found.setdefault(as_run_here(scheme, made)[name], one)
    return [(one, parameters) for parameters, one in found.items()]


def reader_errors(
    model: ir.Model,
    plan: Plan,
    parameters: Mapping[str, Sequence[Parameters]],
    feeds: Feeds,
    *,
    threads: int = 1,
) -> dict[str, list[float]]:
    """Return what quantizing one tensor alone does to the outputs of its readers, with each of its parameters.

    Args:
        model: The original, not modified.
        plan: Where it is quantized.
        parameters: Scales and zero points to try, by root; a root with a single one is not measured (error 0).
        feeds: The data.
        threads: Intra-op threads.

    Returns:
        For each root and each of its parameters the sum of the relative squared errors of the outputs, what follows
        the signal weighted as above.
    """
    undecided = [name for name, some in parameters.items() if len(some) > 1]
    gain = _IN_AMPLITUDE * len(plan.roots)
    trials = [_Trial(model, r, parameters[r.root], gain, threads) for r in reaches(model, plan, undecided)]
    if trials:
        names = [name for trial in trials for name in trial.reads]
        cost = model_cost(model)
        # Where shapes are unknown, a parameter is taken to count once.
        runs = max(1, (cost.macs or cost.parameters) * max(len(trial.parameters) for trial in trials))
        quantizer = _Quantizer(threads)
        limit = min(_SAMPLES, max(_FEWEST, _MACS // runs))
        for values in _batches(Tap(model, names, threads=threads), feeds, limit):
            for trial in trials:
                trial.add(values, quantizer)
    measured = {trial.reach.root: trial.errors() for trial in trials}
    return {name: measured.get(name, [0.0] * len(some)) for name, some in parameters.items()}


class _Quantizer:
    """A tensor on the grid of its parameters, by the runtime's own kernels."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def __call__(self, values: NDArray[Any], parameters: Parameters) -> NDArray[Any]:
        kind = parameters.dtype
        if kind not in self._sessions:
            self._sessions[kind] = open_session(_rounding(kind), threads=self._threads)
        constants = {"scale": np.array(parameters.scale, np.float32), "zero": np.array(parameters.zero_point, kind)}
        return run(self._sessions[kind], {"x": values, **constants})[0]


def _rounding(kind: str) -> ir.Model:
    zero_type = ir.TensorType(ir.DataType.UINT8 if kind == "uint8" else ir.DataType.INT8)
    x = ir.val("x", type=ir.TensorType(ir.DataType.FLOAT))
    scale = ir.val("scale", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    zero = ir.val("zero", type=zero_type, shape=ir.Shape([]))
    there = ir.node("QuantizeLinear", [x, scale, zero])
    back = ir.node("DequantizeLinear", [there.outputs[0], scale, zero])
    there.outputs[0].name, back.outputs[0].name = "q", "y"
    back.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x, scale, zero], back.outputs, nodes=[there, back], opset_imports={"": _OPSET}, name="rounding")
    return ir.Model(graph, ir_version=8)


@dataclass(eq=False)
class _Trial:
    """The layers behind one root, and the errors of each of its parameters so far."""

    model: ir.Model
    reach: Reach
    parameters: Sequence[Parameters]
    gain: float
    threads: int
    _session: Any = None
    _signal: dict[str, float] = field(default_factory=dict[str, float])
    _noise: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    @property
    def reads(self) -> list[str]:
        """Names of the tensors whose values a trial needs."""
        return [self.reach.root, *self.reach.sides, *self.reach.stops]

    def add(self, values: Feed, quantizer: _Quantizer) -> None:
        """Try every parameter on one more batch."""
        root, stops = self.reach.root, [s for s in self.reach.stops if values[s].dtype == np.float32]
        inner = [s for s in stops if s != root]
        if inner and self._session is None:
            self._session = open_session(self.reach.segment(self.model, values), threads=self.threads)
        for stop in stops:
            self._signal[stop] = self._signal.get(stop, 0.0) + _power(values[stop])
        self._noise = self._noise or [{} for _ in self.parameters]
        sides = {name: values[name] for name in self.reach.sides}
        for parameters, noise in zip(self.parameters, self._noise, strict=True):
            rounded = quantizer(values[root], parameters)
            results = run(self._session, {root: rounded, **sides}, inner) if inner else []
            for stop, result in [*zip(inner, results, strict=True), *((s, rounded) for s in stops if s == root)]:
                noise[stop] = noise.get(stop, 0.0) + self._weighted(result - values[stop], values[stop])

    def _weighted(self, error: NDArray[Any], signal: NDArray[Any]) -> float:
        rows = signal.shape[0] if signal.ndim else 1
        e, f = error.reshape(rows, -1), signal.reshape(rows, -1)
        along, power = np.einsum("ij,ij->i", e, f), np.einsum("ij,ij->i", f, f)
        return _power(error) + self.gain * float(np.sum(along**2 / np.maximum(power, np.finfo(np.float32).tiny)))

    def errors(self) -> list[float]:
        """The sum of the errors of the outputs over their signals, for each of the parameters."""
        if not self._noise:
            return [0.0] * len(self.parameters)
        loud = {stop: signal for stop, signal in self._signal.items() if signal > 0}
        return [sum(noise[stop] / signal for stop, signal in loud.items()) for noise in self._noise]


def _power(values: NDArray[Any]) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _batches(tap: Tap, feeds: Feeds, limit: int) -> Iterator[Feed]:
    """Values of the tensors, with feeds cut so that they stay small."""
    rows = None
    for feed in feeds.watched("choose ranges", limit):
        if not feeds.divisible(feed):
            yield tap.read(feed)
            continue
        total = len(next(iter(feed.values())))
        if rows is None:
            one = tap.read({name: array[:1] for name, array in feed.items()})
            rows = max(1, _BATCH_BYTES // max(1, sum(value.nbytes for value in one.values())))
        for start in range(0, total, rows):
            yield tap.read({name: array[start : start + rows] for name, array in feed.items()})
