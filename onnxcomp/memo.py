"""What a pass keeps from one run to the next: a budget runs the same passes over the same model several times."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

__all__ = ["Memo"]

Result = TypeVar("Result")


class Memo:
    """Results by key, each made once.

    A key has to name all that its result depends on: the model (:func:`onnxcomp.graph.fingerprint.model_fingerprint`)
    and every option that counts.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return what is kept under a key; where there is nothing, what `make` returns, and keep it."""
        if key not in self._kept:
            self._kept[key] = make()
        return cast("Result", self._kept[key])

    def part(self, name: Hashable) -> Memo:
        """A memo inside this one, the same at every call."""
        return self.once(name, Memo)
