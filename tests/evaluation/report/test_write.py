"""The report: roles, comparisons, and a page that stands on its own."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from medkd.core.errors import DataError, RunError
from medkd.core.geometry import Geometry
from medkd.evaluation.report.figures import human
from medkd.evaluation.report.segmentation_data import baseline_of, compare, gap_closed, gather, teacher_of
from medkd.evaluation.report.segmentation_page import verdict
from medkd.evaluation.report.segmentation_pictures import _view, pictures
from medkd.evaluation.report.write import make_report, write_report
from tests.evaluation.folders import make_dataset, make_run

TEACHER, NONE, KD = (
    "res_unet__3d_fullres",
    "unet_tiny__3d_fullres__none__from_res_unet",
    "unet_tiny__3d_fullres__kd__from_res_unet",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("medkd")
    make_dataset(root, 6)
    folds = {0: [0, 1, 2, 3, 4, 5]}
    make_run(root, TEACHER, "res_unet", 0.6, folds, parameters=19_000_000, latency=400.0)
    make_run(root, NONE, "unet_tiny", 2.0, folds, method="none", teacher="res_unet", missing_spleen=[3])
    make_run(root, KD, "unet_tiny", 1.0, folds, method="kd", teacher="res_unet")
    return root


def results(root: Path) -> Path:
    return root / "results" / "Dataset004_Test"


def test_roles_and_partners_are_found_from_the_run_files(root: Path) -> None:
    entries = gather(results(root))
    assert [(e.name, e.role) for e in entries] == [(TEACHER, "teacher"), (NONE, "alone"), (KD, "distilled")]
    teacher, alone, student = entries
    assert baseline_of(student, entries) is alone
    assert teacher_of(student, entries) is teacher
    assert (student.cost.parameters, student.cost.latency_ms, len(student.log)) == (2_000_000, 40.0, 20)


def test_gap_closed_is_the_share_of_the_dice_and_left_out_where_there_is_no_gap(root: Path) -> None:
    entries = gather(results(root))
    teacher, alone, student = (e.summary.mean_dice for e in entries if e.summary)
    assert gap_closed(entries[2], entries) == pytest.approx((student - alone) / (teacher - alone))
    difference = compare(entries[2], entries[1])
    assert difference is not None
    assert difference.mean == pytest.approx(student - alone)
    assert gap_closed(entries[1], entries) is None
    assert gap_closed(entries[2], entries[1:]) is None


def test_the_page_stands_on_its_own_and_shows_every_run(root: Path) -> None:
    path = make_report(4, root=root)
    text = path.read_text(encoding="utf-8")
    assert path == results(root) / "report.html"
    assert text.count("data:image/png;base64,") >= 11
    assert not re.search(r"<script|https?://|<link", text)
    assert str(root) not in text
    for expected in (
        *(f"{e.summary.mean_dice:.3f}" for e in gather(results(root)) if e.summary),
        "9.5 × smaller",
        "10.0 × faster",
        "1 / 0",
    ):
        assert expected in text
    checker = _Balance()
    checker.feed(text)
    assert checker.open == []


def test_any_subset_of_runs_gives_a_page(root: Path, tmp_path: Path) -> None:
    entries = gather(results(root))
    for part in ([entries[0]], [entries[1]], [entries[2]], entries[1:], []):
        write_report(tmp_path / "page.html", "part", part)
        assert "<h1>part</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_unfinished_runs_are_shown_without_scores(root: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, 2)
    run = make_run(tmp_path, TEACHER, "res_unet", 1.0, {0: [0, 1]})
    for name in ("validation/summary.json", "model.json"):
        (run / "fold_0" / name).unlink()
    with (run / "fold_0" / "log.jsonl").open("a") as file:
        file.write('{"epoch": 20, "train_lo')
    entry = gather(run.parent)[0]
    assert (entry.summary, entry.cost.parameters, len(entry.log)) == (None, None, 20)
    text = make_report(4, root=tmp_path).read_text(encoding="utf-8")
    assert "No run has been scored yet" in text
    assert "validation Dice" in text


def test_texts_from_files_are_escaped(root: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", "<script>x</script>", gather(results(root)))
    assert "<script>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_verdict_claims_no_more_than_the_interval_allows(root: Path, tmp_path: Path) -> None:
    assert "distillation gains" in verdict(gather(results(root)))
    make_dataset(tmp_path, 3)
    make_run(tmp_path, NONE, "unet_tiny", 1.0, {0: [0, 1, 2]}, method="none", teacher="res_unet")
    make_run(tmp_path, KD, "unet_tiny", 1.0, {0: [0, 1, 2]}, method="kd", teacher="res_unet")
    assert "no clear difference" in verdict(gather(results(tmp_path)))


def test_folds_in_common_are_shown_and_a_fold_can_be_chosen(tmp_path: Path) -> None:
    make_dataset(tmp_path, 4)
    make_run(tmp_path, TEACHER, "res_unet", 0.6, {0: [0, 1], 1: [2, 3]})
    make_run(tmp_path, KD, "unet_tiny", 1.0, {0: [0, 1]}, method="kd", teacher="res_unet")
    assert [e.folds for e in gather(results(tmp_path))] == [("0",), ("0",)]
    assert [(e.name, e.folds) for e in gather(results(tmp_path), 1)] == [(TEACHER, ("1",))]
    with pytest.raises(RunError, match="no run has a fold 3"):
        gather(results(tmp_path), 3)
    with pytest.raises(RunError, match="found no run"):
        gather(tmp_path)


def test_the_three_pictured_cases_are_worst_median_and_best_of_the_distilled_student(root: Path) -> None:
    entries = gather(results(root))
    shown, judge = pictures(entries, root / "raw" / "Dataset004_Test")
    assert judge == entries[2].label
    scores = [p.dice[judge] for p in shown]
    assert [p.rank for p in shown] == ["worst", "median", "best"]
    assert scores == sorted(scores)
    assert all(p.png.startswith(b"\x89PNG") and len(p.dice) == 3 for p in shown)
    assert pictures(entries, root / "nowhere") == ([], "")


def test_slices_are_turned_as_a_radiologist_sees_them() -> None:
    """A mark at the patient's right front shows at the upper left, whichever way the file's axes run."""
    for signs in ((1, 1, 1), (-1, -1, 1), (-1, 1, -1)):
        shape = (4, 20, 24)
        geometry = Geometry.from_affine(shape, np.diag([signs[0] * 1.0, signs[1] * 1.0, signs[2] * 3.0, 1.0]))
        body, mark = np.ones(shape, np.int16), np.zeros(shape, np.int16)
        front = slice(-3, None) if signs[1] > 0 else slice(0, 3)  # RAS+: y grows to the front, x to the right
        right = slice(-3, None) if signs[0] > 0 else slice(0, 3)
        mark[:, front, right] = 1
        view, height, width = _view(geometry, body, [body])
        assert (height, width) == (20.0, 24.0)
        assert view(mark)[:3, :3].all()


def test_different_structures_cannot_be_compared(root: Path) -> None:
    a, b = gather(results(root))[:2]
    assert b.summary is not None
    cases = tuple(replace(c, scores=c.scores[:1]) for c in b.summary.cases)
    with pytest.raises(DataError, match="different structures"):
        compare(a, replace(b, summary=replace(b.summary, cases=cases)))


def test_numbers_are_readable() -> None:
    assert [human(n) for n in (None, 950, 1_960_000, 12_340_000_000)] == ["–", "950", "1.96 M", "12.3 G"]


class _Balance(HTMLParser):
    """Finds tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
