"""What a recipe's layers mean to the allocation."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxcomp.allocation.layers import layer_options
from onnxcomp.contract import Override
from onnxcomp.errors import OptionError

LEFT = "left alone by the recipe"
NAMES = ("decompose", "spatial(rank=32)")


def test_nothing_said_is_nothing_given(stack: ir.Model) -> None:
    assert layer_options(stack, (), None, *NAMES) == ({}, {})


def test_one_form_for_all_but_those_that_have_their_own(stack: ir.Model) -> None:
    given = (Override("a", None), Override("c", {"use": "cp(rank=4)"}))
    uses, left = layer_options(stack, given, "tucker2(rank=8)", *NAMES)
    assert uses == {"b1": "tucker2(rank=8)", "c1": "cp(rank=4)", "y": "tucker2(rank=8)"} and left == {"a1": LEFT}


def test_a_name_wins_over_an_operator_and_the_last_over_the_first(stack: ir.Model) -> None:
    overrides = (Override("[ab]", {"use": "one"}), Override("Conv", None), Override("b", {"use": "two"}))
    assert layer_options(stack, overrides, None, *NAMES) == ({"a1": "one", "b1": "two"}, {"c1": LEFT})


def test_no_options_leave_a_layer_to_the_allocation(stack: ir.Model) -> None:
    given = (Override("a", {}), Override("Conv", None))
    assert layer_options(stack, given, None, *NAMES)[1] == {"b1": LEFT, "c1": LEFT}


def test_other_options_are_refused(stack: ir.Model) -> None:
    with pytest.raises(OptionError, match=r"a layer \(nowhere\) takes use= and nothing else, not fit"):
        layer_options(stack, (Override("nowhere", {"use": "x", "fit": "data"}),), None, *NAMES)


def test_no_form_is_no_use(stack: ir.Model) -> None:
    """A recipe reads null as the word none."""
    with pytest.raises(OptionError, match=r"layer b: use=none is no form; write use: .* to leave it alone"):
        layer_options(stack, (Override("b", {"use": "none"}),), None, *NAMES)
