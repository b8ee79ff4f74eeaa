"""A placement that the runtime honours: what it would run in floating point all the same gets no pairs.

The scheme of a target says what an operator needs; other fusions of the runtime may still come first. A product, for
one, that an activation or an Add follows is at times merged with that before its pairs are looked at. So the placement
is tried: written into a copy with made-up numbers, loaded, and read back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.graph.edit import origin_of
from onnxcomp.quantize.emit import RulesOf, WeightCache, WeightRules, emit
from onnxcomp.quantize.parameters import parameters_for
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.weights import QuantizedWeight
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.targets.target import Scheme

__all__ = ["Placement", "emit_made_up"]


class Placement:
    """Places pairs in a model and its clones, so that all of them fuse."""

    def __init__(self, model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None]) -> None:
        """Try placements in the runtime until all of one fuses.

        Args:
            model: A canonical model; not modified.
            scheme: The target's rules.
            refuse: Reason why the user or the recipe leaves a node alone, or None.

        Raises:
            ModelError: The runtime cannot load the quantized model.
        """
        self._scheme = scheme
        self._refuse = refuse
        # Both by the name of the node's first output, so that they hold for clones, and for nodes put in between.
        self._closed: set[str] = set()
        self._undone: dict[str, Skip] = {}
        # What does not fuse pairs around operators is not to be judged by this runtime.
        while scheme.pairs == "groups" and (unfused := self._unfused(model)):
            new = {_key(n) for n in model.graph if _key(n) in unfused and self._may_close(n)} - self._closed
            self._closed |= new
            self._undone |= {key: skip for key, skip in unfused.items() if key not in new}

    def of(self, model: ir.Model, only: str | None = None) -> Plan:
        """Return the placement in the model or in a clone of it; `only` the site of that name, if one is given."""

        def refuse(node: ir.Node) -> str | None:
            skip = self._undone.get(_key(node))
            other = only is not None and origin_of(node) != only and node.op_type not in self._scheme.absorbed
            return self._refuse(node) or (skip.reason if skip else "another site is looked at" if other else None)

        return place(model, self._scheme, refuse, lambda node: _key(node) in self._closed)

    def undone(self, plan: Plan) -> tuple[Skip, ...]:
        """The nodes without weights that stay float because the runtime would not fuse them."""
        told = {skip.site for skip in plan.skips}
        return tuple(skip for skip in self._undone.values() if skip.site not in told)

    def _may_close(self, node: ir.Node) -> bool:
        """Whether a node has a form with rounded output that was not tried."""
        return node.op_type in self._scheme.weighted and node.op_type not in self._scheme.output_required

    def _unfused(self, model: ir.Model) -> dict[str, Skip]:
        """The nodes of the placement that the runtime runs in floating point, by their key."""
        copy = model.clone()
        plan = self.of(copy)
        if not plan.weighted:
            return {}
        placed = {w.node for w in plan.weighted} | {other.node for other in plan.others}
        sites = {f"onnxcomp.{i}": (_key(node), node, origin_of(node)) for i, node in enumerate(copy.graph)}
        for name, (_, node, _) in sites.items():
            node.name = name
        emit_made_up(copy, plan)
        unfused: dict[str, Skip] = {}
        for fate in fusion_proof(copy, int8_kernels=self._scheme.activation == "int8"):
            # Without a kernel of its own, it is not known to run in float (or not to run at all).
            if fate.integer or not fate.kernel or fate.node not in sites:
                continue
            key, node, site = sites[fate.node]
            if node in placed:
                unfused[key] = Skip(site, f"the runtime would run it in float, as {fate.kernel}: {fate.reason}")
        return unfused


def _key(node: ir.Node) -> str:
    return (node.outputs[0].name or "") if node.outputs else ""


def emit_made_up(model: ir.Model, plan: Plan, rules_of: RulesOf | None = None) -> None:
    """Quantize the model in place, with made-up ranges: what the runtime would compute, at the wrong scales.

    Args:
        model: The model that `plan` was made for.
        plan: Where to quantize.
        rules_of: How weights become int8; None: they become zeros, which costs no time.
    """
    made_up = {name: parameters_for(plan.scheme, -1.0, 1.0, plan.tensors[name].limits) for name in plan.roots}
    known: WeightCache = {}
    if rules_of is None:
        for w in plan.weighted:
            assert w.weight.const_value is not None
            shape = tuple(w.weight.const_value.shape.numpy())
            zeros = QuantizedWeight(np.zeros(shape, np.int8), np.ones(shape[w.axis], np.float32), w.axis)
            known[(w.weight.name, w.axis, 8, "minmax")] = zeros
    emit(model, plan, made_up, rules_of or (lambda node: WeightRules(8, "minmax", False)), known=known)
