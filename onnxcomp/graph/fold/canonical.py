"""The order in which the folds run, and why it ends."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir

from onnxcomp.graph.edit import names_of
from onnxcomp.graph.fold.absorb import absorb_affine
from onnxcomp.graph.fold.constants import fold_constants, lift_constants
from onnxcomp.graph.fold.dead import drop_dead
from onnxcomp.graph.fold.gemm import plain_gemms
from onnxcomp.graph.fold.identity import drop_identities
from onnxcomp.graph.fold.log import Log
from onnxcomp.graph.fold.opset import modernise
from onnxcomp.graph.fold.pad import absorb_pads
from onnxcomp.graph.fold.shapes import Dims, infer_shapes
from onnxcomp.graph.fold.values import graphs_of

__all__ = ["canonicalise", "fold"]


def fold(model: ir.Model) -> tuple[str, ...]:
    """Bring a model into canonical form in place, with the same outputs; see `canonicalise`.

    Where the opset is raised, `model.graph` becomes a new object.

    Returns:
        One line for each thing that changed; empty where the model was canonical already.
    """
    return canonicalise(model).lines


def canonicalise(model: ir.Model) -> Log:
    """Bring a model into canonical form in place.

    An opset below 17 is raised; Constant nodes become initializers; what is computed from constants alone (sizes
    included, where they follow from the model's inputs) becomes an initializer; Identity and inference Dropout go;
    Gemm's alpha and beta go into its weight and bias; BatchNormalization and Add, Sub, Mul, Div by a constant go into
    the Conv, ConvTranspose or Gemm before them; zero Pad goes into the Conv or AveragePool after it; what nothing reads
    goes; shapes are inferred. Folding again changes nothing.

    Kept: names, types and shapes of inputs and outputs; symbolic dimensions; names and metadata of the nodes that stay;
    tensor names; function bodies; initializers that a caller may override. Outputs agree to 1e-5 in relative L2 (half
    precision: to its own rounding).
    """
    log = Log()
    modernise(model, log)
    log.general += lift_constants(model)
    log.general += drop_dead(model)
    version = model.opset_imports.get("", 0)
    sizes = _fold_to_fixpoint(model, version, log)
    taken = names_of(model.graph)
    for graph in graphs_of(model):
        absorb_affine(graph, version, taken, log)
        plain_gemms(graph, version, taken, log)
        absorb_pads(graph, version, sizes, log)
    log.general += drop_dead(model)
    return log


def _fold_to_fixpoint(model: ir.Model, version: int, log: Log) -> dict[str, Dims]:
    """Identities and constants until nothing changes: each round that continues has removed a node, so it ends."""
    folded: Counter[str] = Counter()
    while True:
        for graph in graphs_of(model):
            log.general += drop_identities(graph)
        sizes = _infer(model, log)
        found = [op for graph in graphs_of(model) for op in fold_constants(graph, version, sizes)]
        folded.update(found)
        if not found:
            break
    if folded:
        parts = ", ".join(f"{count} {op}" for op, count in sorted(folded.items()))
        log.general.append(f"computed {folded.total()} constant node{'' if folded.total() == 1 else 's'} ({parts})")
    return sizes


def _infer(model: ir.Model, log: Log) -> dict[str, Dims]:
    try:
        return infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        remark = f"shapes are not inferred: {str(error).strip().splitlines()[0]}"
        if remark not in log.remarks:
            log.remarks.append(remark)
        return {}
