"""What a profile tells, from made-up figures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from onnxcomp.numeric.bootstrap import Interval
from onnxcomp.report.figures import Bars
from onnxcomp.report.profileview import profile_document, profile_view
from onnxcomp.report.schemas import load_schema
from onnxcomp.runtime.latency import PairedSpeed, Percentiles
from onnxcomp.runtime.machine import Machine
from onnxcomp.runtime.pairprofile import LayerPair, PairProfile, verdict
from onnxcomp.runtime.profiling import Agreement, KernelTime, LayerTime, Profile
from onnxcomp.runtime.settings import SessionSettings

Document = dict[str, Any]
MACHINE = Machine("Some CPU", ("avx2",), 4, None, "powersave", 0.5, "Linux 6", "3.12.0", "1.31.1", "0.1.0")
WALL = Percentiles(2.0, 2.2, 3.0)
SERIES = np.array([1.0, 1.1])


def kernel(layer: str, ms: float, name: str = "Conv (NCHWc)") -> KernelTime:
    return KernelTime(layer, (layer,), name, "CPUExecutionProvider", "float", ms, ms, ms, ms, ms / 2)


def profile(**fields: Any) -> Profile:
    agreement = Agreement(2.0, 2.04, -0.02, 0.05, 1.1, 0.1, 2.2)
    layers = (
        LayerTime(
            "b", ("b", "add", "relu", "x", "y"), ("Conv (NCHWc)", "Add", "Add"), ("tucker2",), "mixed", 1.5, 0.75
        ),
        LayerTime("a", ("a",), ("Conv (NCHWc)",), (), "float", 0.4, 0.2),
    )
    kernels = (kernel("a", 0.4), kernel("b", 1.5))
    own = Profile(kernels, layers, 0.1, 2.0, agreement, WALL, 500, 500, 10, SessionSettings(), MACHINE)
    return replace(own, **fields)


def pair(ratio: float, low: float, high: float) -> PairProfile:
    speed = PairedSpeed(ratio, low, high, 2.0 * ratio, 2.0, WALL, WALL, 400, 4, 1, True)
    layers = (
        LayerPair(
            "b",
            ("b", "add"),
            ("Conv",),
            ("Conv", "Add"),
            ("tucker2",),
            3.0,
            1.5,
            Interval(2.0, 1.9, 2.1),
            *[SERIES] * 2,
        ),
        LayerPair("gone", ("gone",), ("Pad",), (), (), 0.4, 0.0, None, *[SERIES] * 2),
        LayerPair("a", ("a",), ("Conv",), ("Conv",), (), 0.4, 0.4, None, *[SERIES] * 2),
    )
    return PairProfile(profile(), profile(), speed, verdict(ratio, low, high), layers)


def document(found: Profile | PairProfile, **fields: Any) -> Document:
    given: Document = {"data": "4 samples", "synthetic": True, "inputs": {"x": (1, 3, 8, 8)}, "seed": 0, **fields}
    against = "base.onnx" if isinstance(found, PairProfile) else None
    return profile_document(found, model="small.onnx", against=against, **given)


@pytest.mark.parametrize("found", [profile(), pair(2.0, 1.9, 2.1)])
def test_the_document_is_what_the_schema_says(found: Profile | PairProfile) -> None:
    made = json.loads(json.dumps(document(found), allow_nan=False))
    validator = jsonschema.Draft202012Validator(load_schema("profile-1"))
    validator.validate(made)
    objects = [made, made["profile"], made["profile"]["kernels"][0], made["profile"]["layers"][0], made["machine"]]
    objects += [made["settings"], made["profile"]["agreement"], made["profile"]["wall"]]
    objects += [made["comparison"]["layers"][0], made["comparison"]["speed"]] if made["comparison"] else []
    for part in objects:
        part["more"] = 1
        assert not validator.is_valid(made)
        del part["more"]
        for key, value in list(part.items()):
            del part[key]
            assert not validator.is_valid(made), key
            part[key] = value
    assert validator.is_valid(made)


def test_one_profile_for_people() -> None:
    shown = profile_view(document(profile()), full=False)
    assert shown.headline == "2.00 ms a run (90 % of them under 2.20 ms, 99 % under 3.00 ms): 500 runs a second"
    (table,) = shown.tables
    assert table.columns == ("layer", "time", "share", "kernels", "arithmetic", "rewritten by", "with")
    assert table.rows[0] == (
        "b",
        "1.500 ms",
        "75.0 %",
        "Conv (NCHWc), Add x2",
        "mixed",
        "tucker2",
        "add, relu, x and 1 more",
    )
    assert [row[0] for row in table.rows[2:]] == ["(outside of the layers)", "together"]
    assert shown.warnings == ()
    notes = "\n".join(shown.notes)
    for said in ("made up", "Some CPU, 4 cores; governor powersave", "-2.0 %, +5.0 % before", "onnxruntime 1.31.1"):
        assert said in notes


def test_few_rows_are_few() -> None:
    (table,) = profile_view(document(profile()), full=False, top=1).tables
    assert [row[:3] for row in table.rows[:2]] == [
        ("b", "1.500 ms", "75.0 %"),
        ("... and 1 more", "0.400 ms", "20.0 %"),
    ]


def test_a_file_has_figures_and_kernels() -> None:
    layers, kernels = profile_view(document(profile()), full=True).tables
    assert layers.plot == Bars(("b", "a"), (("time", (1.5, 0.4)),), unit="ms")
    assert kernels.title == "Kernels, in the order in which they run"
    assert [row[1] for row in kernels.rows] == ["a", "b"]


def test_two_profiles_for_people() -> None:
    shown = profile_view(document(pair(2.0, 1.9, 2.1)), full=True)
    assert shown.headline == "faster than base.onnx: 2.00x (1.90 to 2.10), 2.00 ms a run against 4.00 ms"
    assert shown.facts == (("model", "small.onnx"), ("against", "base.onnx"))
    layers = shown.tables[0]
    assert layers.rows[0][:5] == ("b", "3.000 ms", "1.500 ms", "-1.500 ms", "2.00x (1.90 to 2.10)")
    assert (layers.good, layers.bad) == (frozenset({(0, 3)}), frozenset())
    assert layers.rows[1][:4] == ("gone", "0.400 ms", "-", "-0.400 ms")
    assert isinstance(layers.plot, Bars)
    assert layers.plot.series == (("before", (3.0, 0.4, 0.4)), ("after", (1.5, 0.0, 0.4)))
    assert [table.title.split(",")[0] for table in shown.tables[1:]] == ["Kernels", "Kernels of the base"]


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.8, 0.7, 0.9), "slower than base.onnx: 0.80x (0.70 to 0.90)"),
        ((1.0, 0.98, 1.03), "as fast as base.onnx, within 3.0 %: 1.00x (0.98 to 1.03)"),
        (
            (1.1, 0.9, 1.3),
            "no conclusion: 1.10x (0.90 to 1.30) of the speed of base.onnx may be faster or slower; measure",
        ),
    ],
)
def test_the_verdict_comes_first(interval: tuple[float, float, float], said: str) -> None:
    assert document(pair(*interval))["headline"].startswith(said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"agreement": Agreement(2.0, 1.5, 0.33, 0.4, 1.35, 0.1, 2.2)},
            "adds up to 2.00 ms, but a run takes 1.50 ms",
        ),
        ({"settings": SessionSettings(8)}, "8 threads on 4 cores: they wait for each other"),
        ({"machine": replace(MACHINE, quota=0.5)}, "1 threads on 0.5 cores"),
        ({"machine": replace(MACHINE, load=7.0)}, "the machine was busy (load 7 on 4 cores)"),
    ],
)
def test_what_spoils_figures_is_warned_of(fields: Document, said: str) -> None:
    assert any(said in warning for warning in document(profile(**fields))["warnings"])
