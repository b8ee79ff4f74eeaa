"""The GitHub Action: what action.yml hands to scripts/action.sh, what becomes of it, and that no input is ever run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "action.sh"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
CHECK = next(step for step in STEPS if step.get("id") == "check")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")

HOSTILE = [
    "a model.onnx",
    'it\'s "quoted".onnx',
    "$(touch hacked).onnx",
    "`touch hacked`.onnx",
    "x.onnx; touch hacked",
    "line\npassed=true\n::error::forged.onnx",
    "--output=hacked",
    "*",
    "\\",
]


@dataclass(frozen=True)
class Ended:
    """How the step ended."""

    code: int
    printed: str
    errors: str
    outputs: dict[str, str]
    summary: str


@dataclass(frozen=True)
class Runner:
    """A folder in which the step runs as GitHub runs it."""

    folder: Path

    def run(self, program: str | None = None, **inputs: str) -> Ended:
        """Run the step; `program` is what ``onnxcomp`` is instead of itself."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        own = programs / "onnxcomp"
        own.write_text(program or f'#!/bin/sh\nexec "{sys.executable}" -m onnxcomp.cli.main "$@"\n')
        own.chmod(0o755)
        (programs / "python").unlink(missing_ok=True)
        (programs / "python").symlink_to(sys.executable)
        output, summary = self.folder / "output", self.folder / "summary"
        environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RUNNER_TEMP": str(self.folder / "temp"),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            **{f"INPUT_{name.upper()}": value for name, value in inputs.items()},
        }
        (self.folder / "temp").mkdir(exist_ok=True)
        for file in (output, summary):
            file.write_text("")
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        call = ["bash", str(SCRIPT)]
        done = subprocess.run(call, cwd=work, env=environment, capture_output=True, text=True)
        told = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return Ended(done.returncode, done.stdout, done.stderr, told, summary.read_text())


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def words(ended: Ended) -> list[str]:
    """What a program that prints its arguments as JSON was called with."""
    return list(json.loads(next(line for line in ended.printed.splitlines() if line.startswith("["))))


# A stand-in for onnxcomp that prints its words, and writes its first file as the gate would.
ECHO = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
open(sys.argv[2].removeprefix("--report="), "w").write("{{}}")
"""


def test_a_model_that_holds_passes(runner: Runner) -> None:
    model = str(ROOT / "models" / "digits_resnet.onnx")
    ended = runner.run(model=model, target="ort-x86", args="--max-size 2MB")
    assert (ended.code, ended.outputs["passed"]) == (0, "true"), ended.errors
    assert "max-size" in ended.summary.replace("_", "-") or "size" in ended.summary
    report = json.loads(Path(ended.outputs["report"]).read_text())
    assert report["schema"].startswith("onnxcomp.check/")
    assert json.loads(Path(ended.outputs["sarif"]).read_text())["version"] == "2.1.0"


def test_a_model_that_does_not_hold_fails_and_says_why(runner: Runner) -> None:
    ended = runner.run(model=str(ROOT / "models" / "digits_resnet.onnx"), args="--max-size 100KB")
    assert (ended.code, ended.outputs["passed"]) == (1, "false")
    assert "100" in ended.summary
    assert "report" in ended.outputs


def test_a_wrong_call_ends_with_2_and_is_told_in_the_summary(runner: Runner) -> None:
    ended = runner.run(model="nowhere.onnx")
    assert (ended.code, ended.outputs) == (2, {"passed": "false"})
    assert "    onnxcomp: error: " in ended.summary
    assert "nowhere.onnx" in ended.summary


@pytest.mark.parametrize("text", HOSTILE)
def test_inputs_are_words_whatever_they_hold(runner: Runner, text: str) -> None:
    names = ("against", "budget", "target", "eval", "data")
    ended = runner.run(ECHO, model=text, **dict.fromkeys(names, text))
    assert words(ended)[4:] == [*(f"--{name}={text}" for name in names), "--", text]
    assert ended.outputs["passed"] == "true"
    assert not list(runner.folder.rglob("hacked"))


def test_arguments_are_cut_as_in_a_shell_and_nothing_in_them_is_expanded(runner: Runner) -> None:
    ended = runner.run(ECHO, model="m", args="--allow-float 'a *' --max-size  4MB\n--x=$(touch hacked) $HOME * `id`")
    cut = ["--allow-float", "a *", "--max-size", "4MB", "--x=$(touch", "hacked)", "$HOME", "*", "`id`"]
    assert words(ended)[4:] == [*cut, "--", "m"]
    assert not list(runner.folder.rglob("hacked"))


def test_a_call_that_checked_nothing_does_not_pass(runner: Runner) -> None:
    ended = runner.run(model=str(ROOT / "models" / "digits_resnet.onnx"), args="--help")
    assert (ended.code, ended.outputs) == (2, {"passed": "false"})
    assert "nothing was checked" in ended.summary


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "'model' is empty"),
        ({"model": "m", "args": "--x 'open"}, "quote left open"),
        ({"model": "m", "args": "--sarif=x"}, "has --sarif, which the action gives itself"),
        ({"model": "m", "args": "--markdown x"}, "has --markdown,"),
        ({"model": "m", "args": "-- x"}, "bare --"),
    ],
)
def test_wrong_inputs_are_refused(runner: Runner, inputs: dict[str, str], told: str) -> None:
    ended = runner.run(ECHO, **inputs)
    assert ended.code == 2
    assert told in ended.errors
    assert ended.printed == ""


def test_what_is_printed_gives_github_no_commands(runner: Runner) -> None:
    ended = runner.run("#!/bin/sh\necho '::error::forged'\nexit 3\n", model="m")
    first, forged, last = ended.printed.splitlines()
    token = first.removeprefix("::stop-commands::")
    assert (forged, last, ended.code) == ("::error::forged", f"::{token}::", 3)
    assert re.fullmatch(r"onnxcomp-check\.\w{10}", token)


def test_the_environment_of_the_step_is_what_the_script_reads() -> None:
    read = set(re.findall(r"\bINPUT_\w+", SCRIPT.read_text("utf-8")))
    assert set(CHECK["env"]) == read
    for name, value in CHECK["env"].items():
        assert value == f"${{{{ inputs.{name.removeprefix('INPUT_').lower()} }}}}"


def test_every_input_is_used_and_none_is_pasted_into_a_script() -> None:
    text = yaml.safe_dump(ACTION["runs"])
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    for step in STEPS:
        assert "${{" not in step.get("run", ""), "an expression in a script is run as a part of it"
        assert "run" not in step or step["shell"] == "bash"
        for name in re.findall(r"\$\{?(INPUT_\w+)", step.get("run", "")):
            assert name in step["env"]


def test_every_output_is_one_of_the_script() -> None:
    written = set(re.findall(r'echo "(\w+)=', SCRIPT.read_text("utf-8")))
    told = {name: value["value"] for name, value in ACTION["outputs"].items()}
    assert told == {name: f"${{{{ steps.check.outputs.{name} }}}}" for name in written}
