"""The contract between the compiler and a pass: a pass proposes, the compiler disposes.

A pass is a frozen dataclass whose fields are its options, so that one declaration gives the command line, the Python
API, the documentation and equality. :class:`Pass` rewrites a model itself; :class:`SitePass` only proposes replacements
for single sites, and the compiler (`onnxcomp.choose`) picks, times, fits and applies them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxcomp.accounting import Change, FrontierPoint, Offer, PassReport, Sensitivity, Skip, Value
from onnxcomp.memo import Memo
from onnxcomp.runtime.timingcache import Timings

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from onnxcomp.calibration.gram import PatchGram
    from onnxcomp.calibration.statsfile import Statistics
    from onnxcomp.data import Feeds
    from onnxcomp.graph.edit import Link
    from onnxcomp.graph.sites import Site
    from onnxcomp.targets.target import Target

__all__ = [
    "Candidate",
    "Change",
    "Context",
    "FrontierPoint",
    "Objective",
    "Offer",
    "Override",
    "Pass",
    "PassReport",
    "Saves",
    "Sensitivity",
    "SitePass",
    "Skip",
    "Value",
]

Objective = Literal["latency", "size", "macs"]
Saves = Literal["latency", "bytes", "nothing"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to replace a site.

    Attributes:
        summary: The form in words, such as ``1x1(64>32) 3x3(32>48) 1x1(48>128)``.
        chain: The replacement, in order; the first link reads the site's input and the last one writes its output.
        choice: The resolved options that lead back to this very candidate.
        error: Predicted relative squared error of the site's output; None where not predicted.
        bytes: What its constants will take in the file, where that is not the sum of the links': some are shared with
            other sites, or get another form when the model is written.
        milder: All options of this layer with which it would lose less (see `Change.milder`).
    """

    summary: str
    chain: tuple[Link, ...]
    choice: Mapping[str, Value] = field(default_factory=dict[str, Value])
    error: float | None = None
    bytes: int | None = None
    milder: Mapping[str, Value] = field(default_factory=dict[str, Value])


@dataclass(frozen=True, slots=True)
class Override:
    """Per-layer options of a recipe: most specific wins (node-name glob, then operator type).

    ``options=None`` leaves the layer alone.
    """

    match: str
    options: Mapping[str, Value] | None


