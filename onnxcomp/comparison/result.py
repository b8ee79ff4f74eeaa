"""What a comparison of two models finds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from onnxcomp.comparison.matching import How
from onnxcomp.comparison.outputs import Outputs

__all__ = ["ROUNDING", "Comparison", "LayerNoise", "NotCompared"]

# Noise over signal, as power, up to which a difference is the rounding of float32 sums in another order.
ROUNDING = 1e-11


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """One tensor of the base that the other model has a counterpart of.

    Attributes:
        tensor: Its name in the base.
        counterpart: Name of the tensor that stands for it: where all readers see it quantized, of what they see.
        match: How that was found: ``name``, ``provenance`` (the node says which layer it stands for) or ``structure``
            (the only node of its kind in its place).
        layer: The node of the user's model that is accounted for it: of all nodes since the tensors before it that have
            counterparts, the one that has weights.
        nodes: All these nodes, where they are more than one: where several have weights, each can be at fault.
        other: The node that computes it in the other model, as it is called in the user's model.
        op_type: Operator of `layer`.
        rewrites: The passes that rewrote the layer, in order, with what they chose there; ``weights changed`` where no
            pass says so; empty where nothing changed.
        channels: Channels that are compared and that the base has, where some were removed; else None.
        rescaled: Whether channels were brought back to the base's scale before they were compared.
        sqnr: 10 log10(signal power / noise power) against the base, dB; inf where equal, -inf where values are lost.
        cosine: Cosine between both, over all samples; NaN where values are lost.
        max_error: Largest absolute error.
        relative: That over the largest absolute value of the base.
        bias: Mean of other - base.
        added: Power of the noise that the layer adds, over the power of the signal: what the other model computes less
            what the base makes of the same inputs. None for what an activation or normalization follows, whose noise
            counts there; inf where the layer makes NaN or Inf of finite values.
        share: Share of the noise at the outputs that the layer adds; all add up to 1. A layer that makes up for errors
            before it has a share below 0.
        lost: Elements that are NaN or infinite where the base's are finite.
        unknown: Elements that are NaN or infinite in the base.
    """

    tensor: str
    counterpart: str
    match: How
    layer: str
    nodes: tuple[str, ...]
    other: str
    op_type: str
    rewrites: tuple[str, ...]
    channels: tuple[int, int] | None
    rescaled: bool
    sqnr: float
    cosine: float
    max_error: float
    relative: float
    bias: float
    added: float | None
    share: float
    lost: int
    unknown: int


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A tensor of the base that is not compared.

    Attributes:
        tensor: Its name.
        layer: The node that computes it.
        op_type: Operator of that node.
        reason: Why.
    """

    tensor: str
    layer: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models side by side.

    Attributes:
        outputs: Their outputs, on all samples.
        layers: Every compared tensor, in the order of the base.
        missing: What is not compared, in the order of the base.
        fault: The layer that adds most of the noise at the outputs; None where nothing differs beyond rounding.
        samples: Number of samples that layers were compared on.
        attributed: Number of samples that their shares were measured on; 0: they are estimated.
        own: Passes that the base went through and the other model did not: its inner tensors may not be the original's.
    """

    outputs: Outputs
    layers: tuple[LayerNoise, ...]
    missing: tuple[NotCompared, ...]
    fault: LayerNoise | None
    samples: int
    attributed: int
    own: tuple[str, ...] = ()

    @property
    def related(self) -> bool:
        """Whether at least a third of the base's tensors have a counterpart; else names meet by accident."""
        return 2 * len(self.layers) >= len(self.missing)

    @property
    def ranked(self) -> tuple[LayerNoise, ...]:
        """The layers that add noise, most first: those that lose values, then by share, then by what they add."""
        adding = [layer for layer in self.layers if layer.added is not None and layer.added > ROUNDING]
        return tuple(sorted(adding, key=_rank, reverse=True))


def _rank(layer: LayerNoise) -> tuple[bool, float, float]:
    added = layer.added or 0.0
    return added == inf, layer.share, added
