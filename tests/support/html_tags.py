"""Whether an HTML page is whole and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = ("meta", "img", "br", "input")


class Tags(HTMLParser):
    """Checks nesting, counts tags and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(page: str) -> Tags:
    """The tags of a page that is closed everywhere and needs nothing but itself."""
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith(("data:image/", "data:video/mp4;")) for link in tags.links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert page.startswith("<!doctype html><html lang=")
    return tags
