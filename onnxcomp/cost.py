"""What a model or a site costs: parameters, multiply-accumulates and bytes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Static cost of a site or a model.

    Attributes:
        parameters: Number of constant floating-point or quantized weights (biases included).
        macs: Multiply-accumulates of one inference at batch 1; None where a shape is unknown.
        bytes: Bytes that the constants take in the file.
    """

    parameters: int
    macs: int | None
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        macs = None if self.macs is None or other.macs is None else self.macs + other.macs
        return Cost(self.parameters + other.parameters, macs, self.bytes + other.bytes)
