"""ONNX Runtime sessions: quiet, on the CPU, and with failures that read like onnxcomp's own.

Every run of a model in onnxcomp goes through :func:`open_session` and :func:`run`, so that threads, logging and error
messages are the same everywhere.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.settings import INT8_KERNELS, Optimize, SessionSettings

__all__ = ["checked_feed", "input_names", "open_session", "open_with", "output_names", "run", "runner"]

_state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # a binary without stubs

# ORT's exceptions share no base but Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    _state.EPFail,
    _state.EngineError,
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoModel,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
    RuntimeError,
)
# In memory a model exists twice while it loads, as bytes and as what ORT parses from them; above, a file spares the
# bytes (and beyond 2 GB nothing else is possible).
_IN_MEMORY_LIMIT = 256 << 20
_MESSAGE_LIMIT = 300


def open_session(
    model: ir.Model | bytes | str | Path,
    *,
    threads: int = 1,
    optimize: Optimize = "all",
    dump: Path | None = None,
    arena: bool = True,
    int8_kernels: bool = False,
) -> ort.InferenceSession:
    """Open a session on the CPU.

    Args:
        model: A model, its serialized bytes, or a path. A model over 256 MB travels through a temporary file.
        threads: Intra-op threads; inter-op is always 1.
        optimize: How far ORT rewrites the graph at load.
        dump: Write ORT's optimised graph there.
        arena: Keep freed buffers for the next run: faster. False returns them to the system: the smallest peak memory.
        int8_kernels: Let int8 activations into integer kernels as they are, which is what ORT does on ARM; on x86 it
            would rewrite them to uint8 where it can.

    Raises:
        ModelError: ORT cannot load the model; the message carries ORT's own sentence.
    """
    entries = INT8_KERNELS if int8_kernels else ()
    settings = SessionSettings(threads, optimization=optimize, entries=entries, arena=arena)
    return open_with(model, settings, dump=dump)


def open_with(
    model: ir.Model | bytes | str | Path,
    settings: SessionSettings,
    *,
    dump: Path | None = None,
    trace: Path | None = None,
) -> ort.InferenceSession:
    """Open a session with settings.

    Args:
        model: A model, its serialized bytes, or a path, as for :func:`open_session`.
        settings: Threads, provider and the like.
        dump: Write ORT's optimised graph there.
        trace: Let ORT's profiler record every run; its file begins with that path, and `end_profiling` names it.

    Raises:
        ModelError: ORT cannot load the model; the message carries ORT's own sentence.
    """
    ort.set_default_logger_severity(4)
    options = settings.options()
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    if isinstance(model, ir.Model):
        if _constant_bytes(model) > _IN_MEMORY_LIMIT:
            return _open_large(model, options, settings.providers)
        return _open(modelio.to_bytes(model), options, settings.providers, model.graph.name or "model")
    if isinstance(model, bytes):
        return _open(model, options, settings.providers, "model")
    if not Path(model).is_file():
        raise ModelError(f"no such file: {model}")
    return _open(str(model), options, settings.providers, str(model))


def run(
    session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
) -> list[NDArray[Any]]:
    """Run a session on one feed; entries of `feed` that the model does not read are ignored.

    Args:
        session: An open session.
        feed: Input name to array.
        outputs: Names of the outputs wanted; all of them where None.

    Returns:
        The outputs, in the order asked for.

    Raises:
        DataError: The feed lacks an input, or its shape or dtype does not fit.
        ModelError: ORT failed for another reason.
    """
    wanted = input_names(session)
    missing = [name for name in wanted if name not in feed]
    if missing:
        raise DataError(f"the data have no input '{missing[0]}' (they hold: {', '.join(sorted(feed)) or 'nothing'})")
    try:
        return cast("list[NDArray[Any]]", session.run(outputs, {name: feed[name] for name in wanted}))
    except _state.InvalidArgument as error:
        raise DataError(f"the data do not fit the model: {_sentence(error)}") from error
    except _ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime could not run the model: {_sentence(error)}") from error


def checked_feed(session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a session once, and return what it reads of the feed as contiguous arrays: what timed runs are fed.

    Raises:
        DataError, ModelError: As :func:`run`.
    """
    run(session, feed)
    return {name: np.asarray(feed[name], order="C") for name in input_names(session)}


def runner(session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
    """Return what runs a session on the feed and does nothing else, for timing; checked by one run (see there)."""
    own = checked_feed(session, feed)

    def call() -> None:
        session.run(None, own)

    return call


def input_names(session: ort.InferenceSession) -> list[str]:
    """Return the names of the inputs that a run needs; initializers that are also inputs are not among them."""
    return [str(value.name) for value in session.get_inputs()]


def output_names(session: ort.InferenceSession) -> list[str]:
    """Return the names of the outputs, in the model's order."""
    return [str(value.name) for value in session.get_outputs()]


def _constant_bytes(model: ir.Model) -> int:
    values = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in values if tensor is not None)


def _open(model: bytes | str, options: Any, providers: list[str], what: str) -> ort.InferenceSession:
    try:
        # Without fallback ORT raises at once instead of printing to stdout and trying again.
        return ort.InferenceSession(model, options, providers=providers, enable_fallback=False)
    except _ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot load {what}: {_sentence(error)}") from error


def _open_large(model: ir.Model, options: Any, providers: list[str]) -> ort.InferenceSession:
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        modelio.save(model, path)
        return _open(str(path), options, providers, model.graph.name or "model")


def _sentence(error: Exception) -> str:
    """Return ORT's message as one line without its status prefix."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 3] + "..."
