"""Labels of elements that must be scaled alike: a union-find over integers, and arrays of them that broadcast.

The labels of a tensor are an integer array that broadcasts to the tensor's shape: an axis of extent 1 means the same
label all along it, and () one label for every element. Elements of one class have to be multiplied by one factor. The
label ``ZERO`` marks elements that are always 0: any factor suits them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ZERO", "Forest", "Labels"]

Labels = NDArray[np.int64]

ZERO = -1


class Forest:
    """Classes of labels. A class may be pinned, with the reason: its factor is 1."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, shape: tuple[int, ...]) -> Labels:
        """Return labels of that shape that are all new."""
        start = len(self._parents)
        labels = start + np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)
        self._parents.extend(range(start, start + labels.size))
        return labels

    def pinned(self, reason: str) -> Labels:
        """Return one new label, shape (), that is pinned."""
        label = self.fresh(())
        self._reasons[int(label)] = reason
        return label

    def roots(self, labels: Labels) -> Labels:
        """Return the labels with every class named by one of them; axes without a difference shrink to extent 1."""
        unique, inverse = np.unique(labels, return_inverse=True)
        known = np.asarray([self._find(int(k)) for k in unique], np.int64)
        return compact(known[inverse].reshape(labels.shape))

    def join(self, a: Labels, b: Labels) -> Labels:
        """Make elements that meet when `a` and `b` broadcast one class, and return the result's labels."""
        left, right = np.broadcast_arrays(a, b)
        self._unite(left, right)
        return self.roots(np.where(left == ZERO, right, left))

    def flatten(self, labels: Labels, axes: tuple[int, ...]) -> Labels:
        """Make all elements along `axes` one class; those axes get extent 1."""
        axes = tuple(axis for axis in axes if labels.shape[axis] > 1)
        if not axes:
            return labels
        # ZERO is below every label.
        joined: Labels = labels.max(axis=axes, keepdims=True)
        self._unite(np.broadcast_to(joined, labels.shape), labels)
        return self.roots(joined)

    def pin(self, labels: Labels, reason: str) -> None:
        """Pin every class of the labels; the first reason of a class stays."""
        for label in np.unique(labels):
            if label != ZERO:
                self._reasons.setdefault(self._find(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """Why the label's class is pinned; None where it is free (or always 0)."""
        return None if label == ZERO else self._reasons.get(self._find(label))

    def all_pinned(self, labels: Labels) -> bool:
        """Whether no element can be scaled."""
        return all(label == ZERO or self.reason(int(label)) is not None for label in np.unique(labels))

    def _find(self, label: int) -> int:
        if label == ZERO:
            return label
        root = label
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[label] != root:
            self._parents[label], label = root, self._parents[label]
        return root

    def _unite(self, left: Labels, right: Labels) -> None:
        for x, y in np.unique(np.stack([left.reshape(-1), right.reshape(-1)]), axis=1).T:
            self._union(int(x), int(y))

    def _union(self, a: int, b: int) -> None:
        if ZERO in (a, b):
            return
        a, b = sorted((self._find(a), self._find(b)))
        if a == b:
            return
        self._parents[b] = a
        reason = self._reasons.pop(b, None)
        if reason is not None:
            self._reasons.setdefault(a, reason)


def compact(labels: Labels) -> Labels:
    """Shrink every axis along which nothing changes to extent 1."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1 and (labels == labels.take([0], axis)).all():
            labels = labels.take([0], axis)
    return labels
