"""What a run writes down of itself: the recipe in the report, and in the metadata of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from glob import escape

import onnx_ir as ir

from onnxcomp.backoff import Relief
from onnxcomp.options import spec_of
from onnxcomp.pipeline import Choices, PipelineReport, Plan

__all__ = ["EARLIER", "RECIPE", "VERSION", "recipe_of", "stamp"]

RECIPE = "onnxcomp.recipe"
VERSION = "onnxcomp.version"
EARLIER = "onnxcomp.recipe.earlier"


def recipe_of(plan: Plan, reliefs: Sequence[Relief], **fields: object) -> dict[str, object]:
    """The recipe as plain data, without what is not set.

    ``layers`` holds the overrides, a mapping a pass; a site that was given back to hold the budget is left alone there,
    and one that got milder options for it has them there.
    """
    recipe = {key: value for key, value in fields.items() if value not in (None, [], {})}
    layers: list[dict[str, object]] = [{} for _ in plan.passes]
    for own, entry in zip(plan.overrides, layers, strict=False):
        entry.update({o.match: None if o.options is None else dict(o.options) for o in own})
    for relief in reliefs:
        entry, key = layers[relief.position], escape(relief.site)
        entry.pop(key, None)  # the last match wins, so it has to come last
        entry[key] = None if relief.options is None else dict(relief.options)
    if any(layers):
        recipe["layers"] = layers
    return {"passes": [spec_of(p) for p in plan.passes], **recipe}


def stamp(model: ir.Model, report: PipelineReport, plan: Plan) -> None:
    """Write the recipe with its resolved choices into the model's metadata, so that the file says how it was made.

    Paths of data stay out: they mean nothing where the model goes. A run that changed nothing leaves the recipe of an
    earlier one; otherwise the earlier one is kept beside the new.
    """
    earlier = model.metadata_props.get(RECIPE)
    if earlier is not None:
        if not any(step.kept and step.report.changes for step in report.steps):
            return
        model.metadata_props[EARLIER] = earlier
    recipe = {k: v for k, v in report.recipe.items() if k not in ("data", "eval", "stats")}
    model.metadata_props[VERSION] = report.version
    model.metadata_props[RECIPE] = json.dumps(
        {**recipe, "choices": _brief(report.choices, plan, report.recipe)}, sort_keys=True, separators=(",", ":")
    )


def _brief(choices: Sequence[Choices], plan: Plan, recipe: Mapping[str, object]) -> list[dict[str, dict[str, object]]]:
    """The choices without what the pass itself says; where the recipe has options for layers, all of it."""
    layers = recipe.get("layers")
    own = layers if isinstance(layers, list) else [{}] * len(plan.passes)
    return [
        {
            site: {k: v for k, v in choice.items() if some or not hasattr(item, k) or getattr(item, k) != v}
            for site, choice in sites.items()
        }
        for item, some, sites in zip(plan.passes, own, choices, strict=True)
    ]
