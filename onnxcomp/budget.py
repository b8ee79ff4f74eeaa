"""The gate of `optimize`: limits on what may be lost, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxcomp.errors import InputError
from onnxcomp.evaluate import Quality

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """Limits on what a run may lose.

    Attributes:
        max_drop: Percentage points of top-1 accuracy (0.5 is half a point); needs labels.
        min_sqnr: Least signal-to-noise ratio of the worst output against the original's, dB; needs no labels.
    """

    GARBAGE_DB: ClassVar[float] = 6.0
    """Outputs below this SQNR (a quarter of the signal is noise) are called far from the original's."""

    max_drop: float | None = None
    min_sqnr: float | None = None

    def __bool__(self) -> bool:
        return self.max_drop is not None or self.min_sqnr is not None

    def allowed_noise(self, before: Quality, after: Quality, noise: float) -> float:
        """Return the noise power at which the limits may be expected to hold, from a result with the power `noise`.

        An SQNR is a noise power. A drop of accuracy is taken to go with it, within bounds: a guess to start from.
        """
        allowed = float("inf") if self.min_sqnr is None else 10 ** (-self.min_sqnr / 10)
        if self.max_drop is None or before.top1 is None or after.top1 is None:
            return allowed
        drop = 100 * (before.top1 - after.top1)
        return min(allowed, noise * min(max(self.max_drop / drop, 0.25), 0.9)) if drop > self.max_drop else allowed

    def slack(self, before: Quality, after: Quality, noise: float) -> float:
        """Return by what factor the noise may be expected to grow before a limit breaks; below 1 where one is broken.

        A drop of accuracy is taken to be in proportion to the noise, within bounds.
        """
        found = float("inf") if self.min_sqnr is None or noise <= 0 else 10 ** (-self.min_sqnr / 10) / noise
        if self.max_drop is None or before.top1 is None or after.top1 is None:
            return found
        drop = 100 * (before.top1 - after.top1)
        if drop <= self.max_drop / 4:  # next to nothing, or a gain by chance
            return min(found, 4.0)
        return min(found, max(self.max_drop / drop, 0.25))

    def failures(self, before: Quality, after: Quality) -> tuple[str, ...]:
        """Say which limits do not hold.

        Raises:
            InputError: `max_drop` is set and the evaluation data have no labels, or no output is a classifier's.
        """
        out: list[str] = []
        if self.max_drop is not None:
            if before.top1 is None or after.top1 is None:
                raise InputError("--max-drop needs labelled evaluation data of a classifier; give --eval with labels")
            drop = 100 * (before.top1 - after.top1)
            if drop > self.max_drop:
                out.append(f"top-1 drops {drop:.2f} points, more than the {self.max_drop:g} allowed")
        if self.min_sqnr is not None:
            worst = min(after.sqnr.values(), default=float("inf"))
            if worst < self.min_sqnr:
                out.append(
                    f"the worst output has an SQNR of {worst:.1f} dB, less than the {self.min_sqnr:g} dB asked for"
                )
        return tuple(out)
