"""Time replacement chains against the site they replace, on its real shapes, as the passes that follow leave them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from onnxcomp import progress
from onnxcomp.contract import Context
from onnxcomp.graph.edit import Link, add_initializer, replace_by_chain
from onnxcomp.graph.sites import Site, static_shape
from onnxcomp.runtime.session import open_session, run
from onnxcomp.runtime.signature import chain_signature, run_signature, site_signature
from onnxcomp.runtime.timing import interleaved, median_interval

__all__ = ["SiteTiming", "chain_speedups", "site_model", "time_chains"]

Times = NDArray[np.float64]

# A site alone has conversions of layout at its ends, which a network has not, and finds its weights in the caches,
# where a network has put others; three copies amortise and displace them. A large one takes long enough by itself.
_COPIES = 3
_LARGE_MACS = 300_000_000
# Chains that take turns with one base session, and the bytes of weights that those sessions may hold.
_TURNS = 8
_WEIGHT_BYTES = 1 << 29
# Seconds a chain; an interval wider than a share of the ratio, and of the site's time, is measured again, longer.
_SECONDS = 0.12
_NARROW = (0.03, 0.01)
_WIDE = (0.1, 0.02)
_WARM_S = 5e-3


@dataclass(frozen=True, slots=True)
class SiteTiming:
    """What chains take in place of a site.

    Attributes:
        site_ms: Time of the site itself, with the Relu behind it, milliseconds: the 10th percentile, that is with few
            disturbances.
        ratios: Time of each chain / time of the site, in the order of the chains.
    """

    site_ms: float
    ratios: tuple[float, ...]


def time_chains(site: Site, chains: Sequence[Sequence[Link]], opset: int, context: Context) -> SiteTiming | None:
    """Time a site and the chains that may replace it; None where the site's shape is not known.

    Base and chains take turns. When passes follow the running one, all are timed as those passes would leave them. A
    ratio is the larger one of that of the medians and that of the 10th percentiles: a rewrite must pay on a busy
    machine and on a quiet one. What ``context.timings`` knows of an equal site (:mod:`onnxcomp.runtime.signature`) is
    not timed again.

    Args:
        site: The site, in its model.
        chains: Replacements; the values of their constants do not matter.
        opset: Version of the operators.
        context: Threads, the passes that follow, and the timings so far, which are added to.
    """
    if _input_shape(site) is None:
        return None
    entry = context.timings.entry(run_signature(context, opset), site_signature(site))
    keys = [chain_signature(chain) for chain in chains]
    new = {key: chain for key, chain in zip(keys, chains, strict=True) if key not in entry.ratios}
    if new or entry.ms is None:
        with progress.task(f"time {site.name}", len(new)) as advance:
            bench = _Bench(site, opset, context)
            for part in _parts(new, bench.copies) or [{}]:
                entry.ratios.update(bench.ratios(part))
                advance(len(part))
            entry.ms = bench.ms if entry.ms is None else entry.ms
        context.timings.measured += len(new)
    return SiteTiming(entry.ms, tuple(entry.ratios[key] for key in keys))


def chain_speedups(site: Site, chains: Sequence[Sequence[Link]], opset: int, context: Context) -> list[float] | None:
    """Return time(site) / time(chain) for each chain, as :func:`time_chains` finds them."""
    timing = time_chains(site, chains, opset, context)
    return None if timing is None else [1 / ratio for ratio in timing.ratios]


def site_model(site: Site, chain: Sequence[Link] | None, opset: int, copies: int) -> ir.Model:
    """Build a model that holds nothing but the site, or the chain in its place, `copies` times.

    They stand in a row where the output has the input's shape, otherwise side by side. Each ends in a Relu, as
    convolutions nearly always do, so that fusion is that of a real network; side by side, each convolution in a
    GlobalAveragePool too, so that no large output has to be brought into the layout of graph outputs.
    """
    shape = _input_shape(site) or ()
    source = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    graph = ir.Graph([source], [], nodes=[], opset_imports={"": opset}, name="site")
    row = _keeps_shape(site)
    pooled = copies > 1 and not row and site.kind in ("Conv", "ConvTranspose")
    ends: list[ir.Value] = []
    for copy in range(copies):
        constants = [add_initializer(graph, f"w{copy}.{i}", array) for i, array in enumerate(_constants(site))]
        data = ends.pop() if row and ends else source
        node = _append(graph, site.kind, [data, *constants], f"site{copy}", _attributes(site))
        end = _append(graph, "Relu", [node.outputs[0]], f"relu{copy}")
        if chain is not None:
            replace_by_chain(node, chain, "bench")
        if pooled:
            end = _append(graph, "GlobalAveragePool", [end.outputs[0]], f"mean{copy}")
        ends.append(end.outputs[0])
    out = static_shape(site.node.outputs[0])[1:] or (None,) * (len(shape) - 1)
    for value in ends:
        value.shape = ir.Shape([1, out[0], *(1 for _ in out[1:])] if pooled else [1, *out])
    graph.outputs.extend(ends)
    return ir.Model(graph, ir_version=8)


def _append(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, int | str | list[int]] | None = None,
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes=attributes, name=name)
    node.outputs[0].name = f"{name}.out"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    return node


class _Bench:
    """The session of a site, and chains in turns with it."""

    def __init__(self, site: Site, opset: int, context: Context) -> None:
        self._site, self._opset, self._context = site, opset, context
        self.copies = _COPIES if (site.cost.macs or 0) < _LARGE_MACS else 1
        shape = _input_shape(site) or ()
        self._feed = {"x": np.random.default_rng(context.seed).standard_normal(shape).astype(np.float32)}
        self._base = self._call(None)
        self._base_times: list[Times] = []

    @property
    def ms(self) -> float:
        """The site's own time, milliseconds, over all that was measured."""
        times = self._base_times or [self._times([])[0]]
        return float(np.percentile(np.concatenate(times), 10)) * 1e3 / self.copies

    def ratios(self, chains: Mapping[str, Sequence[Link]]) -> dict[str, float]:
        """Time of each chain / time of the site."""
        if not chains:
            return {}
        calls = [self._call(chain) for chain in chains.values()]
        times = self._times(calls)
        found = dict(zip(chains, map(_ratio, times[1:], [times[0]] * len(calls)), strict=True))
        wide = [i for i, own in enumerate(times[1:]) if not _known(own, times[0], _WIDE)]
        if wide:
            again = self._times([calls[i] for i in wide], longer=4)
            names = list(chains)
            found.update({names[i]: _ratio(own, again[0]) for i, own in zip(wide, again[1:], strict=True)})
        return found

    def _times(self, calls: Sequence[Callable[[], None]], longer: int = 1) -> Times:
        def enough(times: Times) -> bool:
            return all(_known(own, times[0], _NARROW) for own in times[1:])

        budget = longer * _SECONDS * max(1, len(calls))
        times = interleaved([self._base, *calls], 100 * longer, budget, enough, _WARM_S, _clock(self._context.threads))
        self._base_times.append(times[0])
        return times

    def _call(self, chain: Sequence[Link] | None) -> Callable[[], None]:
        model = self._context.rehearsed(site_model(self._site, chain, self._opset, self.copies))
        session: InferenceSession = open_session(model, threads=self._context.threads)
        feed = self._feed
        run(session, feed)  # the checked run

        def call() -> None:
            session.run(None, feed)

        return call


