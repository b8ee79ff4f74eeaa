"""How much a model would lose with each of its residual blocks, measured.

The branch of a block is taken out and a linear map of the shortcut put in its place, the one that comes closest to what
the sum was: what the layers around can make good when they are refitted (G.-H. Wang and J. Wu, Practical Network
Acceleration with Tiny Sets, 2023, section 3.2: recoverability with a 1x1 adaptor). What that does to the outputs of the
model is the block's score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.calibration.frontier import Frontier, lifetimes
from onnxcomp.calibration.gram import PatchGram
from onnxcomp.contract import Context
from onnxcomp.cost import constant_behind, model_cost
from onnxcomp.data import Feeds
from onnxcomp.graph.blocks import Block
from onnxcomp.graph.edit import Link, replace_by_chain
from onnxcomp.graph.geometry import Geometry
from onnxcomp.graph.sites import static_shape
from onnxcomp.numeric.refit import least_squares_target, remainder
from onnxcomp.sensitivity import compare_versions

__all__ = ["score_blocks"]

Single = NDArray[np.float32]

# Multiply-accumulates of all runs together: half a minute or so on one core.
_MACS = 10**12
_SAMPLES = 128
# Models that are held in memory at the same time.
_AT_ONCE = 4
# Bytes of activations kept in memory.
_MEMORY = 1 << 28
# Pull of the map towards the identity, in units of the mean power of a channel.
_RIDGE = 0.03
# Flops that one Gram may cost, and positions a channel that it gets in any case.
_GRAM_FLOPS = 2e10
_POSITIONS = 10


def score_blocks(model: ir.Model, blocks: Sequence[Block], context: Context) -> list[float]:
    """Return, for each block, the relative squared error of the worst output that is expected without its branch.

    It is measured on calibration samples, on made-up ones where there are none. Where none can be made either, the
    scores are no errors but only rank the blocks: they are the shares of the squared weights with which the last layers
    of the blocks write to a stream of so many channels.

    Args:
        model: The model; not modified.
        blocks: Blocks of it, in topological order.
        context: The run's context.
    """
    feeds = context.data or context.stand_in
    if feeds is None:
        return _by_weights(blocks)
    cost = model_cost(model)
    affordable = _MACS // max(1, (cost.macs or cost.parameters) * len(blocks))
    limit = int(min(_SAMPLES, max(affordable, 1)))
    adaptors = _adaptors(model, blocks, feeds, context)
    scores: list[float] = []
    for some in progress.each([blocks[i : i + _AT_ONCE] for i in range(0, len(blocks), _AT_ONCE)], "try blocks"):
        versions = {str(i): _adapted(model, block, *next(adaptors)) for i, block in enumerate(some)}
        scores += [own.error for own in compare_versions(model, versions, feeds, limit, context.threads)]
    return scores


def _by_weights(blocks: Sequence[Block]) -> list[float]:
    energies = [_energy(block.layers[-1]) for block in blocks]
    streams: dict[int, float] = {}
    for block, energy in zip(blocks, energies, strict=True):
        streams[block.channels] = streams.get(block.channels, 0.0) + energy
    tiny = float(np.finfo(np.float64).tiny)
    return [energy / max(streams[block.channels], tiny) for block, energy in zip(blocks, energies, strict=True)]


def _energy(layer: ir.Node) -> float:
    """Sum of the squared weights, or of their codes."""
    constants = [tensor for value in layer.inputs if (tensor := constant_behind(value)) is not None]
    weight = max(constants, key=lambda tensor: tensor.size)
    return float(np.square(weight.numpy().astype(np.float64)).sum())


def _adaptors(
    model: ir.Model, blocks: Sequence[Block], feeds: Feeds, context: Context
) -> Iterator[tuple[Single, Single]]:
    """The maps from the shortcuts to the sums: weight (C, C) and bias (C,) each."""
    order = {node: index for index, node in enumerate(model.graph)}
    adds = {block.add for block in blocks}
    frontier = Frontier(model, lifetimes(model.graph, adds.__contains__), feeds, context.workdir, [_MEMORY])
    with closing(frontier):
        for block in blocks:
            shortcut, branch = (value.name or "" for value in _operands(block))
            frontier.advance(order[block.add], [shortcut, branch])
            gram = _empty_gram(block, len(feeds), context.seed)
            for x, f in zip(frontier.values(shortcut), frontier.values(branch), strict=True):
                gram.update(_rows(block, x), _rows(block, x + f))
                if gram.full:
                    break
            yield _fitted(gram)


def _fitted(gram: PatchGram) -> tuple[Single, Single]:
    (moments,) = gram.moments()
    weight, _ = least_squares_target(moments, np.eye(len(moments.xx)), _RIDGE)
    bias, _, _ = remainder(moments, weight)
    return weight.astype(np.float32), bias.astype(np.float32)


def _operands(block: Block) -> tuple[ir.Value, ir.Value]:
    """The shortcut and the end of the branch."""
    left, right = block.add.inputs
    assert left is not None and right is not None, "a block ends in a sum of two"
    return (left, right) if left is block.shortcut else (right, left)


def _rows(block: Block, array: NDArray[np.floating]) -> NDArray[np.floating]:
    """A value of the stream as (N, C, *spatial)."""
    return array if block.axis == 1 else array.reshape(-1, array.shape[-1], 1)


def _empty_gram(block: Block, samples: int, seed: int) -> PatchGram:
    rank = len(static_shape(block.shortcut)) - 2 if block.axis == 1 else 1
    point = Geometry((1,) * rank, (1,) * rank, (1,) * rank, (0,) * (2 * rank))
    total = max(int(_GRAM_FLOPS / block.channels**2), _POSITIONS * block.channels)
    return PatchGram(point, block.channels, block.channels, max_total=total, samples=samples, seed=seed)


def _adapted(model: ir.Model, block: Block, weight: Single, bias: Single) -> ir.Model:
    """A clone in which a map of the shortcut stands for the sum."""
    clone = model.clone()
    add = next(n for n in clone.graph if n.outputs and n.outputs[0].name == block.add.outputs[0].name)
    if add.inputs[0] is None or add.inputs[0].name != block.shortcut.name:
        add.replace_input_with(0, add.inputs[1])
    if block.axis == 1:
        spatial = (1,) * (len(static_shape(block.shortcut)) - 2)
        links = [Link("adaptor", "Conv", (weight.reshape(*weight.shape, *spatial), bias))]
    else:
        links = [Link("adaptor", "MatMul", (np.ascontiguousarray(weight.T),)), Link("bias", "Add", (bias,))]
    replace_by_chain(add, links, "drop_blocks")
    return clone
