"""Which run taught which: of written run folders, by what their ``run.json`` say."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.core.made_from import note_inputs
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.run_files import SCORED_TEACHER, ScoredTeacher
from medkd.core.serial import load, save
from medkd.core.splits import Split
from medkd.core.teachers import origins
from medkd.evaluation.report.data import baseline_of, teacher_of
from medkd.evaluation.report.decision import verdict
from medkd.evaluation.report.provenance import commands_of, provenance
from medkd.evaluation.report.read import gather, read_report
from medkd.exporting.packing import _without_paths
from medkd.models.run import SegmentationRun
from medkd.models.several import Member, SeveralTeachers
from medkd.training.run_folder import SharedFacts, open_fold, start_fold
from tests.evaluation.folders import make_dataset, make_run

DATASET = "Dataset004_Test"
FACTS = SharedFacts({}, lambda stored: {})


def described(network: str, *, width: int = 1, **rest: Any) -> RunDescription:
    """A run of the data set, as far as names are concerned."""
    spec = NetworkSpec(name=network, in_channels=1, num_outputs=3, patch_size=(16, 16, 16), width_divisor=width)
    settings = {"configuration": "3d_fullres", **rest}
    return RunDescription(dataset=DATASET, network=spec, budget=Budget(1, 1, 1, 0.1, 0), mirror_axes=(), **settings)


RUNS = {
    "plain_unet__3d_fullres": described("plain_unet"),
    "plain_unet__3d_fullres__long": described("plain_unet"),
    "plain_unet__2d": described("plain_unet", configuration="2d"),
    "plain_unet_w2__3d_fullres": described("plain_unet", width=2),
    "plain_unet_w4__3d_fullres": described("plain_unet", width=4),
    "unet_tiny__3d_fullres__kd__from_A": described("unet_tiny", method="kd", teacher="/models/A"),
    "unet_tiny__3d_fullres__kd__from_B": described("unet_tiny", method="kd", teacher="/models/B"),
    "unet_tiny__3d_fullres__dist__from_A": described("unet_tiny", method="dist", teacher="/models/A"),
}


def taught(results: Path, **says: Any) -> Any:
    """What taught a student of which ``run.json`` says this."""
    student = results / "student__3d_fullres__cwd__from_it"
    runs = {results / name: run for name, run in RUNS.items()}
    return origins({**runs, student: described("student", method="cwd", **says)})[student]


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ("plain_unet", "plain_unet__3d_fullres"),
        ("plain_unet-long", "plain_unet__3d_fullres__long"),
        ("plain_unet_w2", "plain_unet_w2__3d_fullres"),
        ("plain_unet_w4", "plain_unet_w4__3d_fullres"),
        ("unet_tiny-dist", "unet_tiny__3d_fullres__dist__from_A"),
        ("plain_unet__3d_fullres__long", "plain_unet__3d_fullres__long"),
        ("/elsewhere/plain_unet__3d_fullres", None),
        ("plain_unet_w8", None),
        ("plain", None),
    ],
)
def test_a_file_of_an_older_version_means_the_run_of_just_this_short_name(
    tmp_path: Path, recorded: str, expected: str | None
) -> None:
    found = taught(tmp_path, teacher=recorded)
    assert found.only == expected and found.unclear == ()


def test_of_several_that_an_older_file_may_mean_none_is_taken(tmp_path: Path) -> None:
    found = taught(tmp_path, teacher="unet_tiny-kd")
    assert found.only is None and found.sure == ()
    assert found.unclear == ("unet_tiny__3d_fullres__kd__from_A", "unet_tiny__3d_fullres__kd__from_B")


def test_what_is_recorded_is_beyond_doubt(tmp_path: Path) -> None:
    name = "unet_tiny__3d_fullres__kd__from_B"
    assert taught(tmp_path, teacher="unet_tiny-kd", taught_by=(name,)).only == name
    assert taught(tmp_path, teacher="plain_unet", taught_by=("plain_unet__2d",)).only == "plain_unet__2d"
    other = taught(tmp_path, teacher="plain_unet", taught_by=("/other/Dataset005_Other/plain_unet__3d_fullres",))
    assert (other.only, other.sure, other.unclear) == (None, (), ())
    gone = taught(tmp_path, teacher="plain_unet", taught_by=("plain_unet__3d_fullres__gone",))
    assert (gone.only, gone.sure, gone.unclear) == (None, (), ())


def test_no_single_one_of_several_is_the_teacher(tmp_path: Path) -> None:
    pair = ("plain_unet__3d_fullres", "/models/A")
    for says in ({"taught_by": pair}, {}):
        found = taught(tmp_path, teacher=f"{tmp_path}/plain_unet__3d_fullres + /models/A", **says)
        assert found.only is None and len(found.models) == 2 and found.unclear == ()


def test_two_models_of_one_folder_are_told_apart_by_what_the_user_writes(tmp_path: Path) -> None:
    """A model was scored, and moved; then another one took its place and was scored, too."""
    runs = {}
    for name, path, former in (("net", "/new/net", ("/old/net",)), ("net__old", "/old/net", ())):
        record = ScoredTeacher(path=path, fold="0", weights=name, patch_size=(), mirror_axes=(), former=former)
        save(tmp_path / name / "fold_0" / SCORED_TEACHER, record)
        runs[tmp_path / name] = described("plain_unet")
    student = tmp_path / "student__3d_fullres__kd__from_net"
    for taught_by, only, unclear in (((), None, ("net", "net__old")), (("net__old",), "net__old", ())):
        says = described("student", method="kd", teacher="/old/net", taught_by=taught_by)
        found = origins({**runs, student: says})[student]
        assert (found.only, found.unclear) == (only, unclear)


def make(root: Path, run: str, strength: float, **says: Any) -> None:
    """A run with scores whose ``run.json`` says this."""
    network = says.pop("network", "unet_tiny")
    width = says.pop("width_divisor", 1)
    folder = make_run(root, run, network, strength, {0: range(2)}, method=says.pop("method", None))
    run_file = load(RunDescription, folder / "run.json")
    spec = replace(run_file.network, width_divisor=width)
    save(folder / "run.json", replace(run_file, network=spec, **says))


def test_the_report_is_about_the_run_that_taught_and_about_no_better_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset(tmp_path, 2)
    results, student = tmp_path / "results" / DATASET, "unet_tiny__3d_fullres__kd__from_plain_unet"
    make(tmp_path, "plain_unet__3d_fullres", 1.5, network="plain_unet")
    make(tmp_path, "plain_unet__3d_fullres__long", 0.2, network="plain_unet")
    make(tmp_path, "plain_unet_w4__3d_fullres", 0.4, network="plain_unet", width_divisor=4)
    make(tmp_path, student, 1.6, method="kd", teacher="plain_unet")
    entries = gather(results)
    roles = {entry.name: entry.role for entry in entries}
    assert [name for name, role in roles.items() if role == "teacher"] == ["plain_unet__3d_fullres"]
    star = next(entry for entry in entries if entry.name == student)
    found = teacher_of(star, entries)
    assert found is not None and found.name == "plain_unet__3d_fullres" and baseline_of(star, entries) is None
    assert f"unet_tiny + kd − {found.label}:" in verdict(read_report(results))[0]
    assert commands_of(star)[0].split()[2] == "plain_unet__3d_fullres"
    (results / "plain_unet__3d_fullres__long").rename(results / "plain_unet__3d_fullres__kd__from_A")
    (results / "plain_unet_w4__3d_fullres").rename(results / "plain_unet__3d_fullres__kd__from_B")
    content = read_json(results / student / "run.json")
    write_json(results / student / "run.json", {**content, "teacher": "plain_unet-kd"})
    with caplog.at_level(logging.WARNING):
        report = read_report(results, runs=[student, "*from_A"])  # which are shown does not matter
    sentence = verdict(report)[0]
    assert "Nothing can be concluded: nobody knows whether plain_unet__3d_fullres__kd__from_A or" in sentence
    assert "nobody knows whether" in caplog.text  # also of students that the page is not about
    assert report.headline is not None and report.teacher(report.headline) is None
    assert '"taught_by": ["plain_unet__3d_fullres__kd__from_A"]' in sentence
    write_json(
        results / student / "run.json", {**content, "taught_by": ["plain_unet__3d_fullres__kd__from_B"], "schema": 3}
    )
    entries = gather(results)
    found = teacher_of(next(entry for entry in entries if entry.name == student), entries)
    assert found is not None and found.name == "plain_unet__3d_fullres__kd__from_B"


def test_a_model_is_recorded_by_the_name_of_its_run_folder_or_by_its_place(tmp_path: Path) -> None:
    results, name = tmp_path / "results" / DATASET, "plain_unet__3d_fullres"
    models = []
    for folder in (results / name, tmp_path / "results" / "Dataset005_Other" / name):
        model = SegmentationRun.__new__(SegmentationRun)  # without the files, of which nothing is asked
        model.path = folder
        models.append(model)
    here, there = models
    assert here.taught_as(results) == (name,)
    assert there.taught_as(results) == (str(there.path),)
    both = SeveralTeachers(here.path, [Member(here), Member(there)])
    assert both.taught_as(results) == (name, str(there.path))


def test_students_of_two_teachers_get_no_folder_in_common(tmp_path: Path) -> None:
    """Assistants of different teachers, or of different seeds, have one short name."""
    run = tmp_path / "unet_tiny__3d_fullres__cwd__from_unet_tiny-kd"
    first = described(
        "unet_tiny", method="cwd", teacher="unet_tiny-kd", taught_by=("unet_tiny__3d_fullres__kd__from_A",)
    )
    second = replace(first, taught_by=("unet_tiny__3d_fullres__kd__from_B",))
    started = make_dataset(tmp_path, 1)
    split = Split(("a",), ("b",))

    def start(fold: str, now: RunDescription) -> None:
        folder = open_fold(run, fold, now, FACTS, resume=True, overwrite=False)
        start_fold(folder, now, split, load_description(started), split, frozenset(), overwrite=False)
        (folder / "checkpoint_final.pt").touch()

    start("0", first)
    start("1", first)
    for fold in ("0", "2"):
        with pytest.raises(RunError, match=r"taught_by: .*from_A.* there, .*from_B.* now\); give --tag"):
            start(fold, second)
    save(run / "run.json", replace(first, taught_by=()))  # of an older version, which does not say
    start("0", first)
    assert load(RunDescription, run / "run.json").taught_by == ()


def load_description(raw: Path) -> Any:
    """The data set's."""
    from medkd.core.dataset import DatasetDescription

    return DatasetDescription.load(raw / "dataset.json")


