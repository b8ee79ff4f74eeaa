"""Recipes as files: one YAML file says all that ``onnxcomp optimize`` can be told, per-layer overrides included.

::

    passes:
      - fold
      - tucker2:
          options: {rank: vbmf}
          layers:                       # node-name glob > operator type > options
            "layer1/*": {rank: energy}
            /stem/conv: null            # leave this one alone
            ConvTranspose: null
      - int8(calibration=entropy)
    data: calibration.npz
    target: ort-x86
    objective: latency
    exclude: ["*/head/*"]

Scalars follow YAML 1.2: ``2:4``, ``on`` and ``yes`` are text. Paths are taken as they are, relative to the current
directory. Every error names the line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from onnxcomp import modelio
from onnxcomp.contract import Override, Value
from onnxcomp.errors import InputError, RecipeError
from onnxcomp.options import coerce
from onnxcomp.recipe import Choices, Recipe, RecipePass, Shape, parse_shape
from onnxcomp.spec import PassSpec, parse_spec, read_bare
from onnxcomp.yamlnodes import composed, is_null, line_of, mapping

__all__ = ["STAMP", "from_yaml", "load_recipe", "recipe_document", "replayable", "to_yaml"]

# The key of a model's metadata under which the compiler leaves the recipe that made it.
STAMP = "onnxcomp.recipe"


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe: a YAML file, a JSON report, or a model that onnxcomp wrote (which carries its own).

    Raises:
        RecipeError: It cannot be read or says something it cannot.
        ModelError: A file that ends in .onnx is no model.
    """
    if Path(path).suffix == ".onnx":
        return _of_model(path)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"cannot read the recipe {str(path)!r}: {reason}") from None
    return from_yaml(text)


