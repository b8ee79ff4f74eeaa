"""The documentation site builds with warnings as errors, has all that there is to tell of, and loads nothing from afar.

``ONNXCOMP_SITE`` names a folder where it was built already, as ``make docs`` does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

import onnxcomp
from onnxcomp.cli.main import cli
from onnxcomp.legality.checker import rules_of
from onnxcomp.options import describe
from onnxcomp.registry import available, load_pass
from onnxcomp.report.schemas import load_schema, schema_names
from onnxcomp.targets.target import load_target, target_names

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
PASSES = [name for name, entry in available().items() if entry.value.startswith("onnxcomp.passes.")]
LOADING = {"script", "img", "iframe", "source", "video", "audio", "embed", "object", "link"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="MkDocs is not installed: the extra 'docs'")


@dataclass
class Built(HTMLParser):
    """What a built page holds: anchors, links, what it loads, and the text of the article beside code."""

    anchors: set[str] = field(default_factory=set[str])
    links: list[str] = field(default_factory=list[str])
    loads: list[str] = field(default_factory=list[str])
    prose: list[str] = field(default_factory=list[str])
    cells: list[list[str]] = field(default_factory=list[list[str]])
    within: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADING and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads += [given[name] for name in ("src", "href", "data") if name in given]
        if tag not in VOID:
            self.within.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.within) and self.cells and self.cells[-1]:
            self.cells[-1][-1] += data
        if "article" in self.within and not {"code", "pre", "script", "style"} & set(self.within):
            self.prose.append(data)


@cache
def parse(path: Path) -> Built:
    built = Built()
    built.feed(path.read_text("utf-8"))
    return built


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    if given := os.environ.get("ONNXCOMP_SITE"):
        return (ROOT / given).resolve()
    folder = tmp_path_factory.mktemp("site")
    call = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Built]:
    """The pages by their paths, but for the one that a server shows where there is none."""
    return {
        str(path.relative_to(site)): parse(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"
    }


def test_every_pass_has_its_page_with_its_options(pages: dict[str, Built]) -> None:
    for name in PASSES:
        rows = [row for row in pages[f"passes/{name}.html"].cells if len(row) == 4 and row[0] != "option"]
        options = describe(load_pass(name))
        told = [(option.name, option.type, option.default) for option in options]
        assert [tuple(row[:3]) for row in rows][: len(told)] == told, name
        assert all(row[3] for row in rows[: len(told)]), f"an option of {name} has no help"


def test_every_target_has_its_page_with_its_rules(pages: dict[str, Built]) -> None:
    for name in target_names():
        rows = {row[0] for row in pages[f"targets/{name}.html"].cells if row}
        assert rows >= {rule.name for rule in rules_of(load_target(name))}


def test_every_public_name_and_command_has_its_anchor(pages: dict[str, Built]) -> None:
    assert pages["api.html"].anchors >= {f"onnxcomp.{name}" for name in onnxcomp.__all__}
    assert pages["cli.html"].anchors >= {f"onnxcomp-{name}" for name in cli.commands}


def test_the_schemas_are_those_of_the_package(site: Path) -> None:
    published = {path.name.removesuffix(".schema.json"): path for path in (site / "schemas").glob("*.json")}
    assert published.keys() == set(schema_names())
    for name, path in published.items():
        assert json.loads(path.read_text("utf-8")) == load_schema(name)


def test_links_lead_to_pages_and_headings(site: Path, pages: dict[str, Built]) -> None:
    lost: list[str] = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("https", "mailto"):
                continue
            path = (site / name).parent / unquote(parts.path) if parts.path else site / name
            anchored = not parts.fragment or parts.fragment in parse(path.resolve()).anchors
            if not path.is_file() or not anchored:
                lost.append(f"{name}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Built]) -> None:
    for name, page in pages.items():
        assert [link for link in page.loads if urlsplit(link).scheme not in ("", "data")] == [], name
        assert [link for link in page.loads if link.startswith("/")] == [], name
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", text) == [], style.name


def test_no_path_of_the_machine_is_on_a_page(site: Path) -> None:
    secret = {str(ROOT), str(site), str(Path.home()), sys.prefix} - {"/"}
    for path in (path for kind in ("*.html", "*.js", "*.json", "*.xml", "*.inv") for path in site.rglob(kind)):
        text = path.read_bytes().decode("utf-8", "replace")
        assert [word for word in secret if word in text] == [], path.name


def test_no_markdown_is_left(pages: dict[str, Built]) -> None:
    for name, page in pages.items():
        text = "".join(page.prose)
        left = re.findall(r"^(?:[-*] |#+ |\| ).*|```.*|\]\(.*|:{3} .*|<!--.*|:(?:class|func|meth):.*", text, re.M)
        assert left == [], name
        assert "\b" not in text
        assert "Sentinel" not in text


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra 'test'")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with api.sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(program).exists() and "ONNXCOMP_REQUIRE_BROWSER" not in os.environ:
            pytest.skip("there is no Chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_pages_are_readable(site: Path, chromium: Browser, width: int) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    for name in ("index", "concepts", "passes/int8", "targets/tensorrt", "cli", "api", "schemas", "benchmarks"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        heading = page.locator("article h1").bounding_box()
        assert heading is not None and heading["x"] >= 0 and heading["width"] > 100, name
    assert complaints == []
    page.close()


@pytest.mark.browser
def test_the_search_works_without_a_server(site: Path, chromium: Browser) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("Jaderberg")
    found = page.locator(".md-search-result__link").first
    found.wait_for(state="attached", timeout=20_000)
    assert "/passes/spatial.html" in (found.get_attribute("href") or "")
    page.close()