def test_what_is_handed_on_holds_no_folder_and_no_other_runs_name() -> None:
    says = {"teacher": "/a/net + /b/plain_unet__3d_fullres", "taught_by": ["/a/net", "plain_unet__3d_fullres"]}
    cleaned = _without_paths(says)
    assert cleaned == {
        "teacher": "net + plain_unet__3d_fullres",
        "taught_by": ["elsewhere/net", "plain_unet__3d_fullres"],
    }


def test_a_student_of_a_teacher_that_is_another_by_now_is_shown_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset(tmp_path, 8)
    make_run(tmp_path, "res_unet__3d_fullres", "res_unet", 1.0, {0: range(8)})
    student = "unet_tiny__3d_fullres__kd__from_res_unet"
    make_run(tmp_path, student, "unet_tiny", 0.6, {0: range(8)}, method="kd", teacher="res_unet")
    results, file = tmp_path / "results" / DATASET, tmp_path / "weights.pth"
    for content, said in ((b"first", False), (b"second", True)):
        file.write_bytes(content)
        if not said:
            note_inputs(results / student / "fold_0", "3d_fullres", [file])
        caplog.clear()
        shown = read_report(results)
        told = f"{student} is on the page as it was, but {file} holds other weights than when"
        assert (told in caplog.text) == said and len(shown.entries) == 2
        assert ("its teacher or its data have changed since it was trained" in provenance(shown)) == said
