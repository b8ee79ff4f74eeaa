"""The hook of pre-commit: `onnxcomp check` on each file, with the worst exit code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from onnxcomp.cli import precommit
from onnxcomp.cli.checking import check

ROOT = Path(__file__).parents[2]
CONTEXT = click.Context(check)
VGG, RESNET = (str(ROOT / "models" / f"digits_{name}.onnx") for name in ("vgg", "resnet"))


def test_every_file_is_checked_and_the_worst_code_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "a broken 'one'.onnx"
    broken.write_bytes(b"not a model")
    assert precommit.main(["--max-size", "2MB", VGG, RESNET]) == 1
    out = capsys.readouterr().out
    assert out.index("digits_vgg") < out.index("digits_resnet")
    assert precommit.main(["--max-size", "2MB", str(broken), RESNET]) == 2
    assert "digits_resnet" in capsys.readouterr().out


def test_names_that_look_like_options_are_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = tmp_path / "--help.onnx"
    name.write_bytes(Path(RESNET).read_bytes())
    assert precommit.main(["--target", "ort-x86", str(name)]) == 0
    assert precommit.main(["--target", "ort-x86"]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--targt", "x", RESNET], "No such option '--targt'"),
        (["--target"], "requires an argument"),
        (["--junit", "x.xml", VGG, RESNET], "--junit names one file, and there may be several models"),
        (["-o", "x.onnx", VGG], "--output names one file"),
        ([VGG, "--target", "ort-x86", RESNET], "options come before the names"),
        (["--target", "nowhere", RESNET], "no target 'nowhere'"),
    ],
)
def test_wrong_calls(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert precommit.main(arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_options_that_write_are_known() -> None:
    options = [parameter for parameter in check.params if isinstance(parameter, click.Option)]
    names = {name for option in options for name in option.opts}
    files = {option.opts[-1] for option in options if re.search(r"\b(FILE|OUT|F)\b", option.make_metavar(CONTEXT))}
    assert set(precommit.WRITING) <= names
    assert files - {"--log-file"} <= set(precommit.WRITING), "an option that names a file; is it one to write?"


def test_the_hook_is_what_pre_commit_asks_for() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert hook["entry"] == f"python -m {precommit.__name__}"
    assert hook["require_serial"] is True, "what is timed runs alone"
    assert re.search(hook["files"], "models/a.onnx") and not re.search(hook["files"], "a.onnx.data")
    assert {"id", "name", "entry", "language", "files"} <= set(hook)
