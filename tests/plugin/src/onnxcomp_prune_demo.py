"""A pass of a third party: it uses nothing but the public names of onnxcomp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxcomp import Change, Context, Cost, Pass, PassReport, Skip
from onnxcomp.options import Bounds

__all__ = ["SmallWeights"]


@dataclass(frozen=True)
class SmallWeights(Pass):
    """Set the smallest weights of every convolution to zero.

    Attributes:
        amount: Fraction of the weights of a layer.
    """

    name: ClassVar[str] = "smallweights"
    saves: ClassVar[Literal["latency", "bytes", "nothing"]] = "nothing"

    amount: Annotated[float, Bounds(0, 1, open_high=True)] = 0.1

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Zero the weights in place."""
        changes: list[Change] = []
        skips: list[Skip] = []
        for node in model.graph:
            if node.op_type != "Conv":
                continue
            weight = node.inputs[1]
            if weight is None or weight.const_value is None:
                skips.append(Skip(node.name or "", "the weight is not a constant"))
                continue
            values = weight.const_value.numpy().copy()
            count = int(self.amount * values.size)
            values.ravel()[np.argsort(np.abs(values), axis=None)[:count]] = 0
            weight.const_value = ir.tensor(values, name=weight.name)
            cost = Cost(values.size, None, values.nbytes)
            changes.append(Change(node.name or "", f"{count} weights are zero", cost, cost))
        return PassReport(tuple(changes), tuple(skips))
