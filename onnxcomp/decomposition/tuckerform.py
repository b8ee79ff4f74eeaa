"""Forms that are Tucker-2 in a view of the weight: a map of fewer channels, a core, and a map back.

With the taps of some kernel axes moved to the input channels, the view (Co, Ci * F, C) of a weight covers four passes:
tucker2 (F = 1, both sides), channel and lowrank (F = 1, the output side), spatial (F = one axis, the input side).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.decomposition.form import Tail
from onnxcomp.numeric.lowrank import RankErrors, fit_tucker2
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.ranks import tail_energy
from onnxcomp.numeric.tucker import Tucker2, balance, compose, hooi, mode_spectra

__all__ = ["TuckerForm"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class TuckerForm(Decomposition):
    """A decomposition with factors first (r_in, Ci, *kernel), core (r_out, r_in, *kernel) and last (Co, r_out).

    Each kernel axis has its taps either in `first` or in `core` and length 1 in the other. `first` or `last` is left
    out where its rank is full.
    """

    def first_axes(self, kernel: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The kernel axes whose taps belong to `first`; none where it is pointwise or left out."""
        del kernel, order
        return ()

    @abstractmethod
    def sides(self, shape: tuple[int, ...], setting: Setting) -> tuple[int | None, int | None]:
        """Input and output rank of a setting, None for a side left whole."""

    def whole(self, shape: tuple[int, ...], setting: Setting) -> bool:
        """Whether neither side is factored."""
        return self.sides(shape, setting) == (None, None)

    def scores(self, weight: Float, moments: Moments | None) -> Callable[[Setting], float]:
        """Without moments the sum of both sides' squared tails, an upper bound that is exact for a single side."""
        cache: dict[tuple[tuple[int, ...], int | None], Callable[[int | None, int | None], float]] = {}

        def score(setting: Setting) -> float:
            axes = self.first_axes(weight.shape[2:], setting.order)
            rank_in, rank_out = self.sides(weight.shape, setting)
            view = _View.of(weight.shape, axes)
            # Ranks past break-even are asked for by users alone; to leave them out makes the factorisation small.
            most = max(rank_in, view.break_even(weight.shape)) if axes and rank_in and rank_out is None else None
            if (axes, most) not in cache:
                cache[axes, most] = _errors(view, weight, moments, most)
            return cache[axes, most](rank_in, rank_out)

        return score

    def factor(self, weight: Float, moments: Moments | None, setting: Setting) -> Factors:
        """Higher-order orthogonal iteration on the weight, or alternating least squares on the output."""
        view = _View.of(weight.shape, self.first_axes(weight.shape[2:], setting.order))
        ranks = self.sides(weight.shape, setting)
        seen = view.weight(weight)
        if moments is None:
            return view.factors(hooi(seen, *ranks))
        return view.factors(fit_tucker2(seen, None, view.moments(moments), *ranks).factors)

    def compose(self, factors: Factors) -> Float:
        """The weight that the factors stand for."""
        view = _View.behind(factors)
        return view.back(compose(view.tucker(factors)))

    def shapes(self, shape: tuple[int, ...], setting: Setting) -> Mapping[str, tuple[int, ...]]:
        """The shapes of first, core and last."""
        outs, ins, *kernel = shape
        axes = self.first_axes(tuple(kernel), setting.order)
        rank_in, rank_out = self.sides(shape, setting)
        inner = tuple(k if a in axes else 1 for a, k in enumerate(kernel))
        outer = tuple(1 if a in axes else k for a, k in enumerate(kernel))
        found: dict[str, tuple[int, ...]] = {}
        if rank_in is not None:
            found["first"] = (rank_in, ins, *inner)
        found["core"] = (rank_out or outs, rank_in or ins, *(outer if rank_in is not None else kernel))
        if rank_out is not None:
            found["last"] = (outs, rank_out)
        return found

    def balanced(self, factors: Factors, xx: Float | None) -> Factors:
        """Inner channels of equal root mean square."""
        view = _View.behind(factors)
        return view.factors(balance(view.tucker(factors), None if xx is None else view.gram(xx)))

    def tail(self, factors: Factors) -> Tail:
        """Core and output factor, behind `first`."""
        core, last = factors["core"], factors.get("last")
        flat = core.reshape(len(core), -1)
        view = _View.behind(factors)
        first = view.tucker(factors).first

        def features(x: Float) -> Float:
            if first is None:
                return x
            seen = x[:, view.order].reshape(len(x), first.shape[1], -1)
            return np.asarray(np.matmul(first, seen).reshape(len(x), -1), np.float64)

        def with_map(core: Float, last: Float | None) -> Factors:
            changed = {**factors, "core": core.reshape(len(core), *factors["core"].shape[1:])}
            return changed if last is None else {**changed, "last": last}

        return Tail(flat if last is None else last @ flat, None if last is None else last.shape[1], features, with_map)


