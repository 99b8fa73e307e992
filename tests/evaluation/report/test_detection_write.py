"""The report of a detection data set: every run with its numbers, honest comparisons, and pictures with boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.cli.list_entries import run_rows
from medkd.cli.report import main
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, RunError
from medkd.core.paths import Root
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions, ImagePredictions
from medkd.evaluation.report.data import compare
from medkd.evaluation.report.decision import verdict
from medkd.evaluation.report.detection_pictures import radiograph_pictures, ranked_images
from medkd.evaluation.report.read import gather, read_report
from medkd.evaluation.report.write import make_report, write_report
from medkd.io.radiographs import write_png
from tests.evaluation.boxes import SIDE, random_boxes
from tests.evaluation.pages import check_page

NAME = "Dataset502_Tiny"
NAMES = ("fracture", "text")
IMAGES = 24
TEACHER, NONE, KD = (
    "yolov8l__detection",
    "yolov8n__detection__none__from_yolov8l",
    "yolov8n__detection__sfd__from_yolov8l",
)


def truth(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    boxes = np.clip(random_boxes(rng, 0 if index % 6 == 5 else int(rng.integers(1, 3))), 0, SIDE)
    return boxes, rng.integers(0, 2, len(boxes))


def make_raw(root: Path) -> Path:
    raw = root / "raw" / NAME
    for i in range(IMAGES):
        boxes, kinds = truth(i)
        pixels = np.full((SIDE, SIDE), 60, np.uint8)
        for left, top, right, bottom in boxes.astype(int):
            pixels[top:bottom, left:right] = 170
        write_png(raw / "imagesTr" / f"image_{i:02d}_0000.png", pixels)
        names = tuple(NAMES[k] for k in kinds)
        BoxAnnotation(width=SIDE, height=SIDE, boxes=tuple(map(tuple, boxes.tolist())), names=names).save(
            raw / "labelsTr" / f"image_{i:02d}.json"
        )
    DatasetDescription.detection(("X-ray",), NAMES, num_training=IMAGES, file_ending=".png").save(raw / "dataset.json")
    return raw


def make_run(
    root: Path,
    run: str,
    noise: float,
    folds: tuple[range, ...] = (range(IMAGES),),
    *,
    missed: float = 0.0,
    method: str | None = None,
) -> Path:
    """A run whose boxes are ``noise`` pixels off and miss some, as training leaves it."""
    raw, folder, network = root / "raw" / NAME, root / "results" / NAME / run, run.split("__")[0]
    spec, teacher = (
        NetworkSpec(name=network, in_channels=3, num_outputs=2, patch_size=(640, 640)),
        "yolov8l" if method else None,
    )
    save(
        folder / "run.json",
        RunDescription(
            dataset=NAME,
            configuration="detection",
            network=spec,
            budget=Budget(3, 10, 4, 0.01, 0),
            mirror_axes=(),
            precision="fp32",
            method=method,
            method_parameters={},
            teacher=teacher,
        ),
    )
    for fold, cases in enumerate(folds):
        here, images, rng = folder / f"fold_{fold}", {}, np.random.default_rng(len(run))
        for i in cases:
            boxes, kinds = truth(i)
            kept = rng.random(len(boxes)) >= missed
            near = boxes[kept] + rng.normal(0, noise, (int(kept.sum()), 4))
            every = np.concatenate([near, random_boxes(rng, 3)])
            every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 2)
            classes = np.concatenate([kinds[kept], rng.integers(0, 2, 3)])
            scores = np.concatenate([rng.uniform(0.5, 1, len(near)), rng.uniform(0, 0.7, 3)])
            images[f"image_{i:02d}"] = ImagePredictions(
                f"image_{i:02d}.png", SIDE, SIDE, Boxes.of(every, classes, scores)
            )
        DetectionPredictions(NAMES, images).save(here / "validation")
        _score(here, raw, list(images))
        size = 43_000_000 if network == "yolov8l" else 3_000_000
        cost = {
            "parameters": size,
            "macs": size * 900,
            "latency_ms": size / 1e6,
            "patch_size": [640, 640],
            "device": "cpu",
            "threads": 1,
        }
        (here / "model.json").write_text(json.dumps(cost))
        log = [
            {
                "epoch": e,
                "train_loss": 3 / (e + 1),
                "validation_score": e / 9,
                "terms": {"class": 1 / (e + 1), "box": 2 / (e + 1)},
            }
            for e in range(3)
        ]
        (here / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return folder


def _score(fold: Path, raw: Path, cases: list[str]) -> None:
    (fold / "split.json").write_text(json.dumps({"train": [], "val": cases}))
    for case in cases:
        link = fold / "references" / f"{case}.json"
        link.parent.mkdir(exist_ok=True)
        link.write_bytes((raw / "labelsTr" / f"{case}.json").read_bytes())
    evaluate_detection_folder(fold / "validation", fold / "references").save(fold / "validation" / "summary.json")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    make_raw(root)
    make_run(root, TEACHER, 1.0)
    make_run(root, NONE, 9.0, missed=0.2, method="none")
    make_run(root, KD, 3.0, missed=0.1, method="sfd")
    return root


def test_roles_comparisons_and_the_gap(root: Path) -> None:
    report = read_report(root / "results" / NAME)
    entries = report.entries
    assert [(e.name, e.role) for e in entries] == [(TEACHER, "teacher"), (NONE, "alone"), (KD, "distilled")]
    assert [e.label for e in entries] == ["yolov8l", "yolov8n", "yolov8n + sfd"]
    scores = [e.merit for e in entries]
    gain = report.difference(entries[2], report.alone(entries[2]))
    assert gain is not None and gain.clear and gain.mean == pytest.approx(scores[2] - scores[1])
    assert report.gap_closed(entries[2]) == pytest.approx((scores[2] - scores[1]) / (scores[0] - scores[1]))
    assert report.difference(entries[2], entries[1], part="nothing") is None
    assert "distillation gains" in " ".join(verdict(report))


def test_where_nothing_was_learnt_nothing_is_concluded(tmp_path: Path) -> None:
    """Boxes that are 200 px off: AP 0.000 for all, and no share of a gap is claimed."""
    make_raw(tmp_path)
    for name, noise, method in ((TEACHER, 150.0, None), (NONE, 190.0, "none"), (KD, 170.0, "sfd")):
        make_run(tmp_path, name, noise, missed=0.5, method=method)
    report = read_report(tmp_path / "results" / NAME)
    assert max(entry.merit for entry in report.entries) < 0.01
    sentences = verdict(report)
    assert "Nothing can be concluded: the teacher yolov8l has learnt nothing" in sentences[0]
    assert report.gap_closed(report.entries[2]) is None
    assert "neither has learnt anything" in sentences[-1]
    text = make_report(502, root=tmp_path).read_text(encoding="utf-8")
    assert "of the way from student alone to teacher" not in text and "Nothing can be concluded" in text


def test_the_page_stands_on_its_own_and_shows_every_number(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["502", "--root", str(root)]) == 0
    text = check_page(root / "results" / NAME / "report.html")
    assert text.count("data:image/png;base64,") >= 8 and str(root) not in text
    for entry in gather(root / "results" / NAME):
        for metric in ("AP", "AP50", "S@1", "AUC"):
            assert f"{entry.scores.value(metric).mean:.3f}" in text
    for expected in ("14.3 × smaller", "FROC", "gap closed", "AP without text", "validation AP", "Worst", "Best"):
        assert expected in text


def test_any_subset_of_runs_gives_a_page(root: Path, tmp_path: Path) -> None:
    report = read_report(root / "results" / NAME)
    entries = report.entries
    for part in ([entries[0]], [entries[2]], entries[1:], []):
        write_report(tmp_path / "page.html", replace(report, title="<b>part</b>", entries=tuple(part)))
        assert "<h1>&lt;b&gt;part" in check_page(tmp_path / "page.html")


def test_runs_without_scores_and_folds_in_common(tmp_path: Path) -> None:
    make_raw(tmp_path)
    make_run(tmp_path, TEACHER, 1.0, (range(0, 12), range(12, 24)))
    make_run(tmp_path, KD, 3.0, (range(0, 12),), method="sfd")
    unfinished = make_run(tmp_path, NONE, 3.0, (range(0, 12),), method="none")
    (unfinished / "fold_0" / "validation" / "summary.json").unlink()
    entries = gather(tmp_path / "results" / NAME)
    assert {e.name: (e.folds, e.scores is not None) for e in entries} == {
        TEACHER: (("0",), True),
        NONE: (("0",), False),
        KD: (("0",), True),
    }
    assert read_report(tmp_path / "results" / NAME).alone(entries[-1]) is None
    assert "yolov8n + sfd" in make_report(502, root=tmp_path).read_text(encoding="utf-8")
    both = gather(tmp_path / "results" / NAME, 1)
    assert [(e.name, e.folds) for e in both] == [(TEACHER, ("1",))]
    with pytest.raises(RunError, match="no run has a fold 3"):
        gather(tmp_path / "results" / NAME, 3)
    rows = {row[1]: row[3] for row in run_rows(Root.resolve(tmp_path))[1:]}
    merit = both[0].merit
    assert rows[TEACHER].endswith(f"1: AP {merit:.4f}") and rows[NONE] == "0: empty"


def test_the_whole_of_several_folds_is_shown(tmp_path: Path) -> None:
    make_raw(tmp_path)
    make_run(tmp_path, TEACHER, 1.0, (range(0, 10), range(10, IMAGES)))
    entry = gather(tmp_path / "results" / NAME)[0]
    assert len(entry.scores.cases) == len(entry.scores.found.images) == IMAGES


def test_pictures_show_the_worst_and_the_best_with_boxes(root: Path) -> None:
    report = read_report(root / "results" / NAME, raw=root / "raw" / NAME)
    shown, judge = radiograph_pictures(report)
    assert judge == "yolov8n + sfd" and [p.rank for p in shown][:3] == ["worst", "median", "best"]
    quality = [2 * t / (2 * t + m + f) for t, m, f in (p.counts[judge] for p in shown[:3])]
    assert quality == sorted(quality) and quality[2] == 1.0
    assert [(p.rank, p.case) for p in shown] == ranked_images(report.entries[2].scores)
    assert [list(p.panels) for p in shown] == [[e.label for e in report.entries]] * len(shown)
    with Image.open(BytesIO(shown[0].panels[judge])) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (np.abs(pixels - 255).sum(-1) < 30).sum() > 200  # reference boxes in white
    assert radiograph_pictures(replace(report, raw=root / "nowhere")) == ([], "")


def test_pictures_are_cut_at_one_false_positive_per_image(root: Path) -> None:
    for entry in gather(root / "results" / NAME):
        counts = np.array([entry.scores.balance(case) for case in entry.scores.cases])
        true, missed, false = counts.sum(axis=0)
        assert false <= len(counts) and true + missed == sum(map(len, entry.scores.summary.truths.values()))


def test_runs_that_were_scored_differently_are_not_compared(root: Path) -> None:
    first, second = gather(root / "results" / NAME)[:2]
    summary = second.scores.summary
    other = replace(second.scores, summary=replace(summary, categories=("text", "fracture")))
    with pytest.raises(DataError, match="other classes"):
        compare(first, replace(second, scores=other), "AP")
    nowhere = replace(second.scores, summary=replace(summary, truths={}))
    assert compare(first, replace(second, scores=nowhere), "AP") is None
