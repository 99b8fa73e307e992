"""Headless Chromium for tests of pages; there is no other browser, and nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DARK = "--blink-settings=preferredColorScheme=0"
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


def browse(address: str, profile: Path, *options: str) -> str:
    """What the browser prints of a page, for example its elements with ``--dump-dom``."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *options, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def noted(drawn: str) -> dict[str, Any]:
    """What a script in the page noted as JSON in an element ``found``."""
    match = re.search(r'<p id="found"[^>]*>(.*?)</p>', drawn, re.DOTALL)
    assert match, drawn[-500:]
    found: dict[str, Any] = json.loads(unescape(match.group(1)))
    return found


def framed(page: Path, width: int) -> Path:
    """A page beside it that shows it in a frame of this width and takes over what it noted: headless Chromium opens no
    window narrower than 500 pixels.
    """
    frame = page.with_name(f"frame_{width}.html")
    frame.write_text(
        f'<!doctype html><body><iframe id="f" src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe>'
        '<script>addEventListener("load", () => { setTimeout(() => { const note = document.createElement("p");'
        'note.id = "found";'
        'note.textContent = document.getElementById("f").contentDocument.getElementById("found").textContent;'
        "document.body.append(note); }, 500); });</script></body>",
        encoding="utf-8",
    )
    return frame
