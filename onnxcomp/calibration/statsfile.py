"""What calibration learns of a model's tensors, as one object and as a file.

The file is an ``.npz`` of plain arrays (never a pickle), format 1:

======================  ================  ============================================================================
``header``              uint8 [n]         JSON: ``format``, ``version``, ``tool``, ``model`` (hex), ``samples``,
                                          ``data``, ``tensors`` (names, in graph order)
``fingerprints``        uint8 [T, 32]     how each tensor is computed (:mod:`onnxcomp.graph.fingerprint`)
``structures``          uint8 [T, 32]     the same without what weights hold
``low``, ``high``       float64 [T]       least and greatest value, exact
``zeros``, ``total``    float64 [T]       mass of exact zeros, and of all values
``exponents``           int32 [T]         bin width of each histogram, 2**exponent
``first``, ``bins``     int32 [T]         first bin in use, from 0 to 4095, and how many follow from there
``counts``              float64 [sum]     their mass, one tensor after another
``channels``            int32 [T]         channels of which there are means; 0 for none
``means``               float64 [sum]     mean of each channel, one tensor after another
======================  ================  ============================================================================

A tensor is looked up by its fingerprint, so statistics hold for exactly the tensors that are computed as they were
when they were calibrated: names do not matter, and what an earlier pass changed is not taken for what it was.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.atomic import staging
from onnxcomp.errors import InputError
from onnxcomp.graph.fingerprint import fingerprints, model_fingerprint, structures
from onnxcomp.numeric.histogram import BINS, Histogram

__all__ = ["FORMAT", "Statistics", "TensorStatistics", "load_statistics", "save_statistics"]

FORMAT = "onnxcomp.statistics"
_VERSION = 1
_ARRAYS = (
    *("fingerprints", "structures", "low", "high", "zeros", "total", "exponents"),
    *("first", "bins", "counts", "channels", "means"),
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class TensorStatistics:
    """What is known of one tensor.

    Attributes:
        histogram: Of its values, or of what of them counts (:mod:`onnxcomp.quantize.watch`).
        structure: Fingerprint of the tensor without what weights hold, 32 bytes.
        means: Mean of each channel, float64 [C]; None where a bias correction would not read them.
    """

    histogram: Histogram
    structure: bytes
    means: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration learned of a model.

    Attributes:
        model: Fingerprint of the canonical model (:func:`onnxcomp.graph.fingerprint.model_fingerprint`).
        samples: Number of samples that were run.
        data: One line about them.
        names: Name of each tensor in that model, by fingerprint.
        tensors: What is known of each tensor, by fingerprint, in graph order.
        tool: Version of onnxcomp that calibrated.
    """

    model: str
    samples: int
    data: str
    names: Mapping[bytes, str]
    tensors: Mapping[bytes, TensorStatistics]
    tool: str = field(default_factory=lambda: version("onnxcomp"))

    def of(self, model: ir.Model) -> dict[str, TensorStatistics]:
        """Return what is known of a model's tensors, by their names there; tensors that changed are not in it."""
        return {name: self.tensors[print_] for name, print_ in fingerprints(model).items() if print_ in self.tensors}

    def alike(self, model: ir.Model, names: Mapping[str, str]) -> dict[str, TensorStatistics]:
        """Return what is known of tensors of a model of the same structure, whose weights may be rounded.

        Args:
            model: Such a model.
            names: For each tensor, by the name it had when it was calibrated, the tensor of `model` to compare with it.
        """
        by_name = {name: self.tensors[key] for key, name in self.names.items()}
        found = structures(model)
        return {
            name: by_name[name]
            for name, twin in names.items()
            if name in by_name and found.get(twin) == by_name[name].structure
        }

    def check(self, canonical: ir.Model, source: str) -> None:
        """Raise InputError where the statistics were taken of another model than this one, in canonical form."""
        found = model_fingerprint(canonical)
        if found != self.model:
            raise InputError(
                f"{source} holds statistics of another model ({self.model[:12]}..., this one is {found[:12]}...);"
                " run onnxcomp calibrate on this model"
            )


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write a statistics file; equal statistics give equal bytes.

    Raises:
        InputError: The folder does not exist, or `path` is no file.
        OutputError: The file cannot be written; what was there before is untouched.
    """
    header = {
        "format": FORMAT,
        "version": _VERSION,
        "tool": statistics.tool,
        "model": statistics.model,
        "samples": statistics.samples,
        "data": statistics.data,
        "tensors": [statistics.names[key] for key in statistics.tensors],
    }
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    with staging() as files:
        file = files.open(Path(path))
        np.savez_compressed(file, allow_pickle=False, header=text, **_arrays(statistics.tensors))


def load_statistics(path: str | Path) -> Statistics:
    """Read a statistics file.

    Raises:
        InputError: There is no such file; it is no statistics file, a damaged one, or of another version.
    """
    try:
        with Path(path).open("rb") as file:  # np.load would leave it open where it is no archive
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile) or "header" not in archive:
                raise InputError(f"{path} is no statistics file; onnxcomp calibrate writes one")
            header = _header(bytes(archive["header"]), path)
            arrays = {name: archive[name] for name in _ARRAYS}
        return _statistics(header, arrays)
    except OSError as error:
        raise InputError(f"cannot read the statistics {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is no statistics file, or a damaged one ({reason}); calibrate again") from None


def _header(text: bytes, path: str | Path) -> dict[str, Any]:
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} is no statistics file; onnxcomp calibrate writes one")
    if header["version"] != _VERSION:
        raise InputError(
            f"{path} has statistics of format {header['version']}, written by onnxcomp {header.get('tool')};"
            f" this version reads format {_VERSION}: calibrate again"
        )
    return cast("dict[str, Any]", header)


def _arrays(tensors: Mapping[bytes, TensorStatistics]) -> dict[str, Array]:
    histograms = [entry.histogram for entry in tensors.values()]
    used = [np.flatnonzero(h.counts) for h in histograms]
    spans = [(int(u[0]), int(u[-1]) + 1) if u.size else (0, 0) for u in used]
    means = [np.zeros(0) if entry.means is None else entry.means for entry in tensors.values()]
    return {
        "fingerprints": _rows(tensors),
        "structures": _rows(entry.structure for entry in tensors.values()),
        "low": np.array([h.low for h in histograms]),
        "high": np.array([h.high for h in histograms]),
        "zeros": np.array([h.zeros for h in histograms]),
        "total": np.array([h.total for h in histograms]),
        "exponents": np.array([h.exponent for h in histograms], np.int32),
        "first": np.array([start for start, _ in spans], np.int32),
        "bins": np.array([stop - start for start, stop in spans], np.int32),
        "counts": _joined(h.counts[start:stop] for h, (start, stop) in zip(histograms, spans, strict=True)),
        "channels": np.array([len(m) for m in means], np.int32),
        "means": _joined(means),
    }


def _rows(digests: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def _joined(parts: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts])


def _statistics(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Statistics:
    """Build the object; raises ValueError, KeyError or TypeError where the file contradicts itself."""
    names = [str(name) for name in header["tensors"]]
    _check(arrays, len(names))
    counts = np.split(arrays["counts"], np.cumsum(arrays["bins"])[:-1])
    means = np.split(arrays["means"], np.cumsum(arrays["channels"])[:-1])
    keys = [row.tobytes() for row in arrays["fingerprints"]]
    tensors = {
        key: TensorStatistics(
            _histogram(arrays, i, counts[i]), arrays["structures"][i].tobytes(), means[i] if means[i].size else None
        )
        for i, key in enumerate(keys)
    }
    return Statistics(
        model=str(header["model"]),
        samples=int(header["samples"]),
        data=str(header["data"]),
        names=dict(zip(keys, names, strict=True)),
        tensors=tensors,
        tool=str(header["tool"]),
    )


def _check(arrays: Mapping[str, Array], count: int) -> None:
    for name in _ARRAYS:
        kind = np.uint8 if name in _DIGESTS else np.int32 if name in _INTEGERS else np.float64
        if arrays[name].dtype != kind or (name not in ("counts", "means") and len(arrays[name]) != count):
            raise ValueError(f"{name} does not fit")
    if any(arrays[name].shape != (count, 32) for name in _DIGESTS):
        raise ValueError("fingerprints do not fit")
    ends = arrays["first"].astype(np.int64) + arrays["bins"]
    if (arrays["first"] < 0).any() or (arrays["bins"] < 0).any() or (ends > 2 * BINS).any():
        raise ValueError("bins do not fit")
    if arrays["bins"].sum() != arrays["counts"].size or arrays["channels"].sum() != arrays["means"].size:
        raise ValueError("arrays are cut short")
    if not all(np.isfinite(arrays[name]).all() for name in ("low", "high", "zeros", "total", "counts", "means")):
        raise ValueError("a number is not finite")


_DIGESTS = frozenset({"fingerprints", "structures"})
_INTEGERS = frozenset({"exponents", "first", "bins", "channels"})


def _histogram(arrays: Mapping[str, Array], index: int, counts: NDArray[np.float64]) -> Histogram:
    histogram = Histogram()
    start = int(arrays["first"][index])
    histogram.counts[start : start + counts.size] = counts
    histogram.exponent = int(arrays["exponents"][index])
    histogram.low, histogram.high = float(arrays["low"][index]), float(arrays["high"][index])
    histogram.zeros, histogram.total = float(arrays["zeros"][index]), float(arrays["total"][index])
    return histogram
