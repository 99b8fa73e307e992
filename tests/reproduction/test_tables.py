"""Which rows of a recipe's table are compared with each other, on which cases, and what the table says of that."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.evaluation.detection.predictions import Boxes
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.report.detection_scores import DetectionScores
from medkd.evaluation.report.segmentation_scores import METRICS, SegmentationScores
from medkd.evaluation.report.segmentation_task import SEGMENTATION
from medkd.evaluation.segmentation.cases import ClassScore
from medkd.evaluation.segmentation.results import CaseScores, Summary
from medkd.evaluation.statistics import PairedDifference
from medkd.reproduction import table
from medkd.reproduction.comparisons import _difference, compared, mean_over_seeds, ranked, teachers_of_all
from medkd.reproduction.graph import Place, build_graph
from medkd.reproduction.recipe import MethodRow, Published, Recipe, RecipeData, StudentRow, TeacherRow, load_recipe
from medkd.reproduction.results import collect
from medkd.reproduction.rows import Results, Row
from medkd.reproduction.state import Record

PHANTOM = Path(__file__).parents[2] / "recipes" / "quick_phantom.json"


def scores(dice: float, cases: Sequence[int] = range(12)) -> SegmentationScores:
    """Of cases whose Dice lies around a value."""
    found = []
    for case in cases:
        value = dice + 0.01 * np.cos(7 * case + 90 * dice)
        one = ClassScore(
            name="liver",
            values=(1,),
            status="scored",
            dice=value,
            iou=value / (2 - value),
            **{"tp": 0, "fp": 0, "fn": 0, "tn": 0},
            hd95=1.0,
            nsd=value,
        )
        found.append(CaseScores(f"{case:03d}.nii.gz", f"{case:03d}.nii.gz", (one,)))
    return SegmentationScores(Summary(cases=tuple(found)))


def run(epochs: int, seed: int, **more: Any) -> RunDescription:
    network = NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=2, patch_size=(8, 8))
    settings: dict[str, Any] = {"network": network, "mirror_axes": (), **more}
    return RunDescription(
        dataset="Dataset004_Test", configuration="2d", budget=Budget(epochs, 25, 2, 0.01, seed), **settings
    )


def row(
    method: str | None, *seeds: SegmentationScores, teacher: str | None = None, epochs: int = 24, **more: Any
) -> Row:
    kind: Any = "teacher" if method is None else "taught" if teacher else "alone"
    values = {metric.key: mean_over_seeds([score.value(metric.key) for score in seeds]) for metric in METRICS if seeds}
    return Row(
        kind=kind,
        teacher=teacher,
        student=None if method is None else "tiny",
        method=method,
        done=len(seeds),
        total=len(seeds) or 1,
        scores=seeds,
        runs=tuple(run(epochs, seed, **more) for seed in range(len(seeds))),
        values=values,
    )


def results(rows: Sequence[Row], teachers: Sequence[str] = ("large",)) -> Results:
    """The table of these rows."""
    found = compared(rows, SEGMENTATION, 0.01, teachers)
    ranks, differences, unranked = ranked(found, "case")
    return Results(
        title="toy",
        source="",
        metrics=METRICS,
        rows=tuple(found),
        ranks=ranks,
        differences=differences,
        unranked=unranked,
        judges=tuple(teachers) if len(teachers) > 1 else (),
    )


@pytest.mark.parametrize("turned", [False, True])
def test_a_row_is_compared_with_the_student_alone_of_its_own_budget(turned: bool) -> None:
    short, long = row("alone", scores(0.5)), row("alone_long", scores(0.8), epochs=96)
    mirrored = row("alone_mirrored", scores(0.6), mirror_axes=(0,))
    alone = [long, mirrored, short] if turned else [short, mirrored, long]
    ways = [
        row("dist", scores(0.55), teacher="large"),
        row("dist_long", scores(0.79), teacher="large", epochs=96),
        row("dist_longer", scores(0.79), teacher="large", epochs=98),
        row("dist_mirrored", scores(0.62), teacher="large", mirror_axes=(0,)),
    ]
    found = results([*alone, *ways])
    by_way = {entry.method: entry for entry in found.rows}
    expected = {"dist": ("alone", 0.05), "dist_long": ("alone_long", -0.01), "dist_mirrored": ("alone_mirrored", 0.02)}
    for method, (name, difference) in expected.items():
        entry = by_way[method]
        assert entry.to_alone is not None and (entry.alone, entry.budget) == (name, "")
        assert entry.to_alone.mean == pytest.approx(difference, abs=0.01)
    said, other = table.text(found), by_way["dist_longer"]
    assert "tiny dist_longer from large is compared with alone_long, which has another budget: epochs 96" in said
    assert (other.alone, other.budget) == ("alone_long", "epochs 96 instead of 98")
    assert said.count("another budget") == 1
    assert "Dice − alone, of tiny: to the row alone_mirrored for dist_mirrored from large" in said
    assert table.json_rows(found)[4]["compared_with"]["alone"] == "alone_long"


def test_what_has_one_student_alone_and_one_teacher_is_said_to_be_compared_with_nothing_else() -> None:
    found = results(
        [row(None, scores(0.9), teacher="large"), row("alone", scores(0.5)), row("kd", scores(0.6), teacher="large")]
    )
    assert "compared with" not in table.text(found) and "− alone, of" not in table.text(found)
    assert [entry.judged_by for entry in found.rows] == [None, "large", "large"]


def recipe(**teachers: TeacherRow) -> Recipe:
    return Recipe(
        title="toy",
        dataset=RecipeData(number=4, name="Test", format="phantom"),
        students={"tiny": StudentRow(network="unet_tiny")},
        methods={"alone": MethodRow(method="none"), "kd": MethodRow(method="kd")},
        teachers=teachers,
        folds=("0", "1"),
    )


def test_a_student_alone_is_compared_with_the_teacher_of_all_folds() -> None:
    imported, own = TeacherRow(model="somewhere", folds=("0",)), TeacherRow(network="res_unet")
    assistant = TeacherRow(network="plain_unet", taught_by="own", method="kd")
    assert teachers_of_all(recipe(imported=imported, own=own, assistant=assistant)) == ("own",)
    assert teachers_of_all(recipe(imported=imported)) == ("imported",)
    assert teachers_of_all(recipe(a=own, b=own)) == ("a", "b")
    rows = [
        row(None, scores(0.87, range(6)), teacher="imported"),
        row(None, scores(0.85), teacher="own"),
        row("alone", scores(0.67)),
    ]
    found = results(rows, ["own"])
    assert found.rows[2].to_teacher is not None and found.rows[2].to_teacher.n == 12
    assert "students alone are compared with the teacher own" in table.text(found)
    none = results(rows, ["imported", "own"])
    assert none.rows[2].to_teacher is None and none.rows[2].replaces is None
    assert "compared with no teacher, as there are several: imported, own" in table.text(none)


def boxes(found: Sequence[bool]) -> DetectionScores:
    """Of images with one box each, which is found or not."""
    box, names = Boxes.of([[0, 0, 9, 9]], [0]), [f"{image:02d}" for image in range(len(found))]
    nothing = Boxes.of(np.zeros((0, 4)), [], [])
    seen = {}
    for name, hit in zip(names, found, strict=True):
        seen[name] = SimpleNamespace(found=replace(box, scores=np.ones(1)) if hit else nothing)
    summary = DetectionSummary(categories=("a",), truths=dict.fromkeys(names, box), values={})
    return DetectionScores(SimpleNamespace(images=seen), summary)  # type: ignore[arg-type]


def seeds(*found: Any) -> Any:
    """A row with these scores."""
    return SimpleNamespace(scores=found)


def test_seeds_of_detectors_are_drawn_too() -> None:
    good, bad, middle = boxes([True] * 20), boxes([False] * 20), boxes([True, False] * 10)
    found = _difference(seeds(good, bad), seeds(middle, middle), "AP")
    assert found is not None and found.low < -0.3 and found.high > 0.3 and found.p > 0.2
    one = _difference(seeds(good), seeds(middle), "AP")
    assert one == good.compare(middle).of("AP")


def test_a_task_that_draws_no_seeds_gives_the_widest_bounds() -> None:
    def seed(mean: float) -> Any:
        def compare(other: Any) -> Any:
            return SimpleNamespace(of=lambda metric: PairedDifference(mean, mean - 0.01, mean + 0.01, 9, 0.002))

        return SimpleNamespace(compare=compare)

    found = _difference(seeds(seed(0.15), seed(-0.05)), seeds(seed(0)), "AP")
    assert found is not None and (found.mean, found.n, found.p) == (pytest.approx(0.05), 9, 0.002)
    assert (found.low, found.high) == (pytest.approx(-0.06), pytest.approx(0.16))


def test_how_many_cases_a_difference_is_over_where_rows_have_more() -> None:
    rows = [
        row(None, scores(0.9), teacher="large"),
        row("alone", scores(0.5)),
        row("kd", scores(0.6, range(8)), scores(0.6), teacher="large"),
        row("dist", scores(0.7), teacher="large"),
    ]
    said = table.text(results(rows))
    kd, dist = (next(line for line in said.splitlines() if f"tiny     {way}" in line) for way in ("kd", "dist"))
    assert kd.count("(8 of 12)") == 2 and " of 12" not in dist
    assert "seeds of tiny kd from large have scores of other cases each" in said
    assert "order for tiny over the 8 cases of 12 that all of its rows have" in said
    assert "order for tiny over 12 cases, with" in table.text(results([*rows[:2], rows[3]]))


def test_rows_without_a_common_case_are_said_to_have_none() -> None:
    rows = [row("alone", scores(0.5, range(6))), row("kd", scores(0.6, range(6, 12)), teacher="large")]
    assert "no ranks are tested for tiny: its rows share no case with a score" in table.text(results(rows))


def test_what_became_of_the_data_stands_below_the_table() -> None:
    """Conversion and preparation have no row of their own."""
    recipe = load_recipe(PHANTOM)
    nodes = build_graph(recipe, Place(name="quick_phantom", root=Path("root"), models={}))
    torn = "2 cases in no fold"
    records = {
        "convert": Record(command=(), status="done", warnings=(torn,)),
        "prepare": Record(command=(), status="failed", error="/home/somebody/raw/Dataset900_Phantom has no cases"),
    }
    found = collect(recipe, nodes, records)
    for said in (table.text(found), table.markdown(found), table.latex(found)):
        assert f"warned: convert: {torn}" in said and "failed: prepare: /home/somebody/raw" in said
    kept = json.dumps(table.json_table(found))
    assert torn in kept and "Dataset900_Phantom has no cases" in kept and "somebody" not in kept


def test_other_programs_get_what_was_published_and_what_the_marks_mean() -> None:
    told = row("kd", scores(0.5), teacher="large")
    published = Published(teacher="large", student="tiny", method="kd", scores={"DSC": 84.1}, source="Table 3")
    found = results([row("alone", scores(0.5)), replace(told, published=(published,), failed=("a: /x/y/b.log",))])
    (line,) = [entry for entry in csv.DictReader(table.csv_text(found).splitlines()) if entry["method"] == "kd"]
    assert line["published"] == "DSC 84.1"
    assert "% = cannot be told from the student alone" in table.latex(found)
    kept = table.json_table(found)
    assert kept["margin"] == 0.01 and kept["rows"][1]["failed"] == ["a: b.log"]
    assert kept["ranks"]["tiny"][0]["n"] == found.rows[0].values[METRICS[0].key].n
