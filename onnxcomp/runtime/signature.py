"""What a timing depends on, as text: the machine and the run, the site, the chain. Equal texts share one measurement.

Values of weights do not count: the same kernels run whatever they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxcomp.contract import Context
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site, static_shape
from onnxcomp.options import spec_of
from onnxcomp.runtime.processor import cpu_name

__all__ = ["chain_signature", "run_signature", "site_signature"]

# Integers up to this number are read as shapes, axes or limits, which the work depends on; more are codes or indices.
_SHAPE_LIKE = 64


def run_signature(context: Context, opset: int) -> str:
    """The processor, the runtime, its threads, the target, the operators' version and the passes that follow."""
    followers = ",".join(spec_of(follower) for follower in context.followers)
    parts = (
        cpu_name(),
        f"onnxruntime {ort.__version__}",
        f"{context.threads} thread{'s'[: context.threads - 1]}",
        context.target.name,
        f"opset {opset}",
        f"then {followers}" if followers else "",
    )
    return "; ".join(filter(None, parts))


def site_signature(site: Site) -> str:
    """Operator, attributes, shapes of the input and of the constants."""
    constants = (site.weight,) if site.bias is None else (site.weight, site.bias)
    shape = "x".join("?" if d is None else str(d) for d in static_shape(site.node.inputs[0])[1:])
    attributes: Mapping[str, object] = site.geometry.attributes()
    if site.kind in ("Gemm", "MatMul"):
        attributes = {"transB": site.node.attributes.get_int("transB", 0)}
    return f"{site.kind}({shape}; {_constants(constants)}){_attributes(attributes)}"


def chain_signature(chain: Sequence[Link]) -> str:
    """The links in order: operator, attributes, shapes of the constants, and where the inputs come from."""
    places = {"": "x"} | {link.role: str(i) for i, link in enumerate(chain)}
    return " > ".join(_link(link, places) for link in chain)


def _link(link: Link, places: Mapping[str, str]) -> str:
    inputs = "none" if link.inputs is None else ",".join(places[role] for role in link.inputs)
    source = f"{inputs}; " if inputs else ""
    ahead = f"{link.ahead} ahead; " if link.ahead else ""
    return f"{link.op_type}({source}{ahead}{_constants(link.constants)}){_attributes(link.attributes)}"


def _constants(arrays: Sequence[NDArray[np.generic]]) -> str:
    return ", ".join(_constant(array) for array in arrays)


def _constant(array: NDArray[np.generic]) -> str:
    shape = "x".join(map(str, array.shape)) or "scalar"
    if array.dtype == np.float32:
        return shape
    if array.dtype.kind in "iu" and array.size <= _SHAPE_LIKE:
        return f"{array.dtype}{array.tolist()}"
    return f"{array.dtype} {shape}"


def _attributes(attributes: Mapping[str, object]) -> str:
    return "".join(f" {name}={_value(attributes[name])}" for name in sorted(attributes))


def _value(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
