"""May the student replace the teacher? The first line of the report and its tables say the same, and no more."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.api import compression
from medkd.core.errors import DataError
from medkd.evaluation.report.decision import decide, decisions, reading, verdict
from medkd.evaluation.report.page import overview
from medkd.evaluation.report.read import read_report
from medkd.evaluation.report.tables import csv_text
from medkd.evaluation.report.write import make_report
from medkd.evaluation.statistics import PairedDifference, non_inferior, paired_difference
from medkd.reproduction import results as recipes
from medkd.reproduction.graph import Node
from medkd.reproduction.recipe import MethodRow, Recipe, RecipeData, StudentRow, TeacherRow
from medkd.reproduction.state import Record
from tests.evaluation.folders import make_dataset, make_run

TEACHER, NONE, KD = (
    "res_unet__3d_fullres",
    "unet_tiny__3d_fullres__none__from_res_unet",
    "unet_tiny__3d_fullres__kd__from_res_unet",
)


@pytest.mark.parametrize(
    ("low", "high", "n", "expected"),
    [
        (-0.009, 0.02, 20, "yes"),
        (-0.011, 0.02, 20, "open"),
        (-0.05, -0.011, 20, "no"),
        (-0.05, -0.009, 20, "open"),
        (0.001, 0.002, 5, "few"),
        (float("nan"), float("nan"), 20, "few"),
    ],
)
def test_non_inferiority_is_read_from_the_interval(low: float, high: float, n: int, expected: str) -> None:
    assert non_inferior(PairedDifference((low + high) / 2, low, high, n, 0.5), 0.01) == expected


def test_a_true_loss_at_the_margin_is_called_replaceable_in_one_of_forty() -> None:
    """The lower bound of a 95 % interval is a one-sided test at 2.5 %; a bootstrap of 40 cases takes a little more."""
    rng = np.random.default_rng(0)
    answers = [non_inferior(paired_difference(rng.normal(-0.01, 0.02, 40), np.zeros(40)), 0.01) for _ in range(150)]
    assert np.mean([answer == "yes" for answer in answers]) <= 0.075


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (PairedDifference(0.02, 0.01, 0.03, 20, 0.001), "distillation gains 0.020 Dice"),
        (PairedDifference(-0.02, -0.03, -0.01, 20, 0.001), "distillation loses 0.020 Dice"),
        (PairedDifference(0.02, 0.001, 0.03, 20, 0.08), "above zero, but the test does not confirm it (p = 0.08)"),
        (PairedDifference(0.02, -0.01, 0.05, 20, 0.3), "no clear difference (+0.020 Dice, 95 % interval -0.010 to"),
        (PairedDifference(0.02, 0.01, 0.03, 3, 0.2), "nothing can be concluded from so few cases"),
    ],
)
def test_the_sentence_says_what_the_interval_says(difference: PairedDifference, expected: str) -> None:
    assert expected in reading(difference, "Dice")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_dataset(tmp_path, 8)
    make_run(tmp_path, TEACHER, "res_unet", 1.0, {0: range(8)})
    make_run(tmp_path, NONE, "unet_tiny", 2.0, {0: range(8)}, method="none", teacher="res_unet")
    return tmp_path


def test_a_student_that_is_as_good_may_replace_and_one_that_is_worse_may_not(root: Path) -> None:
    make_run(root, KD, "unet_tiny", 0.6, {0: range(8)}, method="kd", teacher="res_unet")
    report = read_report(root / "results" / "Dataset004_Test")
    assert decide(report, report.entries[2]).answer == "yes" and "? Yes: unet_tiny + kd" in verdict(report)[0]
    assert {found.part for found in decisions(report, report.entries[2])} == {"", "liver", "spleen"}
    make_run(root, KD, "unet_tiny", 2.5, {0: range(8)}, method="kd", teacher="res_unet", missing_spleen=range(8))
    worse = read_report(root / "results" / "Dataset004_Test")
    assert decide(worse, worse.entries[2]).answer == "no" and "? No: " in verdict(worse)[0]
    assert "worse: liver, spleen" in verdict(worse)[1]


def test_the_margin_is_the_users_and_stated(root: Path) -> None:
    make_run(root, KD, "unet_tiny", 1.5, {0: range(8)}, method="kd", teacher="res_unet")
    strict, mild = (make_report(4, root=root, margin=margin).read_text(encoding="utf-8") for margin in (0.001, 0.5))
    assert "loses less than 0.001?" in strict and '<p class="answer yes">' not in strict
    assert "loses less than 0.5?" in mild and '<p class="answer yes">' in mild
    with pytest.raises(DataError, match="margin is a loss"):
        make_report(4, root=root, margin=0)


def test_the_first_line_is_the_first_row_of_the_table(root: Path) -> None:
    make_run(root, KD, "unet_tiny", 1.2, {0: range(8)}, method="kd", teacher="res_unet")
    report = read_report(root / "results" / "Dataset004_Test")
    found = decide(report, report.entries[2]).difference
    text = make_report(4, root=root).read_text(encoding="utf-8")
    assert found is not None
    assert f"{found.mean:+.3f} Dice, 95 % interval {found.low:+.3f} to {found.high:+.3f}, 8 cases" in text
    assert f"<small>{found.low:+.3f} to {found.high:+.3f}" in text


def test_nothing_is_gained_over_a_student_alone_that_has_learnt_nothing(root: Path) -> None:
    """Dividing by a student that predicts background would close any gap."""
    make_run(root, KD, "unet_tiny", 1.2, {0: range(8)}, method="kd", teacher="res_unet")
    report = read_report(root / "results" / "Dataset004_Test")
    star, alone = report.entries[2], report.entries[1]
    assert "distillation" in verdict(report)[-1] and report.gap_closed(star) is not None
    learnt = (alone.scores.value("Dice").mean + star.scores.value("Dice").mean) / 2
    blind = replace(report, task=replace(report.task, learnt=learnt))
    for shown, expected in ((report, True), (blind, False)):
        lines = [line for line in csv.DictReader(csv_text(shown).splitlines()) if line["run"] == KD]
        assert {bool(line["minus_alone"]) for line in lines if not line["part"]} == {expected}
    assert blind.gap_closed(star) is None and "alone it has learnt nothing yet" in verdict(blind)[-1]
    assert overview(blind).count("alone it has learnt nothing") == 1 and "has learnt nothing" not in overview(report)


def test_a_student_that_has_learnt_nothing_replaces_no_teacher_that_has_learnt_little(root: Path) -> None:
    """Within the margin of a teacher near zero lies a student that finds nothing."""
    make_run(root, KD, "unet_tiny", 1.2, {0: range(8)}, method="kd", teacher="res_unet")
    report = read_report(root / "results" / "Dataset004_Test", margin=0.9)
    teacher, star = report.entries[0], report.entries[2]
    assert decide(report, star).answer == "yes"
    learnt = (teacher.scores.value("Dice").mean + star.scores.value("Dice").mean) / 2
    blind = replace(report, task=replace(report.task, learnt=learnt))
    assert blind.has_learnt(teacher) and decide(blind, star).answer == "nothing"
    assert f"? Nothing can be concluded: {star.label} has learnt nothing yet" in verdict(blind)[0]
    worse = replace(blind, margin=0.001)
    assert decide(worse, star).answer == "no"


def test_without_a_scored_teacher_nothing_is_concluded(root: Path) -> None:
    make_run(root, KD, "unet_tiny", 0.6, {0: range(8)}, method="kd", teacher="elsewhere")
    report = read_report(root / "results" / "Dataset004_Test")
    assert re.search(r"Nothing can be concluded: elsewhere, the teacher of .* has no scores", verdict(report)[0])
    alone = read_report(root / "results" / "Dataset004_Test", runs=[TEACHER])
    assert "no distilled student has been scored yet" in verdict(alone)[0]


def test_of_several_students_that_may_the_page_is_about_the_smallest(root: Path) -> None:
    sizes = {KD: (0.5, 900_000), "unet_tiny__3d_fullres__dist__from_res_unet": (0.6, 400_000)}
    sizes["unet_tiny__3d_fullres__cwd__from_res_unet"] = (2.6, 100_000)  # smaller, and too bad
    for name, (strength, parameters) in sizes.items():
        method = name.split("__")[2]
        make_run(
            root, name, "unet_tiny", strength, {0: range(8)}, method=method, teacher="res_unet", parameters=parameters
        )
    report = read_report(root / "results" / "Dataset004_Test")
    assert [entry.run.method for entry in report.entries if entry.role == "distilled"] == ["kd", "dist", "cwd"]
    assert [entry.run.method for entry in report.able] == ["kd", "dist"]
    assert report.headline is not None and report.headline.run.method == "dist"
    assert "? Yes: unet_tiny + dist" in verdict(report)[0]
    assert verdict(report)[1] == "2 students may, of which this is the smallest; the others: unet_tiny + kd."
    equal = replace(report, entries=tuple(replace(e, cost=replace(e.cost, parameters=9)) for e in report.entries))
    assert equal.headline is not None and equal.headline.run.method == "kd"  # as before, where sizes do not differ
    assert "this has the highest score of the smallest" in verdict(equal)[1]
    nobody = replace(report, task=replace(report.task, learnt=2.0))
    assert nobody.able == () and nobody.headline is not None and nobody.headline.run.method == "kd"


def test_all_tables_say_the_same_of_a_student_that_has_learnt_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report, the compression and a recipe's table ask one function."""
    make_run(root, KD, "unet_tiny", 2.4, {0: range(8)}, method="kd", teacher="res_unet")
    results = root / "results" / "Dataset004_Test"
    report = read_report(results, margin=0.9)
    teacher, star = report.entries[0], report.entries[2]
    least = (teacher.scores.value("Dice").mean + star.scores.value("Dice").mean) / 2
    for learnt, expected in ((0.05, "yes"), (least, "nothing"), (1.1, "nothing")):
        task = replace(report.task, learnt=learnt)
        assert replace(report, task=task).conclusion(star) == expected
        monkeypatch.setattr(compression, "read_report", lambda *_, task=task, **__: replace(report, task=task))
        found = compression.read_compression(
            results,
            [(TEACHER, "teacher"), (KD, "student")],
            teacher=TEACHER,
            fold="0",
            tolerance=0.9,
            report=root / "page.html",
        )
        assert found.rows[1].within == expected and (found.recommended == KD) == (expected == "yes")
        monkeypatch.setattr(recipes, "task_of", lambda _, task=task: task)
        table = recipes.collect(_recipe(), *_done(results), margin=0.9)
        assert [row.replaces for row in table.rows] == [None, expected]


def _recipe() -> Recipe:
    return Recipe(
        title="toy",
        dataset=RecipeData(number=4, name="Test", format="phantom"),
        students={"tiny": StudentRow(network="unet_tiny")},
        methods={"kd": MethodRow(method="kd")},
        teachers={"big": TeacherRow(network="res_unet")},
    )


def _done(results: Path) -> tuple[dict[str, Node], dict[str, Record]]:
    """A recipe's teacher and student as two runs that are finished."""
    nodes = {
        "a": Node(name="a", kind="teacher", words=(), teacher="big", fold="0"),
        "b": Node(name="b", kind="student", words=(), teacher="big", student="tiny", method="kd", fold="0"),
    }
    records = {}
    for name, run in (("a", TEACHER), ("b", KD)):
        records[name] = Record(command=(), status="done", folder=str(results / run / "fold_0"))
    return nodes, records