@dataclass(frozen=True)
class Context:
    """All that a pass may read besides the model.

    Attributes:
        target: The runtime the model is for.
        objective: What a rewrite has to improve to be kept.
        data: Calibration feeds; None where the user gave none (then ``stand_in`` holds synthetic ones).
        stand_in: Seeded synthetic feeds, used only where ``data`` is None; everything derived from them is labelled so.
        seed: Seed of every random choice.
        threads: Intra-op threads for timing.
        exclude: Globs of node names that no pass may touch.
        given_back: Names of sites that are left alone because the accuracy budget did not hold with them.
        overrides: Per-layer options for the pass that is running.
        followers: The passes after the running one; a candidate is timed as they would leave it.
        budgeted: Whether an error budget decides by `Change.error` which sites are given back: then it may be measured,
            on the outputs of the model, even if that takes a while.
        replay: Site name to the choice recorded in an earlier run for the running pass; when set, nothing is timed.
        workdir: A temporary directory for spills; removed at the end of the run.
        statistics: What an earlier calibration learned of the canonical model's tensors; None where there is none.
        scored: Evaluation feeds, with labels if they have any; None where the user gave none. They say what a rewrite
            costs and never how to make it.
        memo: What the running pass keeps for its next run under the same budget.
        timings: The times of sites and chains measured so far: what is equal is timed once.
    """

    target: Target
    workdir: Path
    objective: Objective = "latency"
    data: Feeds | None = None
    stand_in: Feeds | None = None
    seed: int = 0
    threads: int = 1
    exclude: tuple[str, ...] = ()
    given_back: frozenset[str] = frozenset()
    overrides: tuple[Override, ...] = ()
    followers: tuple[Pass, ...] = ()
    budgeted: bool = False
    replay: Mapping[str, Mapping[str, Value]] | None = None
    statistics: Statistics | None = None
    scored: Feeds | None = None
    memo: Memo = field(default_factory=Memo, compare=False)
    timings: Timings = field(default_factory=Timings, compare=False)

    def rehearsed(self, model: ir.Model) -> ir.Model:
        """The model roughly as the passes after the running one would leave it, for timing."""
        alone = replace(self, overrides=())  # those are the running pass's own
        for follower in self.followers:
            model = follower.rehearse(model, alone)
        return model

    def excluded(self, site: str) -> str | None:
        """Why no pass may touch a site; None where passes may."""
        if any(fnmatchcase(site, glob) for glob in self.exclude):
            return "excluded by the user"
        return "given back to hold the accuracy budget" if site in self.given_back else None


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a model. Subclasses are frozen dataclasses; their fields are the options of the pass.

    The first line of a subclass's docstring is what ``onnxcomp passes`` prints; the rest should state the rewrite, the
    cases that are refused, and the source (paper and equation).
    """

    name: ClassVar[str]
    saves: ClassVar[Saves] = "latency"
    # Whether the pass brings a model into canonical form by itself; then a pipeline that begins with it is not
    # canonicalised before, and what was done is the pass's to report.
    canonicalises: ClassVar[bool] = False
    # Whether the pass leaves alone what it made itself: timed with a second one behind it, it would gain nothing.
    idempotent: ClassVar[bool] = False
    # Whether what the user named stays even where the file does not shrink.
    as_asked: ClassVar[bool] = False
    # Groups of options, each with a default, of which one at a time counts: a layer given one loses the pass's others.
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise InputError when the pass cannot run on this model or target at all."""
        del model, context

    def explicit(self) -> bool:
        """Whether the user named an amount (ranks, bits ...), which is applied even where accuracy suffers."""
        return False

    def eased(self, amount: float) -> Pass | None:
        """Return the pass with its trade of accuracy for gain turned down (below 1) or up (above); None: it has none.

        An accuracy budget turns it before it gives sites back. What the user named is never turned up.
        """
        del amount
        return None

    @abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Rewrite `model` in place and account for every site."""

    def rehearse(self, model: ir.Model, context: Context) -> ir.Model:
        """Return the model roughly as this pass would leave it, for timing an earlier pass; accuracy is no matter here.

        The default is the model itself. `model` must not be modified.
        """
        del context
        return model


@dataclass(frozen=True)
class SitePass(Pass):
    """A pass that proposes replacements for single sites and never edits the graph itself.

    Of the candidates of a pass that saves bytes the smallest is taken, and none is timed by itself.
    """

    # The operators that are sites of this pass: Conv, ConvTranspose, Gemm, MatMul.
    kinds: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose")
    # Whether what it proposes was chosen already: then nothing is timed, and only the compressed prefix is looked at.
    decided: ClassVar[bool] = False

    def refuse(self, site: Site) -> str | None:
        """Return why the pass cannot rewrite a site, before any statistics are taken; None where it may."""
        del site
        return None

    @abstractmethod
    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Return candidates for a site, best first, or the reason why there is none.

        Args:
            site: The node, its constant weight and its geometry.
            gram: Patch statistics of the site's input in the ORIGINAL model; None where there is no data or the pass
                wants none.
            context: The run's context; `context.objective` says whether ranks should be rounded for the runtime.
        """

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Fit a chosen candidate to the site's input in the already compressed prefix (asymmetric form).

        `gram` holds the Gram of the compressed prefix's patches and the cross moments with the original's outputs. The
        default keeps the candidate. The links' shapes must stay.
        """
        del site, gram
        return candidate

    def wants_gram(self) -> bool:
        """Whether propose() and refit() want patch statistics when there is data."""
        return False

    def wants_patches(self) -> int:
        """How many sampled patches refit() wants beside the moments (``gram.kept()``); 0 for none."""
        return 0

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Let the compiler choose among the proposals, fit and apply them."""
        from onnxcomp.choose import run_site_pass  # the chooser imports this contract

        return run_site_pass(self, model, context)
