"""Where TensorRT wants pairs: where integers are read, so that the builder can fuse what follows a layer into it.

1. The data input of every layer on integers gets a pair. Outputs do not, nor is a pair put between a layer and its
   Relu: it is the next layer's pair behind the Relu that makes the kernel write integers.
2. Operators that only move values commute with rounding and have no pairs of their own; what they move keeps its scale.
3. A residual Add is fused into the convolution right before it if its other operand is read as integers: that one gets
   a pair, the convolution's result none. Of two convolutions the deeper one takes the Add in.
4. A Concat joins if all it reads can have the scale of its result: then it costs nothing. Pools that average join
   between layers on integers. Both write integers as well as they read them.
5. Anything else (Sigmoid, Mul ...) stays float and is fused into the layer before it.

Source: NVIDIA TensorRT developer guide, explicit quantization ("Q/DQ layer-placement recommendations").
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.plan import Quantized
from onnxcomp.quantize.rules import can_join
from onnxcomp.targets.target import Scheme

__all__ = ["InputPlacer"]


class InputPlacer:
    """Backwards for what leads to a layer on integers, forwards for who reads what."""

    def __init__(self, scheme: Scheme, weighted: set[ir.Node], refused: set[ir.Node]) -> None:
        self.scheme = scheme
        self.weighted = weighted
        self.refused = refused
        self.chosen = set(weighted)
        self.outputs: dict[ir.Node, list[ir.Value]] = {}
        self.tensors: dict[str, Quantized] = {}
        self._leading: set[ir.Node] = set()
        self._fed: set[ir.Value | None] = set()
        self._depth: dict[ir.Value, int] = {}

    def find_paths(self, graph: ir.Graph) -> None:
        """Find what leads to a layer on integers, how deep every value lies, and what comes straight from a layer."""
        through = self.scheme.joining | self.scheme.absorbed
        for node in reversed(graph):
            if is_default_domain(node, *through) and any(self._leads(out) for out in node.outputs):
                self._leading.add(node)
        for node in graph:
            before = max((self._depth.get(v, 0) for v in node.inputs if v is not None), default=0)
            fed = node in self.weighted or (node.op_type in through and any(v in self._fed for v in node.inputs))
            for out in node.outputs:
                self._depth[out] = before + (node in self.weighted)
                if fed:
                    self._fed.add(out)

    def mark(self, graph: ir.Graph) -> None:
        """List the quantized tensors and their readers."""
        for node in graph:
            if node in self.weighted:
                self._read(node, node.inputs[:1])
            elif node in self._leading and self._may_join(node):
                self._join(node)
        for node in graph:
            if (identity := self._identity(node)) is not None:
                self._read(node, [identity])
        self._share()
        order = [*graph.inputs, *(out for node in graph for out in node.outputs)]
        self.tensors = {v.name: self.tensors[v.name] for v in order if v.name and v.name in self.tensors}

    def _leads(self, out: ir.Value) -> bool:
        return any(user in self._leading or (user in self.weighted and i == 0) for user, i in out.uses())

    def _may_join(self, node: ir.Node) -> bool:
        if node in self.refused or node.op_type not in self.scheme.arithmetic or node.op_type == "Add":
            return False
        data = [v for v in node.inputs if v is not None]
        floats = all(not v.is_initializer() and v.dtype in (None, ir.DataType.FLOAT) for v in data)
        # The pair behind a Concat moves in front of it all the same.
        fed = node.op_type == "Concat" or any(v in self._fed for v in data)
        return floats and fed and can_join(node, self.scheme)

    def _join(self, node: ir.Node) -> None:
        """Let a Concat or a pool read and write integers."""
        result = node.outputs[0]
        if node.op_type == "Concat":
            known = [self.tensors[v.name] for v in node.inputs if v is not None and v.name in self.tensors]
            if any(tensor.root is not tensor.value for tensor in known):
                return  # one of its inputs has the scale of another Concat already
        self._read(node, node.inputs)
        tensor = self._tensor(result)
        tensor.closed = True
        self.outputs[node] = [result]
        if node.op_type == "Concat":
            for value in node.inputs:
                if value is not None:
                    self._tensor(value).root = result

    def _identity(self, node: ir.Node) -> ir.Value | None:
        """Of an Add that a layer on integers takes in: the operand that is not that layer's result."""
        if node in self.refused or not is_default_domain(node, "Add") or "Add" not in self.scheme.arithmetic:
            return None
        operands = [v for v in node.inputs if v is not None]
        branches = [v for v in operands if self._is_branch(v)]
        if len(operands) != 2 or not branches or any(v.is_initializer() for v in operands):
            return None
        if operands[0].shape is None or operands[0].shape != operands[1].shape:
            return None  # one is spread over the other: not the sum of two branches
        branch = max(branches, key=lambda v: self._depth.get(v, 0))
        return operands[1] if operands[0] is branch else operands[0]

    def _is_branch(self, value: ir.Value) -> bool:
        producer = value.producer()
        fused = producer is not None and producer in self.weighted and producer.op_type in ("Conv", "ConvTranspose")
        return fused and len(value.uses()) == 1 and not value.is_graph_output()

    def _share(self) -> None:
        """Give what was only moved the scale of what it was moved from, where both are read as integers."""
        for tensor in self.tensors.values():
            source, producer = tensor.value, tensor.value.producer()
            while producer is not None and is_default_domain(producer, *self.scheme.passing):
                moved = producer.inputs[0]
                if moved is None or not can_join(producer, self.scheme):
                    break
                source, producer = moved, moved.producer()
                if source.name in self.tensors:
                    break
            if tensor.root is tensor.value and source is not tensor.value and source.name in self.tensors:
                tensor.root = source

    def _read(self, node: ir.Node, values: Iterable[ir.Value | None]) -> None:
        self.chosen.add(node)
        for value in values:
            if value is not None:
                self._tensor(value).readers.append(node)

    def _tensor(self, value: ir.Value) -> Quantized:
        assert value.name
        return self.tensors.setdefault(value.name, Quantized(value, value))
