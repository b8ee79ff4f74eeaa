"""What a command says while it runs: bars, warnings, stages, the log file; on terminals of all kinds and on none."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onnxcomp import progress
from onnxcomp.cli import logbook, talk
from onnxcomp.cli.bar import Bar
from onnxcomp.cli.main import main
from onnxcomp.errors import InputError

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals")

# Two passes, and something to warn of.
OPTIMIZE = "optimize", "-p", "tucker2(ranks=8x8),fp16", "--objective", "size", "--exclude", "unheard-of"


class Terminal:
    """A pseudo-terminal, and what was written on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                some = os.read(self.ours, 65536)
            except OSError:  # the other end was closed
                return
            self.written += some

    def close(self) -> str:
        """End; return all that was written."""
        os.close(self.theirs)
        self._reader.join(timeout=60)
        os.close(self.ours)
        return self.written.decode()


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run the command here with stderr on a terminal; return its exit code and what was written there."""

    def call(
        *arguments: str | Path, columns: int = 80, encoding: str = "utf-8", more: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        for name in ("LINES", "NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **(more or {})}.items():
            monkeypatch.setenv(name, value)
        terminal = Terminal()
        with monkeypatch.context() as patch, os.fdopen(os.dup(terminal.theirs), "w", encoding=encoding) as stderr:
            patch.setattr(sys, "stderr", stderr)
            code = main([str(argument) for argument in arguments])
        return code, terminal.close()

    return call


def lines(written: str) -> list[str]:
    """What was to be seen, without escape codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_a_bar_leaves_nothing_but_warnings(on_terminal: Any, cnn: Path, tmp_path: Path) -> None:
    code, written = on_terminal(*OPTIMIZE, cnn, "-o", tmp_path / "o.onnx", "--verbose")
    assert code == 0
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor is back
    before, after = written.split("\x1b[?25h")
    assert "\x1b[2K" in after  # the bar is gone
    assert "fp16" in before
    assert any("leaves alone" in line for line in lines(before))  # what is told stands above it
    assert "warning:" not in before  # warnings wait until the bar is gone
    assert any(line.startswith("onnxcomp: warning: ") for line in lines(after))


@pytest.mark.parametrize(
    ("columns", "encoding", "more"), [(40, "utf-8", {}), (80, "ascii", {}), (80, "utf-8", {"NO_COLOR": "1"})]
)
def test_bars_fit_the_terminal(
    columns: int, encoding: str, more: dict[str, str], on_terminal: Any, cnn: Path, tmp_path: Path
) -> None:
    arguments = *OPTIMIZE, cnn, "-o", tmp_path / "o.onnx"
    code, written = on_terminal(*arguments, columns=columns, encoding=encoding, more=more)
    assert code == 0
    shown = [line for line in lines(written) if not line.startswith("onnxcomp: ")]
    assert shown and max(map(len, shown)) <= columns
    if more:
        assert not re.search(r"\x1b\[[0-9;]*[349][0-7]\b", written)
    if encoding == "ascii":
        assert written.isascii()


def test_a_terminal_that_cannot_move_its_cursor_gets_no_bar(on_terminal: Any, cnn: Path, tmp_path: Path) -> None:
    code, written = on_terminal(*OPTIMIZE, cnn, "-o", tmp_path / "o.onnx", more={"TERM": "dumb"})
    assert code == 0
    assert "\x1b" not in written
    assert all(line.startswith("onnxcomp: ") for line in lines(written))


def test_an_interrupted_bar_leaves_a_clean_terminal(cnn: Path, tmp_path: Path) -> None:
    marker = tmp_path / "reached"
    code = f"    pathlib.Path({str(marker)!r}).touch()\n    time.sleep(60)\n    yield {{}}\n"
    (tmp_path / "feeds.py").write_text(f"import pathlib, time\n\n\ndef slow():\n{code}")
    terminal = Terminal()
    command = [sys.executable, "-m", "onnxcomp.cli.main", *OPTIMIZE, str(cnn), "-o", "o.onnx", "--data", "feeds:slow"]
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=terminal.theirs, env=environment, cwd=tmp_path
    ) as process:
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    written = terminal.close()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    assert lines(written.split("\x1b[?25h")[1]) == ["onnxcomp: error: interrupted; no file was left half-written"]


