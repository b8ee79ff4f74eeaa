"""Tucker-2: a convolution as a chain of a 1x1, a small one and a 1x1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.gram import PatchGram, Samples
from onnxcomp.contract import Candidate, Context, Saves, SitePass, Skip
from onnxcomp.errors import DataError, OptionError
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site, is_default_domain
from onnxcomp.numeric.lowrank import Fit, RankErrors, fit_tucker2
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.ranks import energy_rank, keep_ranks, round_rank, tucker2_macs, weakened
from onnxcomp.numeric.reluaware import relu_aware
from onnxcomp.numeric.tucker import Tucker2 as Factors
from onnxcomp.numeric.tucker import balance, hooi, mode_spectra, unfold_in, unfold_out
from onnxcomp.numeric.vbmf import evbmf_rank
from onnxcomp.options import Bounds

__all__ = ["Tucker2"]

Weight = NDArray[np.float64]
Ranks = tuple[int | None, int | None]
Spectra = tuple[NDArray[np.float64], NDArray[np.float64]]

# ORT's blocked layout works on 16 channels at a time; one above a multiple of 16 is the worst case (methods, 15).
_BLOCK = 16
# A side of fewer channels is not factored (methods, 3.2); a convolution with fewer than _TINY on a side, such as the
# first one of an image network, has no low rank at all.
_NARROW = 16
_RELU_PATCHES = 4000
_ENERGY = 0.998
# Patches a dimension from which on a whitened spectrum is believed as it stands.
_PATCHES = 4
_TINY = 8


@dataclass(frozen=True)
class Tucker2(SitePass):
    """Replace a k x k convolution by 1x1, k x k and 1x1 ones on fewer channels (Tucker-2).

    K[o,i,p,q] ~ sum_ab last[o,a] core[a,b,p,q] first[b,i] (Kim et al. 2016, eq. 5). The first 1x1 maps Ci to the input
    rank, the core keeps kernel, strides, dilations and pads, the last 1x1 maps the output rank to Co and carries the
    bias. A side whose rank is full has no 1x1 of its own (Tucker-1). Grouped convolutions are factored group by group
    with equal ranks.

    With calibration data the factors minimise the error of the layer's output instead of its weight, given the inputs
    that the already compressed layers before it produce (reduced-rank regression; Zhang et al. 2016, section 3.3),
    with a new bias. ConvTranspose is always fitted to its weight.

    Left alone, with the reason in the report: kernels of one tap, depthwise and narrow convolutions, weights that are
    shared, not constant or not finite, ranks without gain, and, under the latency objective, sites that do not run
    faster.

    Attributes:
        rank: How ranks follow from the spectra of the two unfoldings: energy, vbmf (exact EVBMF; Nakajima et al. 2013)
            or weakened.
        energy: Share of the squared spectrum that each side keeps; with data, of the variance of the layer's output.
            The default asks for more where the data give few patches.
        weaken: How far `weakened` goes from the full rank (0) to the VBMF rank (1).
        keep: Fraction of each site's MACs to keep at most; the best split between both ranks is chosen.
        ranks: Explicit ranks, input x output, such as 32x64.
        fit: Whether the factors follow the weights, the data, or the data where there are any (auto).
        relu: With data, where nothing but Relu reads the output, fit what the Relu leaves, on sampled patches (Zhang et
            al. 2016, section 3.2); slower.
    """

    name: ClassVar[str] = "tucker2"
    saves: ClassVar[Saves] = "latency"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"rank", "keep", "ranks"}),)

    rank: Literal["energy", "vbmf", "weakened"] = "energy"
    energy: Annotated[float, Bounds(0, 1, open_low=True)] = _ENERGY
    weaken: Annotated[float, Bounds(0, 1)] = 0.7
    keep: Annotated[float, Bounds(0, 1, open_low=True, open_high=True)] | None = None
    ranks: str | None = None
    fit: Literal["auto", "weights", "data"] = "auto"
    relu: bool = False

    def __post_init__(self) -> None:
        if self.ranks is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.ranks):
            raise OptionError(f"tucker2.ranks: {self.ranks!r} is not of the form INxOUT, such as 32x64")
        if self.ranks is not None and self.keep is not None:
            raise OptionError("tucker2: ranks and keep exclude each other; give one")

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise DataError where the fit must follow data and there are none."""
        if self.fit == "data" and context.data is None:
            raise DataError("tucker2(fit=data) needs calibration data: give --data, or use fit=auto")

    def explicit(self) -> bool:
        """Whether the ranks follow from anything but the defaults."""
        return (self.rank, self.energy, self.keep, self.ranks) != ("energy", _ENERGY, None, None)

    def wants_gram(self) -> bool:
        """Whether the fit follows the data."""
        return self.fit != "weights"

    def wants_patches(self) -> int:
        """The ReLU-aware fit needs patches themselves."""
        return _RELU_PATCHES if self.relu else 0

    def refuse(self, site: Site) -> str | None:
        """Say why a site has no Tucker-2 form worth trying."""
        per_in, per_out = site.channels_in // site.geometry.group, site.channels_out // site.geometry.group
        if site.geometry.pointwise:
            return "the kernel is 1x1"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise"
        if max(per_in, per_out) <= _NARROW or min(per_in, per_out) < _TINY:
            return f"too few channels: {per_in} in, {per_out} out" + (" a group" if site.geometry.group > 1 else "")
        return None

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Propose the chain of the chosen ranks, factored from the weights; refit() follows the data."""
        weights = _group_weights(site)
        ranks = self._ranks(site, weights, gram, context)
        if isinstance(ranks, Skip):
            return ranks
        factors = [hooi(w, *ranks) for w in weights]
        return [_candidate(site, [balance(f) for f in factors], site.bias, _relative_error(factors, weights))]

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Fit the factors of the chosen ranks to the layer's outputs, given the compressed prefix's inputs."""
        weights = _group_weights(site)
        ranks = _sides(str(candidate.choice["ranks"]), weights[0])
        moments = _with_targets(gram, site, weights)
        fits = [fit_tucker2(w, None, m, *ranks) for w, m in zip(weights, moments, strict=True)]
        if self.relu and _only_relu_reads(site):
            fits = [_after_relu(f, w, kept) for f, w, kept in zip(fits, weights, gram.kept(), strict=True)]
        factors = [balance(f.factors, m.xx) for f, m in zip(fits, moments, strict=True)]
        bias = np.concatenate([f.bias for f in fits])
        return _candidate(site, factors, bias, float(np.mean([f.error for f in fits])))

    def _ranks(self, site: Site, weights: list[Weight], gram: PatchGram | None, context: Context) -> Ranks | Skip:
        """Choose the ranks of a site; None stands for a side that keeps all its channels."""
        full = weights[0].shape[1], weights[0].shape[0]
        if self.ranks is not None:
            sides = _sides(self.ranks, weights[0])
            both = sides == (None, None)
            return Skip(site.name, f"ranks {self.ranks} reach the full {full[0]}x{full[1]}") if both else sides
        block = _BLOCK if context.objective == "latency" else 1
        if self.keep is not None:
            kept = _kept(site, weights, gram, self.keep, block)
            return kept or Skip(site.name, f"no ranks in steps of {block} keep {self.keep:g} of the MACs or less")
        raw = self._rule(site, weights, gram)
        if 0 in raw:
            return Skip(site.name, f"{self.rank} finds nothing to keep (rank 0)")
        ranks = [f if f < _NARROW else round_rank(r, block, f, up=True) for r, f in zip(raw, full, strict=True)]
        sides = _sides(f"{ranks[0]}x{ranks[1]}", weights[0])
        if _work(site, weights[0], sides) < _work(site, weights[0], (None, None)):
            return sides
        what = f"rank {raw[0]}x{raw[1]}" + (f", rounded to {ranks[0]}x{ranks[1]}," if tuple(ranks) != raw else "")
        return Skip(site.name, f"no gain: {what} of {full[0]}x{full[1]} is past break-even")

    def _share(self, weights: list[Weight], gram: PatchGram | None) -> float:
        """The energy to keep; by default more of it where few patches make the spectrum look steeper than it is."""
        if gram is None or self.explicit():
            return self.energy
        trust = min(1.0, gram.count / (_PATCHES * int(weights[0][0].size)))
        return 1.0 - (1.0 - self.energy) * trust

    def _rule(self, site: Site, weights: list[Weight], gram: PatchGram | None) -> tuple[int, int]:
        """Ranks (input, output) before rounding, the largest over the groups."""
        if self.rank == "energy":
            spectra = _spectra(site, weights, gram)
            energy = self._share(weights, gram)
            return energy_rank(spectra[0], energy), energy_rank(spectra[1], energy)
        found = [(evbmf_rank(unfold_in(w)).rank, evbmf_rank(unfold_out(w)).rank) for w in weights]
        rank_in, rank_out = max(i for i, _ in found), max(o for _, o in found)
        if self.rank == "vbmf":
            return rank_in, rank_out
        return weakened(rank_in, weights[0].shape[1], self.weaken), weakened(rank_out, weights[0].shape[0], self.weaken)


