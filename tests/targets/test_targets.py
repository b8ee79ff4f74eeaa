from __future__ import annotations

import platform

import pytest

from onnxcomp.errors import InputError
from onnxcomp.targets.target import load_target, target_names


def test_every_target_loads_and_says_whether_int8_is_to_be_had() -> None:
    assert target_names()[0] == "ort-x86"
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        assert bool(target.no_int8) == (target.scheme is None)


def test_an_unknown_target_names_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"no target 'ort-x68'; did you mean 'ort-x86'\?"):
        load_target("ort-x68")
    with pytest.raises(InputError, match="known targets: ort-x86, ort-arm"):
        load_target("zzz")


@pytest.mark.parametrize(("machine", "hosts"), [("x86_64", "ort-x86"), ("AMD64", "ort-x86"), ("aarch64", "ort-arm")])
def test_the_host_is_the_target_of_this_machine(machine: str, hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert [name for name in target_names() if load_target(name).host] == [hosts]


def test_the_operator_sets_of_a_scheme_do_not_overlap() -> None:
    scheme = load_target("ort-x86").scheme
    assert scheme is not None
    assert len(scheme.joining) == len(scheme.arithmetic) + len(scheme.passing) + len(scheme.stored)
    assert not scheme.joining & scheme.weighted
    assert scheme.output_required <= scheme.weighted
