"""Carry out what was decided: remove channels, drop blocks, refit what is left, and account for every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.problem import key_of
from onnxcomp.calibration.beside import Kept
from onnxcomp.channels.recover import Refitted, recover
from onnxcomp.channels.scoring import too_wide
from onnxcomp.contract import Change, Context, FrontierPoint, Offer, PassReport, Skip, Value
from onnxcomp.cost import Cost, constant_behind
from onnxcomp.graph.blocks import Block, drop, find_blocks
from onnxcomp.graph.edit import ORIGIN, PASS, origin_of
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.groups import Groups, find_groups
from onnxcomp.graph.products import product_site, weighted_sites
from onnxcomp.graph.shrinking import remove_classes
from onnxcomp.graph.sites import Site, conv_site, is_default_domain, static_shape
from onnxcomp.registry import build_pipeline

__all__ = ["KINDS", "Decided", "Refuse", "carry_out", "decided_by", "layers_of", "reshape", "unfit_layers"]

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Mask = NDArray[np.bool_]
Refuse = Callable[[ir.Node], str | None]

_OUTPUTS, _DROPPED, _USE = "outputs", "dropped", "use"


@dataclass(frozen=True, eq=False)
class Decided:
    """What is to be done to a model.

    Attributes:
        removed: Classes of channels that go, as `find_groups` numbers them, (count + 1,).
        blocks: Names of the blocks that are dropped.
        forms: The pass that a layer's form is from, with its ranks, by the layer's key.
        offers: What it was chosen from.
        frontier: What else could have been reached.
    """

    removed: Mask
    blocks: frozenset[str] = frozenset()
    forms: Mapping[str, str] = field(default_factory=dict[str, str])
    offers: tuple[Offer, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()

    def without(self, model: ir.Model, refuse: Refuse, names: frozenset[str]) -> Decided:
        """The same but for groups, blocks and forms of some layers, by name, which are to stay as they are."""
        if not names:
            return self
        removed = self.removed.copy()
        groups = find_groups(model, refuse)
        for layers in (groups.writes, groups.reads, groups.channelwise):
            for node, labels in layers.items():
                if origin_of(node) in names:
                    removed[labels] = False
        held = {block.name for block in find_blocks(model).blocks if names.intersection(block.sites)}
        given = {key_of(site) for site in layers_of(model).values() if site.name in names}
        forms = {key: form for key, form in self.forms.items() if key not in given}
        return replace(self, removed=removed, blocks=self.blocks - held, forms=forms)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer before anything is done to it: `part` tells it from others of its name in what is recorded."""

    site: Site
    outputs: Mask
    reason: str
    part: str


def layers_of(model: ir.Model) -> dict[ir.Node, Site]:
    """The weighted layers of a model, by node, in topological order."""
    return {site.node: site for site in weighted_sites(model, KINDS) if isinstance(site, Site)}


def unfit_layers(model: ir.Model) -> dict[str, str]:
    """Why the channels of weighted nodes of the main graph must stay, by the name of their output."""
    found: dict[str, str] = {}
    sequences = any(_attends(node) for node in model.graph)
    for node in model.graph:
        if is_default_domain(node, *KINDS):
            site = conv_site(node) if node.op_type in ("Conv", "ConvTranspose") else product_site(node)
            if isinstance(site, Skip):
                found[node.outputs[0].name or ""] = site.reason
            elif sequences and len(static_shape(node.outputs[0])) > 2 and site.kind in ("Gemm", "MatMul"):
                found[node.outputs[0].name or ""] = "a layer of a transformer, which is left alone"
    return found


def _attends(node: ir.Node) -> bool:
    """Whether a node is an attention, or a product of two activations, which make one."""
    if node.op_type in ("Attention", "MultiHeadAttention"):
        return True
    varying = [value for value in node.inputs if value is not None and constant_behind(value) is None]
    return is_default_domain(node, "MatMul") and len(varying) > 1


def reshape(model: ir.Model, decided: Decided, refuse: Refuse, original: ir.Model | None = None) -> Kept:
    """Remove the channels and drop the blocks, in place; layers keep the weights of what is left.

    Args:
        model: A model with inferred shapes.
        decided: What is to be done.
        refuse: As it was when that was decided.
        original: A clone, to which what is left will be fitted; see :func:`onnxcomp.graph.blocks.drop`.

    Returns:
        What is left of each value that lost channels.
    """
    groups = find_groups(model, refuse)
    kept = _kept(groups, decided.removed)
    blocks = [block for block in find_blocks(model).blocks if block.name in decided.blocks] if decided.blocks else []
    if decided.removed.any():
        remove_classes(model, groups, decided.removed)
    if blocks:
        drop(model, blocks, original)
    return kept