def _sides(ranks: str, weight: Weight) -> Ranks:
    """Read "INxOUT"; a rank that reaches the full one becomes None, a side without a 1x1."""
    first, last = (int(rank) for rank in ranks.split("x"))
    return None if first >= weight.shape[1] else first, None if last >= weight.shape[0] else last


def _group_weights(site: Site) -> list[Weight]:
    """The weight of each group as (Co, Ci, *kernel), whatever the operator's own order."""
    weights = np.split(site.weight.astype(np.float64), site.geometry.group)
    return [np.swapaxes(w, 0, 1) if site.geometry.transposed else w for w in weights]


def _with_targets(gram: PatchGram, site: Site, weights: list[Weight]) -> list[Moments]:
    bias = np.zeros(site.channels_out) if site.bias is None else site.bias.astype(np.float64)
    biases = np.split(bias, site.geometry.group)
    return [
        m if m.has_targets else m.with_weight(w, b) for m, w, b in zip(gram.moments(), weights, biases, strict=True)
    ]


def _only_relu_reads(site: Site) -> bool:
    output = site.node.outputs[0]
    readers = [node for node, _ in output.uses()]
    return bool(readers) and not output.is_graph_output() and all(is_default_domain(n, "Relu") for n in readers)


def _after_relu(fit: Fit, weight: Weight, patches: Samples) -> Fit:
    if patches.y is None:
        return fit
    return Fit(*relu_aware(fit.factors, fit.bias, weight, patches.x, patches.y))