@dataclass(frozen=True, eq=False, slots=True)
class _View:
    """A weight (Co, Ci, *kernel) seen as (Co, Ci * F, C): F taps of `axes` behind the channel, C taps of the others.

    Attributes:
        kernel: The whole kernel.
        axes: The axes of `first`.
        order: Index of each entry of the view's patches in the patches as they are, (Ci * taps,).
    """

    kernel: tuple[int, ...]
    axes: tuple[int, ...]
    order: NDArray[np.intp]

    @classmethod
    def of(cls, shape: tuple[int, ...], axes: tuple[int, ...]) -> _View:
        kernel, channels = shape[2:], shape[1]
        others = [a for a in range(len(kernel)) if a not in axes]
        index = np.arange(channels * prod(kernel)).reshape(channels, *kernel)
        return cls(kernel, axes, index.transpose(0, *(1 + a for a in (*axes, *others))).ravel())

    @classmethod
    def behind(cls, factors: Factors) -> _View:
        """The view in which factors were made; an axis of `first` has length 1 in the core."""
        first, core = factors.get("first"), factors["core"]
        if first is None:
            return cls.of(core.shape, ())
        kernel = tuple(max(a, b) for a, b in zip(first.shape[2:], core.shape[2:], strict=True))
        axes = tuple(a for a, k in enumerate(first.shape[2:]) if k > 1)
        return cls.of((len(core), first.shape[1], *kernel), axes)

    @property
    def trivial(self) -> bool:
        """Whether the patches stay in their order."""
        return bool((np.diff(self.order) == 1).all())

    @property
    def inner(self) -> tuple[int, ...]:
        """Kernel of `first`."""
        return tuple(k if a in self.axes else 1 for a, k in enumerate(self.kernel))

    @property
    def outer(self) -> tuple[int, ...]:
        """Kernel of the core."""
        return tuple(1 if a in self.axes else k for a, k in enumerate(self.kernel))

    def break_even(self, shape: tuple[int, ...]) -> int:
        """The largest input rank with which two nodes have fewer weights than the layer."""
        ins, outs = shape[1] * prod(self.inner), shape[0] * prod(self.outer)
        return max(1, ins * outs // (ins + outs))

    def weight(self, weight: Float) -> Float:
        seen = weight.reshape(len(weight), -1)[:, self.order]
        return seen.reshape(len(weight), -1, prod(self.outer))

    def back(self, seen: Float) -> Float:
        flat = np.empty((len(seen), self.order.size))
        flat[:, self.order] = seen.reshape(len(seen), -1)
        return flat.reshape(len(seen), -1, *self.kernel)

    def gram(self, xx: Float) -> Float:
        return xx if self.trivial else xx[np.ix_(self.order, self.order)]

    def moments(self, moments: Moments) -> Moments:
        if self.trivial:
            return moments
        yx = None if moments.yx is None else moments.yx[:, self.order]
        return replace(moments, xx=self.gram(moments.xx), mean_x=moments.mean_x[self.order], yx=yx)

    def tucker(self, factors: Factors) -> Tucker2:
        first, core = factors.get("first"), factors["core"]
        flat = None if first is None else first.reshape(len(first), -1)
        return Tucker2(flat, core.reshape(*core.shape[:2], -1), factors.get("last"), 0.0)

    def factors(self, tucker: Tucker2) -> Factors:
        found: dict[str, Float] = {}
        if tucker.first is not None:
            found["first"] = tucker.first.reshape(len(tucker.first), -1, *self.inner)
        kernel = self.kernel if tucker.first is None else self.outer
        found["core"] = tucker.core.reshape(*tucker.core.shape[:2], *kernel)
        if tucker.last is not None:
            found["last"] = tucker.last
        return found


def _errors(
    view: _View, weight: Float, moments: Moments | None, most: int | None
) -> Callable[[int | None, int | None], float]:
    seen = view.weight(weight)
    if moments is not None:
        return RankErrors(seen, view.moments(moments), most)
    ins, outs = (tail_energy(s) for s in mode_spectra(seen))

    def error(rank_in: int | None, rank_out: int | None) -> float:
        return float((0.0 if rank_in is None else ins[rank_in]) + (0.0 if rank_out is None else outs[rank_out]))

    return error
