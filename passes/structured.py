"""The pass ``structured``: a k x k convolution becomes sums over windows and a convolution with fewer taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, joined
from onnxcomp.contract import Candidate, Context, Skip, Value
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.decomposition.chains import constants
from onnxcomp.decomposition.form import Tail
from onnxcomp.errors import OptionError
from onnxcomp.graph.chain import describe_chain
from onnxcomp.graph.edit import Link
from onnxcomp.graph.geometry import Geometry, same_pads
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.structured import compose, core_kernel, fit_structured, structured_error, window, window_sums
from onnxcomp.options import Bounds

if TYPE_CHECKING:
    from onnxcomp.calibration.gram import PatchGram

__all__ = ["Structured"]

Float = NDArray[np.float64]

_SIDE = 2


@dataclass(frozen=True)
class Structured(Decomposition):
    """Replace a k x k convolution by sums over windows and an n x n convolution (structured convolution).

    K[o,i] ~ box * core[o,i]: windows of k - n + 1 taps an axis, then n taps (Bhalgat et al. 2020, section 4.1, with
    c = C). The sums are a depthwise convolution with ones, or an AveragePool where pads and dilation allow it and it
    was measured to be faster. They take the pads, the n x n convolution keeps the stride and carries the bias. Axes of
    no more than n taps stay as they are.

    With calibration data the n x n kernels are the least-squares fit to the layer's output, given the inputs that the
    already compressed layers before it produce; without, the closest ones to the weight. Kernels trained without this
    structure are seldom near it, so look at the accuracy.

    Left alone, with the reason in the report: kernels of one tap, depthwise convolutions, ConvTranspose, auto_pad SAME
    with a stride on inputs of unknown size, and what tucker2 leaves alone as well.

    Attributes:
        n: Taps an axis that are left, the same as a number for `rank`; 2 where nothing is given.
        sums: ones: a depthwise convolution; pool: an AveragePool wherever the runtime takes one. Both are timed unless
            given; where nothing is timed it is ones, since integer pools are slow.
    """

    name: ClassVar[str] = "structured"
    rules: ClassVar[tuple[str, ...]] = ("energy", "ratio")
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"rank", "energy", "weaken", "keep", "ratio", "n"}),
    )

    n: Annotated[int, Bounds(1)] | None = None
    sums: Literal["ones", "pool"] | None = None

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        super().__post_init__()
        for name in ("rank", "energy", "weaken", "keep", "ratio") if self.n is not None else ():
            if getattr(self, name) is not None:
                raise OptionError(f"structured: n and {name} exclude each other; give one")

    @property
    def named(self) -> bool:
        """Whether the number of taps was given."""
        return self.n is not None or super().named

    def explicit(self) -> bool:
        """Whether n follows from anything but the defaults."""
        return self.n is not None or super().explicit()

    def refuse(self, site: Site) -> str | None:
        """Say why a site has no structured form."""
        geometry = site.geometry
        if geometry.pointwise:
            return "the kernel is 1x1"
        if geometry.transposed:
            return "a ConvTranspose"
        if geometry.group > 1 and geometry.group == site.channels_in:
            return "depthwise: the sums cost as much as the taps they save"
        if _explicit(geometry) is None:
            return f"auto_pad {geometry.auto_pad} with a stride, and the size of the input is not known"
        return None

    def asked(self, site: Site) -> list[Setting] | None:
        """The n that the user gave, or the default one."""
        n = self.rank if isinstance(self.rank, int) else self.n
        if n is None and not super().explicit():
            n = _SIDE
        return None if n is None else [Setting((n,), order) for order in self.orders(site)]

    def orders(self, site: Site) -> tuple[str, ...]:
        """How the sums are written."""
        del site
        return (self.sums or "ones",)

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """(The longest side of the kernel,)."""
        del order
        return (max(shape[2:]),)

    def grid(self, full: int, step: int) -> Sequence[int]:
        """Every n; the runtime's block of channels has nothing to do with it."""
        del step
        return range(1, full + 1)

    def whole(self, shape: tuple[int, ...], setting: Setting) -> bool:
        """Whether no axis is longer than n."""
        return setting.ranks[0] >= max(shape[2:])

    def scores(self, weight: Float, moments: Moments | None) -> Callable[[Setting], float]:
        """Exact, from one small factorisation for each n."""
        return lambda setting: structured_error(weight, moments, setting.ranks[0])

    def factor(self, weight: Float, moments: Moments | None, setting: Setting) -> Factors:
        """Least squares, in closed form."""
        core = fit_structured(weight, moments, setting.ranks[0])
        return {"box": np.ones((weight.shape[1], 1, *window(weight.shape[2:], core.shape[2:]))), "core": core}

    def compose(self, factors: Factors) -> Float:
        """The weight that box and core stand for."""
        box, core = factors["box"], factors["core"]
        return compose(core, tuple(b + c - 1 for b, c in zip(box.shape[2:], core.shape[2:], strict=True)))

    def shapes(self, shape: tuple[int, ...], setting: Setting) -> Mapping[str, tuple[int, ...]]:
        """The shapes of box and core."""
        core = core_kernel(shape[2:], setting.ranks[0])
        return {"box": (shape[1], 1, *window(shape[2:], core)), "core": (*shape[:2], *core)}

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Propose the chain of the n that the options lead to; where chains are timed, with both kinds of sums."""
        found = super().propose(site, gram, context)
        timed = context.objective == "latency" and context.target.host
        if isinstance(found, Skip) or self.sums is not None or not timed:
            return found
        setting = replace(self.setting(site, found[0].choice), order="pool")
        links = _pooled(found[0].chain)
        if links is None:
            return found
        return [*found, replace(found[0], chain=links, summary=describe_chain(links), choice=self.choice(setting))]

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """The sums, then the core."""
        box, core = joined(groups, "box"), joined(groups, "core")
        sums, inner = _split(site.geometry, core.shape[2:])
        links = (
            Link("box", "Conv", (np.ones_like(box),), replace(sums, group=len(box)).attributes()),
            Link("core", "Conv", (core, *constants(bias)), inner.attributes()),
        )
        return (_pooled(links) or links) if setting.order == "pool" else links

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The n."""
        return {"n": setting.ranks[0], "sums": setting.order}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The n of a choice."""
        del site
        return Setting((int(choice["n"]),), str(choice["sums"]))

    def tail(self, factors: Factors) -> Tail:
        """The core, behind the sums."""
        box, core = factors["box"], factors["core"]
        kernel = tuple(b + c - 1 for b, c in zip(box.shape[2:], core.shape[2:], strict=True))
        return Tail(
            core.reshape(len(core), -1),
            None,
            lambda x: window_sums(x, kernel, core.shape[2:]),
            lambda changed, _: {**factors, "core": changed.reshape(core.shape)},
        )


def _explicit(geometry: Geometry) -> Geometry | None:
    """The geometry with explicit pads; None where they follow from a size that is not known."""
    if geometry.auto_pad == "NOTSET":
        return geometry
    if max(geometry.strides) > 1:
        return None
    # With a stride of 1 the pads of SAME are the same for every size.
    upper = geometry.auto_pad == "SAME_UPPER"
    pads = same_pads(geometry.kernel, geometry.kernel, geometry.strides, geometry.dilations, upper=upper)
    return replace(geometry, auto_pad="NOTSET", pads=pads)


def _split(geometry: Geometry, core: tuple[int, ...]) -> tuple[Geometry, Geometry]:
    """The geometry of the sums (of one group) and of the core.

    The sums are needed where the core reads them: at every position if it has taps one step apart, at every s-th where
    it has a single tap. Pads go with the sums, since sums that reach into the pads are not zero; an axis without sums
    leaves them, and all else, to the core.
    """
    known = _explicit(geometry)
    assert known is not None  # refuse() has turned the others down
    rank = known.rank
    sizes = window(known.kernel, core)
    summed = [size > 1 for size in sizes]
    steps = tuple(
        1 if not is_summed else stride if taps == 1 else gcd(stride, dilation)
        for is_summed, taps, stride, dilation in zip(summed, core, known.strides, known.dilations, strict=True)
    )
    sums = Geometry(
        kernel=sizes,
        strides=steps,
        dilations=tuple(d if s else 1 for d, s in zip(known.dilations, summed, strict=True)),
        pads=tuple(p if s else 0 for p, s in zip(known.pads, summed * 2, strict=True)),
    )
    inner = Geometry(
        kernel=core,
        strides=tuple(s // step for s, step in zip(known.strides, steps, strict=True)),
        dilations=tuple(1 if n == 1 else d // step for n, d, step in zip(core, known.dilations, steps, strict=True)),
        pads=tuple(0 if s else p for p, s in zip(known.pads, summed * 2, strict=True)),
        group=known.group,
    )
    assert len(inner.pads) == 2 * rank
    return sums, inner


def _pooled(links: Sequence[Link]) -> tuple[Link, ...] | None:
    """The chain with an AveragePool in place of the ones; None where ONNX Runtime takes none.

    It takes no pad as large as its window, and no dilation before opset 19. Its mean is the sum divided by the number
    of taps, which the core makes up for.
    """
    box, core = links
    sums, weight = box.constants[0], core.constants[0]
    size = sums.shape[2:]
    pads, dilations = box.attributes["pads"], box.attributes["dilations"]
    assert isinstance(pads, tuple) and isinstance(dilations, tuple)
    if max(dilations) > 1 or not all(0 <= pad < taps for pad, taps in zip(pads, size * 2, strict=True)):
        return None
    attributes = {name: box.attributes[name] for name in ("kernel_shape", "strides", "pads")}
    scaled = np.asarray(weight, np.float32) * np.float32(prod(size))
    return (
        Link("box", "AveragePool", (), {**attributes, "count_include_pad": 1}),
        replace(core, constants=(scaled, *core.constants[1:])),
    )
