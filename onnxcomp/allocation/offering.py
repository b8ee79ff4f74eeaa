"""What a pass has to tell of a site so that an allocator can choose among its settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxcomp.contract import SitePass, Value

if TYPE_CHECKING:
    from onnxcomp.allocation.problem import Problem, Setting
    from onnxcomp.cost import Cost
    from onnxcomp.graph.edit import Link
    from onnxcomp.graph.sites import Site

__all__ = ["Fit", "Offering"]

Fit = Literal["auto", "weights", "data"]


@dataclass(frozen=True)
class Offering(SitePass):
    """A site pass with settings that are cheap to list, to cost and to score, of which any one can be asked for."""

    @property
    @abstractmethod
    def named(self) -> bool:
        """Whether the options name one setting for every site."""

    @abstractmethod
    def plain(self, fit: Fit, *, relu: bool) -> Offering:
        """The pass with its defaults but for what is fitted to, for an allocator to choose a setting of."""

    @abstractmethod
    def settings(self, site: Site, step: int) -> list[Setting]:
        """Every setting worth a look; ranks are multiples of `step`."""

    @abstractmethod
    def asked(self, site: Site) -> list[Setting] | None:
        """The settings that the options name; None where a rule finds them."""

    @abstractmethod
    def choice(self, setting: Setting) -> dict[str, Value]:
        """The options that lead back to a setting."""

    @abstractmethod
    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The setting of a choice."""

    @abstractmethod
    def cost(self, site: Site, setting: Setting) -> Cost:
        """What a setting costs."""

    @abstractmethod
    def scored(self, problems: Sequence[Problem]) -> Callable[[Setting], float]:
        """Predicted relative squared errors of settings, over all groups."""

    @abstractmethod
    def blank(self, site: Site, setting: Setting) -> tuple[Link, ...]:
        """A chain of the right shapes and arbitrary weights, for timing."""
