"""Elements of a page as HTML; every text from a file is escaped by whoever builds a cell from it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import PureWindowsPath

from medkd.evaluation.report.style import SCRIPT, STYLE
from medkd.evaluation.statistics import Interval, PairedDifference

_FROM_THE_ROOT = r"(?:[A-Za-z]:)?[/\\]"
_NO_LINK = r"(?<!http:)(?<!https:)(?<!http:/)(?<!https:/)"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, lead: str, *parts: str) -> str:
    """A whole page that needs nothing else: heading, lead (HTML) and parts."""
    header = f"<header><div><small>medkd report</small><h1>{escape(title)}</h1>{lead}</div></header>"
    meta = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
    )
    head = f"<head>{meta}<title>{escape(title)} · medkd report</title><style>{STYLE}</style></head>"
    footer = "<footer>Made by medkd for research; not a medical device.</footer>"
    body = f"<body>{header}<main>{''.join(parts)}{footer}</main><script>{SCRIPT}</script></body>"
    return f'<!doctype html><html lang="en">{head}{body}</html>\n'


def section(title: str, lead: str, *parts: str) -> str:
    """A box with a heading; nothing where it would hold nothing."""
    content = "".join(parts)
    return f'<section><h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{content}</section>' if content else ""


def folded(title: str, *parts: str) -> str:
    """What is shown on a click, and left folded otherwise; nothing where it would hold nothing."""
    content = "".join(parts)
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def chart(png: bytes | None, alt: str, kind: str = "") -> str:
    """A chart; nothing where there is none."""
    return image(png, alt, kind=f"chart {kind}".strip())


def image(png: bytes | None, alt: str, caption: str = "", kind: str = "") -> str:
    """A figure that carries its picture, with a caption (HTML); nothing where there is none."""
    if png is None:
        return ""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><img alt="{escape(alt)}" src="{data_url(png, "png")}">{note}</figure>'


def data_url(content: bytes, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that turns into one card per row on a narrow screen; nothing without rows.

    Args:
        head: one HTML text per column.
        rows: HTML cells, as many as columns.
        kind: further classes.
    """
    if not rows:
        return ""
    labels = [escape(re.sub(r"<[^>]*>", "", name), quote=True) for name in head]
    lines = []
    for first, *others in rows:
        cells = [f"<td>{first}</td>"]
        for label, cell in zip(labels[1:], others, strict=True):
            cells.append(f'<td data-label="{label}">{cell}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    titles = "".join(f"<th>{name}</th>" for name in head)
    body = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def definitions(texts: Mapping[str, str]) -> str:
    """A list of terms and what they mean."""
    items = [f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in texts.items()]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def card(title: str, number: str, note: str) -> str:
    """One of the big numbers on top."""
    return f'<div class="card"><em>{title}</em><b>{number}</b><span>{note}</span></div>'


def dot(colour: str) -> str:
    """A run's colour."""
    return f'<span class="dot" style="background:{colour}"></span>'


def badge(answer: str, kind: str) -> str:
    """An answer in its colour."""
    return f'<span class="badge {kind}">{escape(answer)}</span>'


def number(value: float, decimals: int = 3) -> str:
    """A number, or a dash."""
    return f"{value:.{decimals}f}" if isfinite(value) else "–"


def bounds(value: Interval, decimals: int, sign: str = "") -> str:
    """``0.812 to 0.874``; how many there are where that is too few for bounds."""
    if not isfinite(value.low):
        return f"of {value.n}"
    return f"{value.low:{sign}.{decimals}f} to {value.high:{sign}.{decimals}f}"


def interval(value: Interval | None, decimals: int) -> str:
    """A mean with its interval below."""
    if value is None or not isfinite(value.mean):
        return "–"
    return f"<b>{value.mean:.{decimals}f}</b><small>{bounds(value, decimals)}</small>"


def difference(value: PairedDifference | None, decimals: int, *, more_is_better: bool = True) -> str:
    """A paired difference with interval and p, green or red where it is clear; a dash where it is not defined."""
    if value is None or not isfinite(value.mean):
        return "–"
    p = ""
    if isfinite(value.p):
        p = f"<br>p {'&lt; 0.001' if value.p < 0.001 else f'= {value.p:.3f}'}"
    kind = _kind(value, more_is_better)
    return f'<b class="{kind}">{value.mean:+.{decimals}f}</b><small>{bounds(value, decimals, "+")}{p}</small>'


def against(value: PairedDifference | None, decimals: int, other: str, *, more_is_better: bool = True) -> str:
    """A paired difference in small; nothing where it is not defined."""
    if value is None or not isfinite(value.mean):
        return ""
    kind = _kind(value, more_is_better)
    return f'<small class="{kind}">{value.mean:+.{decimals}f} vs {other}</small>'


def _kind(value: PairedDifference, more_is_better: bool) -> str:
    if not value.clear:
        return "muted"
    return "good" if (value.mean > 0) == more_is_better else "bad"


def without_folders(text: str) -> str:
    """A text in which every absolute path is only the name of its last part: a page is sent to other people.

    A path with spaces is known as one where it is the whole text, or stands in quotes.
    """
    if re.match(_FROM_THE_ROOT, text):
        return PureWindowsPath(text).name
    unquoted = re.sub(rf"""(['"]){_FROM_THE_ROOT}(?:[^'"]*[/\\])?([^'"/\\]*)\1""", r"\1\2\1", text)
    return re.sub(rf"{_NO_LINK}(?<![\w.]){_FROM_THE_ROOT}(?:[^/\\,;\s\"']+[/\\])*([^/\\,;\s\"']*)", r"\1", unquoted)