def _rank_errors(site: Site, weights: list[Weight], gram: PatchGram) -> list[RankErrors]:
    return [RankErrors(w, m) for w, m in zip(weights, _with_targets(gram, site, weights), strict=True)]


def _spectra(site: Site, weights: list[Weight], gram: PatchGram | None) -> Spectra:
    """Input and output spectra, root mean square over the groups; whitened where there are statistics."""
    if gram is None:
        spectra = [mode_spectra(w) for w in weights]
    else:
        spectra = [e.spectra() for e in _rank_errors(site, weights, gram)]
    rows = [np.sqrt(np.mean(np.square([s[side] for s in spectra]), axis=0)) for side in (0, 1)]
    return rows[0], rows[1]


def _kept(site: Site, weights: list[Weight], gram: PatchGram | None, keep: float, block: int) -> Ranks | None:
    """The ranks of least predicted error that keep at most that fraction of the MACs."""
    sizes = weights[0].shape[1], weights[0].shape[0], site.geometry.kernel, *_positions(site)
    transposed = site.geometry.transposed
    if gram is None:
        return keep_ranks(*sizes, keep, block, _spectra(site, weights, None), transposed=transposed)
    errors = _rank_errors(site, weights, gram)

    def error(rank_in: int | None, rank_out: int | None) -> float:
        return float(np.mean([e(rank_in, rank_out) for e in errors]))

    return keep_ranks(*sizes, keep, block, error=error, transposed=transposed)


def _relative_error(factors: list[Factors], weights: list[Weight]) -> float:
    energy = [float(np.vdot(w, w)) for w in weights]
    return sum(f.error * e for f, e in zip(factors, energy, strict=True) if e) / (sum(energy) or 1.0)


def _positions(site: Site) -> tuple[int, int]:
    """Input and output positions; where a size is unknown, in the ratio of the strides."""
    if site.input_positions is not None and site.output_positions is not None:
        return site.input_positions, site.output_positions
    step = prod(site.geometry.strides)
    return (1, step) if site.geometry.transposed else (step, 1)


def _work(site: Site, weight: Weight, ranks: Ranks) -> int:
    return tucker2_macs(
        weight.shape[1],
        weight.shape[0],
        site.geometry.kernel,
        *ranks,
        *_positions(site),
        transposed=site.geometry.transposed,
    )


def _candidate(site: Site, factors: list[Factors], bias: NDArray[np.floating] | None, error: float) -> Candidate:
    """Write the factors of all groups as a chain; a bias before the padding is wrong at borders, so the last has it."""
    geometry = site.geometry
    point = {k: v for k, v in geometry.pointlike().attributes().items() if k != "auto_pad"}
    tail = () if bias is None else (np.asarray(bias, np.float32),)
    core = np.concatenate([np.swapaxes(f.core, 0, 1) if geometry.transposed else f.core for f in factors])
    firsts, lasts = [f.first for f in factors if f.first is not None], [f.last for f in factors if f.last is not None]
    links: list[Link] = []
    if firsts:
        links.append(Link("first", "Conv", (_pointwise(firsts, geometry.rank),), point))
    links.append(Link("core", site.kind, (core.astype(np.float32), *(() if lasts else tail)), geometry.attributes()))
    if lasts:
        links.append(Link("last", "Conv", (_pointwise(lasts, geometry.rank), *tail), point))
    rank_in, rank_out = factors[0].ranks
    kernel = "x".join(map(str, geometry.kernel))
    steps = [f"1x1 {site.channels_in}>{rank_in * geometry.group}"] if firsts else []
    steps.append(f"{kernel} {rank_in * geometry.group}>{rank_out * geometry.group}")
    steps += [f"1x1 {rank_out * geometry.group}>{site.channels_out}"] if lasts else []
    return Candidate(", ".join(steps), tuple(links), {"ranks": f"{rank_in}x{rank_out}"}, error)


def _pointwise(factors: list[NDArray[np.float64]], rank: int) -> NDArray[np.float32]:
    joined = np.concatenate(factors).astype(np.float32)
    return joined.reshape(*joined.shape, *(1,) * rank)
