"""The report: roles, comparisons, and a page that stands on its own."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medkd.core.checkpoint import save_checkpoint, weights_digest
from medkd.core.errors import DataError, RunError
from medkd.core.geometry import Geometry
from medkd.core.timing import Spread
from medkd.evaluation.report.data import Report, baseline_of, compare, teacher_of
from medkd.evaluation.report.decision import verdict
from medkd.evaluation.report.figures import human
from medkd.evaluation.report.html import without_folders
from medkd.evaluation.report.read import gather, read_report
from medkd.evaluation.report.segmentation_pictures import View, pictures
from medkd.evaluation.report.tables import csv_text
from medkd.evaluation.report.write import make_report, write_report
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.evaluation.segmentation.results import Summary
from medkd.evaluation.segmentation.scored_from import with_sources
from tests.evaluation.folders import LABELS, make_dataset, make_run, make_timings
from tests.evaluation.pages import check_page

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
    make_timings(root, {TEACHER: (4.0, 4.2, 4.1), KD: (0.4, 0.41, 0.5)})
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
    report = read_report(results(root))
    teacher, alone, student = (entry.scores.summary.mean_dice for entry in report.entries)
    assert report.gap_closed(report.entries[2]) == pytest.approx((student - alone) / (teacher - alone))
    difference = compare(report.entries[2], report.entries[1], "Dice")
    assert difference is not None
    assert difference.mean == pytest.approx(student - alone)
    assert report.gap_closed(report.entries[1]) is None
    assert replace(report, entries=report.entries[1:]).gap_closed(report.entries[2]) is None


def test_the_page_stands_on_its_own_and_shows_every_run(root: Path) -> None:
    path = make_report(4, root=root)
    assert path == results(root) / "report.html"
    text = check_page(path)
    assert text.count("data:image/png;base64,") >= 11
    assert str(root) not in text
    for expected in (
        *(f"{entry.scores.summary.mean_dice:.3f}" for entry in gather(results(root))),
        "9.5 × smaller",
        "10.0 × faster",
        "410 ms instead of 4.1 s per scan",
        "1 / 0",
    ):
        assert expected in text


def test_a_time_that_was_not_measured_is_not_made_up(tmp_path: Path) -> None:
    """model.json's latency is one bare forward, taken at another time: the page does not call a ratio of two faster."""
    make_dataset(tmp_path, 6)
    make_run(tmp_path, TEACHER, "res_unet", 0.6, {0: range(6)}, latency=400.0)
    make_run(tmp_path, KD, "unet_tiny", 1.0, {0: range(6)}, method="kd", teacher="res_unet")
    text = make_report(4, root=tmp_path).read_text(encoding="utf-8")
    assert "not measured" in text and "× faster" not in text and "--measure" in text


def test_times_that_overlap_are_no_gain(root: Path, tmp_path: Path) -> None:
    report = read_report(results(root))
    for own, expected in ((Spread(0.9, 0.8, 1.0, 5), "the same speed"), (Spread(8.2, 8.0, 8.4, 5), "2.0 × slower")):
        entries = [
            replace(entry, time=own if entry.name == KD else Spread(4.1, 0.99, 4.2, 5)) for entry in report.entries
        ]
        write_report(tmp_path / "page.html", replace(report, entries=tuple(entries)))
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert expected in text and "× faster" not in text


def test_any_subset_of_runs_gives_a_page(root: Path, tmp_path: Path) -> None:
    report = read_report(results(root))
    entries = report.entries
    for part in ([entries[0]], [entries[1]], [entries[2]], entries[1:], []):
        write_report(tmp_path / "page.html", replace(report, title="part", entries=tuple(part)))
        assert "<h1>part</h1>" in check_page(tmp_path / "page.html")


