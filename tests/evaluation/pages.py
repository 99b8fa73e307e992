"""What every report's page must be: whole, on its own, and beside it its numbers."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

from medkd.evaluation.report.tables import COLUMNS


def check_page(path: Path) -> str:
    """The page's text; its tags are closed, nothing comes from elsewhere, and the tables lie beside it."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src|https?://|<link|@import", text)
    checker = _Balance()
    checker.feed(text)
    assert checker.open == []
    with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(COLUMNS) and {len(row) for row in rows} == {len(COLUMNS)}
    latex = path.with_suffix(".tex").read_text(encoding="utf-8")
    assert latex.startswith("\\begin{tabular}") and latex.endswith("\\end{tabular}\n")
    return text


class _Balance(HTMLParser):
    """Finds tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br", "input", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
