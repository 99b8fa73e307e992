"""medkd_list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medkd.cli.list_entries import dataset_rows, detector_rows, main, method_rows, network_rows, run_rows, table
from medkd.core.dataset import DatasetDescription
from medkd.core.files import write_json
from medkd.core.labels import LabelSpec
from medkd.core.paths import Root
from medkd.core.run import FINAL, LATEST, Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.plan import DetectionPlan
from medkd.distillation import METHODS
from medkd.networks import NETWORKS


def write_run(folder: Path, method: str | None = None, teacher: str | None = None) -> None:
    network = NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(16, 16, 16))
    run = RunDescription(
        dataset="Dataset004_Toy",
        configuration="3d_fullres",
        network=network,
        budget=Budget(1, 1, 1, 0.1, 0),
        mirror_axes=(0,),
        method=method,
        teacher=teacher,
    )
    save(folder / "run.json", run)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root.resolve(tmp_path)
    description = DatasetDescription(
        channel_names=("CT",), labels=LabelSpec.from_names(["liver", "spleen"]), num_training=7
    )
    description.save(root.raw / "Dataset004_Toy" / "dataset.json")
    write_json(root.preprocessed / "Dataset004_Toy" / "plans.json", {"configurations": {"2d": {}, "3d_fullres": {}}})
    (root.raw / "Dataset005_Broken").mkdir()
    return root


def test_networks_show_cost_and_paper() -> None:
    head, *rows = network_rows(["unet_tiny", "plain_unet"])
    assert head == ("network", "rank", "parameters", "multiply-adds", "taps", "paper")
    assert [row[:2] for row in rows] == [
        ("unet_tiny", "2D"),
        ("unet_tiny", "3D"),
        ("plain_unet*", "2D"),
        ("plain_unet*", "3D"),
    ]
    assert rows[1][2:5] == ("1.961 M", "8.12 G", "6")
    assert "10.1038/s41592-020-01008-z" in rows[3][5]


def test_every_method_is_listed_with_its_defaults() -> None:
    _, *rows = method_rows()
    assert [row[0] for row in rows] == [*METHODS, *DETECTION_METHODS]
    kd = next(row for row in rows if row[0] == "kd")
    assert kd[1:3] == ("both", "teacher's logits") and "temperature=" in kd[3] and "1503.02531" in kd[4]
    assert next(row for row in rows if row[0] == "none")[2] == "nothing"
    assert [row[1] for row in rows if row[0] == "crosskd"] == ["segmentation", "detection"]
    assert all(row[4] != "-" for row in rows)


def test_every_network_is_listed_with_its_cost_and_paper() -> None:
    """Of the large ones only the entry is read here; what they cost is counted in tests/networks."""
    _, *rows = network_rows(
        [name for name in NETWORKS if name in ("unet_tiny", "mednext_s", "fcn_r18", "resenc_unet_m")]
    )
    assert all(row[2].endswith(" M") and row[3].endswith(" G") and int(row[4]) > 0 and row[5] for row in rows)
    assert all(NETWORKS[name].citation for name in NETWORKS)


def test_data_sets_show_labels_and_plans_and_name_what_is_broken(root: Root) -> None:
    assert dataset_rows(root)[1:] == [
        ("Dataset004_Toy", "7", "CT", "liver, spleen", "2d, 3d_fullres"),
        ("Dataset005_Broken", "-", "-", "-", "no readable dataset.json"),
    ]


def test_detection_has_its_own_plan_and_score(root: Root) -> None:
    DatasetDescription.detection(("X-ray",), ("fracture",)).save(root.raw / "Dataset006_Bones" / "dataset.json")
    DetectionPlan(dataset="Dataset006_Bones", categories=("fracture",), image_size=480, batch_size=8).save(
        root.preprocessed / "Dataset006_Bones" / "plans.json"
    )
    assert dataset_rows(root)[-1] == ("Dataset006_Bones", "0", "X-ray", "fracture", "detection, 480 px")
    run = root.results / "Dataset006_Bones" / "yolov8n__detection"
    write_run(run)
    for fold, score in enumerate((0.5, None)):
        write_json(run / f"fold_{fold}/validation/summary.json", {"task": "detection", "mean": {"AP": {"mean": score}}})
    assert run_rows(root)[-1][3] == "0: AP 0.5000, 1: no boxes to find"


def test_detectors_are_listed_with_their_family() -> None:
    rows = {row[0]: row for row in detector_rows()}
    assert rows["yolov8n"][1] == "detector" and rows["yolov8n"][-1].endswith("(yolo)")
    assert {len(row) for row in rows.values()} == {len(network_rows([])[0])}


def test_runs_show_the_state_and_dice_of_their_folds(root: Root) -> None:
    alone, distilled = (
        root.results / "Dataset004_Toy" / name for name in ("a__3d_fullres", "b__3d_fullres__kd__from_a")
    )
    write_run(alone)
    write_run(distilled, "kd", str(alone))
    write_json(alone / "fold_0" / "validation" / "summary.json", {"foreground_mean": {"Dice": 0.87654}})
    write_json(alone / "fold_1" / "validation" / "summary.json", {"other": 1})
    for fold, name in (("fold_0", FINAL), ("fold_1", LATEST)):
        (distilled / fold).mkdir(parents=True)
        (distilled / fold / name).touch()
    (root.results / "Dataset004_Toy" / "not_a_run").mkdir()
    first, second = run_rows(root)[1:]
    assert first == ("Dataset004_Toy", "a__3d_fullres", "-", "0: 0.8765, 1: summary.json is not readable")
    assert second == (
        "Dataset004_Toy",
        "b__3d_fullres__kd__from_a",
        "kd from a__3d_fullres",
        "0: trained, 1: unfinished",
    )


def test_a_table_is_aligned() -> None:
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\n---  --\nccc  d"


def test_commands_print_tables_and_json(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(root.raw.parent)
    assert main(["datasets", "--root", base]) == 0
    assert "Dataset004_Toy" in capsys.readouterr().out
    assert main(["runs", "--root", base]) == 0
    assert f"none below {base}" in capsys.readouterr().out
    assert main(["methods", "--json"]) == 0
    assert {"method", "for", "needs", "parameters", "paper"} == set(json.loads(capsys.readouterr().out)[0])


def test_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["students"])
    assert caught.value.code == 2
    assert "networks" in capsys.readouterr().err


def test_formats_of_predictions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--json"]) == 0
    rows = {row["format"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["dicom-seg"]["for"] == "segmentation" and rows["nrrd"]["files"] == "CASE.seg.nrrd"
    assert rows["dicom-sr"]["for"] == rows["dicom-sc"]["for"] == "detection" and len(rows) == 7
