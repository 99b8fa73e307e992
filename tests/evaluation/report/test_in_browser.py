"""The page as a browser draws it: at 1400 and 390 pixels, on paper, and its slider; skipped without Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medkd.core.timing import MeasuredExport
from medkd.evaluation.report.write import make_report
from tests.browser import DARK, browse, framed, needs_browser, noted
from tests.evaluation.folders import make_dataset, make_run, make_timings
from tests.evaluation.report import test_detection_write as detection

PROBE = """
<script>
addEventListener("load", () => {
  const beyond = [];
  for (const element of document.querySelectorAll("main *")) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)) beyond.push(element.className || element.tagName);
  }
  const viewer = document.querySelector(".viewer"), chart = document.querySelector(".chart img");
  const found = {
    beyond, width: document.documentElement.scrollWidth,
    scrolls: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
    pictures: [...document.images].filter(e => e.getBoundingClientRect().width > 100 && e.naturalWidth > 0).length,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    filter: chart ? getComputedStyle(chart).filter : "no chart",
  };
  if (viewer && viewer.querySelector(".ref")) {
    const slider = viewer.querySelector("input[type=range]"), reference = viewer.querySelector("[data-layer=ref]");
    slider.value = 1; slider.dispatchEvent(new Event("input"));
    reference.checked = false; reference.dispatchEvent(new Event("change"));
    const pane = viewer.querySelector(".pane").getBoundingClientRect();
    Object.assign(found, {
      slice: viewer.style.getPropertyValue("--i"), shown: viewer.querySelector("output").textContent,
      hidden: getComputedStyle(viewer.querySelector(".ref")).display, pane: pane.width > 60 && pane.height > 60,
    });
  }
  const note = document.createElement("p");
  note.id = "found"; note.textContent = JSON.stringify(found); document.body.append(note);
});
</script>
"""

pytestmark = needs_browser


def export(name: str, made_from: str, engine: str, *, int8: bool = False) -> MeasuredExport:
    return MeasuredExport(
        name=name, made_from=made_from, engine=engine, int8=int8, size=3_900_000, seconds=(0.11, 0.12, 0.13)
    )


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
    exports = (
        export("student_onnx_for_the_ward", list(names)[-1], "onnxruntime"),
        export("student_openvino_int8", list(names)[-1], "openvino", int8=True),
        export("of_somebody_else", "", "openvino"),
    )
    make_timings(root, dict.fromkeys(names, (1.0, 1.1, 1.2)), exports=exports)
    return make_report(4, root=root)


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("radiographs")
    detection.make_raw(root)
    detection.make_run(root, detection.TEACHER, 1.0)
    detection.make_run(root, detection.NONE, 9.0, missed=0.2, method="none")
    detection.make_run(root, detection.KD, 3.0, missed=0.1, method="sfd")
    return make_report(502, root=root)


def probed(page: Path, folder: Path) -> Path:
    copy = folder / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    return copy


def brightness(colour: str) -> float:
    return max(int(part) for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("kind", ["page", "radiographs"])
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False), (390, True)])
def test_nothing_runs_out_of_the_page_light_and_dark(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, width: int, dark: bool
) -> None:
    copy = probed(request.getfixturevalue(kind), tmp_path)
    options = ["--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=6000", "--window-size=1500,1200"]
    if dark:
        options.append(DARK)
    found = noted(browse(framed(copy, width).as_uri(), tmp_path / "p", *options))
    assert found["beyond"] == [] and found["scrolls"] == 0 and found["width"] <= width
    assert found["pictures"] >= 2
    assert (brightness(found["ground"]) < 60) is dark and (brightness(found["ink"]) > 180) is dark
    assert ("invert" in found["filter"]) is dark  # charts are drawn on white
    if kind == "page":
        assert (found["slice"], found["hidden"], found["pane"]) == ("1", "none", True) and found["shown"].isdigit()


def test_exported_models_are_listed_with_size_and_time(page: Path) -> None:
    html = page.read_text(encoding="utf-8").partition("<h2>Exported</h2>")[2].replace("<wbr>", "")
    text = re.sub(r"<[^>]+>", " ", html)
    rows = re.sub(r"\s+", " ", text[:2500])
    made_from = "unet_tiny__3d_fullres__dist__from_res_unet__a_long_tag_of_somebody"
    assert f"{made_from} – torch 8.00 MB 1.1 s 1.1 s to 1.1 s – student_onnx_for_the_ward {made_from}" in rows
    assert "student_openvino_int8" in rows and "openvino, INT8 3.90 MB 120 ms 115 ms to 125 ms 9.2 × faster" in rows
    assert "of_somebody_else – openvino 3.90 MB 120 ms 115 ms to 125 ms –" in rows


def test_it_prints(page: Path, tmp_path: Path) -> None:
    browse(page.as_uri(), tmp_path / "p", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 14
    assert re.search(rb"/MediaBox\s*\[\s*0 0 84[12]", content)  # A4, landscape: the widest table fits
