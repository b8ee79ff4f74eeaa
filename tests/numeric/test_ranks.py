from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.numeric.ranks import tail_energy, weakened


def test_weakened() -> None:
    assert weakened(20, 100, 0.0) == 100
    assert weakened(20, 100, 1.0) == 20
    assert weakened(20, 100, 0.7) == 44
    assert weakened(0, 100, 0.7) == 100
    with pytest.raises(ValueError, match="weaken"):
        weakened(20, 100, 1.5)


def test_tail_energy() -> None:
    np.testing.assert_allclose(tail_energy(np.array([8.0, 6.0])), [1.0, 0.36, 0.0])
    assert not tail_energy(np.zeros(3)).any()


@given(st.lists(st.floats(0, 1e3), max_size=30))
def test_tails_fall_from_all_to_nothing(values: list[float]) -> None:
    tails = tail_energy(np.sort(values)[::-1])
    assert tails[0] == (1.0 if np.square(values).sum() > 0.0 else 0.0) and tails[-1] == 0.0
    assert (np.diff(tails) <= 1e-15).all()
