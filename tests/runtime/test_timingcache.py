from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.errors import InputError, OutputError
from onnxcomp.runtime.timingcache import Timings, open_timings


def _add(timings: Timings, run: str = "cpu", site: str = "Conv", chain: str = "a > b", ratio: float = 0.5) -> None:
    entry = timings.entry(run, site)
    entry.ms = entry.ms or 1.5
    entry.ratios[chain] = ratio
    timings.measured += 1


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())["timings"]
    return document


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    with open_timings(path) as timings:
        assert timings.entry("cpu", "Conv").ms is None
        _add(timings)
    with open_timings(path) as timings:
        entry = timings.entry("cpu", "Conv")
        assert (entry.ms, entry.ratios, timings.measured) == (1.5, {"a > b": 0.5}, 0)


def test_timings_of_other_machines_survive(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    with open_timings(path) as timings:
        _add(timings, run="another cpu")
    with open_timings(path) as timings:
        assert timings.entry("cpu", "Conv").ratios == {}
        _add(timings)
    assert set(_read(path)) == {"another cpu", "cpu"}


def test_what_another_run_added_meanwhile_survives(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    with open_timings(path) as slow:
        _add(slow, chain="c", ratio=0.25)
        with open_timings(path) as quick:
            _add(quick)
            _add(quick, chain="c", ratio=0.75)
    assert _read(path) == {"cpu": {"Conv": {"ms": 1.5, "chains": {"a > b": 0.5, "c": 0.25}}}}


def test_a_run_that_fails_keeps_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    with pytest.raises(KeyboardInterrupt), open_timings(path) as timings:
        _add(timings)
        raise KeyboardInterrupt
    assert "cpu" in _read(path)


def test_without_a_new_time_nothing_is_written(tmp_path: Path) -> None:
    with open_timings(tmp_path / "times.json"):
        pass
    with open_timings(None) as timings:
        _add(timings)
    assert list(tmp_path.iterdir()) == []


def _with_chain(value: object) -> str:
    timings = {"cpu": {"Conv": {"ms": 1.0, "chains": {"a": value}}}}
    return json.dumps({"format": "onnxcomp timings", "version": 1, "timings": timings})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read"),
        ('{"format": "onnxcomp timings", "ver', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "no timing cache"),
        ('{"format": "another"}', "no timing cache"),
        ('{"format": "onnxcomp timings", "version": 99, "timings": {}}', "another version"),
        ('{"format": "onnxcomp timings", "version": 1}', "damaged"),
        ('{"format": "onnxcomp timings", "version": 1, "timings": []}', "damaged"),
        ('{"format": "onnxcomp timings", "version": 1, "timings": {"cpu": {"Conv": {"chains": {}}}}}', "damaged"),
        (_with_chain("0.5"), "damaged"),
        (_with_chain(-1), "damaged"),
        (_with_chain(0), "damaged"),
        (_with_chain(float("nan")), "damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught, open_timings(path):
        pytest.fail("it was opened")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == text


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, tmp_path):
        with pytest.raises(InputError, match="cannot be read"), open_timings(wrong):
            pytest.fail("it was opened")


def test_a_folder_that_is_missing_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"), open_timings(tmp_path / "none" / "times.json"):
        pytest.fail("it was opened")


def test_the_error_of_the_run_is_what_the_user_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("onnxcomp.runtime.timingcache.staging", full)
    with pytest.raises(ValueError, match="mine"), open_timings(tmp_path / "times.json") as timings:
        _add(timings)
        raise ValueError("mine")
    with pytest.raises(OutputError, match="full"), open_timings(tmp_path / "times.json") as timings:
        _add(timings)
