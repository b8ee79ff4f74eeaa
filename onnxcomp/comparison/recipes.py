"""What passes did to each layer of a model, as the model itself tells: its recipe and the provenance of its nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir

from onnxcomp.contract import Value
from onnxcomp.errors import SpecError
from onnxcomp.graph.edit import PASS, origin_of
from onnxcomp.spec import PassSpec, parse_spec, render_value

__all__ = ["Step", "dropped_layers", "own_steps", "rewrites_of", "steps_between"]

_RECIPES = ("onnxcomp.recipe.earlier", "onnxcomp.recipe")
_DROPPED = ("blocks", "dropped")
# What says which channels of so many are left, one bit a channel, is not for reading.
_MASK = "outputs"


@dataclass(frozen=True, slots=True)
class Step:
    """A pass that was carried out.

    Attributes:
        spec: Its name and options.
        choices: By layer what it chose there; a layer that it left alone is missing.
    """

    spec: PassSpec
    choices: Mapping[str, Mapping[str, Value]]


def steps_between(base: ir.Model, other: ir.Model) -> tuple[Step, ...]:
    """The passes that lead from the base to the other model, as far as the other model's metadata tell."""
    ours, theirs = _steps(base), _steps(other)
    shared = 0
    while shared < min(len(ours), len(theirs)) and ours[shared] == theirs[shared]:
        shared += 1
    return theirs[shared:]


def own_steps(base: ir.Model, other: ir.Model) -> tuple[Step, ...]:
    """The passes that the base went through and the other model did not, as far as metadata tell."""
    return steps_between(other, base)


def rewrites_of(other: ir.Model, steps: Sequence[Step]) -> dict[str, tuple[str, ...]]:
    """By layer the passes that rewrote it, in order, with what they chose: ``tucker2(ranks=26x32)``."""
    found: dict[str, list[str]] = {}
    told: dict[str, set[str]] = {}
    for step in steps:
        for layer, choice in step.choices.items():
            found.setdefault(layer, []).append(_worded(step.spec, choice))
            told.setdefault(layer, set()).add(step.spec.name)
    for node in other.graph:
        name = node.metadata_props.get(PASS)
        if name and not steps and name not in told.setdefault(origin_of(node), set()):
            told[origin_of(node)].add(name)
            found.setdefault(origin_of(node), []).append(name)
    return {layer: tuple(dict.fromkeys(names)) for layer, names in found.items()}


def dropped_layers(other: ir.Model, steps: Sequence[Step]) -> dict[str, str]:
    """By layer that the other model has no node of which pass removed it, and with which residual block."""
    left = {origin_of(node) for node in other.graph}
    found: dict[str, str] = {}
    for step in steps:
        for layer, choice in step.choices.items():
            blocks = [str(choice[key]) for key in _DROPPED if key in choice]
            if layer not in left:
                found[layer] = f"dropped by {step.spec}" + (f" with the residual block {blocks[0]}" if blocks else "")
    return found


def _worded(spec: PassSpec, choice: Mapping[str, Value]) -> str:
    """What the pass chose there, or else what it was told."""
    shown = [f"{key}={render_value(value)}" for key, value in choice.items() if not key.startswith(_MASK)]
    return f"{spec.name}({', '.join(shown)})" if shown else str(spec)


def _steps(model: ir.Model) -> tuple[Step, ...]:
    texts = (model.metadata_props.get(key) for key in _RECIPES)
    return tuple(step for text in texts if text is not None for step in _read(text))


def _read(text: str) -> list[Step]:
    """The steps of a recipe; metadata are anybody's, so that what is no recipe tells nothing."""
    try:
        recipe: Any = json.loads(text)
        specs = [parse_spec(spec) for spec in recipe["passes"]]
        choices = [{str(layer): _plain(choice) for layer, choice in step.items()} for step in recipe["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError, SpecError, RecursionError):
        return []
    return [Step(spec, choice) for spec, choice in zip(specs, choices, strict=False)]


def _plain(choice: object) -> dict[str, Value]:
    if not isinstance(choice, dict):
        raise TypeError("a choice is a mapping")
    entries = cast("dict[object, object]", choice)
    return {str(key): value for key, value in entries.items() if isinstance(value, (str, int, float, bool))}
