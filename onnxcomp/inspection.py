"""What a model consists of, and what the passes on single sites could do with every layer of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp.contract import Context, Pass, SitePass, Skip
from onnxcomp.cost import Cost, constant_behind, model_cost, node_macs
from onnxcomp.errors import InputError
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fold import fold
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.targets.target import load_target

__all__ = ["Inspection", "Layer", "inspect_model"]

_LAYERS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul",
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "LSTM", "GRU", "RNN",
)  # fmt: skip
# Where the operands are among scales and zero points; elsewhere every constant counts.
_OPERANDS = {"QLinearConv": (0, 3, 8), "QLinearMatMul": (0, 3), "ConvInteger": (0, 1), "MatMulInteger": (0, 1)}


@dataclass(frozen=True, slots=True)
class Layer:
    """One weighted node.

    Attributes:
        name: Its name in the user's model.
        op_type: Operator.
        input_shape: Shape of its data input as text, ``?`` for what is unknown.
        output_shape: Shape of its first output, likewise.
        dtype: Type that its weights are stored in (int4 behind Cast and DequantizeLinear is int4).
        parameters: Elements of its weights and biases.
        macs: Multiply-accumulates at batch 1; None where a shape is unknown.
        passes: Name of each pass on single sites to what it could do here, or why not.
    """

    name: str
    op_type: str
    input_shape: str
    output_shape: str
    dtype: str
    parameters: int
    macs: int | None
    passes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model at a glance.

    Attributes:
        ir_version: ONNX IR version.
        opsets: Operator-set version by domain; the default domain is ``ai.onnx``.
        inputs: Name to type and shape.
        outputs: Name to type and shape.
        cost: Parameters, MACs at batch 1 and bytes of the constants of the whole model.
        nodes: Number of nodes, bodies included.
        operators: Operator to how often it occurs, most frequent first.
        layers: Weighted nodes in topological order, named as in the model.
        folded: What canonicalisation would change before any pass.
        refusals: Pass name to why it cannot run on this model at all.
        whole: Names of the passes that work on the model as a whole, of which nothing is known before they run.
    """

    ir_version: int
    opsets: Mapping[str, int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    cost: Cost
    nodes: int
    operators: Mapping[str, int]
    layers: tuple[Layer, ...]
    folded: tuple[str, ...]
    refusals: Mapping[str, str]
    whole: tuple[str, ...]


def inspect_model(
    model: ir.Model, passes: Mapping[str, Pass], target: str = "ort-x86", progress: Callable[[str], None] | None = None
) -> Inspection:
    """Inspect a model; nothing is timed and no data are read.

    Args:
        model: The model; not modified.
        passes: The passes to ask, by name.
        target: The runtime that the passes are asked for.
        progress: Called with the name of each pass before it is asked.
    """
    folded_model = model.clone()
    folded = fold(folded_model)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        context = Context(load_target(target), Path(folder))
        verdicts: dict[str, dict[str, str]] = {}
        refusals: dict[str, str] = {}
        for name, item in passes.items():
            if progress:
                progress(name)
            try:
                item.requires(folded_model, context)
            except InputError as error:
                refusals[name] = str(error)
                continue
            for site, words in _ask(item, folded_model, context).items():
                verdicts.setdefault(site, {})[name] = words
    cost = model_cost(model)
    return Inspection(
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        inputs={value.name or "": _typed(value) for value in model.graph.inputs},
        outputs={value.name or "": _typed(value) for value in model.graph.outputs},
        cost=Cost(cost.parameters, model_cost(folded_model).macs, cost.bytes),
        nodes=sum(1 for _ in model.graph.all_nodes()),
        operators=_operators(model),
        layers=tuple(_layer(node, verdicts) for node in folded_model.graph.all_nodes() if node.op_type in _LAYERS),
        folded=folded,
        refusals=refusals,
        whole=tuple(n for n, item in passes.items() if n not in refusals and not isinstance(item, SitePass)),
    )


def _ask(item: Pass, model: ir.Model, context: Context) -> dict[str, str]:
    """What a pass says about every site of its kinds; passes on whole models say nothing here."""
    if not isinstance(item, SitePass):
        return {}
    return {
        site.site if isinstance(site, Skip) else site.name: _verdict(item, site, context)
        for site in weighted_sites(model, item.kinds)
    }


def _verdict(item: SitePass, site: Site | Skip, context: Context) -> str:
    if isinstance(site, Skip):
        return f"no: {site.reason}"
    reason = item.refuse(site)
    if reason:
        return f"no: {reason}"
    proposal = item.propose(site, None, context)
    if isinstance(proposal, Skip):
        return f"no: {proposal.reason}"
    return proposal[0].summary if proposal else "no: nothing proposed"


def _layer(node: ir.Node, verdicts: Mapping[str, Mapping[str, str]]) -> Layer:
    name = origin_of(node)
    places = _OPERANDS.get(node.op_type, range(len(node.inputs)))
    operands = [node.inputs[i] for i in places if i < len(node.inputs)]
    constants = [(tensor, value) for value in operands if (tensor := constant_behind(value)) is not None]
    weights = max((tensor for tensor, _ in constants), key=lambda tensor: tensor.size, default=None)
    if weights is not None and weights.dtype.is_floating_point():
        constants = [pair for pair in constants if pair[0].dtype.is_floating_point()]
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return Layer(
        name,
        operator,
        _shape(node.inputs[0] if node.inputs else None),
        _shape(node.outputs[0] if node.outputs else None),
        "" if weights is None else weights.dtype.name.lower(),
        sum(_elements(tensor, value) for tensor, value in constants),
        node_macs(node),
        verdicts.get(name, {}),
    )


def _elements(tensor: ir.TensorProtocol, value: ir.Value | None) -> int:
    """Elements of a constant operand; the constant itself may hold several in one number."""
    shape = None if value is None else value.shape
    return int(np.prod(shape.numpy())) if shape is not None and shape.is_static() else tensor.size


def _operators(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _typed(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return f"{dtype} {_shape(value)}"


def _shape(value: ir.Value | None) -> str:
    if value is None or value.shape is None:
        return "?"
    return "x".join("?" if str(dim) == "None" else str(dim) for dim in value.shape) or "scalar"
