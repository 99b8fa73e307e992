"""Scans of one patient are one unit, wherever scores of label maps are compared: against slow loops over patients."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from medkd.api import compression
from medkd.api.best_configuration import best_configuration
from medkd.core.dataset import DatasetDescription
from medkd.evaluation.cross_validation import cross_validate
from medkd.evaluation.ranking import critical_difference, crossed_difference, rank_stability, why_not_ranked
from medkd.evaluation.report.decision import verdict
from medkd.evaluation.report.page import decision_table, over
from medkd.evaluation.report.rank_figure import rank_section
from medkd.evaluation.report.read import read_report
from medkd.evaluation.report.tables import csv_text
from medkd.evaluation.scoring import ScoringRequest
from medkd.evaluation.segmentation.results import Summary, summary_text
from medkd.evaluation.segmentation.scoring import score_label_maps
from medkd.evaluation.statistics import RESAMPLES, Interval, groups_of, mean_interval
from medkd.evaluation.statistics import paired_difference as paired
from medkd.reproduction import results as recipes
from medkd.reproduction import table as recipe_table
from medkd.reproduction.graph import Node
from medkd.reproduction.recipe import MethodRow, Recipe, RecipeData, StudentRow, TeacherRow
from medkd.reproduction.state import Record
from tests.evaluation.folders import make_dataset, make_run

TEACHER, KD = "res_unet__3d_fullres", "unet_tiny__3d_fullres__kd__from_res_unet"
ALONE = "unet_tiny__3d_fullres__none__from_res_unet"
ACDC = Path(__file__).parents[2] / "benchmarks" / "results" / "acdc_20_labels.json"


def like_acdc(patients: int, columns: int, seed: int, within: float = 0.002) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two scans of each patient, which are much alike, and whose scans they are, in no order."""
    random = np.random.default_rng(seed)
    owner = random.permutation(np.repeat(np.arange(patients), 2))
    values = random.normal(0.8, 0.05, (patients, columns))[owner] + random.normal(0, within, (2 * patients, columns))
    return values, groups_of([f"scan{place}" for place in range(2 * patients)], _named(owner))


def _named(owner: np.ndarray) -> dict[str, str]:
    return {f"scan{place}": f"patient {patient}" for place, patient in enumerate(owner)}


