"""What a pass accounts for: every site that it changed or left alone, and what it chose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxcomp.cost import Cost

__all__ = ["Change", "FrontierPoint", "Offer", "PassReport", "Sensitivity", "Skip", "Value"]

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Skip:
    """A site that a pass left alone, and why."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A site that a pass rewrote.

    Attributes:
        site: The name of the node in the user's own model.
        summary: What it became, in words.
        before: Cost of the site as it was.
        after: Cost of what replaced it.
        error: Predicted relative squared error of the site's output (0 exact, 1 all signal lost); None where not
            predicted.
        speedup: Measured time before / time after of the site alone; None where nothing was timed.
        choice: The resolved options of this site; replaying them gives the same bytes.
        facts: Anything else the report shows (ranges, calibrators, saturation ...).
        milder: All options of this layer with which it would lose less; what an accuracy budget tries before it gives
            the site back. Empty where there is nothing between.
    """

    site: str
    summary: str
    before: Cost
    after: Cost
    error: float | None = None
    speedup: float | None = None
    choice: Mapping[str, Value] = field(default_factory=dict[str, Value])
    facts: Mapping[str, Value] = field(default_factory=dict[str, Value])
    milder: Mapping[str, Value] = field(default_factory=dict[str, Value])


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What rewriting a single site, and nothing else, does to the model's outputs; measured.

    Attributes:
        site: The name of the node in the user's own model.
        error: Relative squared error of the worst output (0 exact, 1 all signal lost).
        sqnr: The same as a signal-to-noise ratio, dB; +inf where nothing changes.
        kl: Mean Kullback-Leibler divergence of the class probabilities from the original's, nats; None where no output
            is a classifier's.
        drop_points: Percentage points of top-1 accuracy lost; None without labels.
        samples: Number of samples that this was measured on.
    """

    site: str
    error: float
    sqnr: float
    kl: float | None
    drop_points: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One candidate that an allocator looked at.

    Attributes:
        site: The name of the node in the user's own model.
        form: The pass that leads to it, such as ``tucker2(ranks=32x64)``.
        macs: Multiply-accumulates of the chain; None where a shape is unknown.
        parameters: Its weights and biases.
        bytes: Bytes of its constants.
        time: Relative to the site's own; None where nothing was timed.
        site_ms: The site's own time, milliseconds; None where nothing was timed.
        error: Predicted relative squared error of the site's output.
        loss: The relative squared error that is expected of the worst output of the model.
        chosen: Whether it was taken.
        why: Why it was out from the start; empty where it was not.
    """

    site: str
    form: str
    macs: int | None
    parameters: int
    bytes: int
    time: float | None
    site_ms: float | None
    error: float
    loss: float
    chosen: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """What the layers that an allocator chose for take and lose together.

    Attributes:
        macs: Multiply-accumulates of these layers; None where a shape is unknown.
        bytes: Bytes of their constants.
        time_ms: Sum of their own times, milliseconds; None where nothing was timed.
        loss: The relative squared error that is expected of the worst output.
        chosen: Whether this is what was taken.
    """

    macs: int | None
    bytes: int
    time_ms: float | None
    loss: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did: every site ends as one Change or one Skip; notes concern the model as a whole.

    Where sensitivities were measured they are listed worst first, those of sites that were given back too. A pass that
    allocates lists what it chose from: every candidate, and the frontier of the model by rising loss.
    """

    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    offers: tuple[Offer, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
