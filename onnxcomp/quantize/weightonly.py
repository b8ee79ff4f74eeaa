"""Weights of few bits, activations in float: what the passes int4, int3, ternary, binary and pow2 share.

A pass names its levels and the forms in which codes may be stored; here they are fitted. With data, each layer's weight
is rounded so that its OUTPUT changes least, given the inputs that the already rounded layers before it produce
(:mod:`onnxcomp.numeric.rounding`), and the bias takes up the rest of the mean. Without, every scale is the one with the
least squared error of the weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.gram import PatchGram
from onnxcomp.contract import Candidate, Context, PassReport, Saves, SitePass, Skip
from onnxcomp.errors import InputError
from onnxcomp.graph.edit import Link, origin_of
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site, is_default_domain
from onnxcomp.numeric.refit import Effort, best_grid, refit
from onnxcomp.numeric.rounding import dequantized, integer_levels, nearest, search_scale
from onnxcomp.quantize.forms import Form, block_product, decoded, integers, packed_size
from onnxcomp.quantize.layout import Layout, block_of, is_product
from onnxcomp.quantize.storage import admit

__all__ = ["WeightOnly"]

Float = NDArray[np.float64]
Single = NDArray[np.float32]

_EFFORT = Effort(ridge=0.01, sweeps=4, rounds=2)
# Entries of a row on which its scale is searched where no data say which entries count.
_PROBE = 512


class _Scheme(NamedTuple):
    """The grids of a site, the forms of its codes, and the bits of a product that runs on them."""

    grids: tuple[Float, ...]
    forms: Sequence[Form]
    product_bits: int | None


@dataclass(frozen=True)
class WeightOnly(SitePass):
    """Store weights in few bits and compute in float; the base of the passes that do.

    Attributes:
        rounding: Whether weights are rounded to the nearest level, or so that the layer's output changes least (gram,
            which takes data); auto: gram where there are data.
        first_last: What becomes of the first and the last layer, where rounding costs most: float, 8 bits, or as many
            as the others have; auto: 8 bits where the others have fewer than 4.
    """

    saves: ClassVar[Saves] = "bytes"
    kinds: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    # Bits of the widest type that is stored, which decides the opset.
    storage_bits: ClassVar[int] = 4

    rounding: Literal["auto", "gram", "nearest"] = "auto"
    first_last: Literal["auto", "keep", "int8", "quantize"] = "auto"

    @abstractmethod
    def levels(self) -> Float:
        """The codes, increasing."""

    def grids(self) -> tuple[Float, ...]:
        """The levels that a row may choose from: :meth:`levels`, and their mirror image where that is another."""
        levels = self.levels()
        return (levels,) if np.array_equal(levels, -levels[::-1]) else (levels, -levels[::-1])

    @abstractmethod
    def forms(self) -> Sequence[Form]:
        """The forms in which codes may be stored; the smallest one is taken."""

    def product_bits(self) -> int | None:
        """Bits of the codes of a Gemm or MatMul that the runtime computes on; None where it has no kernel for them."""
        return None

    def spares_ends(self) -> bool:
        """Whether first_last=auto gives the first and the last layer 8 bits."""
        return len(self.levels()) < 15

    def block_length(self) -> int:
        """How many weights of a row share a scale; 0: all."""
        return 0

    def explicit(self) -> bool:
        """The name says the bits."""
        return True

    def wants_gram(self) -> bool:
        """Whether weights are rounded on data."""
        return self.rounding != "nearest"

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise InputError where the target would not turn the codes into weights at load."""
        del model
        if self.rounding == "gram" and context.data is None:
            raise InputError(f"{self.name}(rounding=gram) needs calibration data: give --data, or use rounding=auto")
        if context.target.name == "tensorrt":
            raise InputError(
                f"{self.name}: TensorRT has no Cast of packed weights; use int8, or fp16 for half the size"
            )

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Raise the opset to the first that has the types, if need be, and rewrite; unchanged models keep theirs."""
        graph, ir_version, opset = model.graph, model.ir_version, model.opset_imports.get("")
        reason = admit(model, self.storage_bits)
        if reason:
            names = [s.site if isinstance(s, Skip) else s.name for s in weighted_sites(model, self.kinds)]
            return PassReport(skips=tuple(Skip(n, f"the model's opset {opset} stays: {reason}") for n in names))
        report = super().run(model, context)
        if not report.changes:
            model.graph, model.ir_version = graph, ir_version
            return report
        raised = model.opset_imports.get("")
        note = f"opset raised from {opset} to {raised}, which has the types of the stored weights"
        return PassReport(report.changes, report.skips, (*report.notes, note) if raised != opset else report.notes)

    def refuse(self, site: Site) -> str | None:
        """Say why a site stays float."""
        end = _end(site.node) if self.first_last == "keep" else None
        return f"the {end} layer stays float: first_last=keep" if end else None

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Propose the smallest form, its weights rounded to nearest; refit() follows the data."""
        del gram, context
        layout = Layout(site, block_of(site, self.block_length()))
        rows = layout.rows()
        codes, scales = best_grid(self._scheme(site).grids, rows, lambda levels: _plain(rows, levels, layout.block))
        error = _relative(dequantized(codes, scales) - rows, rows)
        candidate = self._candidate(layout, codes, scales, site.bias, error)
        size = packed_size(list(candidate.chain))
        plain = Link("plain", site.kind, (site.weight, *(() if site.bias is None else (site.bias,))))
        if size >= packed_size([plain]):
            return Skip(site.name, f"too few weights ({site.weight.size:,}) to gain from fewer bits")
        return [candidate]

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Round so that the outputs come closest to the original's, given the compressed prefix's inputs."""
        layout = Layout(site, block_of(site, self.block_length()))
        group = site.geometry.group
        weights = np.split(layout.rows(), group)
        biases: list[Single | None] = [None] * group
        if site.bias is not None:
            biases = list(np.split(site.bias, group))
        grids = self._scheme(site).grids
        shifted = site.kind != "MatMul"
        fits = [
            refit(m if m.has_targets else m.with_weight(w, b), w, grids, _EFFORT, biased=shifted, block=layout.block)
            for w, b, m in zip(weights, biases, gram.moments(), strict=True)
        ]
        codes, scales = np.concatenate([f.codes for f in fits]), np.concatenate([f.scales for f in fits])
        bias = np.concatenate([f.bias for f in fits]).astype(np.float32) if shifted else None
        error, power = (
            sum(float(part.sum()) for part in parts) for parts in zip(*((f.error, f.power) for f in fits), strict=True)
        )
        return self._candidate(layout, codes, scales, bias, error / power if power else 0.0)

    def _scheme(self, site: Site) -> _Scheme:
        """Levels and forms of a site: the pass's own, or at an end of the network perhaps those of 8 bits."""
        eight = self.first_last == "int8" or (self.first_last == "auto" and self.spares_ends())
        if eight and _end(site.node):
            return _Scheme((integer_levels(8),), (integers(8),), 8)
        return _Scheme(self.grids(), self.forms(), self.product_bits())

    def _candidate(self, layout: Layout, codes: Float, scales: Float, bias: Single | None, error: float) -> Candidate:
        scheme = self._scheme(layout.site)
        bits = scheme.product_bits if is_product(layout.site) else None
        if bits is not None:
            chain = block_product(layout, codes, scales, bias, bits)
        else:
            mirrored = codes.max(axis=1) > scheme.grids[0][-1]
            codes[mirrored], scales[mirrored] = -codes[mirrored], -scales[mirrored]
            chains = [decoded(layout, codes, scales, bias, form) for form in scheme.forms]
            chain = min(chains, key=packed_size)
        shared = f"blocks of {layout.block}" if layout.block else "a scale an output channel"
        summary = f"{len(scheme.grids[0])} levels, {shared}"
        return Candidate(summary, tuple(chain), {"rounding": self.rounding}, error)