def loop_over_patients(values: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """The bounds, by drawing patients one after another and pooling their scans."""
    random, means = np.random.default_rng(seed), []
    names = sorted(set(groups.tolist()))
    for _ in range(RESAMPLES):
        scans: list[int] = []
        for _ in names:
            drawn = names[random.integers(len(names))]
            scans += [place for place in range(len(groups)) if groups[place] == drawn]
        columns = [np.nanmean(column) for column in values[scans].T if not np.isnan(column).all()]
        means.append(np.mean(columns))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_the_interval_is_that_of_a_loop_over_patients() -> None:
    values, groups = like_acdc(12, 2, 0)
    values[3, 0] = values[7, 1] = np.nan
    found, (low, high) = mean_interval(values, groups=groups), loop_over_patients(values, groups, 1)
    width = high - low
    assert found.n == 12 and found.mean == mean_interval(values).mean
    assert (found.low, found.high) == (pytest.approx(low, abs=0.08 * width), pytest.approx(high, abs=0.08 * width))


def test_two_scans_that_are_alike_do_not_narrow_the_interval() -> None:
    ratios = []
    for seed in range(8):
        values, groups = like_acdc(40, 1, seed)
        by_case, by_patient = mean_interval(values), mean_interval(values, groups=groups)
        assert (by_case.n, by_patient.n) == (80, 40) and by_case.mean == pytest.approx(by_patient.mean, abs=1e-12)
        ratios.append((by_patient.high - by_patient.low) / (by_case.high - by_case.low))
    assert np.mean(ratios) == pytest.approx(np.sqrt(2), rel=0.05)


def test_scans_scored_twice_say_what_they_say_once() -> None:
    random = np.random.default_rng(3)
    seeds_a, seeds_b = random.normal(0.82, 0.03, (3, 14)), random.normal(0.8, 0.03, (2, 14))
    groups = np.repeat(np.arange(14), 2)

    def twice(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, 2, axis=-1)

    _same(mean_interval(twice(seeds_a[0]), groups=groups), mean_interval(seeds_a[0]))
    _same(paired(twice(seeds_a[0]), twice(seeds_b[0]), groups=groups), paired(seeds_a[0], seeds_b[0]))
    _same(crossed_difference(twice(seeds_a), twice(seeds_b), groups=groups), crossed_difference(seeds_a, seeds_b))
    once = {str(place): row for place, row in enumerate([*seeds_a, *seeds_b])}
    doubled = {name: twice(row) for name, row in once.items()}
    assert rank_stability(doubled, groups=groups) == rank_stability(once)
    assert critical_difference(doubled, groups) == critical_difference(once)
    few = {name: row[:20] for name, row in doubled.items()}
    assert critical_difference(few) is not None and critical_difference(few, groups[:20]) is None
    assert "needs 11 patients or more that all have a score, found 10" in why_not_ranked(few, "patient", groups[:20])


def _same(found: Interval, expected: Interval) -> None:
    assert found == pytest.approx(expected) if found == expected else vars(found) == pytest.approx(vars(expected))


def test_patients_of_their_own_are_cases_to_all_digits() -> None:
    random = np.random.default_rng(4)
    a, b, own = random.normal(0.8, 0.05, (3, 25)), random.normal(0.8, 0.05, (2, 25)), np.arange(25)
    a[0, 3] = np.nan
    assert mean_interval(a.T, groups=own) == mean_interval(a.T)
    assert paired(a[0], b[0], groups=own) == paired(a[0], b[0])
    assert crossed_difference(a, b, groups=own) == crossed_difference(a, b)
    scores = {str(place): row for place, row in enumerate([*a, *b])}
    assert rank_stability(scores, groups=own) == rank_stability(scores)
    assert critical_difference(scores, own) == critical_difference(scores)


def test_the_tests_compare_means_of_patients() -> None:
    (a, groups), (b, _) = like_acdc(13, 2, 5), like_acdc(13, 2, 6)
    difference = (a - b).mean(axis=1)
    of_patients = [difference[groups == patient].mean() for patient in range(13)]
    assert paired(a, b, groups=groups).p == pytest.approx(stats.wilcoxon(of_patients).pvalue)
    scores = {name: values.mean(axis=1) for name, values in (("a", a), ("b", b), ("c", a + 0.01))}
    table = [[values[groups == patient].mean() for patient in range(13)] for values in scores.values()]
    found = critical_difference(scores, groups)
    assert found is not None and found.cases == 13
    assert found.p == pytest.approx(stats.friedmanchisquare(*table).pvalue)


def test_the_seeds_of_patients_are_drawn_as_a_loop_does() -> None:
    values, groups = like_acdc(10, 4, 7)
    a, b = values[:, :2].T + 0.01, values[:, 2:].T
    random, samples = np.random.default_rng(11), []
    for _ in range(RESAMPLES):
        patients = random.integers(10, size=10)
        scans = np.concatenate([np.flatnonzero(groups == patient) for patient in patients])
        drawn = [side[random.integers(2, size=2)][:, scans].mean() for side in (a, b)]
        samples.append(drawn[0] - drawn[1])
    low, high = np.percentile(samples, [2.5, 97.5])
    found = crossed_difference(a, b, groups=groups)
    assert found.n == 10
    assert (found.low, found.high) == (
        pytest.approx(low, abs=0.1 * (high - low)),
        pytest.approx(high, abs=0.1 * (high - low)),
    )


def test_the_stored_scores_of_acdc_give_what_was_published_by_patients() -> None:
    runs = json.loads(ACDC.read_text())["runs"]
    taught, alone = (runs[f"acdc.{arm}.seed0"]["cases"] for arm in ("dml0", "alone20"))
    names = sorted(taught)
    a, b = (np.array([cases[name]["Dice"] for name in names]) for cases in (taught, alone))
    found = paired(a, b, groups=groups_of(names, {name: name.partition("_")[0] for name in names}))
    shown = [round(number, 3) for number in (found.mean, found.low, found.high, found.p)]
    assert (found.n, shown) == (10, [0.115, 0.013, 0.205, 0.064]) and not found.clear
    assert paired(a, b).clear


def add_patients(root: Path, per_patient: int = 2) -> None:
    """Say in the raw data set that scans in a row are one patient's."""
    file = root / "raw" / "Dataset004_Test" / "dataset.json"
    described = DatasetDescription.load(file)
    patients = {f"case_{case:03d}": f"p{case // per_patient}" for case in range(described.num_training)}
    replace(described, patients=patients).save(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen scans of seven patients in two folds, scored by runs that know it from their own dataset.json."""
    root, folds = tmp_path_factory.mktemp("patients"), {0: range(8), 1: range(8, 14)}
    make_dataset(root, 14)
    add_patients(root)
    make_run(root, TEACHER, "res_unet", 1.0, folds)
    make_run(root, ALONE, "unet_tiny", 2.0, folds, method="none", teacher="res_unet")
    make_run(root, KD, "unet_tiny", 1.2, folds, method="kd", teacher="res_unet")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed; references are those of the first."""
    return Path(shutil.copytree(made, tmp_path / "root"))


def dice(run: Path, folds: Sequence[int] = (0, 1)) -> np.ndarray:
    """``(cases, structures)`` as the files say it, by case."""
    rows: dict[str, list[float]] = {}
    for fold in folds:
        for case in json.loads((run / f"fold_{fold}" / "validation" / "summary.json").read_text())["metric_per_case"]:
            rows[Path(case["reference_file"]).name] = [part["Dice"] for part in case["metrics"].values()]
    return np.array([rows[name] for name in sorted(rows)])


GROUPS = np.repeat(np.arange(7), 2)


def test_the_report_counts_patients(root: Path) -> None:
    results = root / "results" / "Dataset004_Test"
    report = read_report(results)
    entries = {entry.name: entry for entry in report.entries}
    a, b = dice(results / KD), dice(results / ALONE)
    assert report.difference(entries[KD], entries[ALONE]) == paired(a, b, groups=GROUPS)
    assert entries[KD].scores.value("Dice") == mean_interval(a, groups=GROUPS)
    assert entries[KD].scores.value("Dice", "liver") == mean_interval(a[:, 0], groups=GROUPS)
    assert ", 7 patients)" in verdict(report)[0]
    assert over(report) == " over 7 patients (14 cases)" and "needs 11 patients or more" in rank_section(report)
    assert "where there are too few patients" in decision_table(report)
    rows = list(csv.DictReader(csv_text(report).splitlines()))
    assert {(row["n"], row["unit"]) for row in rows} == {("7", "patient")}
    few = read_report(results, 0)
    assert verdict(few)[0].startswith(
        "May the student replace the teacher? Nothing can be concluded: 4 patients are too"
    )


def forget(root: Path, *runs: str) -> None:
    """Runs of a time at which no patients were known."""
    for run in runs:
        file = root / "results" / "Dataset004_Test" / run / "dataset.json"
        replace(DatasetDescription.load(file), patients={}).save(file)


def test_patients_are_those_of_the_raw_data_set_now_where_runs_know_none(root: Path) -> None:
    results = root / "results" / "Dataset004_Test"
    forget(root, KD, TEACHER)
    entries = {entry.name: entry for entry in read_report(results).entries}
    assert entries[KD].scores.value("Dice").n == 7
    (root / "raw" / "Dataset004_Test" / "dataset.json").write_text("{")
    assert {e.name: e for e in read_report(results).entries}[KD].scores.value("Dice").n == 14


def test_a_patient_who_is_known_to_one_of_two_runs_only_counts_once(root: Path) -> None:
    results = root / "results" / "Dataset004_Test"
    forget(root, KD)
    (root / "raw" / "Dataset004_Test" / "dataset.json").unlink()
    report = read_report(results)
    entries = {entry.name: entry for entry in report.entries}
    assert entries[KD].scores.value("Dice").n == 14
    rows = list(csv.DictReader(csv_text(report).splitlines()))
    assert {(row["n"], row["unit"]) for row in rows if row["run"] == KD} == {("14", "case")}
    for pair in ((KD, TEACHER), (TEACHER, KD)):
        found = report.difference(entries[pair[0]], entries[pair[1]])
        assert found is not None and found.n == 7


def test_folds_put_together_say_patients(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = root / "results" / "Dataset004_Test" / KD
    summary: Summary = cross_validate(run, postprocessing=False)
    assert "7 patients (14 cases); mean [95 % interval over patients]" in summary_text(summary)
    stored = json.loads((run / "crossval" / "summary.json").read_text())
    expected = mean_interval(dice(run), groups=GROUPS)
    found = stored["medkd"]["foreground"]["Dice"]
    assert (found["low"], found["high"], found["n"]) == (expected.low, expected.high, 7)
    assert stored["medkd"]["patients"] == 7 and stored["metric_per_case"][5]["patient"] == "p2"
    assert Summary.load(run / "crossval" / "summary.json") == summary
    assert "is judged in fold" not in caplog.text
    torn = DatasetDescription.load(run / "dataset.json")
    replace(torn, patients={**torn.patients, "case_008": "p3"}).save(run / "dataset.json")
    assert cross_validate(run, postprocessing=False).patient_count == 7
    assert "patient p3 (one of 1) is judged in fold 0 and in fold 1" in caplog.text


def test_the_best_configuration_is_told_by_patients(root: Path) -> None:
    found = best_configuration(4, [TEACHER, KD], root=root, ensembles=False)
    results = root / "results" / "Dataset004_Test"
    behind = paired(dice(results / TEACHER), dice(results / KD), groups=GROUPS)
    other = found.candidates[1]
    assert (other.name, other.behind_low, other.behind_high) == (KD, behind.low, behind.high)
    assert other.clear == behind.clear and found.patients == 7
    assert "7 patients (14 cases) of fold 0, 1; mean [95 % interval over patients]" in found.text()


def test_a_compression_recommends_by_patients(root: Path) -> None:
    results = root / "results" / "Dataset004_Test"
    runs = [(TEACHER, "teacher"), (KD, "student")]
    options: dict[str, Any] = {"teacher": "res_unet", "tolerance": 0.5, "report": results / "report.html"}
    enough = compression.read_compression(results, runs, fold="0", **options)
    assert enough.recommended is None and enough.rows[1].within == "few"
    assert any("too few patients" in line for line in enough.lines())
    assert "none; 4 patients are too few to tell" in enough.advice()
    assert (enough.rows[1].dice.cases, enough.rows[1].dice.patients) == (8, 4)
    assert "intervals of fold 0 are over 4 patients (8 cases)" in enough.lines()


def test_a_recipe_compares_patients(root: Path) -> None:
    results = root / "results" / "Dataset004_Test"
    recipe = Recipe(
        title="toy",
        dataset=RecipeData(number=4, name="Test", format="phantom"),
        students={"tiny": StudentRow(network="unet_tiny")},
        methods={"none": MethodRow(method="none"), "kd": MethodRow(method="kd")},
        teachers={"big": TeacherRow(network="res_unet")},
    )
    nodes, records = {}, {}
    for run, method in ((TEACHER, None), (ALONE, "none"), (KD, "kd")):
        for fold in ("0", "1"):
            kind: Any = "teacher" if method is None else "student"
            words: dict[str, Any] = {} if method is None else {"student": "tiny", "method": method}
            node = Node(name=f"{run} {fold}", kind=kind, words=(), teacher="big", fold=fold, **words)
            nodes[node.name] = node
            records[node.name] = Record(command=(), status="done", folder=str(results / run / f"fold_{fold}"))
    found = recipes.collect(recipe, nodes, records)
    means = {run: dice(results / run) for run in (TEACHER, ALONE, KD)}
    row = found.rows[2]
    assert row.to_teacher == paired(means[KD], means[TEACHER], groups=GROUPS)
    assert row.to_alone is not None and row.to_alone.n == 7
    assert found.ranks["tiny"] == rank_stability({"none from big": means[ALONE], "kd from big": means[KD]}, 0, GROUPS)
    text = recipe_table.text(found)
    assert "are over patients: 7 patients (14 cases)" in text and "bootstrap samples of the patients" in text
    assert recipe_table.json_rows(found)[2]["minus_teacher"]["n"] == 7
    assert {entry["unit"] for entry in recipe_table.json_rows(found)} == {"patient"}


def test_an_evaluation_finds_the_patients_of_the_references(root: Path, tmp_path: Path) -> None:
    raw, run = root / "raw" / "Dataset004_Test", root / "results" / "Dataset004_Test" / KD
    (tmp_path / "some").mkdir()
    for case in range(8):
        name = f"case_{case:03d}.nii.gz"
        (tmp_path / "some" / name).write_bytes((raw / "labelsTr" / name).read_bytes())
    request = ScoringRequest(
        predictions=run / "fold_0" / "validation", references=tmp_path / "some", dataset_json=raw / "dataset.json"
    )
    expected = mean_interval(dice(run, [0]), groups=GROUPS[:8])
    assert score_label_maps(request).interval("Dice") == expected and expected.n == 4
    named = replace(request, labels=("liver", "spleen"))
    assert score_label_maps(named).interval("Dice") == expected
    unknown = score_label_maps(replace(named, dataset_json=None))
    assert unknown.interval("Dice") == mean_interval(dice(run, [0])) and "patients" not in unknown.to_json()["medkd"]
