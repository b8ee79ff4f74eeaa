"""``python -m onnxcomp.cli.precommit``: ``onnxcomp check`` on each of several models, as pre-commit calls its hooks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from onnxcomp.cli.checking import check
from onnxcomp.cli.main import main as run

__all__ = ["WRITING", "main"]

# Options that name a file to write: with several models the last one's would be left.
WRITING = ("--output", "--report", "--junit", "--markdown", "--sarif")
_BAD_CALL = 2
_STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every model named behind the options, and return the worst exit code.

    Args:
        arguments: Options of ``onnxcomp check``, as the hook's ``args`` say them, then the names of the models.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = [parameter for parameter in check.params if isinstance(parameter, click.Option)]
    reader = click.Command("check", params=[*options])
    try:
        values, models, _ = reader.make_parser(click.Context(reader)).parse_args(list(given))
    except click.UsageError:
        return run(["check", *given])  # which says what is wrong
    flags = given[: len(given) - len(models)]
    written = [name for option in options if option.name in values for name in option.opts if name in WRITING]
    problem = f"{written[0]} names one file, and there may be several models" if written else ""
    if [*flags, *models] != given:
        problem = "options come before the names of the models"
    if problem:
        print(f"onnxcomp: error: {problem}; see 'args' of the hook", file=sys.stderr)
        return _BAD_CALL
    worst = 0
    for model in models:
        code = run(["check", *flags, "--", model])
        worst = max(worst, code)
        if code >= _STOPPED:
            break
    return worst


if __name__ == "__main__":
    sys.exit(main())
