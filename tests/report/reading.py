"""Read pages and figures back."""

from html.parser import HTMLParser

import numpy as np
from matplotlib.figure import Figure

ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Text, addresses, tables and unclosed tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.tags: list[str] = []
        self.unscoped: int = 0
        self.unnamed_figures: int = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(values)
        self.addresses += [values[name] or "" for name in ("src", "href", "xlink:href", "action") if name in values]
        self.unscoped += tag == "th" and "scope" not in values
        self.unnamed_figures += tag == "svg" and not values.get("aria-label")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of each labelled line."""
    lines = figure.axes[0].get_lines()
    points = {str(line.get_label()): np.asarray(line.get_xydata()) for line in lines}
    return {label: (xy[:, 0].tolist(), xy[:, 1].tolist()) for label, xy in points.items()}
