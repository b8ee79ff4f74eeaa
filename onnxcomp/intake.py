"""What a run starts from: the model, checked in the runtime, and the data, real or made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.data import Feeds, Preprocess, open_feeds, overlap, synthetic_feeds
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.session import open_session

__all__ = ["DataOptions", "Intake", "checked_model", "take_in"]

_FEW = 64


@dataclass(frozen=True)
class DataOptions:
    """How the user's data become feeds.

    Attributes:
        data: Calibration data: a path, arrays by input name, a callable or Feeds; None: synthetic samples stand in.
        eval: Evaluation data, likewise; None: accuracy is not measured.
        preprocess: How a folder of images becomes the model's input.
        shapes: Concrete shapes for inputs with unknown dimensions.
        required: Refuse to run without real calibration data.
        seed: Of the synthetic samples.
    """

    data: Any = None
    eval: Any = None
    preprocess: Preprocess | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    required: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Intake:
    """A checked model and its data.

    Attributes:
        model: The model as the user gave it; never modified.
        data: Real calibration feeds, or None.
        stand_in: Synthetic feeds where there are no real ones and they can be made.
        scored: Evaluation feeds, or None.
        warnings: What the user should know about them.
    """

    model: ir.Model
    data: Feeds | None
    stand_in: Feeds | None
    scored: Feeds | None
    warnings: tuple[str, ...]

    @property
    def feeds(self) -> Feeds | None:
        """Calibration feeds, real if there are any."""
        return self.data or self.stand_in

    def describe(self) -> str:
        """One line about the calibration data for the report."""
        return "none" if self.feeds is None else self.feeds.describe()


def take_in(model: str | Path | ir.Model | onnx.ModelProto, options: DataOptions) -> Intake:
    """Load a model, check that the runtime loads it, and open its data.

    Raises:
        ModelError: The model cannot be read, or ONNX Runtime does not load it.
        DataError: The data are missing, empty or do not fit.
    """
    loaded = checked_model(model)
    data, stand_in, warnings = _calibration(loaded, options)
    scored = None
    if options.eval is not None:
        scored = open_feeds(options.eval, loaded, preprocess=options.preprocess, shapes=options.shapes)
    return Intake(loaded, data, stand_in, scored, (*warnings, *_overlap_warning(data, scored)))


def checked_model(model: str | Path | ir.Model | onnx.ModelProto) -> ir.Model:
    """Load a model and check that the runtime loads it; raises ModelError where either fails."""
    loaded = _loaded(model)
    _check_runs(loaded, str(model) if isinstance(model, str | Path) else "the model")
    return loaded


def _loaded(model: str | Path | ir.Model | onnx.ModelProto) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    return modelio.from_proto(model) if isinstance(model, onnx.ModelProto) else modelio.load(model)


def _check_runs(model: ir.Model, name: str) -> None:
    """Nothing can be measured or proved of a model that the runtime refuses, so it is refused before any work."""
    try:
        open_session(model, optimize="basic")
    except ModelError as error:
        reason = str(error).split(": ", 1)[-1]
        raise ModelError(f"{name}: ONNX Runtime cannot load this model: {reason}") from None


def _calibration(model: ir.Model, options: DataOptions) -> tuple[Feeds | None, Feeds | None, list[str]]:
    if options.data is not None:
        feeds = open_feeds(options.data, model, preprocess=options.preprocess, shapes=options.shapes).unlabelled()
        few = f"only {len(feeds)} calibration samples; {_FEW} or more are advised"
        return feeds, None, [few] if len(feeds) < _FEW else []
    if options.required:
        raise DataError("no calibration data: --require-data was given without --data")
    try:
        return None, synthetic_feeds(model, options.seed, shapes=options.shapes), []
    except DataError as error:
        if options.shapes:  # what the user wrote is wrong, and is not passed over
            raise
        return None, None, [f"no synthetic data could be made, nothing is timed: {error}"]


def _overlap_warning(data: Feeds | None, scored: Feeds | None) -> list[str]:
    shared = 0 if data is None or scored is None else overlap(data, scored)
    words = f"{shared} samples are in both the calibration and the evaluation data; the accuracy is too good"
    return [words] if shared else []
