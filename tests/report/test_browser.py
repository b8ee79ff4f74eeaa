"""Pages in headless Chromium: what a reader sees, at two widths, light and dark."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.cli.main import main
from onnxcomp.pipeline import PipelineReport
from onnxcomp.report.figures import Bars, Panels
from onnxcomp.report.table import Table
from onnxcomp.report.view import View
from onnxcomp.report.writing import write_report, write_view

REQUIRED = "ONNXCOMP_REQUIRE_BROWSER" in os.environ
if REQUIRED:
    sync_api: Any = importlib.import_module("playwright.sync_api")
else:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

pytestmark = pytest.mark.browser

Arrays = Mapping[str, NDArray[Any]]
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
MANY = 200

# A page is what a command writes; {model} and {small} are files, the second one compressed, {data} has samples.
SMALL = "optimize {model} -p int8 --objective macs --data {data} -o {small}"
COMMANDS = {
    "optimize": "optimize {model} -p decompose(macs=0.6),int8 --objective macs --data {data} --eval {data} -o {out}",
    "check": "check {small} --against {model} --data {data} --min-sqnr 10 --max-size 1MB",
    "compare": "compare {model} {small} --data {data}",
    "inspect": "inspect {small}",
    "profile": "profile {small} --against {model} --budget 1",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        except sync_api.Error as error:
            if REQUIRED:
                raise
            pytest.skip(f"no Chromium to open pages in: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def page_of(folder: Path, stack: ir.Model, samples: Arrays, hostile: PipelineReport) -> Callable[[str], Path]:
    """The page of a name; made once."""
    model, data, small = folder / "net.onnx", folder / "data.npz", folder / "small.onnx"

    def run(command: str, *more: object) -> None:
        places = {"model": model, "data": data, "small": small, "out": folder / "out.onnx"}
        assert main([*(word.format(**places) for word in command.split()), *map(str, more), "--quiet"]) == 0

    def page(name: str) -> Path:
        path = folder / f"{name.replace(' ', '-')}.html"
        if path.exists():
            return path
        if not model.exists():
            modelio.save(stack, model)
            np.savez(data, allow_pickle=False, **samples)
        if "{small}" in COMMANDS.get(name, "") and not small.exists():
            run(SMALL)
        if name in COMMANDS:
            run(COMMANDS[name], "--report", path)
        elif name == "many":
            write_view({"version": "0"}, many_layers(), path)
        else:
            write_report(hostile, path)
        return path

    return page


def many_layers() -> View:
    """A table of many layers, with long names, and bars of them."""
    names = tuple(f"/model/features/stage{i // 20}/block{i % 20}/attention/projection/Conv_{i}" for i in range(MANY))
    sizes = tuple(float((37 * i) % 101) for i in range(MANY))
    bars = Bars(names, (("before", sizes), ("after", tuple(size / 2 for size in sizes))), "bytes")
    times = Bars(names, (("before", tuple(size / 100 for size in sizes)),), "ms")
    rows = tuple((name, f"{size:.0f}") for name, size in zip(names, sizes, strict=True))
    table = Table("Layers", ("layer", "size"), rows, frozenset({1}), Panels((("size", bars), ("latency", times))))
    return View("many layers", (), (), (table,))


class Visit:
    """An open page, and all that went wrong in it."""

    def __init__(self, browser: Any, path: Path, viewport: Mapping[str, int] = WIDE) -> None:
        self.page = browser.new_page(viewport=dict(viewport), color_scheme="light")
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._say)
        self.page.on("pageerror", self._say)
        self.page.on("dialog", self._refuse)
        self.page.on("request", self._load)
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)

    def _say(self, message: Any) -> None:
        self.trouble.append(str(message))

    def _load(self, request: Any) -> None:
        self.requests.append(request.url)

    def _refuse(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def see(self, *, width: Mapping[str, int], scheme: str) -> None:
        self.page.set_viewport_size(dict(width))
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_timeout(50)  # the page draws again

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture
def visit(browser: Any, page_of: Callable[[str], Path]) -> Iterator[Any]:
    opened: list[Visit] = []

    def open_page(name: str, viewport: Mapping[str, int] = WIDE) -> Visit:
        opened.append(Visit(browser, page_of(name), viewport))
        return opened[-1]

    yield open_page
    for one in opened:
        one.page.close()


# Figures without marks, and figures that have none drawn.
UNDRAWN = """() => [...document.querySelectorAll('.figure')].filter((figure) => {
    const marks = figure.querySelectorAll('svg.main-svg .bars .point path, svg.main-svg .scatterlayer .trace path');
    const drawn = [...marks].some((mark) => mark.getBoundingClientRect().width > 0);
    return !drawn || figure.querySelector('svg.main-svg').getBoundingClientRect().height < 60;
}).map((figure) => figure.getAttribute('aria-label'))"""

# What a section says of its rows, and the rows it has.
ROWS = """() => [...document.querySelectorAll('main section table')].map((table) => [
    parseInt(table.closest('section').querySelector('.rows').textContent), table.tBodies[0].rows.length])"""

# Texts that are cut off: in boxes that hide what does not fit, and in drawings that are too small for their labels.
CLIPPED = """() => {
    const shown = (element) => element.checkVisibility() && element.textContent.trim();
    const hidden = [...document.querySelectorAll('body *:not(svg *)')].filter((element) => {
        const style = getComputedStyle(element);
        return shown(element) && /hidden|clip/.test(style.overflowX) && element.scrollWidth > element.clientWidth + 1
            && !element.matches('.cell summary');
    });
    const outside = [...document.querySelectorAll('svg.main-svg text')].filter((text) => {
        const [own, all] = [text.getBoundingClientRect(), text.closest('.drawing').getBoundingClientRect()];
        return shown(text) && own.width && (own.left < all.left - 1 || own.right > all.right + 1);
    });
    return [...hidden, ...outside].map((element) => `${element.tagName} ${element.textContent.slice(0, 60)}`);
}"""

# Labels of a drawing that run into each other.
COLLISIONS = """() => [...document.querySelectorAll('.drawing')].flatMap((drawing) => {
    const texts = [...drawing.querySelectorAll('svg.main-svg text')].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => [text.getBoundingClientRect(), text.textContent]).filter(([box]) => box.width);
    const shared = (a, b, from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]);
    const meet = (a, b) => shared(a, b, 'left', 'right') > 2 && shared(a, b, 'top', 'bottom') > 4;
    return boxes.flatMap(([a, one], k) => boxes.slice(k + 1).filter(([b]) => meet(a, b))
        .map(([, other]) => `${one} / ${other}`));
})"""

# Texts of too little contrast with what is behind them (WCAG 2.1, 1.4.3).
PALE = """() => {
    const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const channel = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || element.matches('script, style') || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const color = parse(element instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [light(color), light(ground(element))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push(`${element.tagName} ${element.textContent.slice(0, 40)} ${ratio.toFixed(2)}`);
    }
    return found;
}"""

ALL = (*COMMANDS, "hostile", "many")


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_readable(visit: Any, name: str) -> None:
    seen = visit(name)
    assert seen.ask(UNDRAWN) == []
    rows = seen.ask(ROWS)
    assert rows and all(said == there > 0 for said, there in rows)
    for width in (WIDE, NARROW):
        for scheme in ("light", "dark"):
            seen.see(width=width, scheme=scheme)
            assert seen.ask("document.documentElement.scrollWidth <= innerWidth"), width
            assert seen.ask(CLIPPED) == seen.ask(COLLISIONS) == [], width
            assert seen.ask(PALE) == [], (width, scheme)
            assert seen.ask(UNDRAWN) == []
    grounds = {seen.ask("getComputedStyle(document.body).backgroundColor")}
    seen.see(width=NARROW, scheme="light")
    grounds.add(seen.ask("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert seen.trouble == [] and seen.requests == [seen.address]


def test_a_page_that_is_opened_on_a_phone(visit: Any) -> None:
    seen = visit("optimize", NARROW)
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth") and seen.ask(CLIPPED) == []
    assert seen.trouble == []


def test_the_frontier_tells_of_the_point_under_the_mouse_and_the_recipe_is_there_to_copy(visit: Any) -> None:
    seen = visit("optimize")
    figure = seen.page.locator(".figure", has=seen.page.locator(".scatterlayer"))
    figure.scroll_into_view_if_needed()
    box = figure.locator(".scatterlayer .trace:last-child .points path").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = figure.locator(".hoverlayer .hovertext")
    hover.wait_for(timeout=2000)
    text = hover.text_content()
    seen.page.get_by_text("Recipe to replay").click()
    seen.page.locator(".copy").click()
    sync_api.expect(seen.page.locator(".copy")).not_to_have_text("Copy")
    assert "choices:" in seen.ask("getSelection().toString()")
    assert "share of MACs" in text and "expected loss" in text and "chosen" in figure.locator(".legend").text_content()


def test_tables_and_figures_answer(visit: Any) -> None:
    seen = visit("many")
    sorts(seen)
    filters(seen)
    chooses(seen)
    prints(seen)
    assert seen.trouble == []


def sorts(seen: Visit) -> None:
    """By mouse and keyboard: falling, rising, as it was."""
    head = seen.page.locator("th", has_text="size")
    column = "[...document.querySelectorAll('tbody td:nth-child(2)')].map((cell) => Number(cell.textContent))"
    original = seen.ask(column)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending" and seen.ask(column) == sorted(original, reverse=True)
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and seen.ask(column) == sorted(original)
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None and seen.ask(column) == original


def filters(seen: Visit) -> None:
    """Rows and bars alike."""
    bars = "document.querySelector('.barlayer .trace').querySelectorAll('.point').length"
    assert seen.ask(bars) == MANY
    seen.page.locator(".filter").fill("STAGE3/")
    assert seen.ask("[...document.querySelectorAll('tbody tr')].filter((row) => row.checkVisibility()).length") == 20
    assert seen.page.locator(".found").text_content() == f"20 of {MANY}"
    assert seen.ask(bars) == 20
    seen.page.locator(".filter").fill("nothing of the kind")
    assert seen.ask("document.querySelectorAll('.barlayer .point').length") == 0
    seen.page.locator(".filter").fill("")
    assert seen.ask(bars) == MANY


def chooses(seen: Visit) -> None:
    """One figure at a time, in either order."""
    first = "document.querySelector('.ytick text').textContent"
    unit = "document.querySelector('.xtitle').textContent"
    assert seen.ask(unit) == "bytes" and seen.ask(first).endswith("Conv_0")
    seen.page.get_by_label("latency").check()
    assert seen.ask(unit) == "ms"
    seen.page.get_by_label("largest first").check()
    assert seen.ask(first).endswith(f"Conv_{max(range(MANY), key=lambda i: (37 * i) % 101)}")


def prints(seen: Visit) -> None:
    """All of it, on white."""
    seen.page.locator("main details").first.evaluate("(part) => { part.open = false; }")
    seen.page.emulate_media(media="print", color_scheme="dark")
    seen.ask("dispatchEvent(new Event('beforeprint'))")
    assert seen.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.ask("document.querySelector('tbody tr:last-child').checkVisibility()")
    assert seen.ask("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"


def test_a_hostile_name_is_shown_as_it_is(visit: Any) -> None:
    seen = visit("hostile")
    assert '<script>alert("1")</script>' in seen.page.locator("dd").first.text_content()
    assert seen.ask("document.querySelectorAll('img, svg a, svg script').length") == 0
    for panel in ("MACs", "latency", "error", "size"):
        seen.page.get_by_label(panel).check()
        assert seen.ask(CLIPPED) == seen.ask(COLLISIONS) == seen.ask(UNDRAWN) == [], panel
    seen.page.locator(".figure .bars .point").first.scroll_into_view_if_needed()
    seen.page.locator(".figure .bars .point path").first.hover(force=True)
    hover = seen.page.locator(".hovertext").first
    hover.wait_for(timeout=2000)
    assert "</script><img" in hover.text_content().replace("\n", "")
    assert seen.trouble == [] and seen.requests == [seen.address]
