"""The ``onnxcomp`` command: one group, one file a command, one place where errors become exit codes.

Nothing heavy is imported here or at the top of a command's module, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from tempfile import gettempdir
from types import FrameType

import click

from onnxcomp.cli.calibration import calibrate
from onnxcomp.cli.checking import check
from onnxcomp.cli.comparison import compare
from onnxcomp.cli.completion import VARIABLE, answer, completion
from onnxcomp.cli.inspection import inspect
from onnxcomp.cli.listing import passes
from onnxcomp.cli.optimization import optimize
from onnxcomp.cli.profiling import profile
from onnxcomp.cli.retargeting import retarget
from onnxcomp.cli.schemas import schema
from onnxcomp.cli.talk import DEBUG, fail
from onnxcomp.errors import OnnxcompError

__all__ = ["cli", "main"]

_BAD_CALL = 2
_INTERNAL = 3
_INTERRUPTED = 130
_TERMINATED = 143
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Terminated(BaseException):
    """The process was asked to end."""


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C; Python takes a plain KeyboardInterrupt that passes through some libraries for one that nobody caught."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxcomp", message="%(package)s %(version)s")
def cli() -> None:
    """Compress trained ONNX models, measured in the runtime they are for.

    Exit codes: 0 done, 1 a budget or a rule of the target failed, 2 the call or the input is wrong, 3 an internal
    error, 130 interrupted.
    """


for _command in (optimize, calibrate, inspect, passes, profile, compare, check, retarget, completion, schema):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error ends here, as one or two lines on stderr."""
    _whole_streams()
    if arguments is None and VARIABLE in os.environ:
        return answer(cli, os.environ[VARIABLE])
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in given
    try:
        # Not cli.main(): that would turn Ctrl-C and a closed pipe into exit codes of its own.
        with _orderly_end(), cli.make_context("onnxcomp", [*given], obj=given) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version
        sys.stdout.flush()
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return _BAD_CALL
    except click.ClickException as error:
        wrong = getattr(error, "ctx", None)
        hint = f"\nsee {wrong.command_path} --help" if wrong is not None else ""
        return _fail(error.format_message() + hint, _BAD_CALL, debug)
    except OnnxcompError as error:
        return _fail(str(error), error.exit_code, debug)
    except _Terminated:
        return _fail("terminated; no file was left half-written", _TERMINATED, debug)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; no file was left half-written", _INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of stdout left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _FULL:
            return _bug(error, debug)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail again at the end
        what = f"neither what is printed nor temporary files in {gettempdir()!r} may find room"
        return _fail(f"{error.strerror}: {what}", _INTERNAL, debug)
    except Exception as error:  # the last resort: whatever is not one of ours is a bug, and says so
        return _bug(error, debug)
    return 0


def _whole_streams() -> None:
    """Make stdin, stdout and stderr usable: a closed one would lend its number to the first file that is opened.

    Characters that the encoding of a stream lacks are spelled out.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _orderly_end() -> Generator[None]:
    """Let a request to end (docker stop, a cancelled CI job) unwind as Ctrl-C does, so that temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Interrupted if number == signal.SIGINT else _Terminated

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind nohup
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _bug(error: Exception, debug: bool) -> int:
    reason = next(iter(str(error).splitlines()), "")
    advice = "" if debug else "\nthis is a bug in onnxcomp; run again with --debug for the traceback"
    return _fail(f"internal error: {type(error).__name__}: {reason}{advice}", _INTERNAL, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    fail(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
