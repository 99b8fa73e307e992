"""The upload page in a real browser: it sends a scan, shows slices and structures, and fits a phone, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medkd.runtime.predictor import RuntimePredictor
from medkd.serving.page import PAGE
from tests.browser import DARK, browse, framed, needs_browser, noted
from tests.serving.conftest import SCAN, Client

pytestmark = needs_browser

USE = """
<script>
addEventListener("load", async () => {
  const wait = async holds => {
    for (let i = 0; i < 400 && !holds(); i++) await new Promise(done => setTimeout(done, 50));
  };
  const coloured = () => {
    const canvas = $("canvas"), pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4) count += pixels[i] !== pixels[i + 1] || pixels[i] !== pixels[i + 2];
    return count;
  };
  const change = (id, value) => {
    $(id).value = value;
    $(id).dispatchEvent(new Event(id === "axis" ? "change" : "input"));
  };
  await wait(() => $("format").options.length);
  const given = new DataTransfer();
  given.items.add(new File([bytes("SCAN")], "anything.txt"));
  $("file").files = given.files;
  $("file").dispatchEvent(new Event("change"));
  $("send").click();
  await wait(() => $("state").textContent === "Done." || $("state").className === "bad");
  const found = { state: $("state").textContent, model: $("model").textContent, formats: $("format").options.length };
  if (found.state === "Done.") {
    found.number = $("number").textContent;
    found.coloured = coloured();
    $("overlay").click();
    found.grey = coloured();
    $("overlay").click();
    change("slice", 0);
    found.first = $("number").textContent;
    change("axis", 2);
    found.sagittal = $("number").textContent;
    found.structures = [...document.querySelectorAll("#structures td:first-child")].map(cell => cell.textContent);
    found.saved = (await (await fetch($("save").href)).arrayBuffer()).byteLength;
    found.name = $("save").download;
  }
  const note = document.createElement("p");
  note.id = "found"; note.textContent = JSON.stringify(found); document.body.append(note);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("content", [SCAN.read_bytes(), b"no scan"], ids=["scan", "no scan"])
def test_the_page_sends_a_scan_and_shows_its_structures(
    serve: Callable[..., Client],
    predictor: RuntimePredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    from medkd.serving import app as serving_app

    acting = PAGE.replace("</body>", USE.replace("SCAN", base64.b64encode(content).decode()) + "</body>")
    monkeypatch.setattr(serving_app, "PAGE", acting)
    policy = serving_app._POLICY.replace(b"connect-src 'self'", b"connect-src 'self' blob:")  # to look at what is saved
    monkeypatch.setattr(serving_app, "_HEADERS", ((b"content-security-policy", policy),))
    call = serve(predictor)
    options = ("--dump-dom", "--virtual-time-budget=60000", "--window-size=1400,1000")
    found = noted(browse(f"http://127.0.0.1:{call.port}/", tmp_path / "profile", *options))
    assert found["model"].startswith("student: small, large. Research software") and found["formats"] >= 2
    if content == b"no scan":
        assert found["state"].startswith("The request is neither NIfTI")
        return
    assert found["state"] == "Done.", found
    assert found["coloured"] > 500 and found["grey"] == 0
    assert re.fullmatch(r"\d+ / \d+", found["number"]) and found["first"].startswith("1 / ")
    assert found["sagittal"] != found["first"] and found["structures"] == ["small", "large"]
    assert found["saved"] > 50 and found["name"] == "segmentation.nii.gz"


LAYOUT = """
<script>
addEventListener("load", () => {
  const size = [40, 60, 50], count = 120000;
  const code = at => btoa(String.fromCharCode(...new Uint8Array(3000).map((_, i) => at(i)))).repeat(count / 3000);
  const named = (_, i) => ({ name: "a_structure_with_a_long_name_" + i, millilitres: 12345.678 });
  const structures = Array.from({ length: 14 }, named), remarks = ["A remark on /the/scan ".repeat(9)];
  show({ shape: size, spacing: [3, 1, 1], image: code(i => i % 255), labels: code(i => i % 15), structures,
    content: "", name: "segmentation.nii.gz", seconds: { read: 1, network: 2 }, remarks });
  const beyond = [];
  for (const element of document.querySelectorAll("main *")) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)) beyond.push(element.id || element.tagName);
  }
  const style = getComputedStyle(document.body), note = document.createElement("p");
  const colours = [style.color, getComputedStyle(document.documentElement).colorScheme];
  const pane = $("canvas").getBoundingClientRect();
  note.id = "found";
  note.textContent = JSON.stringify({ beyond, width: document.documentElement.scrollWidth, colours,
    pane: [pane.width, pane.height], dark: matchMedia("(prefers-color-scheme: dark)").matches,
    text: getComputedStyle($("state")).color });
  document.body.append(note);
});
</script>
"""


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False), (390, True)])
def test_the_page_fits_screens_and_phones_light_and_dark(tmp_path: Path, width: int, dark: bool) -> None:
    """In a frame, since headless Chromium opens no window narrower than 500 pixels."""
    (tmp_path / "page.html").write_text(PAGE.replace("</body>", LAYOUT + "</body>"), encoding="utf-8")
    options = ["--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=6000", "--window-size=1500,1200"]
    if dark:
        options.append(DARK)
    found = noted(browse(framed(tmp_path / "page.html", width).as_uri(), tmp_path / "profile", *options))
    assert found["beyond"] == [] and found["width"] <= width
    assert min(found["pane"]) > 100 and found["dark"] is dark
    shades = [int(part) for part in re.findall(r"\d+", found["text"])[:3]]
    assert (min(shades) > 150) if dark else (max(shades) < 100), found
