"""The canonical form that every pass starts from; one idea a file, driven by `canonical`."""

from __future__ import annotations

from onnxcomp.graph.fold.canonical import canonicalise, fold
from onnxcomp.graph.fold.log import Log, Refusal, Rewrite
from onnxcomp.graph.fold.opset import raise_opset

__all__ = ["Log", "Refusal", "Rewrite", "canonicalise", "fold", "raise_opset"]
