"""The pass ``drop_blocks``: residual blocks that the model hardly misses go, and what stays is fitted anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar

from onnxcomp.allocation.problem import key_of
from onnxcomp.channels.dropping import score_blocks
from onnxcomp.channels.recover import recover
from onnxcomp.contract import Change, Context, Pass, PassReport, Saves, Skip, Value
from onnxcomp.cost import Cost
from onnxcomp.errors import OptionError
from onnxcomp.graph.blocks import Block, Blocks, drop, find_blocks
from onnxcomp.graph.fingerprint import model_fingerprint
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.options import Bounds, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DropBlocks"]

_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What every dropped layer records: the name of its block.
_CHOICE = "blocks"
# Blocks that a note lists.
_LISTED = 12


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Drop residual blocks: of an Add only the shortcut stays, and all layers around are fitted to make up for it.

    A block's branch is computed from the value that the shortcut starts from, and nothing else reads it. Blocks are
    ranked by what the outputs of the model lose, measured, when the best linear map of the shortcut stands for the sum
    (the adaptor of Wang and Wu 2023). Then the branches of the first ones go, with a Relu or Clip that would repeat the
    one before, and with calibration data every layer is refitted in network order to what the original computed
    there; the layers before a block that went take over from it.

    Left alone, with the reason in the report: blocks of transformers, branches that are read from outside or read
    anything else, sums that broadcast.

    Attributes:
        count: Number of blocks that go; 1 unless given.
        blocks: The blocks that go, by the names of their Adds or globs, with colons between.
    """

    name: ClassVar[str] = "drop_blocks"
    saves: ClassVar[Saves] = "latency"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"count", "blocks"}),)

    count: Annotated[int, Bounds(1)] | None = None
    blocks: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        if self.count is not None and self.blocks is not None:
            raise OptionError("drop_blocks: count and blocks exclude each other; give one")

    def explicit(self) -> bool:
        """Whether a number or names were given."""
        return self.count is not None or self.blocks is not None

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise OptionError where a name fits no block, or two that were named lie one in the other."""
        del context
        if self.blocks is not None:
            _named(find_blocks(model), self.blocks.split(":"))

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Choose, drop, refit, and account for every layer."""
        found = find_blocks(model)
        # What was given back is not made up for by other blocks, which would cost more.
        asked = replace(context, given_back=frozenset())
        stay = {block: reason for block in found.blocks if (reason := _stays(block, asked))}
        chosen = self._chosen(model, found, stay, asked)
        back = {block: reason for block in chosen.blocks if (reason := _stays(block, context))}
        gone = [block for block in chosen.blocks if block not in back]
        account = _Account(replace(chosen, blocks=tuple(gone)), found, {**stay, **back})
        left: dict[str, str] = {}
        for site in weighted_sites(model, _KINDS):
            left.update({site.name: ""} if isinstance(site, Site) else {site.site: site.reason})
        changes = list(account.changes())
        if gone:
            original = model.clone()
            drop(model, gone, original)
            infer_shapes(model)
            changes += _refitted(original, model, self.name, asked)
        done = {change.site for change in changes}
        skips = tuple(Skip(name, account.why(name) or left[name] or _OUTSIDE) for name in left if name not in done)
        return PassReport(tuple(changes), skips, (*account.notes(), *_unfitted(gone, context)))

    def _chosen(self, model: ir.Model, found: Blocks, stay: Mapping[Block, str], context: Context) -> _Chosen:
        free = [block for block in found.blocks if block not in stay]
        if context.replay is not None:
            replayed = {str(choice[_CHOICE]) for choice in context.replay.values() if _CHOICE in choice}
            return _Chosen(tuple(block for block in free if block.name in replayed))
        named = None if self.blocks is None else _named(found, self.blocks.split(":"))
        if named is not None and not context.budgeted:
            return _Chosen(tuple(block for block in named if block not in stay))
        scored = free if named is None else [block for block in named if block not in stay]
        names = tuple(block.name for block in scored)
        measured = context.memo.once(
            ("blocks", model_fingerprint(model), names), lambda: tuple(score_blocks(model, scored, context))
        )
        scores = dict(zip(scored, measured, strict=True))
        count = len(scored) if named is not None else self.count or 1
        return _Chosen(_best(scores, count), scores, (context.data or context.stand_in) is not None)


_OUTSIDE = "in no residual block that can go"


@dataclass(frozen=True)
class _Chosen:
    """The blocks that go, and the scores of all that were scored; `measured`: these are errors of the outputs."""

    blocks: tuple[Block, ...]
    scores: Mapping[Block, float] = field(default_factory=dict[Block, float])
    measured: bool = False


