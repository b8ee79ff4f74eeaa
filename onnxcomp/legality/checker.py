"""Check a model against the rules of a target."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import onnx
import onnx_ir as ir

from onnxcomp.graph.fold.shapes import infer_shapes, skeleton
from onnxcomp.legality.finding import Finding, Rule, Subject
from onnxcomp.runtime.fusion import NodeFate
from onnxcomp.targets.target import Target, load_target

__all__ = ["check_model", "rules_of"]


def rules_of(target: Target) -> tuple[Rule, ...]:
    """The rules of a target, in the order in which they are reported."""
    module = import_module(f"onnxcomp.legality.{target.name.replace('-', '_')}")
    rules: tuple[Rule, ...] = module.RULES
    return rules


def check_model(
    model: ir.Model, target: Target | str, *, fates: Sequence[NodeFate] | None = None
) -> tuple[Finding, ...]:
    """Return every place where a model breaks a rule of the runtime it is for; errors first.

    Args:
        model: The model; not modified.
        target: The target or its name.
        fates: What :func:`onnxcomp.runtime.fusion.fusion_proof` says of the model on the target's own kind of machine,
            if the caller has it; the model is then not loaded again.

    Raises:
        InputError: No target has that name, or a table that ORT ships with its tools is missing.
    """
    aim = load_target(target) if isinstance(target, str) else target
    own = model.clone()
    subject = Subject(own, aim, None if fates is None else tuple(fates), _infer(own))
    rules = rules_of(aim)
    found = [Finding(r.severity, b.node, r.name, b.message, b.remedy) for r in rules for b in r.find(subject)]
    general = {rule.name for rule in rules if rule.general}
    told = {finding.node for finding in found if finding.rule not in general}
    kept = [finding for finding in found if finding.rule not in general or finding.node not in told]
    return tuple(sorted(kept, key=lambda finding: finding.severity != "error"))


def _infer(model: ir.Model) -> str:
    """Infer shapes and types in place; return why the model is not valid ONNX, or nothing."""
    try:
        infer_shapes(model)
        proto = skeleton(model)
        for output in proto.graph.output:
            if output.type.HasField("tensor_type"):  # the checker insists on a shape, runtimes do not
                output.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        return str(error).splitlines()[0]
    return ""