def test_an_interruption_as_the_bar_appears_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    bar = Bar(1, Console(file=out, force_terminal=True, width=80))

    def interrupt(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupt)
        with bar:
            raise AssertionError("the bar was never there")
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)]
)
def test_errors_are_coloured_on_terminals(on_terminal: Any, more: dict[str, str], coloured: bool) -> None:
    code, written = on_terminal("inspect", "none.onnx", more=more)
    assert code == 2
    assert ("\x1b[" in written) is coloured
    assert lines(written) == ["onnxcomp: error: there is no file 'none.onnx'"]


def test_errors_in_a_pipe_are_plain_unless_colours_are_forced(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert "\x1b" not in run("inspect", "none.onnx").err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31merror:" in run("inspect", "none.onnx").err


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_harm_no_file(closed: str, cnn: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = f"{sys.executable} -m onnxcomp.cli.main passes unheard-of --verbose --log-file {log}"
    assert subprocess.run(["sh", "-c", f"exec {command} {closed}"], capture_output=True).returncode == 2
    # What would have been said did not go into the first file that was opened.
    assert "onnxcomp: error" not in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_full_and_left_streams() -> None:
    command = f"{sys.executable} -m onnxcomp.cli.main passes fold"
    full = subprocess.run(["sh", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 3
    assert full.stderr.startswith("onnxcomp: error: No space left on device")
    assert subprocess.run(["sh", "-c", f"{command}ed 2> /dev/full"]).returncode == 2


def test_a_reader_that_leaves(run: Any, cnn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        got = main(["inspect", str(cnn), "--quiet"])
        monkeypatch.undo()
    assert got == 0
    assert run("inspect", cnn).err == ""


def test_verbose_tells_stages_verdicts_and_reasons(run: Any, cnn: Path, tmp_path: Path) -> None:
    quiet = run(*OPTIMIZE, cnn, "-o", tmp_path / "o.onnx")
    got = run(*OPTIMIZE, cnn, "-o", tmp_path / "o.onnx", "--verbose")
    assert (got.code, got.out.splitlines()[0]) == (0, quiet.out.splitlines()[0])
    told = [re.sub(r"^onnxcomp: +\d+\.\d s  ", "", line) for line in got.err.splitlines()]
    assert {"canonicalise", "tucker2(ranks=8x8)", "measure", "evaluate"} <= set(told)
    assert any(line.startswith("tucker2(ranks=8x8): kept, 1 changed, 1 left alone") for line in told)
    assert any("leaves alone conv1: too few channels: 3 in, 32 out" in line for line in told)
    assert "canonicalise" not in quiet.err


def test_the_log_has_everything_with_times_and_levels(run: Any, cnn: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("what was there before")
    got = run(*OPTIMIZE, cnn, "-o", tmp_path / "o.onnx", "--quiet", "--log-file", log)
    assert (got.code, got.err) == (0, "")
    entries = log.read_text().splitlines()
    form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR) +onnxcomp[.\w]*: ")
    assert all(map(form.match, entries))
    text = log.read_text()
    assert "INFO    onnxcomp.cli.stages: canonicalise" in text
    assert "onnxcomp.cli.said: warning: " in text
    assert "called with ['optimize', '-p', 'tucker2(ranks=8x8),fp16', " in text
    assert "DEBUG   onnxcomp.choose: tucker2: conv2 becomes 1x1 32>8" in text
    assert "DEBUG   onnxcomp.progress: layers: 2 steps in" in text
    assert entries[-1].split(": ", 1)[1].startswith("done in ")


def test_the_log_has_the_error_and_where_it_was_raised(run: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run("inspect", "none.onnx", "--log-file", log).code == 2
    text = log.read_text()
    assert "ERROR   onnxcomp.cli: there is no file 'none.onnx'" in text
    assert "Traceback" in text


def test_names_can_neither_steer_nor_forge_a_log(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    nodes, arrays = parts
    nodes[0].name = "\x1b[2J\n2026-01-01 00:00:00.000 ERROR   onnxcomp.cli: forged"
    log = tmp_path / "log.txt"
    got = run(*OPTIMIZE, make(nodes, arrays), "-o", tmp_path / "o.onnx", "--log-file", log, "--verbose")
    assert got.code == 0
    assert "\x1b" not in log.read_text() + got.err
    assert "forged" in log.read_text()
    assert not any(line.startswith("2026-01-01") for line in (log.read_text() + got.err).splitlines())


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("none/log.txt", "the folder 'none' does not exist"),
        (".", "is a folder"),
        ("", "is no file name"),
        ("model.onnx", "is a file that the command works with"),
        ("./model.onnx", "is a file that the command works with"),
        ("o.onnx", "is a file that the command works with"),
    ],
)
def test_a_log_that_cannot_be_is_refused_first(
    where: str, words: str, run: Any, cnn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cnn.parent)
    before = cnn.read_bytes()
    got = run(*OPTIMIZE, "model.onnx", "-o", "o.onnx", "--log-file", where)
    assert (got.code, got.out) == (2, "")
    assert words in got.err and len(got.err.splitlines()) == 1
    assert cnn.read_bytes() == before and not Path("o.onnx").exists()


def test_quiet_and_verbose_contradict_each_other(run: Any, cnn: Path) -> None:
    got = run("inspect", cnn, "--quiet", "--verbose")
    assert (got.code, got.out) == (2, "")
    assert "--quiet and --verbose contradict each other" in got.err


def said(*, quiet: bool = False, verbose: bool = False, log_file: str | None = None) -> Any:
    return logbook.logged(quiet=quiet, verbose=verbose, log_file=log_file)


def test_what_the_library_logs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = logging.getLogger("onnxcomp.anywhere")

    def speak() -> None:
        log.debug("detail")
        log.info("told")
        log.warning("take\ncare")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("numbers overflow", stacklevel=1)

    words = "detail", "told", "take", "overflow"
    for voice, expected in ((said(), "take"), (said(verbose=True), "told take overflow"), (said(quiet=True), "")):
        with voice:
            speak()
        err = capsys.readouterr().err
        assert [word for word in words if word in err] == expected.split()
    with said(quiet=True, log_file=str(tmp_path / "log.txt")):
        speak()
    text = (tmp_path / "log.txt").read_text()
    assert all(word in text for word in words)
    log.warning("nobody listens any longer")
    assert capsys.readouterr().err == ""
    assert not [h for h in logging.getLogger("onnxcomp").handlers if not isinstance(h, logging.NullHandler)]


def test_warnings_wait_for_the_bar_and_come_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    above: list[str] = []
    with said(verbose=True), logbook.voice().beneath(above.append):
        talk.warn("warning: first", quiet=False)
        logging.getLogger("onnxcomp.x").warning("second")
        talk.warn("warning: unheard", quiet=True)
        logging.getLogger("onnxcomp.x").info("stage")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "onnxcomp: warning: first\nonnxcomp: warning: second\n"
    assert [line.split("s  ")[1] for line in above] == ["stage"]


def frame(bar: Bar, width: int = 80) -> list[str]:
    """What the bar would draw."""
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(bar.look())
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_bar_has_two_lines_however_deep_tasks_nest() -> None:
    bar = Bar(3, Console(width=80))
    with progress.listening(bar):
        bar.enter("tucker2")
        assert len(frame(bar)) == 1
        with progress.task("layers", 4) as advance:
            advance(3)
            with progress.task("walk"), progress.task("[bold]conv\x1b1", 20) as inner:
                inner(5)
                stage, task = frame(bar)
                assert stage.startswith("tucker2 ")
                assert task.startswith("  layers: [bold]conv\\x1b1 5/20 ")
                assert " 3/4 " in task
        assert len(frame(bar)) == 1
        with progress.task("streamed") as advance:
            advance(7)
            assert frame(bar)[1].endswith(" 7")


def test_more_stages_and_steps_than_planned() -> None:
    bar = Bar(3, Console(width=40))
    with progress.listening(bar):
        for index in range(7):
            bar.enter(f"stage {index}")
        with progress.task("estimated, by a long name of a layer somewhere", 2) as advance:
            advance(5)
            stage, task = frame(bar, 40)
    assert stage.startswith("stage 6") and " 5/5 " in task
    assert max(map(len, (stage, task))) <= 40


def test_what_flags_hold_is_known() -> None:
    with (
        pytest.raises(InputError, match="works with"),
        logbook.logged(quiet=False, verbose=False, log_file="a.json", others=("x" * 5000, "", "a.json")),
    ):
        pass