@dataclass(frozen=True)
class _Account:
    """What is said of each layer."""

    chosen: _Chosen
    found: Blocks
    stay: Mapping[Block, str]

    def changes(self) -> Iterator[Change]:
        """One for each layer that goes; the first one of a block bears what the whole block costs."""
        for block in self.chosen.blocks:
            error = self.chosen.scores.get(block) if self.chosen.measured else None
            for name, cost in block.sites.items():
                summary = f"dropped with its residual block (Add {block.name})"
                choice: dict[str, Value] = {_CHOICE: block.name}
                yield Change(
                    name, summary, cost, Cost(0, 0 if cost.macs is not None else None, 0), error, choice=choice
                )
                error = None

    def why(self, name: str) -> str | None:
        """Why a layer that lies in a block, or in what looks like one, stays."""
        for block in self.found.blocks:
            if name in block.sites:
                return self._reason(block)
        return None

    def _reason(self, block: Block) -> str:
        if block in self.stay:
            return self.stay[block]
        score = self.chosen.scores.get(block)
        if score is None or not self.chosen.measured:
            return f"its residual block (Add {block.name}) stays"
        if any(block.excludes(other) for other in self.chosen.blocks):
            return f"kept: its residual block (Add {block.name}) and one that was dropped exclude each other"
        return f"kept: dropping its residual block (Add {block.name}) is expected to lose {score:.3g}"

    def notes(self) -> Iterator[str]:
        """The ranking, and the sums that look like the end of a block."""
        ranked = sorted(self.chosen.scores.items(), key=lambda entry: entry[1])
        if ranked and self.chosen.measured:
            listed = ", ".join(f"{block.name} {score:.3g}" for block, score in ranked[:_LISTED])
            more = f" and {len(ranked) - _LISTED} more" if len(ranked) > _LISTED else ""
            yield f"expected loss of the outputs without one block, lowest first: {listed}{more}"
        elif ranked:
            yield "no samples to measure losses on: blocks are ranked by their weights"
        if not self.found.blocks:
            yield "the model has no residual block that can go"
        for name, reason in self.found.refusals.items():
            yield f"the block that ends in {name} stays: {reason}"


def _best(scores: Mapping[Block, float], count: int) -> tuple[Block, ...]:
    """The blocks that lose least, none inside another one, in the model's order."""
    taken: list[Block] = []
    for block in sorted(scores, key=lambda block: scores[block]):
        if len(taken) < count and not any(block.excludes(other) for other in taken):
            taken.append(block)
    return tuple(block for block in scores if block in taken)


def _named(found: Blocks, names: Sequence[str]) -> tuple[Block, ...]:
    """The blocks of these names, in the model's order."""
    known = [block.name for block in found.blocks]
    for name in names:
        if not any(fnmatchcase(other, name) or other == name for other in known):
            reason = found.refusals.get(name)
            told = f": {reason}" if reason else f"{did_you_mean(name, known)} (blocks: {', '.join(known) or 'none'})"
            raise OptionError(f"drop_blocks.blocks: {name!r} is no block that can go{told}")
    chosen = [b for b in found.blocks if any(fnmatchcase(b.name, name) or b.name == name for name in names)]
    for one in chosen:
        other = next((other for other in chosen if other is not one and one.excludes(other)), None)
        if other is not None:
            raise OptionError(f"drop_blocks.blocks: {one.name!r} and {other.name!r} lie one in the other; give one")
    return tuple(chosen)


def _stays(block: Block, context: Context) -> str | None:
    """Why a block stays for the sake of one of its layers."""
    for name in block.sites:
        reason = context.excluded(name)
        if reason:
            return f"{name} in its residual block (Add {block.name}) is {reason}"
    kinds = {node.op_type for node in block.layers}
    for override in context.overrides:
        if override.options is None and (
            override.match in kinds or any(fnmatchcase(n, override.match) for n in block.sites)
        ):
            return f"its residual block (Add {block.name}) is left alone by the recipe"
    return None


def _refitted(original: ir.Model, model: ir.Model, name: str, context: Context) -> Iterator[Change]:
    """Fit what is left. What errors remain is no reason to give a layer back: they are what the blocks have left."""
    sites = {key_of(site): site for site in weighted_sites(model, _KINDS) if isinstance(site, Site)}
    for key, done in recover(original, model, name, context).items():
        site = sites[key]
        facts: dict[str, Value] = {} if done.error is None else {"remaining error": float(f"{done.error:.3g}")}
        yield Change(site.name, "refitted", site.cost, done.cost, facts=facts)


def _unfitted(gone: Sequence[Block], context: Context) -> Iterator[str]:
    if gone and context.data is None:
        yield "no calibration data: the layers that stay could not be fitted to make up for the blocks"
