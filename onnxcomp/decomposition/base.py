"""The base of every decomposition pass: shared options, and the proposal and fit of a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import numpy as np

from onnxcomp.allocation.offering import Fit
from onnxcomp.allocation.problem import Problem, Setting, group_shape, problems_of
from onnxcomp.contract import Candidate, Context, Saves, Skip
from onnxcomp.cost import Cost
from onnxcomp.decomposition.fitting import Fitted, fitted, mean_scores
from onnxcomp.decomposition.form import Form
from onnxcomp.decomposition.ranking import choose_setting
from onnxcomp.errors import DataError, OptionError
from onnxcomp.graph.chain import chain_cost, describe_chain
from onnxcomp.options import Bounds

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxcomp.calibration.gram import PatchGram
    from onnxcomp.graph.edit import Link
    from onnxcomp.graph.sites import Site

__all__ = ["Decomposition"]

Rule = Literal["energy", "vbmf", "weakened", "ratio"]

_RELU_PATCHES = 4000


@dataclass(frozen=True)
class Decomposition(Form):
    """A pass that replaces a layer by a chain of cheaper ones.

    Attributes:
        rank: The rank itself, or how it follows: energy, vbmf (exact EVBMF; Nakajima et al. 2013), weakened or ratio.
        energy: Share of the variance of the layer's output to keep (of the weight's energy without data). The default
            asks for more where the data give few patches.
        weaken: How far `weakened` goes from the full rank (0) to the VBMF rank (1); 0.7 unless given.
        keep: Fraction of each site's MACs to keep at most.
        ratio: Cut the weights of each site by at least this factor; 2 unless given.
        fit: Whether the factors follow the weights, the data, or the data where there are any (auto).
        relu: With data, where nothing but Relu reads the output, fit what the Relu leaves, on sampled patches (Zhang et
            al. 2016, section 3.2); slower.
    """

    saves: ClassVar[Saves] = "latency"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"rank", "energy", "weaken", "keep", "ratio"}),)

    rank: Rule | Annotated[int, Bounds(1)] | None = None
    energy: Annotated[float, Bounds(0, 1, open_low=True)] | None = None
    weaken: Annotated[float, Bounds(0, 1)] | None = None
    keep: Annotated[float, Bounds(0, 1, open_low=True, open_high=True)] | None = None
    ratio: Annotated[float, Bounds(1, open_low=True)] | None = None
    fit: Fit = "auto"
    relu: bool = False

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        amounts = [name for name in ("energy", "weaken", "keep", "ratio") if getattr(self, name) is not None]
        own = {"energy": "energy", "weakened": "weaken", "ratio": "ratio"}.get(str(self.rank))
        clash = [name for name in amounts if self.rank is not None and name != own] or amounts[1:]
        if clash:
            other = f"rank={self.rank}" if self.rank is not None else amounts[0]
            raise OptionError(f"{self.name}: {other} and {clash[0]} exclude each other; give one")
        if self.rule not in (*self.rules, "keep", "rank"):
            raise OptionError(
                f"{self.name}: there is no rank={self.rule}; it takes {', '.join(self.rules)} or a number"
            )

    @property
    def rule(self) -> str:
        """How ranks follow: rank (explicit), keep, energy, vbmf, weakened or ratio."""
        if self.rank is not None:
            return self.rank if isinstance(self.rank, str) else "rank"
        if self.keep is not None:
            return "keep"
        if self.ratio is not None:
            return "ratio"
        return "weakened" if self.weaken is not None else "energy"

    @property
    def named(self) -> bool:
        """Whether the ranks themselves were given."""
        return isinstance(self.rank, int)

    def plain(self, fit: Fit, *, relu: bool) -> Decomposition:
        """The pass with no ranks given."""
        return type(self)(fit=fit, relu=relu)

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise DataError where the fit must follow data and there are none."""
        if self.fit == "data" and context.data is None:
            raise DataError(f"{self.name}(fit=data) needs calibration data: give --data, or use fit=auto")

    def explicit(self) -> bool:
        """Whether the ranks follow from anything but the defaults."""
        return self.rule != "energy" or self.energy is not None

    def wants_gram(self) -> bool:
        """Whether the fit follows the data."""
        return self.fit != "weights"

    def wants_patches(self) -> int:
        """The ReLU-aware fit needs patches themselves."""
        return _RELU_PATCHES if self.relu else 0

    def asked(self, site: Site) -> list[Setting] | None:
        """The settings with the ranks that the user gave; None where a rule finds them."""
        if not isinstance(self.rank, int):
            return None
        shape = group_shape(site)
        return [
            Setting(tuple(min(self.rank, full) for full in self.full(shape, order)), order)
            for order in self.orders(site)
        ]

    def settings(self, site: Site, step: int) -> list[Setting]:
        """Every setting whose ranks lie on the grid, but what leaves the layer as it is."""
        shape = group_shape(site)
        every = (
            Setting(ranks, order)
            for order in self.orders(site)
            for ranks in product(*(self.grid(full, step) for full in self.full(shape, order)))
        )
        return [setting for setting in every if not self.whole(shape, setting)]

    def blank(self, site: Site, setting: Setting) -> tuple[Link, ...]:
        """A chain of the right shapes and arbitrary weights."""
        rng = np.random.default_rng(0)
        shapes = self.shapes(group_shape(site), setting)
        factors = {role: rng.standard_normal(shape) for role, shape in shapes.items()}
        bias = None if site.bias is None and self.fit == "weights" else np.zeros(site.channels_out, np.float32)
        return self.links(site, setting, [factors] * site.geometry.group, bias)

    def cost(self, site: Site, setting: Setting) -> Cost:
        """What a setting costs."""
        # Of the links' type, so that the factors of one group stay views of a single number.
        zero = cast("NDArray[np.float64]", np.zeros((), np.float32))
        factors = {role: np.broadcast_to(zero, s) for role, s in self.shapes(group_shape(site), setting).items()}
        return chain_cost(site, self.links(site, setting, [factors] * site.geometry.group, site.bias))

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Propose the chain of the ranks that the options lead to.

        Without statistics its factors are fitted to the weights; with them, it has the right shapes and refit() is to
        fit it.
        """
        problems = problems_of(site, gram)
        found = choose_setting(self, site, problems, context)
        if isinstance(found, Skip):
            return found
        setting, error = found
        if gram is not None:
            links = self.blank(site, setting)
            return [Candidate(describe_chain(links), links, self.choice(setting), error)]
        return [self._candidate(site, setting, fitted(self, site, problems, setting, None))]

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Fit the factors of the chosen ranks to the layer's outputs, given the compressed prefix's inputs."""
        setting = self.setting(site, candidate.choice)
        kept = gram.kept() if self.relu else None
        return self._candidate(site, setting, fitted(self, site, problems_of(site, gram), setting, kept))

    def scored(self, problems: Sequence[Problem]) -> Callable[[Setting], float]:
        """Predicted errors of settings, over all groups."""
        return mean_scores([self.scores(p.weight, p.moments) for p in problems], problems)

    def _candidate(self, site: Site, setting: Setting, fit: Fitted) -> Candidate:
        links = self.links(site, setting, fit.factors, fit.bias)
        return Candidate(describe_chain(links), links, self.choice(setting), fit.error)
