"""The whole way for each source of data: convert, plan, preprocess, two training steps, predict, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion import ConversionOptions, convert_dataset
from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.splits import load_splits
from medkd.detection.options import DetectorOptions
from medkd.detection.predict import predict_detections
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.task import train as train_detector
from medkd.evaluation.detection.folder import evaluate_detection_folder
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.inference.folder import predict_folder
from medkd.io.volumes import read_geometry
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train
from tests.dataset_conversion.radiograph_trees import make_fracatlas, make_graz
from tests.dataset_conversion.test_msd import make_plain
from tests.dataset_conversion.test_own_radiographs import make as make_own
from tests.dataset_conversion.trees import make_acdc, make_brats, make_btcv, make_nnunet, make_synapse, make_word

pytestmark = pytest.mark.slow

PATHS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("btcv", make_btcv, "3d_fullres"),
    ("word", make_word, "2d"),
    ("brats", make_brats, "3d_fullres"),
    ("brats", lambda folder: make_brats(folder, year=2021), "2d"),
    ("synapse_slices", make_synapse, "2d"),
    ("acdc_h5", make_acdc, "2d"),
    ("nnunet", make_nnunet, "3d_fullres"),
    ("msd", lambda folder: make_plain(folder, cases=5), "3d_fullres"),
]

RADIOGRAPHS: list[tuple[str, Callable[[Path], Path]]] = [
    ("fracatlas", make_fracatlas),
    ("grazpedwri", make_graz),
    ("coco", lambda folder: make_own("coco", folder)),
    ("yolo", lambda folder: make_own("yolo", folder)),
    ("voc", lambda folder: make_own("voc", folder)),
]


@pytest.mark.parametrize(("format", "make", "configuration"), PATHS, ids=[f"{f}-{c}" for f, _, c in PATHS])
def test_from_the_download_to_scores(
    tmp_path: Path, format: str, make: Callable[[Path], Path], configuration: str
) -> None:
    root = tmp_path / "root"
    raw = convert_dataset(format, make(tmp_path / "download"), 7, root=root, options=ConversionOptions(workers=1))
    assert raw.ok
    plan_and_preprocess(7, root=root, configurations=[configuration], workers=1)
    patch = (16, 16, 16) if configuration == "3d_fullres" else (16, 16)
    options = TrainOptions(
        root=root,
        configuration=configuration,
        epochs=1,
        iterations_per_epoch=2,
        batch_size=2,
        patch_size=patch,
        device="cpu",
        workers=0,
        validate=False,
    )
    fold = train(7, "unet_tiny", 0, options)

    description = DatasetDescription.load(raw.folder / "dataset.json")
    split = load_splits(root / "preprocessed" / raw.folder.name / "splits_final.json")[0]
    assert not set(split.train) & set(split.val)
    patients = description.patients
    assert not {patients.get(c, c) for c in split.train} & {patients.get(c, c) for c in split.val}
    images = [
        path for case in training_cases(raw.folder, description) if case.case == split.val[0] for path in case.images
    ]
    report = predict_folder(images, tmp_path / "out", fold.parent, device="cpu", mirror=False)
    assert report.predicted == [split.val[0]] and not report.failed
    labels = raw.folder / "labelsTr"
    summary = evaluate_folder(
        tmp_path / "out", labels, description.labels, file_ending=description.file_ending, cases=report.predicted
    )
    assert len(summary.structures) == len(description.labels.foreground) and np.isfinite(summary.mean_dice)
    name = f"{split.val[0]}{description.file_ending}"
    assert read_geometry(tmp_path / "out" / name).differences(read_geometry(labels / name)) == []


@pytest.mark.parametrize(("format", "make"), RADIOGRAPHS, ids=[f for f, _ in RADIOGRAPHS])
def test_from_the_download_to_scores_of_boxes(tmp_path: Path, format: str, make: Callable[[Path], Path]) -> None:
    root = tmp_path / "root"
    raw = convert_dataset(
        format, make(tmp_path / "download"), 7, name="Bones", root=root, options=ConversionOptions(workers=1)
    ).folder
    plan = plan_and_preprocess_detection(7, root=root, workers=1, image_size=32, batch_size=2)
    description = DatasetDescription.load(raw / "dataset.json")
    assert plan.categories == description.categories
    split = load_splits(root / "preprocessed" / raw.name / "splits_final.json")[0]
    patients = description.patients
    assert not {patients.get(c, c) for c in split.train} & {patients.get(c, c) for c in split.val}

    options = DetectorOptions(root=root, epochs=1, iterations_per_epoch=2, device="cpu", workers=0, validate=False)
    fold = train_detector(7, "yolov8n", 0, options)
    cases = [case.case for case in training_cases(raw, description)]
    report = predict_detections(raw / "imagesTr", tmp_path / "out", fold.parent, device="cpu")
    assert sorted(report.predicted) == cases and not report.failed
    summary = evaluate_detection_folder(tmp_path / "out", raw)
    assert summary.value("AP").n and np.isfinite(summary.value("AP").mean or 0.0)
    assert (summary.boxes() > 0) and set(summary.truths) == set(cases)
