"""Links between pages: as they are written for a code host, so that they lead to the pages of the site."""

from __future__ import annotations

import posixpath
import re

__all__ = ["Homes", "anchors_of", "rewritten", "slug"]

# By file or folder of the repository: the pages of the site that are made of it, each with its anchors.
Homes = dict[str, list[tuple[str, set[str]]]]

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.M | re.S)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
_LINK = re.compile(r"(\]\()([^)\s]+)(?=[)\s])")


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading as code hosts make it."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", separator)


def anchors_of(text: str) -> set[str]:
    """The anchors of all headings of a page."""
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)}


def rewritten(text: str, page: str, origin: str, homes: Homes) -> str:
    """Return a page with links to other pages of the site where they are to files of the repository.

    Args:
        text: The page as Markdown.
        page: Its path on the site.
        origin: The file of the repository to which its links are relative.
        homes: The pages of the site by what they are made of.
    """
    held: list[str] = []

    def hold(found: re.Match[str]) -> str:
        held.append(found.group(0))
        return f"\x00{len(held) - 1}\x00"

    def lead(found: re.Match[str]) -> str:
        target = found.group(2)
        path, mark, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            return found.group(0)
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)) if path else origin
        homes_of = homes.get(file, ())
        home = next((home for home, anchors in homes_of if not anchor or anchor in anchors), None)
        if home is None:
            return found.group(0)  # what leads nowhere is MkDocs' to complain of
        relative = "" if home == page and anchor else posixpath.relpath(home, posixpath.dirname(page) or ".")
        return f"{found.group(1)}{relative}{mark}{anchor}"

    linked = _LINK.sub(lead, _CODE.sub(hold, _FENCE.sub(hold, text)))
    while "\x00" in linked:
        linked = re.sub(r"\x00(\d+)\x00", lambda found: held[int(found.group(1))], linked)
    return linked
