"""What a model consists of, and what the passes on single sites could do with every layer of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp.contract import Context, Pass, SitePass
from onnxcomp.cost import Cost, constant_behind, model_cost, node_macs
from onnxcomp.data import Feeds
from onnxcomp.errors import InputError
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fold import fold
from onnxcomp.proposals import Answers, ask_all, refusals_of
from onnxcomp.structure import Structure, structure_of
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
        bytes: What these take in the file.
        macs: Multiply-accumulates at batch 1; None where a shape is unknown.
        answers: What the passes on single sites say about it.
    """

    name: str
    op_type: str
    input_shape: str
    output_shape: str
    dtype: str
    parameters: int
    bytes: int
    macs: int | None
    answers: Answers


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model at a glance.

    Attributes:
        producer: What wrote the file, with its version; empty where it does not say.
        ir_version: ONNX IR version.
        opsets: Operator-set version by domain; the default domain is ``ai.onnx``.
        inputs: Name to type and shape.
        outputs: Name to type and shape.
        cost: Parameters, MACs at batch 1 and bytes of the constants of the whole model.
        nodes: Number of nodes, bodies included.
        operators: Operator to how often it occurs, most frequent first.
        structure: Types of the constants, what is shared, depth, whether it is quantized, what made it.
        layers: Weighted nodes in topological order, named as in the model.
        folded: What canonicalisation would change before any pass.
        asked: Specs of the passes that were asked, in order.
        proposed: Whether the passes were asked what they would make of each layer.
        data: What predicted errors are measured on, in words; None where they are of the weights.
        samples: Number of samples in these data.
        refusals: Spec of a pass to why it cannot run on this model at all.
        whole: Specs of the passes that work on the model as a whole, of which nothing is known before they run.
    """

    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    cost: Cost
    nodes: int
    operators: Mapping[str, int]
    structure: Structure
    layers: tuple[Layer, ...]
    folded: tuple[str, ...]
    asked: tuple[str, ...]
    proposed: bool
    data: str | None
    samples: int
    refusals: Mapping[str, str]
    whole: tuple[str, ...]


def inspect_model(
    model: ir.Model,
    passes: Mapping[str, Pass],
    target: str = "ort-x86",
    *,
    propose: bool = False,
    data: Feeds | None = None,
) -> Inspection:
    """Inspect a model; nothing is timed and nothing is written.

    Args:
        model: The model; not modified.
        passes: The passes to ask, by spec.
        target: The runtime that the passes are asked for.
        propose: Whether to ask each pass on single sites what it would make of each layer; else only which it refuses.
        data: Samples on whose layer outputs errors are predicted; without any, errors are of the weights.
    """
    canonical = model.clone()
    folded = fold(canonical)
    refusals: dict[str, str] = {}
    answers: dict[str, Answers] = {}
    by_node: dict[ir.Node, Answers] = {}
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        context = Context(load_target(target), Path(folder), data=data)
        for spec, item in passes.items():
            reason = _no_run(item, canonical, context)
            refusals.update({spec: reason} if reason else {})
        asked = {s: item for s, item in passes.items() if s not in refusals and isinstance(item, SitePass)}
        answers = {name: Answers(refusals=reasons) for name, reasons in refusals_of(canonical, asked).items()}
        by_node = dict(ask_all(canonical, asked, context, propose=propose))
    cost = model_cost(model)
    layers = (node for node in canonical.graph.all_nodes() if node.op_type in _LAYERS)
    return Inspection(
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        inputs={value.name or "": _typed(value) for value in model.graph.inputs},
        outputs={value.name or "": _typed(value) for value in model.graph.outputs},
        cost=Cost(cost.parameters, model_cost(canonical).macs, cost.bytes),
        nodes=sum(1 for _ in model.graph.all_nodes()),
        operators=_operators(model),
        structure=structure_of(model),
        layers=tuple(_layer(n, by_node.get(n) or answers.get(origin_of(n)) or Answers()) for n in layers),
        folded=folded,
        asked=tuple(passes),
        proposed=propose,
        data=None if data is None else data.describe(),
        samples=0 if data is None else len(data),
        refusals=refusals,
        whole=tuple(s for s, item in passes.items() if s not in refusals and not isinstance(item, SitePass)),
    )


def _no_run(item: Pass, model: ir.Model, context: Context) -> str:
    """Why a pass cannot run on a model at all; empty where it can."""
    try:
        item.requires(model, context)
    except InputError as error:
        return str(error)
    return ""


def _layer(node: ir.Node, answers: Answers) -> Layer:
    places = _OPERANDS.get(node.op_type, range(len(node.inputs)))
    operands = [node.inputs[i] for i in places if i < len(node.inputs)]
    constants = [(tensor, value) for value in operands if (tensor := constant_behind(value)) is not None]
    weights = max((tensor for tensor, _ in constants), key=lambda tensor: tensor.size, default=None)
    if weights is not None and weights.dtype.is_floating_point():
        constants = [pair for pair in constants if pair[0].dtype.is_floating_point()]
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return Layer(
        origin_of(node),
        operator,
        _shape(node.inputs[0] if node.inputs else None),
        _shape(node.outputs[0] if node.outputs else None),
        "" if weights is None else weights.dtype.name.lower(),
        sum(_elements(tensor, value) for tensor, value in constants),
        sum(tensor.nbytes for tensor, _ in constants),
        node_macs(node),
        answers,
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
