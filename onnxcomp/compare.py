"""Where two models of one origin part: the noise on every tensor that both have, and the layer that adds most of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log10, prod, sqrt

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.errors import InputError
from onnxcomp.evaluate import Quality, evaluate
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.runtime.activations import stream

__all__ = ["Comparison", "LayerNoise", "compare_models"]

# Inner tensors are compared on this many samples, so many bytes of them at a time.
_SAMPLES = 128
_GROUP_BYTES = 256 << 20
# These compute nothing that could be at fault: they move values, or cut signal away and leave the noise.
_PASSIVE = frozenset(
    {"Clip", "Dropout", "Flatten", "Identity", "LeakyRelu", "PRelu", "Relu", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Split", "Unsqueeze"}
)
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """One tensor that both models compute.

    Attributes:
        tensor: Its name.
        layer: The node that computes it in the base model.
        other: The weighted node that computes it in the other model, or the nearest one to it: the same name, or that
            of the node which the layer was folded into.
        op_type: Operator of that node.
        sqnr: 10 log10(signal power / noise power) against the base model, dB; inf where equal.
        cosine: Cosine between both, over all samples.
        added: Noise-to-signal ratio here minus the largest one of the tensors it is computed from; 0 for nodes that
            compute nothing (Relu, Reshape ...).
    """

    tensor: str
    layer: str
    other: str
    op_type: str
    sqnr: float
    cosine: float
    added: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models side by side.

    Attributes:
        quality: Outputs of the other model against the base model's.
        layers: Noise of every shared float tensor, in the order of the base model.
        fault: The first of the layers that adds the most noise; None where nothing differs.
        tensors: Number of float tensors that the base model computes, shared or not.
    """

    quality: Quality
    layers: tuple[LayerNoise, ...]
    fault: LayerNoise | None
    tensors: int

    @property
    def related(self) -> bool:
        """Whether at least half of the base's tensors are in the other model; else names meet by accident."""
        return 2 * len(self.layers) >= self.tensors


def compare_models(base: ir.Model, other: ir.Model, feeds: Feeds, *, threads: int = 1) -> Comparison:
    """Compare outputs and shared inner tensors, streaming.

    Inner tensors are read by making them outputs, which can keep the runtime from fusing an operator; the outputs are
    measured on the models as they are.

    Raises:
        InputError: The models have different inputs, or no output in common.
    """
    _check_signatures(base, other)
    quality = evaluate(other, feeds, base, threads=threads)
    base, other = _typed(base), _typed(other)
    moments: dict[str, NDArray[np.float64]] = {}
    for names in _groups(base, _shared(base, other)):
        moments |= _moments(base, other, names, feeds, threads)
    layers = _noises(base, other, moments)
    fault = max((layer for layer in layers if layer.added > 0), key=lambda layer: layer.added, default=None)
    return Comparison(quality, layers, fault, sum(1 for _ in _floats(base)))


def _check_signatures(base: ir.Model, other: ir.Model) -> None:
    for what, ours, theirs in (("inputs", _inputs(base), _inputs(other)), ("outputs", _outputs(base), _outputs(other))):
        if ours != theirs:
            raise InputError(f"the models cannot be compared: {what} {', '.join(ours)} against {', '.join(theirs)}")


def _typed(model: ir.Model) -> ir.Model:
    """A copy with the types and shapes that follow from the inputs: what can be compared, and how large it is."""
    clone = model.clone()
    try:
        infer_shapes(clone)
    except (onnx.shape_inference.InferenceError, ValueError):
        return clone  # what is of unknown type is left out
    return clone


def _inputs(model: ir.Model) -> list[str]:
    return sorted(v.name or "" for v in model.graph.inputs if (v.name or "") not in model.graph.initializers)


def _outputs(model: ir.Model) -> list[str]:
    return sorted(v.name or "" for v in model.graph.outputs)


def _shared(base: ir.Model, other: ir.Model) -> list[str]:
    """Float tensors of both main graphs, in the order of the base model; those of unknown type are left out."""
    theirs = {value.name for value in _floats(other)}
    return [value.name for value in _floats(base) if value.name and value.name in theirs]


def _floats(model: ir.Model) -> Iterator[ir.Value]:
    """What the nodes of the main graph compute, as far as it is known to be of a float type; no constants."""
    for node in model.graph:
        if node.op_type != "Constant":
            yield from (value for value in node.outputs if value.name and _is_float(value))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _groups(model: ir.Model, names: Sequence[str]) -> Iterator[list[str]]:
    """Cut the names so that one batch of a group stays in bounded memory; unknown sizes are taken as a large one."""
    wanted = set(names)
    values = {value.name: value for node in model.graph for value in node.outputs if value.name in wanted}
    group: list[str] = []
    total = 0
    for name in names:
        shape = values[name].shape
        known = None if shape is None else [dim for dim in shape if isinstance(dim, int)]
        nbytes = _GROUP_BYTES // 16 if known is None else 4 * 32 * prod(known)
        if group and total + nbytes > _GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += nbytes
    if group:
        yield group


def _moments(
    base: ir.Model, other: ir.Model, names: list[str], feeds: Feeds, threads: int
) -> dict[str, NDArray[np.float64]]:
    """Sums over all samples of x^2, y^2, xy and (x-y)^2; NaN where the shapes differ."""
    sums = {name: np.zeros(4) for name in names}
    pairs = zip(
        stream(base, names, feeds, limit=_SAMPLES, threads=threads),
        stream(other, names, feeds, limit=_SAMPLES, threads=threads),
        strict=True,
    )
    for ours, theirs in pairs:
        for name in names:
            x, y = np.asarray(ours[name], np.float64).ravel(), np.asarray(theirs[name], np.float64).ravel()
            if ours[name].shape != theirs[name].shape:
                sums[name][:] = np.nan
                continue
            noise = x - y
            sums[name] += (x @ x, y @ y, x @ y, noise @ noise)
    return {name: value for name, value in sums.items() if np.isfinite(value).all()}


def _noises(base: ir.Model, other: ir.Model, moments: dict[str, NDArray[np.float64]]) -> tuple[LayerNoise, ...]:
    """Walk the base model in order; what arrives at a node is the largest noise of its nearest compared ancestors."""
    theirs = {value.name: value for value in _floats(other)}
    reaching: dict[ir.Value, float] = {}
    layers: list[LayerNoise] = []
    for node in base.graph:
        arriving = max((reaching.get(value, 0.0) for value in node.inputs if value is not None), default=0.0)
        for value in node.outputs:
            reaching[value] = arriving
            if value.name not in moments:
                continue
            xx, yy, xy, noise = (float(moment) for moment in moments[value.name])
            ratio = noise / xx if xx > 0 else (0.0 if noise == 0 else inf)
            reaching[value] = ratio
            sqnr = inf if ratio == 0 else -inf if ratio == inf else -10 * log10(ratio)
            cosine = xy / sqrt(xx * yy) if xx > 0 and yy > 0 else float(xx == yy)
            added = 0.0 if node.op_type in _PASSIVE or arriving == inf else ratio - arriving
            maker = _maker(theirs[value.name])
            layers.append(LayerNoise(value.name, origin_of(node), maker, node.op_type, sqnr, cosine, added))
    return tuple(layers)


def _maker(value: ir.Value) -> str:
    """The user's name of the node that computes a value, seen through the pairs that quantization puts around it."""
    node = value.producer()
    assert node is not None  # only what nodes compute is compared
    while node.op_type in _PAIR and node.inputs[0] is not None:
        before = node.inputs[0].producer()
        if before is None:
            break
        node = before
    return origin_of(node)
