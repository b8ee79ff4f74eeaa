"""The canonical form as a pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxcomp.contract import Change, Context, Pass, PassReport, Saves, Skip
from onnxcomp.graph.fold import Log, Rewrite, canonicalise

__all__ = ["Fold"]


@dataclass(frozen=True)
class Fold(Pass):
    """Canonical form: constants computed, BatchNormalization, arithmetic and padding absorbed, no-ops removed.

    ``W' = W·g/sqrt(var + eps)``, ``b' = beta + (b - mean)·g/sqrt(var + eps)`` for BatchNormalization after Conv,
    ConvTranspose or Gemm; likewise Add, Sub, Mul, Div by one constant a channel; zero Pad before Conv. Opsets below 17
    are raised to 17.

    Refused: weights that are shared, that a caller may override, or that hold NaN or Inf; values with other readers;
    training-mode BatchNormalization; sizes that depend on a symbolic dimension. Every run of the compiler begins with
    this; as a pass of its own it is for using the canonical form alone.
    """

    name: ClassVar[str] = "fold"
    saves: ClassVar[Saves] = "nothing"
    canonicalises: ClassVar[bool] = True

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Fold: a Change for each node that absorbed others, a Skip for each that could not; the rest in notes."""
        del context
        log = canonicalise(model)
        sites: dict[str, list[Rewrite]] = {}
        for rewrite in log.rewrites:
            sites.setdefault(rewrite.site, []).append(rewrite)
        changes = tuple(_change(site, rewrites) for site, rewrites in sites.items())
        skips = tuple(Skip(r.site, r.reason) for r in log.refusals if r.site not in sites)
        return PassReport(changes, skips, _notes(log, sites))


def _change(site: str, rewrites: Sequence[Rewrite]) -> Change:
    return Change(site, "; ".join(r.summary for r in rewrites), rewrites[0].before, rewrites[-1].after, error=0.0)


def _notes(log: Log, sites: dict[str, list[Rewrite]]) -> tuple[str, ...]:
    partly = (f"{r.site}: {r.reason}" for r in log.refusals if r.site in sites)
    return (*log.general, *partly, *log.remarks)
