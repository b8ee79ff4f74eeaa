"""What shells propose: by click's own classes, and in a bash that has sourced the script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, CompletionItem

from onnxcomp.cli.completing import MODEL, OPEN, wire
from onnxcomp.cli.completion import VARIABLE
from onnxcomp.cli.main import cli
from onnxcomp.options import describe
from onnxcomp.registry import available, load_pass
from onnxcomp.targets.target import target_names
from tests.cli.conftest import Run

HEAVY = "numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "scipy"


def proposed(*words: str) -> list[CompletionItem]:
    """What is proposed for the last word."""
    wire(cli)
    return BashComplete(cli, {}, "onnxcomp", VARIABLE).get_completions(list(words[:-1]), words[-1])


def values(*words: str) -> list[str]:
    return [item.value for item in proposed(*words)]


def test_commands_flags_and_names() -> None:
    assert values("opt") == ["optimize"]
    assert "--log-file" in values("inspect", "in.onnx", "--lo")
    assert values("passes", "tuck") == ["tucker2"]
    assert values("optimize", "in.onnx", "--target", "") == list(target_names())
    assert values("optimize", "in.onnx", "--objective", "s") == ["size"]
    assert values("check", "in.onnx", "--ort-style", "f") == ["fixed"]
    assert "inspection-3" in values("schema", "insp")


@pytest.mark.parametrize(("typed", "before"), [("", ""), ("tucker2,", "tucker2,"), ("cp(rank=4),", "cp(rank=4),")])
def test_a_pipeline_goes_on_with_any_pass(typed: str, before: str) -> None:
    assert values("optimize", "in.onnx", "-p", typed) == [before + name for name in available()]


def test_inside_parentheses_come_options_and_their_values() -> None:
    names = [f"int8({option.name}=" for option in describe(load_pass("int8"))]
    assert values("optimize", "in.onnx", "-p", "int8(") == names
    assert {item.type for item in proposed("optimize", "in.onnx", "-p", "int8(")} == {OPEN}
    assert values("inspect", "in.onnx", "-p", "fold,int8(calibration=m") == [
        "fold,int8(calibration=minmax",
        "fold,int8(calibration=mse",
    ]
    assert values("optimize", "in.onnx", "-p", "int8(absorb=") == ["int8(absorb=false", "int8(absorb=true"]
    assert "int8(samples=8,samples=" not in values("optimize", "in.onnx", "-p", "int8(samples=8,")
    assert values("optimize", "in.onnx", "-p", "nosuch(") == []


def test_files_are_left_to_the_shell_and_reports_may_be_new() -> None:
    assert [item.type for item in proposed("optimize", "digits")] == [MODEL]
    assert [item.type for item in proposed("optimize", "in.onnx", "--data", "x")] == ["file"]
    assert [item.type for item in proposed("calibrate", "in.onnx", "-o", "x")] == ["file"]
    assert values("optimize", "in.onnx", "--report", "out") == ["out.html", "out.json", "out.md"]
    assert [item.type for item in proposed("optimize", "in.onnx", "--report", "folder/")] == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_asks_this_program(run: Run, shell: str) -> None:
    outcome = run("completion", shell)
    assert outcome.code == 0
    assert outcome.err == ""
    assert f"{VARIABLE}={shell}_complete" in outcome.out
    assert "%(" not in outcome.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=outcome.out, text=True, check=True)


def test_an_unknown_shell_is_refused(run: Run) -> None:
    assert run("completion", "tcsh").code == 2


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the command `onnxcomp`, two models and data."""
    command = tmp_path / "bin" / "onnxcomp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnxcomp.cli.main "$@"\n')
    command.chmod(0o755)
    for name in ("one.onnx", "two words.onnx", "data.npz"):
        (tmp_path / name).touch()
    (tmp_path / "models").mkdir()
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["onnxcomp", "re"], ["retarget"]),
        (["onnxcomp", "optimize", "one.onnx", "-p", "tucker2,int8,tern"], ["tucker2,int8,ternary"]),
        (["onnxcomp", "optimize", "one.onnx", "-p", '"int8(calibration=e'], ["int8(calibration=entropy"]),
        (["onnxcomp", "inspect", "one.onnx", "--target", "=", "ten"], ["tensorrt"]),
        (["onnxcomp", "inspect", ""], ["bin", "models", "one.onnx", "two words.onnx"]),
    ],
)
def test_in_bash(program: Path, words: list[str], expected: list[str]) -> None:
    quoted = " ".join("'" + word + "'" for word in words)
    script = f"""
compopt() {{ :; }}  # it works only while a line is edited
source <(onnxcomp completion bash)
COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}
_onnxcomp_completion onnxcomp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{program / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=program, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == expected


@pytest.mark.parametrize("asked", [["--help"], ["optimize", "--help"], ["optimize", "x.onnx", "-p", "int8,"]])
def test_help_and_proposals_load_nothing_heavy(asked: list[str]) -> None:
    code = f"""
import sys
from onnxcomp.cli.main import main
code = main()
sys.exit(code or ",".join(name for name in {HEAVY} if name in sys.modules) or 0)
"""
    typed = asked[-1] != "--help"
    environment = {**os.environ}
    if typed:
        line = " ".join(["onnxcomp", *asked])
        environment |= {VARIABLE: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(asked))}
    done = subprocess.run(
        [sys.executable, "-c", code, *([] if typed else asked)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
