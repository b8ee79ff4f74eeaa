"""Calibration and evaluation data: samples from arrays, images, functions, or made up, streamed a batch at a time."""

from __future__ import annotations

from onnxcomp.data.feeds import Feeds
from onnxcomp.data.opening import open_feeds
from onnxcomp.data.overlap import overlap
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.data.synthetic import synthetic_feeds

__all__ = ["Feeds", "Preprocess", "open_feeds", "overlap", "synthetic_feeds"]
