"""Entry points to passes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import pytest

from onnxcomp import registry
from onnxcomp.contract import Context, Pass, PassReport
from onnxcomp.errors import InputError, OptionError, PassError, UnknownPassError
from onnxcomp.registry import available, build_pass, build_pipeline, load_pass, provider
from onnxcomp.spec import PassSpec, parse_spec


@dataclass(frozen=True)
class Good(Pass):
    """Does nothing."""

    name: ClassVar[str] = "good"
    much: int = 1

    def run(self, model: ir.Model, context: Context) -> PassReport:
        return PassReport()


class Undecorated(Good):
    """Forgot the decorator."""

    name: ClassVar[str] = "undecorated"
    more: int = 2


class NotAPass:
    """Something else."""


class _Wheel(Distribution):
    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: {self._name}\nVersion: 1\n" if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        return Path(str(path))


def entry(name: str, value: str, distribution: str = "somebody") -> EntryPoint:
    made = EntryPoint(name, value, registry.GROUP)
    vars(made)["dist"] = _Wheel(distribution)
    return made


HERE = __name__


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    entries: list[EntryPoint] = []

    def fake(group: str) -> list[EntryPoint]:
        assert group == "onnxcomp.passes"
        return entries

    monkeypatch.setattr(registry, "entry_points", fake)
    monkeypatch.setitem(__import__("sys").modules, HERE, __import__("sys").modules[HERE])
    return entries


def test_the_passes_of_this_project_are_registered() -> None:
    found = available()
    assert {"fold", "int8", "tucker2"} <= found.keys()
    assert list(found) == sorted(found)
    assert provider(found["fold"]) == "onnxcomp"
    for name in found:
        assert load_pass(name).name == name


def test_a_pass_is_built_from_its_spec(installed: list[EntryPoint]) -> None:
    installed.append(entry("good", f"{HERE}:Good"))
    assert build_pass(parse_spec("good(much=3)")) == Good(3)
    assert build_pipeline("good, good(much=2)") == (Good(), Good(2))


def test_the_same_pass_seen_twice_is_one(installed: list[EntryPoint]) -> None:
    installed += [entry("good", f"{HERE}:Good"), entry("good", f"{HERE}:Good")]
    assert list(available()) == ["good"]


def test_a_clash_names_both_packages(installed: list[EntryPoint]) -> None:
    installed += [entry("good", f"{HERE}:Good", "zoo"), entry("good", "other:Better", "acme")]
    with pytest.raises(InputError) as caught:
        available()
    assert str(caught.value) == (
        f"two installed packages register the pass 'good': acme (other:Better) and zoo ({HERE}:Good); uninstall one"
    )


def test_an_unknown_pass_proposes_the_closest(installed: list[EntryPoint]) -> None:
    installed += [entry("tucker2", f"{HERE}:Good"), entry("int8", f"{HERE}:Good")]
    spec = parse_spec("tuker2(rank=vbmf)")
    with pytest.raises(UnknownPassError) as caught:
        build_pass(spec)
    assert str(caught.value) == (
        "there is no pass 'tuker2'; did you mean 'tucker2'? (passes: int8, tucker2)\n  tuker2(rank=vbmf)\n  ^"
    )
    with pytest.raises(UnknownPassError, match=r"there is no pass 'zzz' \(passes: int8, tucker2\)$"):
        build_pass(PassSpec("zzz"))


def test_no_pass_at_all_says_what_to_do(installed: list[EntryPoint]) -> None:
    assert installed == []
    with pytest.raises(UnknownPassError, match="no pass is installed: reinstall onnxcomp"):
        load_pass("fold")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_at_all:X", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        (f"{HERE}:Missing", "AttributeError: "),
    ],
)
def test_a_broken_package_is_named(installed: list[EntryPoint], value: str, reason: str) -> None:
    installed.append(entry("good", value, "broken-passes"))
    with pytest.raises(PassError) as caught:
        load_pass("good")
    assert str(caught.value).startswith(f"the pass 'good' of the package broken-passes cannot be loaded: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("thing", "NotAPass", "is not a subclass of onnxcomp.Pass"),
        ("best", "Good", "is registered as 'best' but calls itself 'good'"),
        ("undecorated", "Undecorated", "must be a frozen dataclass"),
    ],
)
def test_what_is_no_proper_pass_is_refused(installed: list[EntryPoint], name: str, target: str, problem: str) -> None:
    installed.append(entry(name, f"{HERE}:{target}", "sloppy"))
    with pytest.raises(PassError, match=f"of the package sloppy .*{problem}"):
        load_pass(name)


def test_nothing_is_imported_to_list_or_to_refuse(installed: list[EntryPoint]) -> None:
    installed += [entry("good", f"{HERE}:Good"), entry("bad", "no_such_module_at_all:X")]
    assert list(available()) == ["bad", "good"]
    with pytest.raises(OptionError, match="no option 'mch'; did you mean 'much'"):
        build_pass(parse_spec("good(mch=1)"))
