"""The real models and labelled images that benchmarks use; they lie in ../shared beside the repository."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARED", "images", "model_file"]

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def images(model: str, split: str, count: int, first: int = 0) -> tuple[str, NDArray[np.float32], NDArray[np.int64]]:
    """Return (input name, preprocessed images, labels) for a model; `split` is "train" (calibration) or "eval"."""
    _require()
    spec = importlib.util.spec_from_file_location("feeds", SHARED / "data" / "feeds.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name, x, y = module.feeds(model, split, count, first)
    return str(name), x, y


def model_file(model: str, work: Path) -> Path:
    """Return the path of a model; VGG16 is stored in half precision and expanded into `work`."""
    _require()
    path = SHARED / "models" / f"{model}.onnx"
    if path.exists():
        return path
    expanded = work / f"{model}.onnx"
    if not expanded.exists():
        expand = SHARED / "models" / "expand.py"
        subprocess.run([sys.executable, str(expand), str(work)], check=True, capture_output=True)
    return expanded


def _require() -> None:
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: the models and images of this benchmark are not part of the repository")
