"""What a decomposition is: its ranks, what they cost and lose, its factors and its nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.problem import Factors, Setting
from onnxcomp.contract import Value
from onnxcomp.errors import OptionError
from onnxcomp.numeric.moments import Moments

if TYPE_CHECKING:
    from onnxcomp.graph.edit import Link
    from onnxcomp.graph.sites import Site

__all__ = ["Form", "Tail"]

Float = NDArray[np.float64]

# More ranks than this a side are thinned out evenly; what lies between differs by little.
_GRID = 64


@dataclass(frozen=True, eq=False, slots=True)
class Tail:
    """The last dense map of a chain, which reads features that stay what they are.

    Attributes:
        linear: The map, (Co, m).
        rank: Its rank; None where it is not factored.
        features: Patches (n, d) to what the map reads, (n, m).
        with_map: A core (r, m) and the last factor (Co, r), or a core (Co, m) and None, to factors with that map.
    """

    linear: Float
    rank: int | None
    features: Callable[[Float], Float]
    with_map: Callable[[Float, Float | None], Factors]


class Form(Offering):
    """What a decomposition is: its ranks, its factors and its nodes. All arrays are of one group."""

    # Share of the output's variance (of the weight's energy without data) that is kept where nothing is said.
    energy_default: ClassVar[float] = 0.998
    rules: ClassVar[tuple[str, ...]] = ("energy", "vbmf", "weakened", "ratio")

    def orders(self, site: Site) -> tuple[str, ...]:
        """The orders of nodes to choose from."""
        del site
        return ("",)

    @abstractmethod
    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The largest ranks for a group's weight of this shape (Co, Ci, *kernel)."""

    def grid(self, full: int, step: int) -> Sequence[int]:
        """The ranks of one side to choose from: multiples of `step`, and the full one."""
        ranks = list(range(step, full, step))
        if len(ranks) > _GRID:
            ranks = sorted({ranks[round(i)] for i in np.linspace(0, len(ranks) - 1, _GRID)})
        return [*ranks, full]

    def whole(self, shape: tuple[int, ...], setting: Setting) -> bool:
        """Whether a setting leaves the layer as it is."""
        del shape, setting
        return False

    @abstractmethod
    def scores(self, weight: Float, moments: Moments | None) -> Callable[[Setting], float]:
        """Return what each setting loses: relative squared error of the output; without moments, of the weight.

        One factorisation of the Gram should serve all settings; `moments` have targets.
        """

    @abstractmethod
    def factor(self, weight: Float, moments: Moments | None, setting: Setting) -> Factors:
        """Return the best factors for a setting; without moments those closest to the weight."""

    @abstractmethod
    def compose(self, factors: Factors) -> Float:
        """Multiply factors out to the weight (Co, Ci, *kernel) that they stand for."""

    @abstractmethod
    def shapes(self, shape: tuple[int, ...], setting: Setting) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the factors for a group's weight of this shape (Co, Ci, *kernel)."""

    @abstractmethod
    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """Write the factors of all groups as nodes; a bias before the padding is wrong at borders: the last has it."""

    def balanced(self, factors: Factors, xx: Float | None) -> Factors:
        """Rescale inner channels so that one int8 scale serves all; the product stays what it is.

        `xx` is the uncentred Gram (d, d) of the patches; None assumes white inputs.
        """
        del xx
        return factors

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """The ranks that EVBMF finds, as `full` gives the largest ones; 0 for noise alone.

        Raises:
            OptionError: The form has no such rule.
        """
        raise OptionError(f"{self.name}: there is no rank=vbmf")

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The options that lead back to a setting."""
        return {"rank": setting.ranks[0], **({"order": setting.order} if setting.order else {})}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The setting of a choice."""
        del site
        return Setting((int(choice["rank"]),), str(choice.get("order", "")))

    def tail(self, factors: Factors) -> Tail | None:
        """The last dense map of the chain; None where there is none."""
        del factors
        return None
