"""Open whatever the user calls data: a path, arrays, a function, or feeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from onnxcomp.data.arrays import ArrayFeeds
from onnxcomp.data.columns import Column, MemoryColumn, npy_column, npz_columns
from onnxcomp.data.feeds import Feeds
from onnxcomp.data.functions import FunctionFeeds, import_function
from onnxcomp.data.images import ImageFeeds, image_files
from onnxcomp.data.inputs import ModelInput, did_you_mean, model_inputs
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError

__all__ = ["Source", "open_feeds"]

Source = str | Path | Mapping[str, ArrayLike] | NDArray[np.generic] | Callable[[], object] | Feeds

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KNOWN = "a .npz or .npy file, a folder of images, or module:function"


def open_feeds(
    source: Source,
    model: ir.Model,
    *,
    preprocess: Preprocess | None = None,
    need_labels: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Feeds:
    """Return the samples of `source` as `model` eats them; only headers are read, samples are streamed.

    Args:
        source: A path (``.npz`` keyed by input name, ``.npy`` for a one-input model, a folder of images),
            ``module:function`` or a callable that yields feeds, a mapping of arrays, an array for a one-input model, or
            Feeds (returned as is).
        model: The model that will be fed.
        preprocess: How images become tensors; needed for a folder of images, and for nothing else.
        need_labels: Whether samples without labels are refused.
        shapes: Shapes by input name, for inputs with free axes.

    Raises:
        DataError: The source is missing, malformed or does not fit the model.
    """
    inputs = model_inputs(model, shapes)
    feeds = _open(source, inputs, preprocess)
    if need_labels:
        feeds.require_labels()
    return feeds


def _open(source: Source, inputs: tuple[ModelInput, ...], preprocess: Preprocess | None) -> Feeds:
    if isinstance(source, Feeds):
        _check_names(source, inputs)
        return source
    if isinstance(source, str | Path):
        return _open_path(str(source), inputs, preprocess)
    if isinstance(source, Mapping):
        arrays = {k: MemoryColumn(f"array {k!r}", np.asarray(v)) for k, v in source.items()}
        return ArrayFeeds(inputs, arrays, "arrays")
    if isinstance(source, np.ndarray):
        return _single(inputs, MemoryColumn("array", source), "an array")
    if callable(source):
        return FunctionFeeds(inputs, source, getattr(source, "__qualname__", type(source).__name__))
    raise DataError(f"data of type {type(source).__name__} are not understood; give {_KNOWN}, arrays or a callable")


def _open_path(text: str, inputs: tuple[ModelInput, ...], preprocess: Preprocess | None) -> Feeds:
    path = Path(text)
    if not text or not path.exists():
        if _FUNCTION.fullmatch(text):
            return FunctionFeeds(inputs, import_function(text), text)
        raise DataError(f"{text or 'data'}: no such file or folder{_neighbour(path)}")
    if path.is_dir():
        return ImageFeeds(inputs, path, _image_preprocess(preprocess, inputs, path))
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return ArrayFeeds(inputs, _raw_checked(npz_columns(path), inputs, preprocess), text)
    if suffix == ".npy":
        return _single(inputs, npy_column(path), text)
    raise DataError(f"{text}: not data that can be read; give {_KNOWN}")


def _single(inputs: tuple[ModelInput, ...], column: Column, source: str) -> Feeds:
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise DataError(
            f"{source}: a single array, but the model has {len(inputs)} inputs ({names}); use a .npz keyed by them"
        )
    return ArrayFeeds(inputs, {inputs[0].name: column}, source)


def _image_preprocess(preprocess: Preprocess | None, inputs: tuple[ModelInput, ...], folder: Path) -> Preprocess:
    if preprocess is not None:
        return preprocess
    if inputs[0].dtype == np.uint8:
        return Preprocess(scale=1.0)
    image_files(folder)  # a folder without images is the first thing to say
    raise DataError(
        f"{folder}: images need --preprocess to match how the model was trained, for example"
        " 'size=224,crop=0.875,scale=1/255,mean=0.485 0.456 0.406,std=0.229 0.224 0.225'"
    )


def _raw_checked(
    columns: Mapping[str, Column], inputs: tuple[ModelInput, ...], preprocess: Preprocess | None
) -> Mapping[str, Column]:
    """Refuse raw pixels in a .npz for which the user also asked to preprocess: that is never applied to arrays."""
    for wanted in inputs:
        column = columns.get(wanted.name)
        if preprocess and column is not None and column.dtype.kind in "iu" and wanted.dtype.kind not in "iu":
            raise DataError(
                f"{column.where}: holds {column.dtype.name}, and --preprocess applies to image files only;"
                " store the preprocessed values"
            )
    return columns


def _check_names(feeds: Feeds, inputs: tuple[ModelInput, ...]) -> None:
    held = {i.name: i for i in feeds.inputs}
    for wanted in inputs:
        found = held.get(wanted.name)
        if found is None:
            raise DataError(
                f"{feeds.source}: these feeds are for a model with inputs {', '.join(held)};"
                f" this one needs {wanted.name!r}{did_you_mean(wanted.name, held)}"
            )
        if found.dtype != wanted.dtype:
            raise DataError(f"{feeds.source}: these feeds hold {found} for {wanted.name!r}; this model needs {wanted}")


def _neighbour(path: Path) -> str:
    """Suggest a file of a similar name in the same folder."""
    if not path.parent.is_dir():
        return ""
    hint = did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
    return hint or f"; data are {_KNOWN}"