def carry_out(
    model: ir.Model, decided: Decided, refuse: Refuse, name: str, context: Context, *, refit: bool
) -> PassReport:
    """Do what was decided, in place.

    Args:
        model: A model with inferred shapes.
        decided: What is to be done.
        refuse: As it was when that was decided.
        name: Of the pass, for provenance.
        context: The run's context.
        refit: Whether layers are fitted to the original's outputs where there are data.
    """
    original = model.clone()
    layers, skips = _layers(model, find_groups(model, refuse), decided.removed)
    found = find_blocks(model).blocks if decided.blocks else ()
    dropped = {node: block for block in found if block.name in decided.blocks for node in block.branch}
    texts = {node: decided.forms.get(key_of(own.site)) for node, own in layers.items()}
    kept = reshape(model, decided, refuse, original)
    keys = {node: node.outputs[0].name or "" for node in layers if node not in dropped}
    forms = {keys[node]: _form(text) for node, text in texts.items() if text and node in keys}
    left = {key_of(site): (site.channels_in, site.channels_out) for site in layers_of(model).values()}
    known = context if refit else replace(context, data=None)
    done = recover(original, model, name, known, kept, forms) if refit or forms else {}
    infer_shapes(model)
    after = {key_of(site): site for site in layers_of(model).values()}
    changes: list[Change] = []
    for node, layer in layers.items():
        if node in dropped:
            changes.append(_gone(layer, dropped[node]))
            continue
        key = keys[node]
        change = _changed(layer, left[key], after.get(key, layer.site), done.get(key))
        if change is None:
            skips.append(Skip(layer.site.name, layer.reason))
        else:
            changes.append(change)
            if key in after:
                _mark(after[key].node, layer.site.name, name)
    return PassReport(tuple(changes), tuple(skips), offers=decided.offers, frontier=decided.frontier)


def decided_by(model: ir.Model, choices: Mapping[str, Mapping[str, Value]], refuse: Refuse) -> Decided:
    """What an earlier run has done, from what it recorded of each layer."""
    groups = find_groups(model, refuse)
    removed = np.zeros(groups.count + 1, np.bool_)
    forms: dict[str, str] = {}
    blocks: set[str] = set()
    sites = layers_of(model)
    for node, part in _parts(sites).items():
        own = {key: choices.get(sites[node].name, {}).get(f"{key}{part}") for key in (_OUTPUTS, _DROPPED, _USE)}
        if own[_OUTPUTS] is not None and node in groups.writes:
            labels = groups.writes[node]
            removed[labels[~_read(str(own[_OUTPUTS]), len(labels))]] = True
        if own[_DROPPED] is not None:
            blocks.add(str(own[_DROPPED]))
        if own[_USE] is not None:
            forms[key_of(sites[node])] = str(own[_USE])
    removed[0] = False
    return Decided(removed, frozenset(blocks), forms)


def _parts(sites: Mapping[ir.Node, Site]) -> dict[ir.Node, str]:
    """What tells the nodes of one name, that an earlier pass has made of a layer, from each other; else nothing."""
    names = Counter(site.name for site in sites.values())
    return {node: f".{node.name}" if names[site.name] > 1 else "" for node, site in sites.items()}


def _form(text: str) -> Offering:
    (form,) = build_pipeline(text)
    assert isinstance(form, Offering), "it was written by one"
    return form


def _layers(model: ir.Model, groups: Groups, removed: Mask) -> tuple[dict[ir.Node, _Layer], list[Skip]]:
    """Every layer with the outputs that it keeps, and those that are none."""
    layers: dict[ir.Node, _Layer] = {}
    skips: list[Skip] = []
    parts = _parts(layers_of(model))
    for site in weighted_sites(model, KINDS):
        if not isinstance(site, Site):
            skips.append(site)
            continue
        labels = groups.writes.get(site.node, np.zeros(site.channels_out, np.int64))
        reason = groups.reasons.get(site.node, "no channel was removed")
        layers[site.node] = _Layer(site, ~removed[labels], reason, parts[site.node])
    for group in groups.groups:
        wide = [layers[node].site.name for node in group.consumers if node in layers and too_wide(layers[node].site)]
        for node in group.producers if wide else ():
            layers[node] = replace(layers[node], reason=f"{wide[0]} reads too many inputs to rank them")
    return layers, skips


def _kept(groups: Groups, removed: Mask) -> Kept:
    """What is left of each value that loses channels."""
    found = {value.name or "": (axis, ~removed[labels]) for value, (axis, labels) in groups.tensors.items()}
    return {name: (axis, np.flatnonzero(left)) for name, (axis, left) in found.items() if not left.all()}


def _gone(layer: _Layer, block: Block) -> Change:
    summary = f"dropped with its residual block ({block.name})"
    choice: dict[str, Value] = {f"{_DROPPED}{layer.part}": block.name}
    return Change(layer.site.name, summary, layer.site.cost, Cost(0, 0, 0), choice=choice)


def _changed(layer: _Layer, shape: tuple[int, int], now: Site, fitted: Refitted | None) -> Change | None:
    """The change of a layer, of which so many channels are left; None where it is as it was."""
    site = layer.site
    before = site.channels_in, site.channels_out
    if fitted is None and before == shape:
        return None
    words = [] if before == shape else [f"{before[0]}>{before[1]} channels, now {shape[0]}>{shape[1]}"]
    words += [] if fitted is None else [fitted.summary or "refitted"]
    choice: dict[str, Value] = {} if layer.outputs.all() else {f"{_OUTPUTS}{layer.part}": _written(layer.outputs)}
    if fitted is None:
        return Change(site.name, ", ".join(words), site.cost, now.cost, choice=choice)
    choice |= {f"{key}{layer.part}": value for key, value in fitted.choice.items()}
    return Change(site.name, ", ".join(words), site.cost, fitted.cost, fitted.error, choice=choice)


def _written(mask: Mask) -> str:
    """A mask as hexadecimal digits, the first entry the highest bit."""
    return np.packbits(mask).tobytes().hex()


def _read(digits: str, length: int) -> Mask:
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=length).astype(np.bool_)


def _mark(node: ir.Node, origin: str, name: str) -> None:
    """Say of a node where it came from."""
    node.metadata_props.update({ORIGIN: origin, PASS: name})
