"""What a shell may propose for each flag: passes and their options, targets, models and other files.

Nothing heavy is imported but for the options of a pass, whose module has to be loaded to know them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from onnxcomp.contract import Pass

__all__ = ["MODEL", "OPEN", "wire"]

MODEL = "model"
"""Type of an item that stands for the models in a folder, which the shell lists itself."""

OPEN = "open"
"""Type of an item that is to be written on, without a space behind it."""

_OBJECTIVES = ("latency", "macs", "size")
_STYLES = ("fixed", "runtime")
_REPORTS = (".html", ".json", ".md")
_FILES = frozenset({"FILE", "D", "E", "STATS", "OUT", "B", "F", "B.yaml"})
_MODELS = frozenset({"model", "base", "other", "against"})

Propose = Callable[[str], Iterable[CompletionItem]]


class _Proposed(click.types.StringParamType):
    """A text for which there are proposals."""

    def __init__(self, propose: Propose) -> None:
        self._propose = propose

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Propose what begins like what was typed."""
        del ctx, param
        return list(self._propose(incomplete))


def wire(group: click.Group) -> None:
    """Give every text that a command takes its proposals; by name, or where that says nothing by its metavar."""
    for command in group.commands.values():
        for parameter in command.params:
            propose = _proposals(command, parameter)
            if propose is not None and isinstance(parameter.type, click.types.StringParamType):
                parameter.type = _Proposed(propose)


def _proposals(command: click.Command, parameter: click.Parameter) -> Propose | None:
    name = parameter.name or ""
    if name in _MODELS:
        return lambda typed: [CompletionItem(typed, type=MODEL)]
    if name == "name" and command.name == "passes":
        return lambda typed: _beginning(typed, _pass_names())
    if name == "name" and command.name == "schema":
        return _schemas
    if name in _BY_NAME:
        return _BY_NAME[name]
    return _files if parameter.metavar in _FILES else None


def _files(typed: str) -> Iterator[CompletionItem]:
    yield CompletionItem(typed, type="file")


def _beginning(typed: str, words: Iterable[str]) -> Iterator[CompletionItem]:
    return (CompletionItem(word) for word in words if word.startswith(typed))


def _targets(typed: str) -> Iterator[CompletionItem]:
    from onnxcomp.targets.target import target_names

    return _beginning(typed, target_names())


def _schemas(typed: str) -> Iterator[CompletionItem]:
    from onnxcomp.report.schemas import schema_names

    return _beginning(typed, schema_names())


def _reports(typed: str) -> Iterator[CompletionItem]:
    """Names of reports, which need not exist, and files that do."""
    stem = typed or "report"
    if not stem.endswith(("/", *_REPORTS)):
        yield from (CompletionItem(stem + suffix) for suffix in _REPORTS)
    else:
        yield from _files(typed)


def _pass_names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group="onnxcomp.passes")})


def _pipeline(typed: str) -> Iterator[CompletionItem]:
    """Propose how a pipeline goes on: a pass, inside its parentheses an option, behind ``=`` a value."""
    opened = typed.rfind("(") > typed.rfind(")")
    if not opened:
        before, word = _cut(typed, ",")
        yield from (CompletionItem(before + name) for name in _pass_names() if name.startswith(word.lstrip()))
        return
    head, inside = typed[: typed.rfind("(") + 1], typed[typed.rfind("(") + 1 :]
    before, word = _cut(inside, ",")
    hints = _hints_of(re.split(r"[\s,]", head[:-1])[-1])
    name, equals, value = word.strip().partition("=")
    if equals:
        for choice in _choices(hints.get(name)):
            if choice.startswith(value):
                yield CompletionItem(f"{head}{before}{name}={choice}", type=OPEN)
        return
    given = {part.partition("=")[0].strip() for part in before.split(",")}
    for option in hints:
        if option.startswith(name) and option not in given:
            yield CompletionItem(f"{head}{before}{option}=", type=OPEN)


def _cut(text: str, mark: str) -> tuple[str, str]:
    """What stands up to the last mark, with it, and what stands behind."""
    at = text.rfind(mark) + 1
    return text[:at], text[at:]


def _hints_of(name: str) -> dict[str, Any]:
    """Types of the options of a pass, by name; none where there is no such pass."""
    from onnxcomp.errors import OnnxcompError
    from onnxcomp.options import describe
    from onnxcomp.registry import load_pass

    try:
        loaded: type[Pass] = load_pass(name)
        hints = get_type_hints(loaded, include_extras=True)
        return {option.name: hints[option.name] for option in describe(loaded)}
    except OnnxcompError:
        return {}


def _choices(hint: Any) -> list[str]:
    """The words that an option may be."""
    if hint is bool:
        return ["false", "true"]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    if get_origin(hint) is Annotated:
        return _choices(get_args(hint)[0])
    return [word for part in get_args(hint) for word in _choices(part)]


_BY_NAME: dict[str, Propose] = {
    "passes": _pipeline,
    "target": _targets,
    "objective": lambda typed: _beginning(typed, _OBJECTIVES),
    "ort_style": lambda typed: _beginning(typed, _STYLES),
    "reports": _reports,
}
