"""The passes that are installed, found through the entry-point group ``onnxcomp.passes``; imported only when needed."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from onnxcomp.contract import Pass
from onnxcomp.errors import InputError, PassError, UnknownPassError
from onnxcomp.options import did_you_mean, make_pass
from onnxcomp.spec import PassSpec, Source, parse_pipeline

__all__ = ["GROUP", "available", "build_pass", "build_pipeline", "load_pass", "provider"]

GROUP = "onnxcomp.passes"

# Whatever else an import can raise is a bug for the traceback.
_BROKEN = (
    ImportError,
    AttributeError,
    SyntaxError,
    NameError,
    TypeError,
    ValueError,
    LookupError,
    OSError,
    RuntimeError,
)


def available() -> dict[str, EntryPoint]:
    """Return every registered pass by name, sorted; nothing is imported.

    Raises:
        InputError: Two distributions register different passes under one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            first, second = sorted(f"{provider(e)} ({e.value})" for e in (other, entry))
            raise InputError(
                f"two installed packages register the pass {entry.name!r}: {first} and {second}; uninstall one"
            )
    return dict(sorted(found.items()))


def provider(entry: EntryPoint) -> str:
    """Return the name of the distribution that registers a pass."""
    return "an unknown package" if entry.dist is None else entry.dist.name


def load_pass(name: str, source: Source | None = None) -> type[Pass]:
    """Import a pass.

    Args:
        name: Its registered name.
        source: Where the user wrote it, so that an error can point there.

    Raises:
        UnknownPassError: No such pass; the message proposes the closest name and lists all.
        PassError: Its package cannot be imported, or what it registers is not a pass.
    """
    known = available()
    if name not in known:
        listed = f" (passes: {', '.join(known)})" if known else "; no pass is installed: reinstall onnxcomp"
        caret = f"\n{source.point(source.column)}" if source else ""
        raise UnknownPassError(f"there is no pass {name!r}{did_you_mean(name, known)}{listed}{caret}")
    entry = known[name]
    try:
        loaded = entry.load()
    except _BROKEN as error:
        reason = str(error).split("\n", 1)[0]
        problem = f"the pass {name!r} of the package {provider(entry)} cannot be loaded"
        raise PassError(f"{problem}: {type(error).__name__}: {reason}") from error
    return _checked(name, entry, loaded)


def _checked(name: str, entry: EntryPoint, loaded: object) -> type[Pass]:
    where = f"{entry.value} of the package {provider(entry)}"
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise PassError(f"{where} is registered as the pass {name!r} but is not a subclass of onnxcomp.Pass")
    if getattr(loaded, "name", None) != name:
        raise PassError(
            f"{where} is registered as {name!r} but calls itself {getattr(loaded, 'name', None)!r}; make both equal"
        )
    if "__dataclass_params__" not in vars(loaded):  # an inherited decoration does not see the new fields
        raise PassError(f"{where} must be a frozen dataclass: decorate it with @dataclass(frozen=True)")
    return loaded


def build_pass(spec: PassSpec) -> Pass:
    """Build the pass that a spec names.

    Raises:
        UnknownPassError: No such pass.
        OptionError: An option is unknown or its value does not fit.
        PassError: The pass cannot be loaded.
    """
    return make_pass(load_pass(spec.name, spec.source), spec.options, spec.source)


def build_pipeline(text: str) -> tuple[Pass, ...]:
    """Build all passes of a pipeline text; raises what `parse_pipeline` and `build_pass` raise."""
    return tuple(build_pass(spec) for spec in parse_pipeline(text))
