"""What ``onnxcomp compare`` found, as the document ``onnxcomp.comparison/2``.

The keys of the document are those of `onnxcomp.compare.Comparison` and its parts; `schemas/comparison-2.schema.json`
describes them. Layers are in the order of the base; `ranked` names those that add noise, most first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from onnxcomp.report.schema import plain
from onnxcomp.report.text import decibels, percent

if TYPE_CHECKING:
    from onnxcomp.compare import Comparison
    from onnxcomp.evaluate import Quality

__all__ = ["SCHEMA", "comparison_document", "share_of"]

SCHEMA = "onnxcomp.comparison/2"
Document = dict[str, Any]
# What the interval of `Quality` takes on one side (95 %), and what an interval with 95 % in it takes on both.
_ONE_SIDED, _TWO_SIDED = 1.645, 1.96
_SOME = 0.005


def comparison_document(
    comparison: Comparison,
    *,
    base: str,
    other: str,
    data: str,
    synthetic: bool,
    quality: Quality | None = None,
    version: str,
) -> Document:
    """Return a comparison as plain data that ``json.dumps(..., allow_nan=False)`` accepts.

    Args:
        comparison: What was found.
        base: What the base is called.
        other: What the other model is called.
        data: Where the samples are from, in words.
        synthetic: Whether they are made up.
        quality: Of the other model against the base on labelled data, if there were any.
        version: Of onnxcomp.
    """
    outputs = comparison.outputs
    document: Document = {
        "schema": SCHEMA,
        "version": version,
        "headline": "",
        "base": base,
        "other": other,
        "data": data,
        "synthetic": synthetic,
        "samples": outputs.samples,
        "layer_samples": comparison.samples,
        "share_samples": comparison.attributed,
        "related": comparison.related,
        "outputs": plain(outputs.outputs),
        "outputs_missing": [{"name": name, "reason": reason} for name, reason in outputs.missing.items()],
        "agreement": outputs.agreement,
        "flipped": outputs.flipped,
        "flips": plain(outputs.flips),
        "accuracy": _accuracy(quality),
        "fault": plain(comparison.fault),
        "ranked": [layer.tensor for layer in comparison.ranked],
        "layers": plain(comparison.layers),
        "missing": plain(comparison.missing),
        "warnings": [],
    }
    document["warnings"] = _warnings(document, comparison.own)
    document["headline"] = _headline(document)
    return document


def _accuracy(quality: Quality | None) -> Document | None:
    if quality is None or quality.top1 is None or quality.drop_points is None or quality.drop_low is None:
        return None
    drop = quality.drop_points
    half = (drop - quality.drop_low) / _ONE_SIDED * _TWO_SIDED
    return {
        "samples": quality.samples,
        "base": quality.top1 + drop / 100,
        "other": quality.top1,
        "drop_points": drop,
        "low": drop - half,
        "high": drop + half,
    }


def _warnings(document: Document, own: Sequence[str]) -> list[str]:
    found: list[str] = []
    if own:
        found.append(
            f"the base went through {', '.join(own)} and the other model did not; inner tensors compare best with the "
            "original as the base"
        )
    if not document["related"]:
        shared, total = len(document["layers"]), len(document["layers"]) + len(document["missing"])
        found.append(
            f"only {shared} of {total} tensors of the base are in the other model; they may not be one model, and the "
            "layer at fault means little"
        )
    for output in document["outputs"]:
        if output["unknown"]:
            found.append(f"output {output['name']!r} of the base holds {output['unknown']:,} NaN or Inf; left out")
        if output["lost"]:
            found.append(f"output {output['name']!r} has {output['lost']:,} NaN or Inf where the base has numbers")
    found += [f"output {one['name']!r} is not compared: {one['reason']}" for one in document["outputs_missing"]]
    return found


def _headline(document: Document) -> str:
    """The verdict on the outputs, and who is to blame."""
    fault, verdict = document["fault"], _verdict(document["outputs"])
    if fault is None:
        blame = "no layer differs beyond rounding" if document["layers"] else "no layer could be compared"
    elif fault["added"] == "inf":
        blame = f"{_named(fault)} makes NaN or Inf of finite values"
    elif float(fault["share"]) > 0:
        more = "" if float(fault["share"]) < 1 + _SOME else ", some of which others make up for"
        blame = f"{_named(fault)} adds most, {share_of(fault)} of the noise{more}"
    else:
        blame = f"{_named(fault)} adds noise, none of which arrives at an output"
    line = f"{verdict}; {blame}"
    return f"no real data was used: {line}; give --data" if document["synthetic"] else line


def _verdict(outputs: Sequence[Document]) -> str:
    floats = [output for output in outputs if output["sqnr"] is not None]
    discrete = [output for output in outputs if output["equal"] is not None]
    parts: list[str] = []
    if floats:
        worst = min(floats, key=lambda output: float(output["sqnr"]))
        value = float(worst["sqnr"])
        if value == inf:
            parts.append("outputs are equal")
        elif value == -inf:
            parts.append(f"output {worst['name']!r} is lost")
        else:
            which = f" ({worst['name']!r} least)" if len(floats) > 1 else ""
            parts.append(f"outputs agree to {decibels(value)}{which}")
    if discrete:
        parts.append(f"{percent(min(float(output['equal']) for output in discrete))} of discrete elements are equal")
    return ", ".join(parts) if parts else "no output could be compared"


def _named(layer: Document) -> str:
    rewrites = ", then ".join(layer["rewrites"])
    return f"{layer['layer']} ({rewrites})" if rewrites else str(layer["layer"])


def share_of(layer: Document) -> str:
    """The share of the noise at the outputs that a layer adds, in words."""
    return f"{round(100 * float(layer['share']), 1) + 0.0:.1f} %"
