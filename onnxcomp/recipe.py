"""Recipes: all that decides a run of ``onnxcomp optimize``, apart from the model, as one object."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from onnxcomp.contract import Objective, Override, Pass, Value
from onnxcomp.errors import InputError, RecipeError
from onnxcomp.options import Bounds, coerce, pass_spec_of, replace_options
from onnxcomp.registry import build_pass
from onnxcomp.spec import PassSpec

__all__ = ["Choices", "Recipe", "RecipePass", "Shape", "parse_shape", "with_values"]

Choices = Mapping[str, Mapping[str, Value]]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecipePass:
    """One pass of a recipe.

    Attributes:
        spec: Its name and global options.
        layers: Per-layer overrides, in the order written.
        choices: Site name to the choice an earlier run resolved; None where the pass has to choose afresh.
        line: Where it stands in the file, from 1; None where it came from elsewhere.
    """

    spec: PassSpec
    layers: tuple[Override, ...] = ()
    choices: Choices | None = None
    line: int | None = field(default=None, compare=False, repr=False)

    def build(self) -> Pass:
        """Build the pass and check every override against its options.

        Raises:
            RecipeError: The pass or an option does not exist or does not fit, where the recipe came from a file.
            InputError: The same, where it came from the command line.
        """
        try:
            built = build_pass(self.spec)
            for override in self.layers:
                replace_options(built, override.options or {})
        except InputError as error:
            raise error if self.line is None else RecipeError(f"recipe, line {self.line}: {error}") from None
        return built

    def resolved(self) -> RecipePass:
        """Return the entry checked, without options that say the default; raises what `build` raises."""
        return dataclasses.replace(self, spec=pass_spec_of(self.build()))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, apart from the model itself; field names are the keys of a YAML recipe.

    Attributes:
        passes: The passes, in order.
        data: Calibration data.
        eval: Labelled data to measure accuracy on.
        stats: Statistics file of the model, from ``onnxcomp calibrate``.
        target: The runtime to compress for.
        objective: What a rewrite has to improve to be kept.
        max_drop: Largest loss of accuracy allowed, in percentage points.
        min_sqnr: Smallest signal-to-noise ratio of the outputs allowed, in dB.
        exclude: Globs of node names that no pass may touch.
        seed: Seed of every random choice.
        threads: Intra-op threads for timing.
        preprocess: How images become inputs, ``key=value`` pairs separated by commas.
        shapes: Sizes for inputs with symbolic dimensions.
        require_data: Whether to stop where calibration data are needed and there are none.
    """

    passes: tuple[RecipePass, ...] = ()
    data: str | None = None
    eval: str | None = None
    stats: str | None = None
    target: str = "ort-x86"
    objective: Objective = "latency"
    max_drop: Annotated[float | None, Bounds(0, 100)] = None
    min_sqnr: float | None = None
    exclude: tuple[str, ...] = ()
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    threads: Annotated[int, Bounds(1, 1024)] = 1
    preprocess: str | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict[str, Shape])
    require_data: bool = False

    def build(self) -> tuple[Pass, ...]:
        """Build every pass, checked; raises what `RecipePass.build` raises."""
        return tuple(entry.build() for entry in self.passes)

    @property
    def replay(self) -> tuple[Choices, ...] | None:
        """The recorded choices of every pass; None where the passes have to choose.

        Raises:
            RecipeError: Some passes have choices and some have none.
        """
        choices = [entry.choices for entry in self.passes]
        known = [choice for choice in choices if choice is not None]
        if known and len(known) < len(choices):
            missing = next(entry for entry in self.passes if entry.choices is None)
            raise RecipeError(
                f"recipe: {missing.spec.name!r} has no 'choices' but another pass has; give all of them or none"
            )
        return tuple(known) if known else None

    def resolved(self) -> Recipe:
        """Return the recipe with every pass checked and written in its shortest form; raises what `build` raises."""
        return dataclasses.replace(self, passes=tuple(entry.resolved() for entry in self.passes))


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some fields replaced, each checked; raise InputError where one does not fit."""
    hints = get_type_hints(Recipe, include_extras=True)
    checked = dict(values)
    for key in values.keys() - {"passes", "exclude", "shapes"}:
        try:
            checked[key] = coerce(values[key], hints[key])
        except ValueError as error:
            raise InputError(f"--{key.replace('_', '-')}: {error}") from None
    return dataclasses.replace(recipe, **checked)


def parse_shape(text: str) -> Shape:
    """Read ``1x3x224x224``; raise ValueError where it is something else."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text, re.ASCII):
        raise ValueError(f"{text!r} is not a shape such as 1x3x224x224")
    return tuple(map(int, text.split("x")))
