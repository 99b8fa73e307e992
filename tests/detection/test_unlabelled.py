"""Images without annotation: prepared beside annotated ones, taught on by the method alone, never a leak."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import medkd.api as api
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, LeakError, RunError
from medkd.core.features import Progress
from medkd.core.files import read_json
from medkd.detection.base import DETECTORS
from medkd.detection.families import register_detectors
from medkd.detection.job import DetectionJob
from medkd.detection.options import DetectorOptions
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.sampling import UnlabelledSteps, walk
from medkd.detection.store import DetectionStore
from medkd.detection.task import DetectionLesson, DetectionTask, dry_run, train, train_distill
from medkd.detection.tv.data import TrainingBatches, steps_per_epoch
from medkd.detection.tv.training import DetectionTrainer, loop_settings
from medkd.io.radiographs import write_png
from medkd.io.verify import verify_dataset
from medkd.training.run import rehearse
from tests.detection.builders import make_dataset, radiograph
from tests.detection.tv.builders import build_narrow

NAME = "Dataset502_Tiny"
TV, YOLO = "retinanet_r18", "yolov8n"


def _options(root: Path, **changes: object) -> DetectorOptions:
    values: dict = {"root": root, "epochs": 1, "iterations_per_epoch": 4, "batch_size": 2, "workers": 0, "seed": 3}
    values |= {"device": "cpu", "image_size": 64, "validate": False}
    return DetectorOptions(**{**values, **changes})


def _add_plain(raw: Path, count: int = 4, *, of: Path | None = None) -> None:
    for index in range(count):
        pixels, _, _ = radiograph(40 + index, 96, 72)
        write_png(raw / "imagesUn" / f"plain_{index:02d}_0000.png", pixels)
    if of is not None:
        Image.open(of).save(raw / "imagesUn" / "twin_0000.png", compress_level=1)


@pytest.fixture(scope="module", autouse=True)
def _narrow() -> Iterator[None]:
    """Detectors of few channels, whose many checkpoints are small."""
    with pytest.MonkeyPatch.context() as patch:
        build_narrow(patch)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    _add_plain(make_dataset(root, images=10, negatives=2))
    plan_and_preprocess_detection(502, root=root, workers=1, image_size=64)
    return root


@pytest.fixture(scope="module")
def root(prepared: Path) -> Path:
    """With a teacher of either family; tests keep their runs apart by tags."""
    register_detectors("")
    for network in (TV, YOLO):
        if network in DETECTORS:
            train(502, network, 0, _options(prepared, iterations_per_epoch=1))
    return prepared


def test_they_are_stored_but_neither_planned_from_nor_split(prepared: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, images=10, negatives=2)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1, image_size=64)
    folder, other = (base / "preprocessed" / NAME for base in (prepared, tmp_path))
    for name in ("plans.json", "splits_final.json", "fingerprint.json"):
        if name == "fingerprint.json":
            first, second = (read_json(place / name) for place in (folder, other))
            assert {**first, "source": ""} == {**second, "source": ""}
        else:
            assert (folder / name).read_text() == (other / name).read_text()
    store = DetectionStore(folder / "detection")
    assert len(store.cases()) == 10 and store.unlabelled() == [f"plain_{index:02d}" for index in range(4)]
    negative = store.entry("image_09")
    assert not negative.boxes and negative.annotated and not store.entry("plain_00").annotated
    assert set(store.annotations()) == set(store.cases())


def test_what_changed_alone_is_stored_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = make_dataset(tmp_path, images=6, negatives=1)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    folder = tmp_path / "preprocessed" / NAME / "detection"
    plan = (folder.parent / "plans.json").read_text()
    _add_plain(raw)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    assert len(times) == 10 and (folder.parent / "plans.json").read_text() == plan
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    assert times == {path.name: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    (raw / "imagesUn" / "plain_00_0000.png").unlink()
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    assert len(DetectionStore(folder).unlabelled()) == 3


def _found(raw: Path) -> list[str]:
    report = verify_dataset(raw)
    return [finding.text() for finding in (*report.problems, *report.warnings)]


def test_what_is_wrong_with_them_is_said(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=6, negatives=1)
    _add_plain(raw, of=raw / "imagesTr" / "image_00_0000.png")
    (raw / "imagesUn" / "plain_01_0000.png").write_bytes(b"no image")
    (raw / "imagesUn" / "named_otherwise.png").write_bytes(b"")
    texts = _found(raw)
    assert any("plain_01" in text and "readable" in text for text in texts)
    assert any("named_otherwise.png" in text for text in texts)
    assert any("the same pixels in image_00, twin" in text for text in texts)
    write_png(raw / "imagesUn" / "image_02_0000.png", radiograph(7, 96, 72)[0])
    assert any("found labels of this name in labelsTr" in text for text in _found(raw))
    with pytest.raises(DataError, match=r"image_02\.json; move it to imagesTr"):
        plan_and_preprocess_detection(502, root=tmp_path, workers=1, verify=False)


def test_a_data_set_without_any_annotation_is_refused_in_a_sentence(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / NAME
    _add_plain(raw)
    DatasetDescription.detection(("X-ray",), ("fracture",), file_ending=".png").save(raw / "dataset.json")
    with pytest.raises(DataError, match=r"expected annotated images beside the 4 in imagesUn, found none"):
        plan_and_preprocess_detection(502, root=tmp_path, verify=False)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
def test_steps_of_both_kinds_are_spread_evenly(share: float) -> None:
    steps = UnlabelledSteps(share)
    kinds = [steps.is_unlabelled(step) for step in range(200)]
    assert sum(kinds) == round(200 * share)
    assert [sum(kinds[:step]) for step in range(200)] == [steps.before(step) for step in range(200)]
    assert all(abs(sum(kinds[:n]) - n * share) < 1 for n in range(200))


def test_a_walk_shows_all_equally_often_wherever_it_begins() -> None:
    cases = [f"c{index}" for index in range(7)]
    whole = walk(cases, 5, 0, 21)
    assert all(sorted(whole[first : first + 7]) == cases for first in (0, 7, 14)) and whole[:7] != whole[7:14]
    assert [case for first in range(0, 21, 3) for case in walk(cases, 5, first, 3)] == whole


def _job(root: Path, teacher: str, student: str, method: str = "cwd", **changes: object) -> DetectionJob:
    options = _options(root, tag="job", **changes)
    _, lesson = rehearse(DetectionTask(), 502, student, 0, options, teacher, method)
    assert isinstance(lesson, DetectionLesson)
    return replace(lesson.family_job(), folder=root / "job")


def test_batches_are_of_one_kind_and_the_others_stay_as_they_were(root: Path) -> None:
    teacher = TV
    job = _job(root, teacher, TV, unlabelled_share=0.5)
    batches, plain = TrainingBatches(job, 4), TrainingBatches(replace(job, unlabelled=(), unlabelled_share=0.0), 4)
    kinds = [batches.kinds.is_unlabelled(step) for step in range(4)]
    assert kinds == [False, True, False, True]
    assert [batches._labelled_cases(step) for step in (0, 2)] == [plain._labelled_cases(step) for step in (0, 1)]
    shown = batches._plain_cases(1) + batches._plain_cases(3)
    assert sorted(shown) == sorted(job.unlabelled) == [f"plain_{index:02d}" for index in range(4)]
    everything = replace(job, budget=replace(job.budget, iterations_per_epoch=0))
    drawn = len(batches.drawn(0))
    assert steps_per_epoch(everything) == 2 * -(-drawn // 2)


def _gradients(trainer: DetectionTrainer, step: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    trainer.network.zero_grad()
    trainer.network.train()
    torch.manual_seed(0)
    terms = trainer.training_terms(TrainingBatches(trainer.job, 4)[step], Progress(0, 1, step))
    torch.stack(list(terms.values())).sum().backward()
    found = {name: p.grad.clone() for name, p in trainer.network.named_parameters() if p.grad is not None}
    return {name: float(term.detach()) for name, term in terms.items()}, found


@pytest.mark.parametrize("method", ["cwd", "kd"])
def test_without_annotation_the_method_alone_teaches_and_the_student_alone_learns(root: Path, method: str) -> None:
    job = _job(root, TV, TV, method, unlabelled_share=0.5)
    trainer = DetectionTrainer(job, loop_settings(job))
    assert trainer.distiller is not None and trainer.distiller.teacher is not None
    supervised, _ = _gradients(trainer, 0)
    terms, gradients = _gradients(trainer, 1)
    assert set(terms) < set(supervised) and all(name.startswith(("cwd", "kd")) for name in terms)
    assert any(value.abs().sum() > 0 for value in gradients.values())
    assert all(p.grad is None for p in trainer.distiller.teacher.parameters())
    torch.manual_seed(11)
    for parameter in trainer.distiller.teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    other, _ = _gradients(trainer, 1)
    assert any(abs(other[name] - terms[name]) > 1e-6 for name in terms)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cwd", "kd"])
@pytest.mark.parametrize("network", [TV, YOLO])
def test_both_families_train_with_and_without_any_annotation(root: Path, network: str, method: str) -> None:
    if network not in DETECTORS:
        pytest.skip("ultralytics is not installed")
    options = _options(root, unlabelled_share=0.5, iterations_per_epoch=2)
    folder = train_distill(502, network, network, method, 0, options)
    split = read_json(folder / "split.json")
    assert split["unlabelled"] == [f"plain_{index:02d}" for index in range(4)]
    run = read_json(folder.parent / "run.json")
    assert run["unlabelled_share"] == 0.5 and run["labels"] == "given"
    assert sum(value for name, value in _terms(folder).items() if method in name) > 0
    assert sum(value for name, value in _terms(folder).items() if method not in name) > 0

    options = _options(root, labels="none", tag="blind", iterations_per_epoch=1)
    blind = train_distill(502, network, network, method, 0, options)
    assert all(value == 0 for name, value in _terms(blind).items() if method not in name)


@pytest.mark.slow
def test_a_first_stage_learns_on_images_without_annotation(root: Path) -> None:
    """Masks that are learnt on the teacher need boxes in its loss: there the teacher's own stand for them."""
    options = _options(root, labels="none", tag="masks", iterations_per_epoch=1)
    assert set(_terms(train_distill(502, TV, TV, "maskd", 0, options))) == {"maskd"}


