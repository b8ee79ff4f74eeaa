"""The documentation is true: its shell and Python blocks run as written, its option tables are those of the passes.

A ``sh`` block runs line by line in a folder that holds ``models``; ``# exit N`` at the end of a line is the exit code
expected. The lines of a ``text`` block behind it have to appear in what was printed. Blocks whose first line is
``# NAME.yaml`` or ``# NAME.py`` are files. ``console`` blocks hold figures of a run, and are not compared.

Of jobs of GitHub and GitLab the lines that call onnxcomp are run, and steps with the action of this repository as its
script would; of pre-commit's settings the hook's arguments, on the models that are there.
"""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from onnxcomp.cli import precommit
from onnxcomp.cli.main import main
from onnxcomp.options import describe
from onnxcomp.registry import available, load_pass

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = {"check", "ci", "python", "reports"}
JOBS = ("# .github/", "# .gitlab-ci.yml")
HOOKS = "# .pre-commit-config.yaml"


@dataclass(frozen=True)
class Block:
    """A fenced block: the language behind the fence, and the lines."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a block is, by its first line."""
        found = re.match(r"# (\S+\.(?:py|yaml|yml))\n", self.text)
        return found.group(1) if found else None


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)]


def commands(text: str) -> Iterator[tuple[list[str], int]]:
    """The commands of a shell block with the exit code of each."""
    for line in text.replace("\\\n", " ").splitlines():
        code = re.search(r"# exit (\d+)$", line)
        words = shlex.split(line, comments=True)
        if words:
            yield words, int(code.group(1)) if code else 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample models and their data, with a quarter of the calibration images: enough to run all that is written."""
    folder = tmp_path_factory.mktemp("models")
    for file in (ROOT / "models").iterdir():
        (folder / file.name).symlink_to(file)
    few = folder / "digits_calibration.npz"
    few.unlink()
    with np.load(ROOT / "models" / few.name) as arrays:
        np.savez(few, **{name: array[::4] for name, array in arrays.items()})
    return folder


@pytest.fixture
def folder(tmp_path: Path, models: Path, brief_timing: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the sample models, and nothing left of the modules that a page defines."""
    (tmp_path / "models").symlink_to(models, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("page", "my_feeds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run_python(text: str, module: types.ModuleType) -> None:
    exec(compile(text, "page", "exec"), vars(module))


def run_shell(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    printed = ""
    for words, expected in commands(text):
        if words[0] == "python":
            run_python(Path(words[1]).read_text("utf-8"), types.ModuleType("script"))
            continue
        assert words[0] == "onnxcomp", f"only onnxcomp and python run here: {words}"
        code = main(words[1:])
        out = capsys.readouterr()
        printed += out.out + out.err
        assert code == expected, f"{shlex.join(words)}\n{out.out}{out.err}"
    return printed


def job_commands(text: str) -> Iterator[str]:
    """The calls of onnxcomp in the jobs of a workflow (GitHub) or of a pipeline (GitLab)."""
    written = yaml.safe_load(text)
    for job in written.get("jobs", written).values():
        for step in job.get("steps", ()):
            line = str(step.get("run", ""))
            if step.get("uses") == "./":
                yield action_call(step["with"])
            elif line.startswith("onnxcomp"):
                yield line
        yield from (line for line in job.get("script", ()) if line.startswith("onnxcomp"))


def action_call(inputs: Mapping[str, str]) -> str:
    """What scripts/action.sh calls for these inputs."""
    known = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["inputs"]
    assert inputs.keys() <= known.keys()
    flags = [f"--{name}={value}" for name, value in inputs.items() if name not in ("model", "args")]
    return f"onnxcomp check {shlex.join(flags)} {inputs.get('args', '')} -- {shlex.quote(inputs['model'])}"


def run_hooks(text: str) -> None:
    for repository in yaml.safe_load(text)["repos"]:
        for hook in repository["hooks"]:
            assert hook["id"] == "onnxcomp-check"
            assert precommit.main([*hook["args"], *map(str, sorted(Path("models").glob("*.onnx")))]) == 0


PARAMETERS = [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else []) for page in PAGES]


@pytest.mark.parametrize("page", PARAMETERS)
def test_every_block_runs(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(page)
    for block in found:
        if block.file and not block.text.startswith((*JOBS, HOOKS)):
            (folder / block.file).write_text(block.text)
    module = types.ModuleType("page")
    sys.modules["page"] = module  # dataclasses look their hints up there
    printed = ""
    for block in found:
        if block.text.startswith(JOBS):
            printed = "".join(run_shell(line, capsys) for line in job_commands(block.text))
            assert printed
        elif block.text.startswith(HOOKS):
            run_hooks(block.text)
        elif block.language == "sh":
            printed = run_shell(block.text, capsys)
        elif block.language == "text":
            for line in filter(None, block.text.splitlines()):
                assert line in printed
        elif block.language == "python" and not block.file:
            run_python(block.text, module)
        else:
            assert block.file or block.language in ("console", "toml"), f"a block that nothing checks: {block}"
    for name in [name for name in vars(module) if name.startswith("test_")]:
        vars(module)[name]()


def test_there_is_something_to_run() -> None:
    assert {page.stem for page in PAGES} >= {"README", "guide", "passes", *SLOW}
    assert sum(block.language in ("sh", "python") for page in PAGES for block in blocks(page)) > 20


@pytest.mark.parametrize(
    "name",
    [
        "binary",
        "channel",
        "cluster",
        "compress",
        "cp",
        "decompose",
        "depthwise",
        "drop_blocks",
        "fold",
        "fp16",
        "int3",
        "int4",
        "int8",
        "lowrank",
        "pack",
        "palettize",
        "pow2",
        "prune",
        "sparsity",
        "spatial",
        "structured",
        "ternary",
        "tucker2",
    ],
)
def test_the_tables_of_options_are_those_of_the_passes(name: str) -> None:
    text = (ROOT / "docs" / "passes.md").read_text("utf-8")
    section = text.split(f"### Options of `{name}`\n", 1)[1].split("\n#", 1)[0]
    written = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.M)
    assert written == [(option.name, option.default) for option in describe(load_pass(name))]


def test_every_pass_is_documented() -> None:
    text = (ROOT / "docs" / "passes.md").read_text("utf-8")
    ours = [name for name, entry in available().items() if entry.value.startswith("onnxcomp.passes.")]
    assert [name for name in ours if f"### Options of `{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_are_short(page: Path) -> None:
    assert [line for line in page.read_text("utf-8").splitlines() if len(line) > 150] == []
