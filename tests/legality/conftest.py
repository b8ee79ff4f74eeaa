"""A convolution between pairs, for one runtime or the other, to be damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.legality.checker import check_model
from onnxcomp.legality.finding import Finding

_GROUP = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
  [quantize] xq = QuantizeLinear(x, s, z)
  [dequantize] xd = DequantizeLinear(xq, s, z)
  [weights] wd = DequantizeLinear<axis = 0>(w, ws, wz)
  [conv] c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(xd, wd, b)
  TAIL
}
"""
_TAILS = {
    "ort": "[requantize] cq = QuantizeLinear(c, os, z)\n  [end] y = DequantizeLinear(cq, os, z)",
    "tensorrt": "[relu] r = Relu(c)\n  [last] y = Conv(r, k)",
}


@dataclass(frozen=True)
class Groups:
    """Makes quantized models of text and constants."""

    parsed: Callable[..., ir.Model]

    def __call__(
        self, *swaps: tuple[str, str], runtime: str = "ort", signed: bool = False, opset: int = 17, **changes: Any
    ) -> ir.Model:
        """The group with pieces of its text swapped and constants changed; those that nothing reads are left out."""
        text = _GROUP.replace("TAIL", _TAILS[runtime])
        for old, new in swaps:
            assert old in text, f"{old!r} is not in {text}"
            text = text.replace(old, new)
        return self.of(text, signed=signed, opset=opset, **changes)

    def of(self, text: str, *, signed: bool = False, opset: int = 17, **changes: Any) -> ir.Model:
        """A model of any text, with those constants of the group that it reads."""
        arrays = self.arrays(signed) | changes
        words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
        return self.parsed(text, opset=opset, **{name: a for name, a in arrays.items() if name in words})

    def arrays(self, signed: bool) -> dict[str, NDArray[Any]]:
        """The constants: scales, zero points, weight, bias."""
        rng = np.random.default_rng(0)
        return {
            "s": np.array(0.05, np.float32),
            "os": np.array(0.1, np.float32),
            "z": np.array(0, np.int8) if signed else np.array(100, np.uint8),
            "w": rng.integers(-100, 100, (16, 16, 3, 3)).astype(np.int8),
            "ws": rng.uniform(0.01, 0.02, 16).astype(np.float32),
            "wz": np.zeros(16, np.int8),
            "b": np.zeros(16, np.float32),
            "k": np.zeros((16, 16, 1, 1), np.float32),
        }


@pytest.fixture(scope="session")
def groups(parsed: Callable[..., ir.Model]) -> Groups:
    """Makes quantized models of text and constants."""
    return Groups(parsed)


@pytest.fixture(scope="session")
def found() -> Callable[[ir.Model, str], dict[str, Finding]]:
    """Check a model: the first finding of each rule that it breaks."""

    def find(model: ir.Model, target: str = "ort-x86") -> dict[str, Finding]:
        findings: Sequence[Finding] = check_model(model, target)
        return {finding.rule: finding for finding in reversed(findings)}

    return find