def _clock(threads: int) -> Callable[[], float]:
    """With one thread everything runs on this one: its own clock stands while others have the processor.

    Windows counts a thread's time in ticks of 15 ms; there it is the clock on the wall.
    """
    return time.thread_time if threads == 1 and hasattr(time, "CLOCK_THREAD_CPUTIME_ID") else time.perf_counter


def _ratio(own: Times, base: Times) -> float:
    return max(1 / float(np.median(base / own)), float(np.percentile(own, 10) / np.percentile(base, 10)))


def _known(own: Times, base: Times, shares: tuple[float, float]) -> bool:
    """Whether the interval of the ratio is no wider than a share of it or, if that is more, of the base's time."""
    ratios = own / base
    low, high = median_interval(ratios)
    return high - low <= max(shares[0] * float(np.median(ratios)), shares[1])


def _parts(chains: Mapping[str, Sequence[Link]], copies: int) -> list[dict[str, Sequence[Link]]]:
    """The chains in groups that are open at the same time."""
    parts: list[dict[str, Sequence[Link]]] = []
    held = 0
    for key, chain in chains.items():
        size = copies * sum(array.nbytes for link in chain for array in link.constants)
        if not parts or len(parts[-1]) == _TURNS or held + size > _WEIGHT_BYTES:
            parts.append({})
            held = 0
        parts[-1][key] = chain
        held += size
    return parts


def _input_shape(site: Site) -> list[int] | None:
    """The shape of the node's own input at batch 1; None where it is not known."""
    shape = static_shape(site.node.inputs[0])
    known = [d for d in shape[1:] if d is not None]
    return [1, *known] if shape and len(known) == len(shape) - 1 else None


def _keeps_shape(site: Site) -> bool:
    return static_shape(site.node.inputs[0])[1:] == static_shape(site.node.outputs[0])[1:]


def _constants(site: Site) -> list[NDArray[np.float32]]:
    """The weight and the bias as the node reads them."""
    weight = site.weight
    if site.kind in ("Gemm", "MatMul"):
        weight = weight[..., 0] if site.node.attributes.get_int("transB", 0) else weight[..., 0].T
    return [weight] if site.bias is None else [weight, site.bias]


def _attributes(site: Site) -> dict[str, int | str | list[int]]:
    if site.kind in ("Gemm", "MatMul"):
        return {"transB": 1} if site.node.attributes.get_int("transB", 0) else {}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in site.geometry.attributes().items()}
