"""What a run was of, in facts, and how to do it again."""

from __future__ import annotations

from pathlib import PurePath
from shlex import quote
from typing import Any

from onnxcomp.report.table import Listing
from onnxcomp.report.text import count, size

__all__ = ["facts", "replay_listing", "title"]

Document = dict[str, Any]


def title(document: Document) -> str:
    """The title of a page: which model."""
    file = document["model"]["file"]
    return "onnxcomp optimize" if file is None else f"onnxcomp optimize: {PurePath(file).name}"


def facts(document: Document) -> tuple[tuple[str, str], ...]:
    """(name, value) of the model that came in, and of the run; without what is not known."""
    model, before, recipe = document["model"], document["before"], document["recipe"]
    passes = ", ".join(step["spec"] for step in document["steps"])
    limits = [f"{name.replace('_', '-')} {recipe[name]:g}" for name in ("max_drop", "min_sqnr") if name in recipe]
    found = (
        ("Model", model["file"] or "from memory"),
        ("Producer", model["producer"]),
        ("Opset", ", ".join(f"{domain} {version}" for domain, version in model["opsets"].items())),
        ("Inputs", ", ".join(f"{name} {kind}" for name, kind in model["inputs"].items())),
        ("Outputs", ", ".join(f"{name} {kind}" for name, kind in model["outputs"].items())),
        ("Parameters", count(before["parameters"])),
        ("MACs at batch 1", count(before["macs"])),
        ("File size", size(before["bytes"])),
        ("Passes", passes),
        ("Target", recipe.get("target", "")),
        ("Objective", ", ".join([recipe.get("objective", ""), *limits])),
        ("Calibrated on", document["data"]),
    )
    return tuple((name, value) for name, value in found if value)


def replay_listing(document: Document) -> Listing:
    """The recipe with every choice in it, as YAML, and the command that runs it."""
    import yaml

    from onnxcomp.recipe_yaml import from_yaml, to_yaml

    recipe = to_yaml(from_yaml(yaml.safe_dump(document["recipe"])))
    model = document["model"]["file"] or "model.onnx"
    command = f"onnxcomp optimize {quote(model)} --recipe recipe.yaml -o small.onnx"
    return Listing("Recipe to replay", f"# Save as recipe.yaml, then: {command}\n{recipe}")
