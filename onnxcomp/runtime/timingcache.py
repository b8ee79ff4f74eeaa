"""Measured times by signature: shared within a run, and between runs where the user names a file."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from onnxcomp.atomic import staging
from onnxcomp.errors import InputError, OnnxcompError

__all__ = ["Entry", "Timings", "open_timings"]

_FORMAT = "onnxcomp timings"
# Another way of measuring gives other numbers: then this number changes, and files with another one are refused.
_VERSION = 1


@dataclass
class Entry:
    """What is known of one site on one machine.

    Attributes:
        ms: Time of the site itself, milliseconds; None where it was never measured.
        ratios: Time of a chain / time of the site, by the signature of the chain.
    """

    ms: float | None = None
    ratios: dict[str, float] = field(default_factory=dict[str, float])


class Timings:
    """Entries by the signatures of run and site (:mod:`onnxcomp.runtime.signature`).

    Attributes:
        measured: Number of chains timed by this object, not found in it.
    """

    def __init__(self) -> None:
        self.measured = 0
        self._entries: dict[str, dict[str, Entry]] = {}

    def entry(self, run: str, site: str) -> Entry:
        """Return what is known of a site, to be read and added to; an empty entry where nothing is."""
        return self._entries.setdefault(run, {}).setdefault(site, Entry())

    def merge(self, other: Timings) -> None:
        """Take over what `other` knows and this does not."""
        for run, sites in other._entries.items():
            for site, theirs in sites.items():
                own = self.entry(run, site)
                own.ms = theirs.ms if own.ms is None else own.ms
                own.ratios = theirs.ratios | own.ratios

    def document(self) -> dict[str, object]:
        """Everything as plain data for JSON."""
        runs = {
            run: {site: {"ms": e.ms, "chains": e.ratios} for site, e in sites.items() if e.ms is not None}
            for run, sites in self._entries.items()
        }
        return {"format": _FORMAT, "version": _VERSION, "timings": {run: sites for run, sites in runs.items() if sites}}


@contextmanager
def open_timings(path: str | Path | None) -> Generator[Timings]:
    """Read the timings of a file, and write them back with what was added, even where the run fails.

    A file that does not exist is made. What other processes added meanwhile is kept, and so are the timings of other
    machines. Without a path the timings last as long as the run.

    Raises:
        InputError: The file is no timing cache, a damaged one, or of another version; or its folder does not exist.
        OutputError: It cannot be written.
    """
    if path is None:
        yield Timings()
        return
    file = Path(path)
    if not file.parent.is_dir():
        raise InputError(f"timing cache {file}: the folder {file.parent} does not exist; create it first")
    timings = _read(file)
    try:
        yield timings
    except BaseException:
        with suppress(OnnxcompError):  # what stopped the run is what the user has to know
            _save(file, timings)
        raise
    _save(file, timings)


def _read(file: Path) -> Timings:
    if not file.exists():
        return Timings()
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"timing cache {file} cannot be read ({error}); remove it or name another file") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise InputError(f"{file} is no timing cache of onnxcomp; name another file")
    if document.get("version") != _VERSION:
        raise InputError(f"timing cache {file} is of another version of onnxcomp; remove it or name another file")
    timings = Timings()
    try:
        for run, sites in _table(document["timings"]).items():
            for site, own in _table(sites).items():
                _fill(timings.entry(run, site), _table(own))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"timing cache {file} is damaged; remove it or name another file") from error
    return timings


def _fill(entry: Entry, own: dict[str, object]) -> None:
    entry.ms = _positive(own["ms"])
    entry.ratios.update({chain: _positive(value) for chain, value in _table(own["chains"]).items()})


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"a table was expected, not {value!r}")
    return cast("dict[str, object]", value)


def _positive(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"a positive number was expected, not {value!r}")
    return float(value)


def _save(file: Path, timings: Timings) -> None:
    if not timings.measured:
        return
    timings.merge(_read(file))
    text = json.dumps(timings.document(), indent=1, sort_keys=True, allow_nan=False)
    with staging() as files:
        files.open(file).write(text.encode("utf-8"))