def _plain(rows: Float, levels: Float, block: int) -> tuple[Float, Float]:
    """Codes and scales of least squared error; of long rows the largest entry and some of the others are looked at."""
    if block:
        scales = search_scale(rows, levels, block=block)
    elif rows.shape[1] <= _PROBE:
        scales = search_scale(rows, levels)
    else:
        largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
        scales = search_scale(np.concatenate([largest, rows[:, :: -(-rows.shape[1] // _PROBE)]], axis=1), levels)
    return nearest(rows / dequantized(np.ones_like(rows), scales), levels), scales


def _relative(difference: Float, reference: Float) -> float:
    energy = float(np.vdot(reference, reference))
    return float(np.vdot(difference, difference)) / energy if energy else 0.0


def _end(node: ir.Node) -> str | None:
    """``first`` where no layer lies before a node, ``last`` where none lies behind it."""
    if not _reaches(node, forward=False):
        return "first"
    return None if _reaches(node, forward=True) else "last"


def _reaches(node: ir.Node, *, forward: bool) -> bool:
    """Whether another weighted layer comes before (or behind) a node."""
    seen: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if forward:
            around = [user for value in current.outputs for user, _ in value.uses()]
        else:
            around = [p for v in current.inputs if v is not None and (p := v.producer()) is not None]
        for other in around:
            if other in seen:
                continue
            if is_default_domain(other, "Conv", "ConvTranspose", "Gemm", "MatMul") and origin_of(other):
                return True
            seen.add(other)
            waiting.append(other)
    return False