@pytest.mark.parametrize("name", ["numbers.csv", "table.TEX"])
def test_no_table_takes_the_place_of_the_page(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"names the page, which is HTML; end it with \.html"):
        make_report(4, root=root, output=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_takes_the_page_and_its_tables(root: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert make_report(4, root=root, output=tmp_path / "here") == tmp_path / "here" / "report.html"
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["report.csv", "report.html", "report.tex"]


def test_runs_are_chosen_by_name_or_pattern(root: Path) -> None:
    assert [entry.name for entry in gather(results(root), runs=["res_unet*", KD])] == [TEACHER, KD]
    with pytest.raises(RunError, match=r"no run is called 'res_unet__3d_fulres'\. Did you mean 'res_unet__3d_fullres'"):
        gather(results(root), runs=["res_unet__3d_fulres"])


def test_unfinished_runs_fold_away(root: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, 2)
    run = make_run(tmp_path, TEACHER, "res_unet", 1.0, {0: [0, 1]})
    for name in ("validation/summary.json", "model.json"):
        (run / "fold_0" / name).unlink()
    with (run / "fold_0" / "log.jsonl").open("a") as file:
        file.write('{"epoch": 20, "train_lo')
    entry = gather(run.parent)[0]
    assert (entry.scores, entry.cost.parameters, len(entry.log)) == (None, None, 20)
    text = check_page(make_report(4, root=tmp_path))
    assert "no run has been scored yet" in text and "1 run without scores" in text
    assert "validation Dice" in text


def test_a_page_tells_no_folder_of_the_machine(tmp_path: Path) -> None:
    """A teacher from elsewhere is recorded by its absolute path; the page is sent to other people."""
    make_dataset(tmp_path, 6)
    teacher = "/home/somebody/models/Dataset004/nnUNetTrainer__nnUNetPlans__3d_fullres"
    run = make_run(tmp_path, KD, "unet_tiny", 1.0, {0: range(6)}, method="kd", teacher=teacher)
    described = run / "run.json"
    described.write_text(described.read_text().replace('"kd.weight": 1.0', '"kd.file": "/home/somebody/prompts.pt"'))
    make_timings(tmp_path, {KD: (1.0, 1.1)})
    page = make_report(4, root=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres" in text and "prompts.pt" in text
    for path in (page, page.with_suffix(".csv"), page.with_suffix(".tex")):
        written = path.read_text(encoding="utf-8")
        assert "somebody" not in written and str(tmp_path) not in written and str(Path.home()) not in written


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/a/b/c.pt", "c.pt"),
        ("kd.file = /a/b/c.pt, kd.weight = 1/2", "kd.file = c.pt, kd.weight = 1/2"),
        (r"C:\\data\\best.pt", "best.pt"),
        ("/home/some body/a file.pt", "a file.pt"),
        ("/home/some body/models/", "models"),
        ("['/home/some body/a.pt', 'x', \"/b/c d.pt\"]", "['a.pt', 'x', \"c d.pt\"]"),
        ("mine (/a/b.json), https://arxiv.org/abs/1503.02531", "mine (b.json), https://arxiv.org/abs/1503.02531"),
        ("file:///home/somebody/a.pt", "file:a.pt"),
        ("1.0", "1.0"),
    ],
)
def test_paths_become_names(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_two_runs_never_have_one_label(tmp_path: Path) -> None:
    make_dataset(tmp_path, 2)
    for teacher in ("res_unet", "plain_unet"):
        name = f"unet_tiny__3d_fullres__kd__from_{teacher}"
        make_run(tmp_path, name, "unet_tiny", 1.0, {0: [0, 1]}, method="kd", teacher=teacher)
    labels = {entry.label for entry in gather(results(tmp_path))}
    assert labels == {"unet_tiny + kd of res_unet", "unet_tiny + kd of plain_unet"}


def test_further_metrics_stand_in_the_csv_where_a_run_was_scored_with_them(tmp_path: Path) -> None:
    make_dataset(tmp_path, 2)
    for name, network in ((TEACHER, "res_unet"), (KD, "unet_tiny")):
        make_run(tmp_path, name, network, 1.0, {0: [0, 1]}, teacher="res_unet" if network == "unet_tiny" else None)
    assert "ASSD" not in csv_text(read_report(results(tmp_path)))
    folder = results(tmp_path) / TEACHER / "fold_0" / "validation"
    references = tmp_path / "raw" / "Dataset004_Test" / "labelsTr"
    summary = evaluate_folder(folder, references, LABELS, further=("ASSD",))
    summary.save(folder / "summary.json")
    rows = [line.split(",") for line in csv_text(read_report(results(tmp_path))).splitlines()]
    found = {row[0]: row[5] for row in rows if row[3:5] == ["ASSD", ""]}
    assert float(found[TEACHER]) == pytest.approx(summary.interval("ASSD").mean, rel=1e-4) and found[KD] == ""
    assert not any(row[3] == "ASD" for row in rows)


def test_texts_from_files_are_escaped(root: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", replace(read_report(results(root)), title="<script>x</script>"))
    assert "<script>x" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_verdict_claims_no_more_than_the_interval_allows(root: Path, tmp_path: Path) -> None:
    assert "distillation gains" in " ".join(verdict(read_report(results(root))))
    make_dataset(tmp_path, 3)
    make_run(tmp_path, NONE, "unet_tiny", 1.0, {0: [0, 1, 2]}, method="none", teacher="res_unet")
    make_run(tmp_path, KD, "unet_tiny", 1.0, {0: [0, 1, 2]}, method="kd", teacher="res_unet")
    assert "nothing can be concluded from so few cases" in " ".join(verdict(read_report(results(tmp_path))))


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


def with_raw(root: Path) -> Report:
    return read_report(results(root), raw=root / "raw" / "Dataset004_Test")


def test_failures_come_first_then_worst_median_and_best(root: Path) -> None:
    report = with_raw(root)
    shown, judge = pictures(report)
    assert judge == report.entries[2].label
    scores = [picture.dice[judge] for picture in shown]
    assert [picture.rank for picture in shown] == ["worst", "median", "best"]
    assert scores == sorted(scores)
    assert pictures(replace(report, raw=root / "nowhere")) == ([], "")
    failed, _ = pictures(replace(report, entries=report.entries[1:2]))
    assert (failed[0].rank, failed[0].case, failed[0].failures) == ("failure", "case_003", ("spleen missed",))


def test_the_layers_of_a_picture_lie_on_one_grid_and_are_clear_but_for_the_contours(root: Path) -> None:
    picture = pictures(with_raw(root))[0][0]
    with Image.open(BytesIO(picture.grey)) as grey:
        size = grey.size
    assert size[1] % len(picture.slices) == 0 and 0 <= picture.first < len(picture.slices)
    assert size[0] / (size[1] / len(picture.slices)) == pytest.approx(picture.size[0] / picture.size[1], rel=0.02)
    for png in (picture.reference, *picture.predictions.values()):
        with Image.open(BytesIO(png)) as layer:
            assert layer.size == size
            alpha = np.asarray(layer.convert("RGBA"))[..., 3]
        assert 0 < np.count_nonzero(alpha) < 0.3 * alpha.size


def test_slices_are_turned_as_a_radiologist_sees_them() -> None:
    """A mark at the patient's right front shows at the upper left, whichever way the file's axes run."""
    for signs in ((1, 1, 1), (-1, -1, 1), (-1, 1, -1)):
        shape = (4, 20, 24)
        geometry = Geometry.from_affine(shape, np.diag([signs[0] * 1.0, signs[1] * 1.0, signs[2] * 3.0, 1.0]))
        body, mark = np.ones(shape, np.int16), np.zeros(shape, np.int16)
        front = slice(-3, None) if signs[1] > 0 else slice(0, 3)  # RAS+: y grows to the front, x to the right
        right = slice(-3, None) if signs[0] > 0 else slice(0, 3)
        mark[:, front, right] = 1
        view = View.of(geometry, body > 0)
        assert view.size == (24.0, 20.0)
        assert view.stack(mark)[:, :3, :3].all()


def test_different_structures_cannot_be_compared(root: Path) -> None:
    a, b = gather(results(root))[:2]
    cases = tuple(replace(case, scores=case.scores[:1]) for case in b.scores.summary.cases)
    other = replace(b.scores, summary=replace(b.scores.summary, cases=cases))
    with pytest.raises(DataError, match="different structures"):
        compare(a, replace(b, scores=other), "Dice")


def test_numbers_are_readable() -> None:
    assert [human(n) for n in (None, 950, 1_960_000, 12_340_000_000)] == ["–", "950", "1.96 M", "12.3 G"]


def test_a_run_with_scores_of_other_weights_is_left_out_and_told_but_not_where_it_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset(tmp_path, 4)
    good, stale = (make_run(tmp_path, name, "unet_tiny", 1.0, {0: range(4)}) for name in ("unet_a", "unet_b"))
    file = stale / "fold_0" / "validation" / "summary.json"
    with_sources(Summary.load(file), [weights_digest({"layer": torch.ones(2)})], {}).save(file)
    save_checkpoint(stale / "fold_0" / "checkpoint_final.pt", {"network": {"layer": torch.zeros(2)}})
    assert [entry.name for entry in gather(good.parent)] == ["unet_a"]
    assert "unet_b is not on the page: " in caplog.text and "other weights" in caplog.text
    with pytest.raises(RunError, match="other weights"):
        gather(good.parent, runs=["unet_b"])