def from_yaml(text: str) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: Not YAML, an unknown or repeated key, or a value of the wrong kind; the message names the line.
    """
    root = composed(text, "recipe", RecipeError)
    if root is None:
        raise RecipeError("recipe: the file is empty; it needs at least 'passes:'")
    root = _recipe_of_report(root)
    hints = get_type_hints(Recipe, include_extras=True)
    entries = _mapping(root, "the recipe", known=[f.name for f in dataclasses.fields(Recipe)])
    values: dict[str, Any] = {}
    for key, node in entries.items():
        match key:
            case "passes":
                values[key] = tuple(_pass(item) for item in _sequence(node, key))
            case "exclude":
                values[key] = tuple(_text(item, key) for item in _sequence(node, key))
            case "shapes":
                values[key] = {name: _shape(item, name) for name, item in _mapping(node, key).items()}
            case "preprocess" if isinstance(node, yaml.MappingNode):
                pairs = {name: _preprocess_value(item, name) for name, item in _mapping(node, key).items()}
                values[key] = ",".join(f"{name}={value}" for name, value in pairs.items())
            case _:
                values[key] = _fitting(node, key, hints[key])
    return Recipe(**values)


def replayable(stored: Mapping[str, Any], choices: Sequence[Choices]) -> dict[str, Any]:
    """Return the recipe of a finished run with the choices that replay each of its passes.

    Args:
        stored: The recipe; its passes are spec texts, and ``layers``, if there, holds the overrides, a mapping a pass.
        choices: What each pass chose, by site.
    """
    rest = dict(stored)
    texts, layers = rest.pop("passes"), rest.pop("layers", None) or [{} for _ in choices]
    passes = [
        _pass_document(RecipePass(parse_spec(text), tuple(Override(*item) for item in own.items()), chosen))
        for text, own, chosen in zip(texts, layers, choices, strict=True)
    ]
    return {"passes": passes, **rest}


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data, every field written out."""
    document = {item.name: getattr(recipe, item.name) for item in dataclasses.fields(Recipe)}
    document["passes"] = [_pass_document(entry) for entry in recipe.passes]
    document["exclude"] = list(recipe.exclude)
    document["shapes"] = {name: "x".join(map(str, shape)) for name, shape in recipe.shapes.items()}
    return document


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe out in full, so that `from_yaml` reads an equal one back."""
    return yaml.dump(recipe_document(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _of_model(path: str | Path) -> Recipe:
    """Read the recipe that the compiler left in a model's metadata."""
    text = modelio.load(path).metadata_props.get(STAMP)
    if text is None:
        raise RecipeError(f"{str(path)!r} carries no recipe: it was not written by onnxcomp")
    try:
        stored = json.loads(text)
        document = replayable(stored, stored.pop("choices"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(f"the recipe in {str(path)!r} is damaged: {error}") from None
    return from_yaml(json.dumps(document))


def _recipe_of_report(root: yaml.Node) -> yaml.Node:
    """Return the recipe inside a JSON report (JSON is YAML), or the document itself."""
    if not isinstance(root, yaml.MappingNode):
        return root
    entries = {key.value: value for key, value in root.value}
    return entries["recipe"] if {"schema", "recipe"} <= entries.keys() else root


def _pass(node: yaml.Node) -> RecipePass:
    line = line_of(node)
    if isinstance(node, yaml.ScalarNode):
        try:
            return RecipePass(parse_spec(node.value), line=line)
        except InputError as error:
            raise _error(node, str(error)) from None
    entries = _mapping(node, "an entry of 'passes'")
    if len(entries) != 1:
        raise _error(
            node, "an entry of 'passes' is a spec such as 'tucker2(rank=vbmf)' or one 'name: {options, layers}'"
        )
    name, body = next(iter(entries.items()))
    parts = {} if is_null(body) else _mapping(body, name, known=["options", "layers", "choices"])
    options = _options(parts["options"], name) if "options" in parts else {}
    layers = _mapping(parts["layers"], "layers") if "layers" in parts else {}
    choices = _mapping(parts["choices"], "choices") if "choices" in parts else None
    try:
        spec = PassSpec(name, options)
    except ValueError as error:
        raise _error(node, str(error)) from None
    return RecipePass(
        spec,
        tuple(Override(glob, None if is_null(item) else _options(item, glob)) for glob, item in layers.items()),
        None if choices is None else {site: _options(item, site) for site, item in choices.items()},
        line,
    )


def _options(node: yaml.Node, where: str) -> dict[str, Value]:
    options: dict[str, Value] = {}
    for key, item in _mapping(node, where).items():
        value = _scalar(item, key)
        options[key] = "none" if value is None else value
    return options


def _mapping(node: yaml.Node, where: str, known: Sequence[str] | None = None) -> dict[str, yaml.Node]:
    return mapping(node, where, _error, known)


def _sequence(node: yaml.Node, where: str) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise _error(node, f"{where}: expected a list ('- item' lines)")
    return list(node.value)


def _scalar(node: yaml.Node, where: str) -> Value | None:
    if not isinstance(node, yaml.ScalarNode):
        raise _error(node, f"{where}: expected one value")
    text = str(node.value)
    if node.style is not None:  # quoted
        return text
    return None if text in ("", "null", "~") else read_bare(text)


def _text(node: yaml.Node, where: str) -> str:
    if _scalar(node, where) is None:
        raise _error(node, f"{where}: expected text")
    return str(node.value)


def _shape(node: yaml.Node, name: str) -> Shape:
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    try:
        return parse_shape("x".join(_text(part, name) for part in parts))
    except ValueError as error:
        raise _error(node, f"shapes, {name}: {error}") from None


def _preprocess_value(node: yaml.Node, name: str) -> str:
    return (
        ":".join(_text(part, name) for part in node.value) if isinstance(node, yaml.SequenceNode) else _text(node, name)
    )


def _fitting(node: yaml.Node, key: str, hint: Any) -> Value | None:
    try:
        return coerce(_scalar(node, key), hint)
    except ValueError as error:
        raise _error(node, f"{key}: {error}") from None


def _error(node: yaml.Node, problem: str) -> RecipeError:
    return RecipeError(f"recipe, line {line_of(node)}: {problem}")


def _pass_document(entry: RecipePass) -> str | dict[str, Any]:
    if not entry.layers and entry.choices is None:
        return str(entry.spec)
    body: dict[str, Any] = {}
    if entry.spec.options:
        body["options"] = dict(entry.spec.options)
    if entry.layers:
        body["layers"] = {item.match: None if item.options is None else dict(item.options) for item in entry.layers}
    if entry.choices is not None:
        body["choices"] = {site: dict(choice) for site, choice in entry.choices.items()}
    return {entry.spec.name: body}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a plain scalar would turn into something else, and repeats rather than aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = text not in ("", "null", "~") and isinstance(read_bare(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)
