"""What may import what, and that the package list is the package tree."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {"onnxcomp": ROOT / "onnxcomp", "onnxcomp.passes": ROOT / "passes", "onnxcomp.cli": ROOT / "cli"}
STANDARD = {"__future__", *sys.stdlib_module_names}


def modules() -> dict[str, Path]:
    """Every module by its dotted name; the symlinks onnxcomp/passes and onnxcomp/cli are not followed."""
    found: dict[str, Path] = {}
    for package, folder in HOMES.items():
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder)
            if package == "onnxcomp" and inside.parts[0] in ("passes", "cli"):
                continue
            parts = [*package.split("."), *inside.with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()
IDS = sorted(MODULES)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module of a file with its relative level, wherever in the file it is."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            yield from ((f"{node.module}.{alias.name}", node.level) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_tree_is_found() -> None:
    assert {
        "onnxcomp",
        "onnxcomp.spec",
        "onnxcomp.cli.main",
        "onnxcomp.passes",
        "onnxcomp.graph.sites",
    } <= MODULES.keys()


@pytest.mark.parametrize("name", IDS)
def test_imports_go_one_way(name: str) -> None:
    for target, level in imports(MODULES[name]):
        assert level == 0, f"{name} has a relative import"
        assert target.split(".")[0] not in ("passes", "cli"), f"{name} imports {target}: write onnxcomp.{target}"
        if within(name, "onnxcomp.cli"):
            assert not within(target, "onnxcomp.passes"), (
                f"{name} imports {target}: commands reach passes by the registry"
            )
        elif within(name, "onnxcomp.passes"):
            assert not within(target, "onnxcomp.cli"), f"{name} imports {target}"
        else:
            assert not within(target, "onnxcomp.passes"), f"{name} imports {target}: the core knows no pass"
            assert not within(target, "onnxcomp.cli"), f"{name} imports {target}: the core knows no command"


@pytest.mark.parametrize("name", [name for name in IDS if within(name, "onnxcomp.numeric")])
def test_numeric_knows_only_arrays(name: str) -> None:
    allowed = {"numpy", "scipy"}
    for target, _ in imports(MODULES[name]):
        top = target.split(".")[0]
        assert top in STANDARD | allowed or within(target, "onnxcomp.numeric"), f"{name} imports {target}"


@pytest.mark.parametrize("name", [name for name in IDS if within(name, "onnxcomp.graph")])
def test_graph_knows_no_numeric(name: str) -> None:
    for target, _ in imports(MODULES[name]):
        assert not within(target, "onnxcomp.numeric"), f"{name} imports {target}"


@pytest.mark.parametrize("name", IDS)
def test_torch_is_never_imported(name: str) -> None:
    assert not [target for target, _ in imports(MODULES[name]) if target.split(".")[0] in ("torch", "torchvision")]


def test_no_import_cycles_at_load_time() -> None:
    """The imports at the top of modules, those for type checkers left out, have no cycle."""
    edges = {name: {t for t in top_level_imports(path) if t in MODULES and t != name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def top_level_imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` loads the module; `from module import name` loads the module before the dot.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module or ""


@pytest.mark.parametrize("name", IDS)
def test_modules_are_short_and_say_what_they_export(name: str) -> None:
    text = MODULES[name].read_text("utf-8")
    tree = ast.parse(text)
    lines = text.count("\n")
    assert lines <= 350, f"{name} has {lines} lines; split it"
    assert ast.get_docstring(tree), f"{name} has no docstring"
    if MODULES[name].name == "__init__.py" and len(tree.body) == 1:
        return
    names = [
        t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    ]
    assert "__all__" in names, f"{name} has no __all__"


def test_no_module_shadows_the_standard_library() -> None:
    shadowing = [name for name in MODULES if name.split(".")[-1] in sys.stdlib_module_names]
    assert shadowing == []


def test_the_package_list_is_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages
    assert settings["package-dir"] == {name: str(path.relative_to(ROOT)) for name, path in HOMES.items()}


def test_the_symlinks_lead_to_the_folders() -> None:
    for name in ("passes", "cli"):
        link = ROOT / "onnxcomp" / name
        assert link.is_symlink()
        assert link.resolve() == (ROOT / name).resolve()


def test_every_pass_file_is_registered() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    registered = {value.split(":")[0] for value in groups["onnxcomp.passes"].values()}
    files = {name for name in MODULES if within(name, "onnxcomp.passes") and name != "onnxcomp.passes"}
    assert files == registered


@pytest.mark.parametrize("module", ["onnxcomp", "onnxcomp.cli.main"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy", "numpy", "rich", "yaml", "PIL")
    code = f"import {module}, sys; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"
