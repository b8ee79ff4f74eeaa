"""What the passes share that store weights in codes: what is fitted, what is refused, and what a setting costs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Fit, Offering
from onnxcomp.allocation.problem import Problem, Setting, problems_of
from onnxcomp.contract import Candidate, Context, PassReport, Saves, Skip
from onnxcomp.errors import DataError, InputError
from onnxcomp.graph.edit import merge_equal
from onnxcomp.graph.products import weighted_sites
from onnxcomp.numeric.blockwise import Coder, damped, loss
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.refit import least_squares_target, remainder
from onnxcomp.options import replace_options
from onnxcomp.quantize.layout import Layout
from onnxcomp.quantize.storage import admit
from onnxcomp.storage.codes import storage_cost

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.calibration.gram import PatchGram
    from onnxcomp.cost import Cost
    from onnxcomp.graph.edit import Link
    from onnxcomp.graph.sites import Site

__all__ = ["Storage", "Wanted", "kept", "reads_image", "refuse_target", "with_types"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kernel = tuple[int, ...]

_RIDGE = 0.01
# What is coded to tell what a setting loses: so many columns at most, of whole channels, and rows for so many weights.
_COLUMNS, _WEIGHTS = 1152, 1 << 18
# Lengths of vectors divide it: numbers of columns that it divides are cut by all of them.
_UNIT = 144
# Channels of an image, at most.
_IMAGE = 4
# A weight with so many zeros was pruned: its zeros stay.
_SPARSE = 0.25


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """What codes have to come close to.

    Attributes:
        target: The weight, or what would reach the layer's outputs best, (G, R, d).
        gram: Of its inputs, (G, d, d); None: the weights' own error counts.
        keep: False where the weight has to stay zero, (G, R, d); None: nowhere.
    """

    target: Float
    gram: Float | None
    keep: Mask | None

    def missed(self, coder: Coder) -> float:
        """Loss of a coded weight over that of a weight of zeros."""
        strong = None if self.gram is None else damped(self.gram, 0.0)
        whole = float(loss(np.zeros_like(self.target), self.target, strong).sum())
        return float(loss(coder.values(), self.target, strong).sum()) / whole if whole else 0.0


@dataclass(frozen=True)
class Storage(Offering):
    """A pass that stores weights in codes, which the runtime turns into the weights when it loads the model.

    Attributes:
        fit: Whether codes follow the weights, the data, or the data where there are any (auto).
    """

    saves: ClassVar[Saves] = "bytes"
    # The options name the setting: nothing is chosen by timing, and statistics are taken once.
    decided: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose", "Gemm", "MatMul")

    fit: Fit = "auto"

    @property
    def named(self) -> bool:
        """Always: the defaults are a setting as well."""
        return True

    @property
    @abstractmethod
    def least_bits(self) -> int:
        """Bits of the narrowest type that may be stored, which decides the opset."""

    @abstractmethod
    def fitted(self, setting: Setting, kernel: Kernel, wanted: Wanted, *, quick: bool) -> Coder:
        """Code a weight.

        Args:
            setting: The setting.
            kernel: Spatial axes of the weight.
            wanted: What it has to come close to.
            quick: To compare settings, without the last polish.
        """

    @abstractmethod
    def empty(self, site: Site, setting: Setting) -> Coder:
        """A coder of the right shapes that stands for arbitrary weights."""

    @abstractmethod
    def links(self, site: Site, setting: Setting, coder: Coder, bias: NDArray[np.float32] | None) -> list[Link]:
        """The chain that stands for a coded site."""

    @abstractmethod
    def describe(self, setting: Setting) -> str:
        """A setting in words."""

    def milder(self, setting: Setting) -> Setting | None:
        """A setting that loses less and still saves; None where there is none."""
        del setting
        return None

    def explicit(self) -> bool:
        """Whether anything but the fit was named."""
        return self != self.plain(self.fit, relu=False)

    def wants_gram(self) -> bool:
        """Whether codes follow the data."""
        return self.fit != "weights"

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where there are no data to fit to, or the target would not turn the codes into weights at load."""
        del model
        if self.fit == "data" and context.data is None:
            raise DataError(f"{self.name}(fit=data) needs calibration data: give --data, or use fit=auto")
        refuse_target(self.name, context)

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Raise the opset to the first that has the types, if need be, and rewrite; unchanged models keep theirs."""
        own = [replace_options(self, o.options) for o in context.overrides if o.options is not None]
        bits = min(form.least_bits for form in (self, *own) if isinstance(form, Storage))
        return with_types(model, bits, self.name, self.kinds, lambda: super(Storage, self).run(model, context))

    def cost(self, site: Site, setting: Setting) -> Cost:
        """What a setting costs."""
        return self.taken(site, self.links(site, setting, self.empty(site, setting), site.bias))

    def taken(self, site: Site, chain: list[Link]) -> Cost:
        """What a chain takes of its own; what it shares with other sites does not count."""
        return storage_cost(site, chain)

    def blank(self, site: Site, setting: Setting) -> tuple[Link, ...]:
        """The chain of :meth:`empty`."""
        return tuple(self.links(site, setting, self.empty(site, setting), site.bias))

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Propose the setting that was asked for; with statistics in its shapes alone, for refit() to fill."""
        del context
        asked = self.asked(site)
        assert asked, "an option names the setting"
        cost = self.cost(site, asked[0])
        if cost.bytes >= site.cost.bytes:
            return Skip(site.name, f"too few weights ({site.weight.size:,}): {cost.bytes:,} bytes in codes")
        if gram is not None:
            return [self._candidate(site, asked[0], self.empty(site, asked[0]), site.bias, None)]
        weight = _stacked(site)
        wanted = Wanted(weight, None, kept(weight))
        coder = self.fitted(asked[0], site.geometry.kernel, wanted, quick=False)
        return [self._candidate(site, asked[0], coder, site.bias, wanted.missed(coder))]

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Code the weight so that the layer's outputs come closest, given the compressed prefix's inputs."""
        setting = self.setting(site, candidate.choice)
        problems, shifted = problems_of(site, gram), site.kind != "MatMul"
        wanted = Wanted(*_least_squares(problems, shifted), kept(_stacked(site)))
        coder = self.fitted(setting, site.geometry.kernel, wanted, quick=False)
        pairs = zip(problems, coder.values(), strict=True)
        parts = [remainder(_moments(problem), own, biased=shifted) for problem, own in pairs]
        bias, error, power = (np.concatenate(own) for own in zip(*parts, strict=True))
        total = float(power.sum())
        written = bias.astype(np.float32) if shifted else None
        return self._candidate(site, setting, coder, written, float(error.sum()) / total if total else 0.0)

    def scored(self, problems: Sequence[Problem]) -> Callable[[Setting], float]:
        """Predicted errors of settings, from some of the weights."""
        weights = np.stack([_rows(problem.weight) for problem in problems])
        kernel = problems[0].weight.shape[2:]
        columns = _some_columns(weights.shape[2], prod(kernel))
        part = np.ix_(np.arange(len(weights)), _some_rows(weights.shape[1], len(columns)), columns)
        keep = kept(weights)
        grams = None
        if problems[0].moments is not None:
            grams = np.stack([_moments(p).centred().xx[np.ix_(columns, columns)] for p in problems])
        some = Wanted(weights[part], grams, None if keep is None else keep[part])
        return lambda setting: some.missed(self.fitted(setting, kernel, some, quick=True))

    def _candidate(
        self, site: Site, setting: Setting, coder: Coder, bias: NDArray[np.float32] | None, error: float | None
    ) -> Candidate:
        chain = self.links(site, setting, coder, bias)
        milder = self.milder(setting)
        return Candidate(
            self.describe(setting),
            tuple(chain),
            self.choice(setting),
            error,
            self.taken(site, chain).bytes,
            {} if milder is None else self.choice(milder),
        )


def refuse_target(name: str, context: Context) -> None:
    """Raise InputError where the target would not turn codes into weights when it loads a model."""
    if context.target.name in ("tensorrt", "coreml"):
        raise InputError(
            f"{name}: {context.target.name} does not decode stored weights when it loads a model; "
            "use int8, or fp16 for half the size"
        )


def with_types(
    model: ir.Model, bits: int, name: str, kinds: tuple[str, ...], rewrite: Callable[[], PassReport]
) -> PassReport:
    """Rewrite a model, in place, in an opset that has types of so few bits; one that does not change keeps its own."""
    graph, ir_version, opset = model.graph, model.ir_version, model.opset_imports.get("")
    reason = admit(model, bits)
    if reason:
        names = [s.site if isinstance(s, Skip) else s.name for s in weighted_sites(model, kinds)]
        return PassReport(skips=tuple(Skip(n, f"the model's opset {opset} stays: {reason}") for n in names))
    report = rewrite()
    if not report.changes:
        model.graph, model.ir_version = graph, ir_version
        return report
    merge_equal(model.graph, name)
    raised = model.opset_imports.get("")
    note = f"opset raised from {opset} to {raised}, which has the types of the stored weights"
    return replace(report, notes=(*report.notes, note)) if raised != opset else report


def _some_columns(count: int, taps: int) -> NDArray[np.intp]:
    """Columns of evenly spaced channels, few enough to be coded quickly."""
    unit = _UNIT // gcd(_UNIT, taps)
    channels = _COLUMNS // taps // unit * unit
    if count <= _COLUMNS or not channels:
        return np.arange(count)
    chosen = np.linspace(0, count // taps - 1, channels).round().astype(np.intp)
    return (chosen[:, None] * taps + np.arange(taps)).reshape(-1)


def _some_rows(count: int, columns: int) -> NDArray[np.intp]:
    """Evenly spaced rows."""
    return np.arange(0, count, max(1, count * columns // _WEIGHTS))


def _rows(weight: Float) -> Float:
    return weight.reshape(len(weight), -1)


def reads_image(site: Site) -> bool:
    """Whether a layer is a convolution of so few channels that they are those of an image."""
    return site.kind == "Conv" and site.geometry.group == 1 and site.channels_in <= _IMAGE


def _stacked(site: Site) -> Float:
    """The weight as (G, R, d)."""
    rows = Layout(site).rows()
    return rows.reshape(site.geometry.group, -1, rows.shape[1])


def _moments(problem: Problem) -> Moments:
    assert problem.moments is not None, "there were statistics"
    return problem.moments


def _least_squares(problems: Sequence[Problem], biased: bool) -> tuple[Float, Float]:
    """The least squares targets, (G, R, d), and Grams, (G, d, d)."""
    parts = [least_squares_target(_moments(p), _rows(p.weight), _RIDGE, biased=biased) for p in problems]
    targets, grams = zip(*parts, strict=True)
    return np.stack(targets), np.stack(grams)


def kept(rows: Float) -> Mask | None:
    """Where a pruned weight is not zero; None for weights that were not pruned."""
    keep = rows != 0.0
    return keep if 1.0 - keep.mean() >= _SPARSE and keep.any() else None
