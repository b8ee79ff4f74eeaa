"""Put the channels of a model in an order of which N:M patterns keep more; what the model computes stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.labels import Labels
from onnxcomp.graph.permuting import Freedom, Refuse, find_freedom, moved, permute
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.permutation import best_order, kept
from onnxcomp.quantize.layout import Layout

__all__ = ["NM", "Reordered", "reorder"]

Float = NDArray[np.float64]
NM = tuple[int, int]
"""N and M of a pattern: of every M consecutive input channels N stay."""


@dataclass(frozen=True, slots=True)
class Reordered:
    """What was put in another order.

    Attributes:
        layers: Names of the layers whose input channels have another order.
        before: Mean over these layers of the share of the squared weights that the pattern kept.
        after: The same in the new order.
    """

    layers: tuple[str, ...] = ()
    before: float = 0.0
    after: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer that is pruned, with its squared weights (rows and taps, Ci) and the classes of its channels (Ci,)."""

    name: str
    scores: Float
    labels: Labels
    pattern: NM


def reorder(model: ir.Model, sites: Mapping[Site, NM], refuse: Refuse | None = None) -> Reordered:
    """Reorder channels in place, for layers that are to be pruned by N:M patterns; it follows the weights alone.

    Channels that can change places are exchanged between groups of M where all layers that read them have the same
    pattern and the same groups; what counts is what the pattern keeps of each layer's squared weights, added up.

    Args:
        model: A model with inferred shapes.
        sites: The layers that are to be pruned, and how.
        refuse: Why the constants of a node must stay as they are.
    """
    freedom = find_freedom(model, refuse)
    layers = [_layer(site, freedom.reads[site.node], nm) for site, nm in sites.items() if site.node in freedom.reads]
    moves = np.arange(freedom.count + 1)
    for groups, readers in _problems(freedom, layers):
        scores = np.concatenate([_columns(layer, groups.reshape(-1)) for layer in readers])
        order = best_order(scores, *readers[0].pattern)
        moves[groups.reshape(-1)] = groups.reshape(-1)[order]
    changed = [layer for layer in layers if (moves[layer.labels] != layer.labels).any()]
    if not changed:
        return Reordered()
    before = [_share(layer, np.arange(len(layer.labels))) for layer in changed]
    after = [_share(layer, moved(layer.labels, moves)) for layer in changed]
    permute(model, freedom, moves)
    return Reordered(tuple(layer.name for layer in changed), float(np.mean(before)), float(np.mean(after)))


def _layer(site: Site, labels: Labels, pattern: NM) -> _Layer:
    rows = Layout(site).rows()
    scores = np.square(rows).reshape(len(rows), len(labels), -1)
    scores /= scores.sum() or 1.0
    return _Layer(site.name, scores.transpose(0, 2, 1).reshape(-1, len(labels)), labels, pattern)


def _problems(freedom: Freedom, layers: Sequence[_Layer]) -> list[tuple[Labels, list[_Layer]]]:
    """Classes in groups of M, (groups, M), that can be exchanged, and the layers that read them.

    A class belongs to a group in each layer that reads it; classes that all layers put together are a group of M here.
    """
    seats: dict[int, list[tuple[int, int]]] = {}
    for number, layer in enumerate(layers):
        for place, label in enumerate(layer.labels.tolist()):
            seats.setdefault(label, []).append((number, place // layer.pattern[1]))
    found: list[tuple[Labels, list[_Layer]]] = []
    for own in freedom.sets:
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for label in own.tolist():
            groups.setdefault(tuple(seats.get(label, [])), []).append(label)
        readers = [layers[number] for number in dict.fromkeys(n for seat in groups for n, _ in seat)]
        if len({layer.pattern for layer in readers}) != 1:
            continue
        whole = [group for group in groups.values() if len(group) == readers[0].pattern[1]]
        if len(whole) > 1:
            found.append((np.asarray(whole), readers))
    return found


def _columns(layer: _Layer, classes: Labels) -> Float:
    """The scores of some classes of a layer."""
    place = {label: column for column, label in enumerate(layer.labels.tolist())}
    return layer.scores[:, [place[label] for label in classes.tolist()]]


def _share(layer: _Layer, order: NDArray[np.int64]) -> float:
    return kept(layer.scores[:, order], *layer.pattern)
