"""What a form is fitted to: the weights of a site's groups and, with data, the moments of what they multiply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.gram import PatchGram
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.moments import Moments

__all__ = ["Factors", "Problem", "Setting", "few_channels", "group_shape", "joined", "key_of", "problems_of"]

Float = NDArray[np.float64]

Factors = Mapping[str, Float]
"""The arrays of a form by role, for one group; each has its channels or ranks first, so that groups join on axis 0."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The ranks of a form and, where it has several, the order of its nodes; a full rank leaves its side whole."""

    ranks: tuple[int, ...]
    order: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Problem:
    """One group of a site.

    Attributes:
        weight: (Co, Ci, *kernel), float64, whatever the operator's own order.
        moments: Of its patches, with targets; None where the fit follows the weight alone.
    """

    weight: Float
    moments: Moments | None


def key_of(site: Site) -> str:
    """What tells a site from the others of its model, and of clones of it; of nodes that an earlier pass made of one
    layer, all have the name of that layer.
    """
    return site.node.outputs[0].name or site.name


def problems_of(site: Site, gram: PatchGram | None) -> list[Problem]:
    """Return one problem a group; without targets in `gram` the original weight supplies them (symmetric form)."""
    weights = np.split(site.weight.astype(np.float64), site.geometry.group)
    if site.geometry.transposed:
        weights = [np.swapaxes(w, 0, 1) for w in weights]
    if gram is None:
        return [Problem(w, None) for w in weights]
    bias = np.zeros(site.channels_out) if site.bias is None else site.bias.astype(np.float64)
    parts = zip(weights, gram.moments(), np.split(bias, site.geometry.group), strict=True)
    return [Problem(w, m if m.has_targets else m.with_weight(w, b)) for w, m, b in parts]


def joined(groups: Sequence[Factors], key: str) -> NDArray[np.float32]:
    """One factor of all groups, float32, joined on axis 0."""
    parts = [group[key] for group in groups]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.astype(np.float32, copy=False)


def group_shape(site: Site) -> tuple[int, ...]:
    """Shape of one group's weight, (Co, Ci, *kernel)."""
    group = site.geometry.group
    return site.channels_out // group, site.channels_in // group, *site.weight.shape[2:]


def few_channels(site: Site) -> str:
    """That a layer is too narrow for a form, in words."""
    outs, ins = group_shape(site)[:2]
    return f"too few channels: {ins} in, {outs} out" + (" a group" if site.geometry.group > 1 else "")
