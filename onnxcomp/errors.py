"""Every error a user can meet, and the exit code it ends with.

::

    OnnxcompError                     3  something went wrong inside
    ├── InputError                    2  the call or the input is wrong
    │   ├── SpecError                 2  a pipeline spec does not parse (message carries a caret)
    │   ├── OptionError               2  a pass has no such option, or not with that value
    │   ├── UnknownPassError          2  no pass of that name
    │   ├── RecipeError               2  a YAML recipe says something it cannot
    │   ├── ModelError                2  not a model, a broken one, or one that the compiler cannot carry
    │   └── DataError                 2  data that is missing, empty or does not fit the model
    ├── GateFailure                   1  a budget, a limit or the target's rules do not hold
    ├── PassError                     3  a pass broke its contract
    └── OutputError                   3  the result cannot be written (disk full, no permission)

Messages are one or two lines: what is wrong, where, and what to do. Ctrl-C ends with 130.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "DataError",
    "GateFailure",
    "InputError",
    "ModelError",
    "OnnxcompError",
    "OptionError",
    "OutputError",
    "PassError",
    "RecipeError",
    "SpecError",
    "UnknownPassError",
]


class OnnxcompError(Exception):
    """Base of all errors that onnxcomp raises on purpose."""

    exit_code: ClassVar[int] = 3


class InputError(OnnxcompError):
    """The call or the input is wrong; nothing was written."""

    exit_code: ClassVar[int] = 2


class SpecError(InputError):
    """A pipeline spec does not parse; the message points at the offending column."""

    def __init__(self, text: str, column: int, problem: str) -> None:
        super().__init__(f"{problem}\n  {text}\n  {' ' * column}^")
        self.column = column


class OptionError(InputError):
    """A pass option is unknown or its value does not fit."""


class UnknownPassError(InputError):
    """No pass is registered under that name."""


class RecipeError(InputError):
    """A recipe file is malformed."""


class ModelError(InputError):
    """The model cannot be read, is invalid, or holds something the compiler cannot carry."""


class DataError(InputError):
    """Calibration or evaluation data are missing, empty, malformed or do not fit the model."""


class GateFailure(OnnxcompError):
    """A budget, a limit or a rule of the target does not hold."""

    exit_code: ClassVar[int] = 1


class PassError(OnnxcompError):
    """A pass broke its contract: a wrong shape, a NaN, a changed signature."""


class OutputError(OnnxcompError):
    """The result could not be written; what was there before is untouched."""
