"""One sound file of every kind of JSON that medkd reads, each with what reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.files import write_json
from medkd.core.plan import Plan
from medkd.core.postprocessing import Postprocessing, Trial
from medkd.core.protocol import ProtocolFile
from medkd.core.protocol_files import FOLDER as PROTOCOLS
from medkd.core.run import RunDescription, is_detection
from medkd.core.run_files import read_cost, read_log
from medkd.core.serial import load, save
from medkd.core.splits import FoldRecord, load_splits
from medkd.detection.models import DetectorWeights
from medkd.detection.plan import DetectionPlan
from medkd.detection.predict import DetectionSettings
from medkd.detection.store import DetectionStore
from medkd.evaluation.detection.folder import References, evaluate_detections
from medkd.evaluation.detection.predictions import Boxes, DetectionPredictions, ImagePredictions
from medkd.evaluation.detection.results import DetectionSummary
from medkd.evaluation.segmentation.results import Summary
from medkd.inference.settings import PredictSettings
from medkd.io.verify import Report, verify_dataset
from medkd.models.described import DescribedFolder
from medkd.preprocessing.fingerprint import Fingerprint
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseRecord
from medkd.training.logs import read_log as read_records
from tests.detection.builders import make_dataset, make_store
from tests.preprocessing.builders import make_raw

Reader = Callable[[Path], object]
Sample = tuple[Path, Reader]

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0" / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
TEACHER = {
    "network": "segresnet",
    "channels": ["MR"],
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "spacing": [1.0, 1.0, 1.0],
    "normalization": ["zscore"],
    "patch_size": [16, 16, 16],
    "train": ["c0"],
    "transpose": [2, 1, 0],
}
DETECTOR = {
    "network": "fasterrcnn_r18",
    "categories": ["fracture", "text"],
    "train": ["a"],
    "image_size": 640,
    "weights": "best.pt",
}
SCORES = {"Dice": 0.5, "IoU": 0.4, "TP": 3, "FP": 1, "FN": 1, "TN": 5, "n_pred": 4, "n_ref": 4}
SUMMARY = {"metric_per_case": [{"reference_file": "a.nii.gz", "prediction_file": "b.nii.gz", "metrics": {"1": SCORES}}]}
SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}]
IMAGE = {"file": "x.png", "width": 10, "height": 9, "boxes": [[1, 2, 3, 4]], "scores": [0.5], "classes": ["a"]}


def read_description(path: Path, raw: Path) -> object:
    """A ``dataset.json``, the cases that it names, and what would be written of it."""
    description = DatasetDescription.load(path)
    return training_cases(raw, description), description.to_json()


def read_stored(path: Path) -> object:
    """The index of preprocessed radiographs, and the boxes that it holds."""
    store = DetectionStore(path.parent)
    return [(store.boxes(case), store.names(case)) for case in store.cases()]


def prepared(root: Path) -> dict[str, Sample]:
    """What preparing a data set of scans leaves."""
    raw = make_raw(root, cases=3)
    plan_and_preprocess(1, root=root, configurations=["3d_fullres"])
    folder = root / "preprocessed" / "Dataset001_Test"
    verify_dataset(raw).save(root / "report.json")
    return {
        "dataset.json": (raw / "dataset.json", lambda path: read_description(path, raw)),
        "plans.json": (folder / "plans.json", Plan.load),
        "fingerprint.json": (folder / "fingerprint.json", lambda path: load(Fingerprint, path)),
        "case record": (folder / "3d_fullres" / "c0.json", lambda path: load(CaseRecord, path)),
        "verification_report.json": (root / "report.json", lambda path: load(Report, path)),
    }


def trained() -> dict[str, Sample]:
    """What a training leaves."""
    return {
        "run.json": (FIXTURE / "run.json", lambda path: (load(RunDescription, path), is_detection(path.parent))),
        "split.json": (FIXTURE / "fold_0" / "split.json", FoldRecord.load),
        "log.jsonl": (FIXTURE / "fold_0" / "log.jsonl", lambda path: (read_log(path), read_records(path.parent))),
        "model.json": (FIXTURE / "fold_0" / "model.json", read_cost),
    }


def written(folder: Path) -> dict[str, Sample]:
    """Files as the documentation shows them."""
    settings = PredictSettings(
        run="run", folds=("0",), checkpoint="final", step_size=0.5, mirror_axes=(0, 1), precision="fp32", medkd="1"
    )
    save(folder / "predict_settings.json", settings)
    trials = (Trial("all structures together", (1, 2), 0.5, None, False), Trial("organ", (1,), 0.5, 0.6, True))
    found = Postprocessing(
        folds=("0", "1"), cases=3, trials=trials, dice_before=0.5, dice_after=0.6, weights=("00ff", "ff00")
    )
    save(folder / "postprocessing.json", found)
    boxes = BoxAnnotation(width=10, height=9, boxes=((1.0, 2.0, 3.0, 4.0),), names=("a",))
    boxes.save(folder / "boxes.json")
    content: dict[str, Any] = {
        "summary.json": SUMMARY,
        "splits_final.json": SPLITS,
        "predictions.json": {"schema": 1, "categories": ["a"], "images": {"x": IMAGE}},
        "segmentation/teacher.json": TEACHER,
        "detection/teacher.json": DETECTOR,
    }
    for name, data in content.items():
        write_json(folder / name, data)
    return {
        "summary.json": (folder / "summary.json", Summary.load),
        "splits_final.json": (folder / "splits_final.json", load_splits),
        "predictions.json": (folder / "predictions.json", DetectionPredictions.load),
        "boxes": (folder / "boxes.json", BoxAnnotation.load),
        "postprocessing.json": (folder / "postprocessing.json", lambda path: load(Postprocessing, path).text()),
        "protocol": (PROTOCOLS / "acf_bckd.json", lambda path: load(ProtocolFile, path)),
        "teacher.json": (
            folder / "segmentation" / "teacher.json",
            lambda path: DescribedFolder(path.parent).describe(),
        ),
        "detector's teacher.json": (
            folder / "detection" / "teacher.json",
            lambda path: DetectorWeights(path.parent).describe(),
        ),
        "predict_settings.json": (folder / "predict_settings.json", lambda path: load(PredictSettings, path)),
    }


def detected(root: Path) -> dict[str, Sample]:
    """What detection writes beside that."""
    raw = make_dataset(root, images=3, negatives=1, categories=("fracture", "text"))
    store = make_store(raw, root / "store")
    DetectionPlan(
        dataset=raw.name,
        categories=("fracture", "text"),
        image_size=640,
        batch_size=2,
        sampling={"text": 2.0},
        reasons={"image_size": "the largest"},
    ).save(root / "plan" / "plans.json")
    settings = DetectionSettings(
        run="run", folds=("0",), checkpoint="final", score=0.1, overlap=0.5, most=100, image_size=640, medkd="1"
    )
    save(root / "settings" / "predict_settings.json", settings)
    summary_of_detections(raw).save(root / "scores" / "summary.json")
    return {
        "detection plans.json": (root / "plan" / "plans.json", DetectionPlan.load),
        "cases.json": (store.folder / "cases.json", read_stored),
        "detection predict_settings.json": (
            root / "settings" / "predict_settings.json",
            lambda path: load(DetectionSettings, path),
        ),
        "detection summary.json": (
            root / "scores" / "summary.json",
            lambda path: DetectionSummary.load(path).to_json(),
        ),
    }


def summary_of_detections(raw: Path) -> DetectionSummary:
    """The scores of predictions that are the reference boxes."""
    categories = ("fracture", "text")
    annotations, images = {}, {}
    for path in sorted((raw / "labelsTr").glob("*.json")):
        annotation = BoxAnnotation.load(path)
        annotations[path.stem] = annotation
        scores = np.full(len(annotation.boxes), 0.9)
        images[path.stem] = ImagePredictions(
            file=path.stem,
            width=annotation.width,
            height=annotation.height,
            found=Boxes.of(annotation.boxes, annotation.indices(categories), scores),
        )
    predictions = DetectionPredictions(categories, images)
    patients = dict.fromkeys(annotations, "somebody")
    return evaluate_detections(predictions, References(raw, annotations, categories, patients))


def sound_files(root: Path) -> dict[str, Sample]:
    """All kinds, written below a folder where they do not lie somewhere."""
    return prepared(root) | trained() | written(root / "written") | detected(root / "detection")
