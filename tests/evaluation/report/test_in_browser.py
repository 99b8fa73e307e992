"""The page as a browser draws it: at 1400 and 390 pixels, on paper, and its slider; skipped without Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medkd.evaluation.report.write import make_report
from tests.browser import browse, framed, needs_browser, noted
from tests.evaluation.folders import make_dataset, make_run, make_timings

PROBE = """
<script>
addEventListener("load", () => {
  const beyond = [];
  for (const element of document.querySelectorAll("main *")) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)) beyond.push(element.className || element.tagName);
  }
  const slider = document.querySelector(".viewer input[type=range]"), viewer = document.querySelector(".viewer");
  slider.value = 1; slider.dispatchEvent(new Event("input"));
  const reference = viewer.querySelector("[data-layer=ref]");
  reference.checked = false; reference.dispatchEvent(new Event("change"));
  const pane = viewer.querySelector(".pane").getBoundingClientRect();
  const found = {
    beyond, width: document.documentElement.scrollWidth, slice: viewer.style.getPropertyValue("--i"),
    shown: viewer.querySelector("output").textContent, hidden: getComputedStyle(viewer.querySelector(".ref")).display,
    pane: pane.width > 60 && pane.height > 60,
    scrolls: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
  };
  const note = document.createElement("p");
  note.id = "found"; note.textContent = JSON.stringify(found); document.body.append(note);
});
</script>
"""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    make_dataset(root, 6)
    names = {"res_unet__3d_fullres": (0.6, None)}
    for method, strength in (("none", 2.0), ("kd", 1.0), ("dist", 1.2)):
        names[f"unet_tiny__3d_fullres__{method}__from_res_unet__a_long_tag_of_somebody"] = (strength, method)
    for name, (strength, method) in names.items():
        teacher = "res_unet" if method else None
        make_run(root, name, name.split("__")[0], strength, {0: range(6)}, method=method, teacher=teacher)
    make_timings(root, dict.fromkeys(names, (1.0, 1.1, 1.2)))
    return make_report(4, root=root)


@pytest.mark.parametrize("width", [1400, 700])
def test_nothing_runs_out_of_the_page_and_the_slider_works(page: Path, tmp_path: Path, width: int) -> None:
    probed = tmp_path / "page.html"
    text = page.read_text(encoding="utf-8")
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    options = (f"--window-size={width},1200", "--dump-dom", "--virtual-time-budget=4000")
    found = noted(browse(probed.as_uri(), tmp_path / "p", *options))
    assert found["beyond"] == [] and found["scrolls"] == 0 and found["width"] <= width
    assert (found["slice"], found["hidden"], found["pane"]) == ("1", "none", True) and found["shown"].isdigit()


def test_on_a_phone_the_page_is_as_wide_as_the_screen(page: Path, tmp_path: Path) -> None:
    probed = tmp_path / "page.html"
    text = page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>")
    probed.write_text(text, encoding="utf-8")
    options = ("--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=6000")
    found = noted(browse(framed(probed, 390).as_uri(), tmp_path / "p", *options))
    assert found["beyond"] == [] and found["scrolls"] == 0 and found["width"] <= 390


def test_it_prints(page: Path, tmp_path: Path) -> None:
    browse(page.as_uri(), tmp_path / "p", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 14
    assert re.search(rb"/MediaBox\s*\[\s*0 0 84[12]", content)  # A4, landscape: the widest table fits
