"""Hooks of MkDocs: the pages that are not files in docs, and links that hold on a code host and on the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docsite import elsewhere, passpages, reference, targetpages
from docsite.links import Homes, anchors_of, rewritten, slug
from docsite.page import Page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page as BuiltPage

_REPLACED = ("passes.md", "targets.md")  # a folder of pages takes the place of each
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):(?=<)")

_made: dict[str, Page] = {}
_homes: Homes = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages that are not files in docs, and put those of folders into the navigation."""
    _made.clear()
    try:
        for maker in (elsewhere, passpages, targetpages, reference):
            _made.update({page.path: page for page in maker.pages()})
    except ValueError as error:
        raise PluginError(str(error)) from error
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slug}
    paths = [path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")]
    config.nav = _filled(config.nav or [], sorted({*paths, *_made}))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the published schemas, and note what each page is made of."""
    for name in _REPLACED:
        replaced = files.get_file_from_path(name)
        if replaced is not None:
            files.remove(replaced)
    for page in _made.values():
        files.append(File.generated(config, page.path, content=page.text))
    for path, text in reference.schema_files():
        files.append(File.generated(config, path, content=text))
    _homes.clear()
    for file in files:
        origin = _origin(file.src_uri)
        anchors = anchors_of(file.content_string) if file.is_documentation_page() else set[str]()
        folder = origin.removesuffix("/index.md")  # a link to a folder leads to its index
        for source in {origin, folder}:
            _homes.setdefault(source, []).append((file.src_uri, anchors))
    return files


def on_page_markdown(markdown: str, page: BuiltPage, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    path = page.file.src_uri
    return rewritten(markdown, path, _origin(path), _homes)


def on_page_content(html: str, page: BuiltPage, config: MkDocsConfig, files: Files) -> str:
    """Drop what Sphinx would read before a name in a docstring, such as ``:class:``."""
    return _ROLE.sub("", html)


def _origin(path: str) -> str:
    """The file of the repository that a page is made of, or the one that it would be in docs."""
    made = _made.get(path)
    return (made.origin if made else "") or f"docs/{path}"


def _filled(nav: list[Any], paths: list[str]) -> list[Any]:
    """The navigation, with ``NAME/`` being all pages of that folder, its index first."""
    return list(_entries(nav, paths))


def _entries(nav: list[Any], paths: list[str]) -> Iterator[Any]:
    for entry in nav:
        if isinstance(entry, dict):
            yield {title: _folder(inner, paths) for title, inner in entry.items()}
        else:
            yield entry


def _folder(inner: Any, paths: list[str]) -> Any:
    if isinstance(inner, list):
        return _filled(inner, paths)
    if not str(inner).endswith("/"):
        return inner
    index = f"{inner}index.md"
    return [index, *(path for path in paths if path.startswith(inner) and path != index)]
