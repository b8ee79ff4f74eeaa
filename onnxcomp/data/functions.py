"""Feeds from a function of the user that yields them: `module:function`, or a callable."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast as typed

import numpy as np
from numpy.typing import NDArray

from onnxcomp.data.arrays import LABELS
from onnxcomp.data.casting import cast, check_castable
from onnxcomp.data.feeds import Feeds, batch_rows
from onnxcomp.data.inputs import Batch, ModelInput, did_you_mean
from onnxcomp.errors import DataError

__all__ = ["FunctionFeeds", "import_function"]

_MOST_FEEDS = 100_000


def import_function(text: str) -> Callable[[], object]:
    """Return what ``module:function`` names; modules of the working directory are found too.

    Raises:
        DataError: The module cannot be imported, or has no such callable.
    """
    module_name, _, attribute = text.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise DataError(f"{text}: cannot import {module_name!r}: {error}") from error
    finally:
        sys.path.remove(here)
    found = getattr(module, attribute, None)
    if not callable(found):
        public = [n for n in vars(module) if not n.startswith("_")]
        what = "has no" if found is None else "holds no callable"
        raise DataError(f"{text}: module {module_name!r} {what} {attribute!r}{did_you_mean(attribute, public)}")
    return typed("Callable[[], object]", found)


class FunctionFeeds(Feeds):
    """Feeds that a function yields: dictionaries keyed by input name, or bare arrays for a one-input model.

    The function is called once a pass over the data and has to yield the same feeds every time; the first call, here,
    counts and checks them. A feed may hold ``labels`` besides the inputs, one integer a sample.

    Raises:
        DataError: It yields nothing, no end of feeds, or something that does not fit the model.
    """

    def __init__(self, inputs: tuple[ModelInput, ...], function: Callable[[], object], source: str) -> None:
        super().__init__(inputs, source)
        self._function = function
        self._named = {i.name for i in inputs}
        labels: list[NDArray[np.int64]] = []
        samples = 0
        self._feeds = 0
        for index, raw in enumerate(self._raw()):
            if index >= _MOST_FEEDS:
                raise DataError(f"{source}: yields more than {_MOST_FEEDS:,} feeds; it has to come to an end")
            rows = batch_rows(self._checked(raw, index), inputs)
            samples += rows
            self._feeds += 1
            if LABELS in raw and LABELS not in self._named:
                labels.append(self._labels_of(raw[LABELS], index, rows))
        if samples == 0:
            raise DataError(f"{source}: yields no feeds")
        if labels and len(labels) != self._feeds:
            raise DataError(f"{source}: only {len(labels)} of {self._feeds} feeds have labels")
        self._length = samples
        self._labels = np.concatenate(labels) if labels else None

    def __len__(self) -> int:
        return self._length

    def _stream(self) -> Iterator[Batch]:
        count = 0
        for index, raw in enumerate(self._raw()):
            if index >= self._feeds:
                break
            yield self._checked(raw, index)
            count += 1
        if count != self._feeds:
            raise DataError(
                f"{self.source}: yielded {self._feeds} feeds when first called and {count} now;"
                " each call must start anew"
            )

    def _read_labels(self) -> NDArray[np.int64] | None:
        return self._labels

    def _raw(self) -> Iterator[Mapping[str, object]]:
        made = self._function()
        if not isinstance(made, Iterable) or isinstance(made, Mapping | np.ndarray | str):
            raise DataError(
                f"{self.source}: returns {type(made).__name__}; it has to yield feeds (dictionaries of arrays)"
            )
        for index, feed in enumerate(made):
            if isinstance(feed, Mapping):
                yield {str(k): v for k, v in feed.items()}
            elif isinstance(feed, np.ndarray) and len(self.inputs) == 1:
                yield {self.inputs[0].name: feed}
            else:
                raise DataError(
                    f"{self.source}: feed {index} is {type(feed).__name__};"
                    " it has to be a dictionary of arrays by input name"
                )

    def _checked(self, raw: Mapping[str, object], index: int) -> Batch:
        batch: Batch = {}
        for wanted in self.inputs:
            where = f"{self.source}: feed {index}, array {wanted.name!r}"
            if wanted.name not in raw:
                held = ", ".join(raw)
                hint = did_you_mean(wanted.name, raw)
                raise DataError(f"{self.source}: feed {index} has no {wanted.name!r}; it has: {held}{hint}")
            array = np.asarray(raw[wanted.name])
            check_castable(array.dtype, wanted, where)
            _check_feed_shape(array.shape, wanted, where)
            batch[wanted.name] = cast(array, wanted, where, 0)
        return batch

    def _labels_of(self, value: object, index: int, rows: int) -> NDArray[np.int64]:
        labels = np.asarray(value).reshape(-1)
        where = f"{self.source}: feed {index}, labels"
        if labels.dtype.kind not in "iu" or (labels < 0).any():
            raise DataError(f"{where}: must be class indices (integers from 0)")
        if len(labels) != rows:
            raise DataError(f"{where}: {len(labels)} labels for {rows} samples")
        return labels.astype(np.int64)


def _check_feed_shape(shape: tuple[int, ...], wanted: ModelInput, where: str) -> None:
    found = f"[{','.join(map(str, shape))}]"
    if 0 in shape:
        raise DataError(f"{where}: is empty (shape {found})")
    if wanted.shape is None:
        return
    fits = len(shape) == len(wanted.shape)
    if not fits or any(isinstance(m, int) and m != d for m, d in zip(wanted.shape, shape, strict=True)):
        raise DataError(f"{where}: has shape {found}; the input is {wanted}")