def _terms(folder: Path) -> dict[str, float]:
    """The means of the last epoch's terms."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found: dict[str, float] = [line["terms"] for line in lines if "terms" in line][-1]
    return found


def test_without_labels_no_box_changes_the_student(root: Path) -> None:
    """The boxes of the training images are replaced by others: the student stays the same, weight by weight."""
    teacher = TV
    first = train_distill(502, teacher, TV, "cwd", 0, _options(root, labels="none", tag="one", iterations_per_epoch=2))
    store = (root / "preprocessed").resolve() / NAME / "detection" / "cases.json"
    kept = store.read_text()
    try:
        index = read_json(store)
        for case in index["cases"].values():
            case["boxes"] = [[1.0, 1.0, 30.0, 30.0] for _ in case["boxes"]]
        store.write_text(json.dumps(index))
        second = train_distill(
            502, teacher, TV, "cwd", 0, _options(root, labels="none", tag="two", iterations_per_epoch=2)
        )
    finally:
        store.write_text(kept)
    weights = [torch.load(f / "checkpoint_final.pt", weights_only=True)["network"] for f in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_dry_run_says_how_many_and_a_network_alone_passes_them_over(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = TV
    lines = dry_run(502, TV, 0, _options(root, tag="dry"), teacher, "cwd")
    assert any("8 for training, 2 for validation, 4 without annotation in 33% of the steps" in line for line in lines)
    lines = dry_run(502, TV, 0, _options(root, tag="dry", labels="none"), teacher, "cwd")
    assert any("0 for training, 2 for validation, 12 without annotation in 100% of" in line for line in lines)
    with caplog.at_level(logging.INFO):
        lines = dry_run(502, TV, 0, _options(root, tag="dry"), teacher, "none")
    assert "4 images without labels" in caplog.text and not any("without annotation" in line for line in lines)
    for changes in ({"unlabelled_share": 0.5}, {"labels": "none"}):
        with pytest.raises(RunError, match="has no teacher to follow"):
            dry_run(502, TV, 0, _options(root, tag="dry", **changes), teacher, "none")


def _teacher_in(root: Path) -> str:
    train(502, TV, 0, _options(root, iterations_per_epoch=1))
    return TV


def test_an_image_that_equals_a_validation_image_is_refused(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=10, negatives=2)
    plan_and_preprocess_detection(502, root=tmp_path, workers=1, image_size=64)
    judged = read_json(tmp_path / "preprocessed" / NAME / "splits_final.json")[0]["val"][0]
    _add_plain(raw, of=raw / "imagesTr" / f"{judged}_0000.png")
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    teacher = _teacher_in(tmp_path)
    with pytest.raises(LeakError, match=f"The image twin without labels equals {judged}.* pixel by pixel"):
        dry_run(502, TV, 0, _options(tmp_path, tag="x"), teacher, "cwd")


def test_images_of_a_judged_patient_are_left_out(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=10, negatives=2, patients=True)
    _add_plain(raw)
    description = DatasetDescription.load(raw / "dataset.json")
    plan_and_preprocess_detection(502, root=tmp_path, workers=1, image_size=64)
    judged = read_json(tmp_path / "preprocessed" / NAME / "splits_final.json")[0]["val"][0]
    owners = {**description.patients, "plain_02": description.patients[judged]}
    replace(description, patients=owners).save(raw / "dataset.json")
    plan_and_preprocess_detection(502, root=tmp_path, workers=1)
    job = _job(tmp_path, _teacher_in(tmp_path), TV)
    assert job.unlabelled == ("plain_00", "plain_01", "plain_03")


def test_options_of_segmentation_alone_are_refused(root: Path) -> None:
    with pytest.raises(RunError, match="confidence is for segmentation"):
        api.train(NAME, TV, 0, root=root, confidence=0.5)


def test_a_sample_without_boxes_is_no_negative(prepared: Path) -> None:
    """An image annotated as empty is drawn as a negative, one without annotation never."""
    store = DetectionStore(prepared / "preprocessed" / NAME / "detection")
    assert not store.names("image_09") and "plain_00" not in store.annotations()
    assert np.array_equal(store.boxes("plain_00")[0], np.zeros((0, 4), np.float32))
    assert BoxAnnotation.load(prepared / "raw" / NAME / "labelsTr" / "image_09.json").boxes == ()


def test_a_continued_pass_shows_ultralytics_what_an_unbroken_run_would_see() -> None:
    data = pytest.importorskip("medkd.detection.yolo.data")

    def make() -> Any:
        labelled = data.EpochSampler(lambda epoch: [10 * epoch + place for place in range(5)], 2)
        return data.MixedSampler(labelled, lambda place, count: [-place] * count, UnlabelledSteps(0.4), 2, 5)

    whole, later = make(), make()
    passes = [list(whole) for _ in range(4)]
    assert [value <= 0 for value in passes[0][1:]] == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2
    later.go_to(2)
    assert [list(later), list(later)] == passes[2:] and len(later) == len(passes[0]) == 10


def test_yolo_learns_from_the_teacher_alone_without_annotation(root: Path) -> None:
    if YOLO not in DETECTORS:
        pytest.skip("ultralytics is not installed")
    from medkd.detection.yolo.assignment import to_batch
    from medkd.detection.yolo.student import Student

    job = _job(root, YOLO, YOLO, unlabelled_share=0.5)
    assert job.distiller is not None and job.distiller.teacher is not None
    detector, teacher = job.detector, job.distiller.teacher
    student = Student(detector, job, lambda: Progress(0, 1, 0))  # type: ignore[arg-type]
    student.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    detector.network.args = student.args
    student.train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    none = (torch.zeros(0, 4), torch.zeros(0))
    batch = {**to_batch(images, [none[0]] * 2, [none[1]] * 2), "im_file": ["/store/images/plain_00.png"] * 2}
    found = []
    for _ in range(2):
        detector.zero_grad()
        vector, items = student.loss(batch)
        vector.sum().backward()
        assert {name for name, value in items.items() if value != 0} == {"cwd"}
        assert any(p.grad is not None and bool(p.grad.any()) for p in detector.parameters())
        assert all(p.grad is None for p in teacher.parameters())
        found.append(float(items["cwd"]))
        for parameter in teacher.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    assert abs(found[0] - found[1]) > 1e-6
    _, items = student.loss({**batch, "im_file": ["/store/images/image_09.png"] * 2})
    assert float(items["cls_loss"]) > 0  # annotated as empty
