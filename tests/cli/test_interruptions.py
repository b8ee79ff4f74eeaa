"""Ctrl-C, a full disk, a reader that leaves, a bug: what was there stays, nothing half-written remains."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import onnxcomp

# Each script runs the command line with one function replaced, so that the moment of the fault is exact.
PAUSE = """
import sys, time
import {module} as module
from onnxcomp.cli.main import main

def pause(*arguments):
    print("ready", flush=True)
    time.sleep(60)

module.{function} = pause
sys.exit(main(sys.argv[1:]))
"""

SMALL_FILES = """
import resource, sys
import onnxcomp.atomic as atomic
from onnxcomp.cli.main import main

real = atomic.Staging.open

def limited(self, destination):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return real(self, destination)

atomic.Staging.open = limited
sys.exit(main(sys.argv[1:]))
"""


def arguments(model: Path, out: Path) -> list[str]:
    return ["optimize", str(model), "-p", "tucker2(ranks=8x8)", "-o", str(out), "--objective", "size"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"what was there before")
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp")}


def assert_untouched(out: Path) -> None:
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "out.onnx", "tmp"]
    assert list((out.parent / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("module", "function"),
    [("onnxcomp.pipeline", "check_structure"), ("onnxcomp.atomic.os", "fsync")],
    ids=["in a pass", "while writing"],
)
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(
    cnn: Path, out: Path, environment: dict[str, str], module: str, function: str, number: int, code: int, word: str
) -> None:
    script = PAUSE.format(module=module, function=function)
    if module.endswith(".os"):
        script = script.replace("import onnxcomp.atomic.os as module", "from onnxcomp.atomic import os as module")
    command = [sys.executable, "-c", script, *arguments(cnn, out)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        rest, talk = process.communicate(timeout=60)
    assert (process.returncode, rest) == (code, "")
    assert talk == f"onnxcomp: error: {word}; no file was left half-written\n"
    assert_untouched(out)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_file_that_cannot_grow(cnn: Path, out: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", SMALL_FILES, *arguments(cnn, out)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("onnxcomp: error: cannot write ")
    assert "What was there before is untouched" in done.stderr
    assert_untouched(out)


def test_a_full_disk(run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"what was there before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("onnxcomp.atomic.os.fsync", full)
    got = run(*arguments(cnn, out))
    assert (got.code, got.out) == (3, "")
    assert got.err.startswith("onnxcomp: error: cannot write the result: the disk is full.")
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_a_bug_is_exit_3_and_has_a_traceback_only_on_demand(
    run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("division by zero\nsecond line")

    monkeypatch.setattr(onnxcomp, "optimize", broken)
    got = run(*arguments(cnn, tmp_path / "o.onnx"))
    assert (got.code, got.out) == (3, "")
    assert got.err == (
        "onnxcomp: error: internal error: ZeroDivisionError: division by zero\n"
        "this is a bug in onnxcomp; run again with --debug for the traceback\n"
    )
    shown = run(*arguments(cnn, tmp_path / "o.onnx"), "--debug")
    assert shown.code == 3
    assert "Traceback (most recent call last)" in shown.err
    assert 'raise ZeroDivisionError("division by zero' in shown.err


def test_debug_shows_where_an_error_of_the_user_came_from(run: Any, tmp_path: Path) -> None:
    got = run("inspect", tmp_path / "no.onnx", "--debug")
    assert got.code == 2
    assert "Traceback (most recent call last)" in got.err
    assert got.err.splitlines()[-1].startswith("onnxcomp: error: there is no file ")


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "onnxcomp.cli.main", "passes", "--json"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("quiet", [False, True])
def test_progress_goes_to_a_terminal_only(cnn: Path, tmp_path: Path, quiet: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=drain, args=(ours, shown))
    reader.start()
    call = ["onnxcomp.cli.main", *arguments(cnn, tmp_path / "o.onnx"), *(["--quiet"] if quiet else [])]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", *call]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=120, check=True)
    os.close(theirs)
    reader.join(timeout=60)
    os.close(ours)
    assert (b"tucker2(ranks=8x8)" in b"".join(shown)) is not quiet
    assert b"\x1b" not in done.stdout
    assert done.stdout.startswith(b"no real data was used")


def drain(descriptor: int, into: list[bytes]) -> None:
    """Read a pseudo-terminal until its other side is closed, which Linux reports as an error and others as the end."""
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:
            return
        if not chunk:
            return
        into.append(chunk)
