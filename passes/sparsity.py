"""The pass ``sparsity``: weights become zero, singly, N of every M, or in blocks, and what stays is fitted anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Fit, Offering
from onnxcomp.allocation.problem import Problem, Setting, group_shape, key_of, problems_of
from onnxcomp.allocation.shares import shares_of
from onnxcomp.choose import overridden
from onnxcomp.contract import Candidate, Context, Pass, PassReport, Saves, Skip, Value
from onnxcomp.cost import Cost
from onnxcomp.errors import DataError, OptionError
from onnxcomp.graph.edit import PASS, Link, origin_of
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.options import Bounds
from onnxcomp.pruning import amount_of, by_magnitude, described, fitted, numbers_in, rough_error, share, written
from onnxcomp.quantize.layout import Layout
from onnxcomp.reorder import Reordered, reorder
from onnxcomp.storage.zeros import STORE, folds, stored_size

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.calibration.gram import PatchGram

__all__ = ["Sparsity"]

Float = NDArray[np.float64]
Amount = Annotated[float, Bounds(0, 1, open_low=True, open_high=True)]

Method = Literal["auto", "magnitude", "gram"]

_METHODS: Mapping[Fit, Method] = {"auto": "auto", "weights": "magnitude", "data": "gram"}
_AMOUNT = 0.5
_MOST = 0.95
# A layer with fewer zeros gets none at all where a budget asks for less.
_LEAST = 0.1
# Shares of weights kept that an allocator chooses from.
_KEPT = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Sparsity(Offering):
    """Set weights to zero, singly, N of every M, or in blocks, and fit those that stay to the layer's output.

    With calibration data, supports are found by the alternating direction method of multipliers under the Gram of what
    the layer reads (Boza 2024; Meng et al. 2024), given the inputs that the already pruned layers before it produce;
    the weights that stay, and the bias, then are the least-squares ones. Without data the largest weights stay.

    A pattern N:M keeps N of every M consecutive input channels, for each output channel and kernel tap: 2:4 is what the
    sparse kernels of TensorRT take. A block of RxC zeroes R output channels times C input channels of a tap together.

    The arithmetic stays dense. For ONNX Runtime the file holds a bit for each weight and the values of those that are
    not zero, where that is smaller; it is turned back at load. Left alone, with the reason in the report: weights that
    are shared, not constant or not finite, and channels that do not fall into the groups or blocks.

    Attributes:
        amount: Share of each layer's weights that become zero; 0.5 where there is no pattern.
        pattern: N:M, such as 2:4: of every 4 consecutive input channels 2 stay.
        block: RxC, such as 4x1: output channels and input channels that are zero together.
        method: The largest weights stay (magnitude), or those that the output needs most (gram, which takes data);
            auto: gram where there are data.
        allocation: What share each layer gets of `amount`: the same (uniform), such that the layers' errors add up to
            least (global), or what these errors do to the outputs of the model, measured (sensitivity).
        store: How weights lie in the file: with a bit for each that is zero (mask), as they are (dense); auto: the
            smaller one.
        permute: Whether channels may come in another order inside the model, which changes no output, so that a pattern
            keeps larger weights (Pool and Yu 2021).
    """

    name: ClassVar[str] = "sparsity"
    saves: ClassVar[Saves] = "bytes"
    kinds: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    # What was asked for is done, whether or not the file shrinks: TensorRT takes dense files.
    decided: ClassVar[bool] = True
    as_asked: ClassVar[bool] = True
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"amount", "pattern"}),
        frozenset({"pattern", "block"}),
    )

    amount: Amount | None = None
    pattern: str | None = None
    block: str | None = None
    method: Method = "auto"
    allocation: Literal["uniform", "global", "sensitivity"] = "uniform"
    store: Literal["auto", "dense", "mask"] = "auto"
    permute: bool = True

    def __post_init__(self) -> None:
        """Refuse options that exclude each other or cannot be read."""
        for other in ("amount", "block"):
            if self.pattern is not None and getattr(self, other) is not None:
                raise OptionError(f"sparsity: pattern and {other} exclude each other; give one")
        if self.pattern is not None and self.allocation != "uniform":
            raise OptionError(f"sparsity: allocation={self.allocation} shares out an amount; pattern has none")
        if self.pattern is not None:
            _parsed(self.pattern, "pattern", r"([1-9]\d*):([1-9]\d*)", "N:M, such as 2:4")
            kept, of = numbers_in(self.pattern)
            if not kept < of <= 64:
                raise OptionError(f"sparsity.pattern: {self.pattern!r} keeps {kept} of {of}; N < M <= 64")
        if self.block is not None:
            _parsed(self.block, "block", r"([1-9]\d*)x([1-9]\d*)", "ROWSxCHANNELS, such as 4x1")

    @property
    def named(self) -> bool:
        """Whether an amount or a pattern was given."""
        return self.amount is not None or self.pattern is not None

    def plain(self, fit: Fit, *, relu: bool) -> Sparsity:
        """The pass with no amount given."""
        del relu
        return Sparsity(method=_METHODS[fit])

    def explicit(self) -> bool:
        """Whether an amount or a pattern was given."""
        return self.named

    def eased(self, amount: float) -> Pass | None:
        """Ask for a smaller share of zeros, or without an amount for a larger one too."""
        if self.pattern is not None:
            return None
        share = (self.amount or _AMOUNT) * (amount if self.amount is None else min(amount, 1.0))
        return replace(self, amount=min(float(f"{share:.6g}"), _MOST))

    def wants_gram(self) -> bool:
        """Whether supports follow the data."""
        return self.method != "magnitude"

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise DataError where supports must follow data and there are none."""
        del model
        if self.method == "gram" and context.data is None:
            raise DataError("sparsity(method=gram) needs calibration data: give --data, or use method=auto")

    def refuse(self, site: Site) -> str | None:
        """Say why channels do not fall into groups or blocks."""
        rows, channels = group_shape(site)[:2]
        each = " a group" if site.geometry.group > 1 else ""
        if self.pattern is not None and channels % numbers_in(self.pattern)[1]:
            return f"{channels} input channels{each} do not fall into groups of {numbers_in(self.pattern)[1]}"
        if self.block is not None:
            tall, wide = numbers_in(self.block)
            if rows % tall or channels % wide:
                return f"{channels} input and {rows} output channels{each} do not fall into blocks of {self.block}"
        return None

    def settings(self, site: Site, step: int) -> list[Setting]:
        """The pattern, or some shares."""
        del step
        asked = self.asked(site)
        if asked is not None:
            return asked
        return [share(1 - kept, self.block or "") for kept in _KEPT]

    def asked(self, site: Site) -> list[Setting] | None:
        """The share or pattern that was given."""
        del site
        return [self._own()] if self.named else None

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The amount or the pattern, and the block."""
        if ":" in setting.order:
            return {"pattern": setting.order}
        return {"amount": amount_of(setting), **({"block": setting.order} if setting.order else {})}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The setting of a choice."""
        del site
        if "pattern" in choice:
            return _setting_of(str(choice["pattern"]))
        return share(float(choice["amount"]), str(choice.get("block", "")))

    def cost(self, site: Site, setting: Setting) -> Cost:
        """The layer's own, but for the bytes."""
        return replace(site.cost, bytes=self._bytes(site, setting))

    def blank(self, site: Site, setting: Setting) -> tuple[Link, ...]:
        """The layer as it is: zeros do not change its time."""
        del setting
        return written(site, Layout(site).rows(), site.bias)

    def scored(self, problems: Sequence[Problem]) -> Callable[[Setting], float]:
        """Errors of settings on some rows, fitted roughly."""

        def score(setting: Setting) -> float:
            return float(np.mean([rough_error(problem, setting) for problem in problems]))

        return score

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Propose the layer with its smallest weights at zero; with data, refit() does the work."""
        setting = self._own_of(site)
        chain, error = self.blank(site, setting), None
        if gram is None or not self.wants_gram():
            found = by_magnitude(site, setting)
            chain, error = written(site, found.rows, found.bias), found.error
        size = self._bytes(site, setting) if folds(context.target) else site.cost.bytes
        return [Candidate(described(setting), chain, self.choice(setting), error, size, self._milder(setting))]

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Find what to keep, and fit it, given the compressed prefix's inputs."""
        if not self.wants_gram():
            return candidate
        found = fitted(site, self.setting(site, candidate.choice), problems_of(site, gram))
        return replace(candidate, chain=written(site, found.rows, found.bias), error=found.error)

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Share out the amount, prune layer by layer, and mark the layers for the form in which they are stored."""
        if self.allocation != "uniform" and context.replay is None:
            return self._shared(model, context).run(model, context)
        order = self._reordered(model, context)
        report = super().run(model, context)
        changed = {change.site for change in report.changes}
        zeros = entries = 0
        for node in model.graph:
            if node.metadata_props.get(PASS) != self.name or origin_of(node) not in changed:
                continue
            if self.store != "dense":
                node.metadata_props[STORE] = self.store
            tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
            if tensor is not None:
                entries += tensor.size
                zeros += tensor.size - int(np.count_nonzero(tensor.numpy()))
        return replace(report, notes=(*report.notes, *order, *self._notes(zeros, entries))) if entries else report

    def _reordered(self, model: ir.Model, context: Context) -> tuple[str, ...]:
        """Put channels in an order of which the patterns keep more, before anything is pruned; what to say of it."""
        sites: dict[Site, tuple[int, int]] = {}
        stay: set[str] = set()
        for site in weighted_sites(model, self.kinds):
            if not isinstance(site, Site):
                continue
            own = overridden(self, site, context.overrides)
            pruned = context.replay is None or site.name in context.replay
            if not isinstance(own, Sparsity) or not own.permute:
                stay.add(site.name)
            elif own.pattern and pruned and not own.refuse(site) and not context.excluded(site.name):
                sites[site] = numbers_in(own.pattern)
        # What was given back computes the same with its channels in another order.
        named = replace(context, given_back=frozenset())

        def refuse(node: ir.Node) -> str | None:
            name = origin_of(node)
            return named.excluded(name) or ("left alone by the recipe" if name in stay else None)

        done = reorder(model, sites, refuse) if sites else Reordered()
        if not done.layers:
            return ()
        layers = f"{len(done.layers)} layer{'s' if len(done.layers) > 1 else ''}"
        gain = f"{done.before:.1%} -> {done.after:.1%}"
        return (f"channels reordered, read by {layers}: the pattern keeps {gain} of the squared weights",)

    def _notes(self, zeros: int, entries: int) -> tuple[str, ...]:
        gain = (
            "TensorRT some in wide layers, on Ampere and newer GPUs" if self.pattern == "2:4" else "nor does TensorRT"
        )
        return (
            f"{zeros:,} of {entries:,} weights ({zeros / entries:.1%}) of the pruned layers are zero",
            f"zeros save bytes: ONNX Runtime on CPU gains no speed from them, {gain}",
        )

    def _shared(self, model: ir.Model, context: Context) -> Sparsity:
        """Share out the amount among the layers that have no options of their own."""
        sites = [
            site
            for site in weighted_sites(model, self.kinds)
            if isinstance(site, Site)
            and not replace(context, given_back=frozenset()).excluded(site.name)
            and overridden(self, site, context.overrides) is self
            and not self.refuse(site)
        ]
        amount = self.amount or _AMOUNT
        form = _Counted(block=self.block, method=self.method)
        shares = shares_of(model, sites, form, 1 - amount, context, measured=self.allocation == "sensitivity")
        amounts = {key: 1 - kept for key, kept in shares.items()}
        options = {name: getattr(self, name) for name in ("block", "method", "store", "permute")}
        return _Shared(amount=self.amount, amounts=amounts, **options)

    def _own(self) -> Setting:
        if self.pattern is not None:
            return _setting_of(self.pattern)
        return share(self.amount or _AMOUNT, self.block or "")

    def _own_of(self, site: Site) -> Setting:
        """The setting of a site."""
        del site
        return self._own()

    def _bytes(self, site: Site, setting: Setting) -> int:
        """Bytes of the layer's constants in the file, where the runtime decodes them."""
        bias = 0 if site.bias is None else site.bias.nbytes
        if self.store == "dense":
            return site.weight.nbytes + bias
        kept = round((1 - amount_of(setting)) * site.weight.size)
        return stored_size(site.weight.size, kept, site.weight.itemsize) + bias

    def _milder(self, setting: Setting) -> dict[str, Value]:
        """Two thirds of the zeros; no pattern is milder."""
        amount = amount_of(setting)
        return {} if self.pattern is not None or amount < _LEAST else self.choice(share(2 / 3 * amount, setting.order))


@dataclass(frozen=True)
class _Counted(Sparsity):
    """The pass where weights themselves are scarce, however they are stored."""

    def cost(self, site: Site, setting: Setting) -> Cost:
        return replace(site.cost, bytes=round((1 - amount_of(setting)) * site.cost.bytes))


@dataclass(frozen=True)
class _Shared(Sparsity):
    """The pass with an amount for each layer, by its key; layers that have none get the pass's own."""

    amounts: Mapping[str, float] = field(default_factory=dict[str, float], metadata={"option": False})

    def _own_of(self, site: Site) -> Setting:
        amount = self.amounts.get(key_of(site))
        return self._own() if amount is None else share(amount, self.block or "")


def _parsed(text: str, option: str, form: str, words: str) -> None:
    if not re.fullmatch(form, text):
        raise OptionError(f"sparsity.{option}: {text!r} is not of the form {words}")


def _setting_of(pattern: str) -> Setting:
    kept, of = numbers_in(pattern)
    return replace(share(1 - kept / of), order=pattern)
