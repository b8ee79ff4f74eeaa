"""The pass ``structured``: a k x k convolution becomes sums over windows and a convolution with fewer taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.contract import Value
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.decomposition.chains import constants
from onnxcomp.decomposition.problem import Factors, Setting, joined
from onnxcomp.errors import OptionError
from onnxcomp.graph.edit import Link
from onnxcomp.graph.geometry import Geometry, same_pads
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.structured import compose, core_kernel, fit_structured, structured_error, window, window_sums
from onnxcomp.options import Bounds

__all__ = ["Structured"]

Float = NDArray[np.float64]

_SIDE = 2


@dataclass(frozen=True)
class Structured(Decomposition):
    """Replace a k x k convolution by sums over windows and an n x n convolution (structured convolution).

    K[o,i] ~ box * core[o,i]: windows of k - n + 1 taps an axis, then n taps (Bhalgat et al. 2020, section 4.1, with
    c = C). The sums are an AveragePool, or a depthwise convolution with ones where the pads or the dilation allow no
    AveragePool. They take the pads, the n x n convolution keeps the stride and carries the bias. Axes of no more than n
    taps stay as they are.

    With calibration data the n x n kernels are the least-squares fit to the layer's output, given the inputs that the
    already compressed layers before it produce; without, the closest ones to the weight. Kernels trained without this
    structure are seldom near it, so look at the accuracy.

    Left alone, with the reason in the report: kernels of one tap, depthwise convolutions, ConvTranspose, auto_pad SAME
    with a stride on inputs of unknown size, and what tucker2 leaves alone as well.

    Attributes:
        n: Taps an axis that are left, the same as a number for `rank`; 2 where nothing is given.
    """

    name: ClassVar[str] = "structured"
    rules: ClassVar[tuple[str, ...]] = ("energy", "ratio")
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"rank", "energy", "weaken", "keep", "ratio", "n"}),
    )

    n: Annotated[int, Bounds(1)] | None = None

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        super().__post_init__()
        for name in ("rank", "energy", "weaken", "keep", "ratio") if self.n is not None else ():
            if getattr(self, name) is not None:
                raise OptionError(f"structured: n and {name} exclude each other; give one")

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
        del site
        if self.rule == "energy" and not super().explicit():
            return [Setting((self.n or _SIDE,))]
        return [Setting((self.rank,))] if isinstance(self.rank, int) else None

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

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """The sums, then the core."""
        del setting
        box, core = joined(groups, "box"), joined(groups, "core")
        sums, inner = _split(site.geometry, core.shape[2:])
        if _pools(sums):
            attributes = {k: v for k, v in sums.attributes().items() if k in ("kernel_shape", "strides", "pads")}
            first = Link("box", "AveragePool", (), {**attributes, "count_include_pad": 1})
            core = core * np.float32(prod(sums.kernel))
        else:
            first = Link("box", "Conv", (np.ones_like(box),), replace(sums, group=len(box)).attributes())
        return first, Link("core", "Conv", (core, *constants(bias)), inner.attributes())

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The n."""
        return {"n": setting.ranks[0]}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The n of a choice."""
        del site
        return Setting((int(choice["n"]),))

    def tail(self, factors: Factors) -> tuple[Float, int | None] | None:
        """The core."""
        core = factors["core"]
        return core.reshape(len(core), -1), None

    def features(self, factors: Factors, x: Float) -> Float:
        """The sums that the core reads."""
        box, core = factors["box"], factors["core"]
        kernel = tuple(b + c - 1 for b, c in zip(box.shape[2:], core.shape[2:], strict=True))
        return window_sums(x, kernel, core.shape[2:])

    def with_tail(self, factors: Factors, core: Float, last: Float | None) -> Factors:
        """Another core."""
        del last
        return {**factors, "core": core.reshape(factors["core"].shape)}


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


def _pools(sums: Geometry) -> bool:
    """Whether ONNX Runtime's AveragePool takes this geometry: no dilation, and each pad smaller than the window."""
    fits = all(0 <= pad < size for pad, size in zip(sums.pads, sums.kernel * 2, strict=True))
    return fits and all(d == 1 for d in sums.dilations)
