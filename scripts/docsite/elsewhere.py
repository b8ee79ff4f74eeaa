"""Pages whose text lies elsewhere: README, benchmarks, changes, contributing; and the list of decisions."""

from __future__ import annotations

from collections.abc import Iterator

from docsite.page import ROOT, Page, read, section, title_of

__all__ = ["pages"]

_FILES = {"benchmarks.md": "benchmarks/README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_ENDS = ("Limits", "More")  # sections of the README: the first has a page of its own, the second is the navigation


def pages() -> Iterator[Page]:
    """The pages; ValueError where the README lacks a section."""
    readme = read("README.md")
    yield Page("limits.md", "# Limits\n" + section(readme, "Limits"), "README.md")
    for heading in _ENDS:
        readme = readme.replace(f"## {heading}\n{section(readme, heading)}", "")
    start, _, rest = readme.partition("<!-- table:begin -->\n")
    figures, found, rest = rest.partition("<!-- table:end -->\n")
    if not found:
        raise ValueError("README.md has no figures between <!-- table:begin --> and <!-- table:end -->")
    front = "---\nhide: [navigation]\n---\n"
    yield Page("index.md", f"{front}{start}{rest}\n## Measured\n\n{figures}", "README.md")
    for path, origin in _FILES.items():
        yield Page(path, read(origin), origin)
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    lines = "\n".join(f"- [{title_of(file.read_text('utf-8'))}]({file.name})" for file in files)
    yield Page("decisions/index.md", f"# Decisions\n\nWhy things are as they are, one page each.\n\n{lines}\n")
