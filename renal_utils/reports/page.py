"""One HTML page without anything outside it: texts, tables and pictures, all escaped.

The page is a tree of ``xml.etree`` elements, which escapes every text and attribute when written,
so a slide's name cannot become markup. Pictures stand inside it as PNG.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from renal_utils.runtime import atomic_path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #444; }
.warning { border: 2px solid #a33; padding: .6rem 1rem; font-weight: 600; }
.wide { overflow-x: auto; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page:
    """A page that is written from top to bottom.

    Args:
        title: Of the page, and its first heading.
        warning: Stands under the title, marked.
    """

    def __init__(self, title: str, *, warning: str = "") -> None:
        self._root = Element("html", lang="en")
        head = SubElement(self._root, "head")
        SubElement(head, "meta", charset="utf-8")
        SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY})
        SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
        SubElement(head, "title").text = title
        SubElement(head, "style").text = _STYLE
        self._body = SubElement(SubElement(self._root, "body"), "main")
        SubElement(self._body, "h1").text = title
        if warning:
            SubElement(self._body, "p", {"class": "warning", "role": "note"}).text = warning

    def heading(self, text: str, *, level: int = 2) -> None:
        """Add a heading; level 2 is the highest below the title."""
        SubElement(self._body, f"h{level}").text = text

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        SubElement(self._body, "p").text = text

    def items(self, texts: Iterable[str]) -> None:
        """Add a list."""
        parent = SubElement(self._body, "ul")
        for text in texts:
            SubElement(parent, "li").text = text

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str) -> None:
        """Add a table of texts; the first cell of a row is its heading."""
        box = SubElement(self._body, "div", {"class": "wide"})
        table = SubElement(box, "table")
        SubElement(table, "caption").text = caption
        head = SubElement(SubElement(table, "thead"), "tr")
        for name in columns:
            SubElement(head, "th", scope="col").text = name
        body = SubElement(table, "tbody")
        for cells in rows:
            row = SubElement(body, "tr")
            for number, cell in enumerate(cells):
                kind, options = ("td", {}) if number else ("th", {"scope": "row"})
                SubElement(row, kind, options).text = cell

    def picture(self, png: bytes, alternative: str, *, caption: str = "") -> None:
        """Add a PNG with the text that stands for it where it cannot be seen."""
        figure = SubElement(self._body, "figure")
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        SubElement(figure, "img", src=source, alt=alternative)
        if caption:
            SubElement(figure, "figcaption").text = caption

    def text(self) -> str:
        """Return the page as HTML."""
        return "<!DOCTYPE html>\n" + tostring(self._root, encoding="unicode", method="html") + "\n"

    def write(self, path: str | Path) -> None:
        """Write the page, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")
