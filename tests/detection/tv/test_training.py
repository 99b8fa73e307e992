from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medkd.detection.tv
from medkd.core.checkpoint import load_checkpoint
from medkd.core.features import Progress
from medkd.core.run import BEST, FINAL, LATEST, Budget
from medkd.core.speed import Speed
from medkd.detection.base import Detector
from medkd.detection.distiller import DetectorDistiller
from medkd.detection.job import DetectionJob
from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.tv.data import load_sample
from medkd.detection.tv.training import DetectionTrainer, loop_settings, mean_average_precision
from medkd.distillation import Context, build_method
from medkd.evaluation.detection.predictions import Boxes
from medkd.training import speed as switches
from medkd.training.logs import read_log
from medkd.training.ranks import Ranks
from tests.detection.builders import Told
from tests.detection.tv.builders import SIZE, job, make, narrow, small_store  # noqa: F401 - a fixture


def _distiller(name: str, student: Detector, teacher: Detector) -> DetectorDistiller:
    outputs = len(student.spec.categories) + student.two_stage
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=outputs,
        regions=not student.two_stage,
        spacing=(1.0, 1.0),
        patch_size=(SIZE, SIZE),
        task="detection",
    )
    torch.manual_seed(11)
    return DetectorDistiller(teacher, build_method(name, context, {}, own=DETECTION_METHODS))


class _Killed(DetectionTrainer):
    """Stops at a step."""

    def __init__(self, given: DetectionJob, at: int) -> None:
        super().__init__(given, loop_settings(given))
        self._at = at

    def training_terms(self, batch: Any, progress: Progress) -> dict[str, Tensor]:
        if progress.step == self._at:
            raise KeyboardInterrupt
        return super().training_terms(batch, progress)


@pytest.mark.usefixtures("narrow")
def test_two_epochs_leave_what_prediction_and_the_report_need(tmp_path: Path) -> None:
    told = Told()
    given = job(tmp_path / "fold_0", small_store(tmp_path), make("faster_rcnn_r18", classes=1), tracking=told)
    before = given.detector.scorer.box_predictor.cls_score.weight.detach().clone()
    medkd.detection.tv.fit(given)
    records = read_log(given.folder)
    assert told.records == records
    assert [r.epoch for r in records] == [0, 1] and all(
        r.validation_score is not None and r.validation_dice is None for r in records
    )
    assert (
        set(records[0].terms) == {"objectness", "proposal", "class", "box"} and records[0].validation_loss is not None
    )
    for name in (FINAL, BEST):
        make("faster_rcnn_r18", classes=1, seed=9).load_state_dict(load_checkpoint(given.folder / name)["network"])
    assert not torch.equal(before, given.detector.scorer.box_predictor.cls_score.weight)
    assert "AP" in (given.folder / "training_log.txt").read_text()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "method"), [("faster_rcnn_r18", "none"), ("gfl_r18", "crosskd+mimic")])
def test_a_killed_and_continued_run_equals_an_unbroken_one(tmp_path: Path, name: str, method: str) -> None:
    store = small_store(tmp_path)

    def fresh(folder: str, **changes: object) -> DetectionJob:
        student = make(name, classes=1)
        return job(
            tmp_path / folder,
            store,
            student,
            distiller=_distiller(method, student, make(name, classes=1, seed=5)),
            **changes,
        )

    whole = fresh("a")
    medkd.detection.tv.fit(whole)
    with pytest.raises(KeyboardInterrupt):
        _Killed(fresh("b"), at=3).fit()
    continued = fresh("b", resume=True)
    medkd.detection.tv.fit(continued)
    a, b = (load_checkpoint(tmp_path / f / LATEST) for f in "ab")
    for part in ("network", "method"):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    logs = [[(r.train_loss, r.validation_loss, r.validation_score) for r in read_log(tmp_path / f)] for f in "ab"]
    assert logs[0] == logs[1] and len(logs[0]) == 2
    assert not [k for k in b["network"] if "teacher" in k]
    if method != "none":
        assert len(read_log(tmp_path / "a")[0].terms) > 3


def test_the_plan_sets_the_loop_and_the_rest_has_its_usual_values(tmp_path: Path) -> None:
    given = job(tmp_path, small_store(tmp_path), make("fcos_r18", classes=1), budget=Budget(10, 20, 2, 0.01, 0))
    usual = loop_settings(given)
    assert (usual.momentum, usual.weight_decay, usual.nesterov, usual.warmup) == (0.9, 1e-4, False, 20)
    rates = [usual.learning_rate(step // 20, step) for step in range(200)]
    assert rates[0] == pytest.approx(0.01 / 20) and max(rates) == rates[19] < 0.01
    assert rates[:20] == sorted(rates[:20]) and rates[19:] == sorted(rates[19:], reverse=True)
    said = loop_settings(
        replace(given, plan=replace(given.plan, momentum=0.8, weight_decay=0.0, final_learning_rate=0.002))
    )
    assert (said.momentum, said.weight_decay) == (0.8, 0.0)
    assert said.learning_rate(5, 100) == pytest.approx(0.006) and said.learning_rate(10, 200) == pytest.approx(0.002)


def test_average_precision_counts_only_classes_that_occur() -> None:
    drawn = [Boxes.of([[0, 0, 10, 10]], [1]), Boxes.of([], [])]
    right = [Boxes.of([[0, 0, 10, 10]], [1], [0.9]), Boxes.of([], [], [])]
    assert mean_average_precision(right, drawn, 3) == pytest.approx(1.0)
    half = [Boxes.of([[0, 0, 10, 7.2]], [1], [0.9]), Boxes.of([], [], [])]
    assert mean_average_precision(half, drawn, 3) == pytest.approx(0.5)  # hits at 0.50, 0.55, 0.60, 0.65, 0.70
    assert mean_average_precision(right[1:], drawn[1:], 3) == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["retinanet_r18", "gfl_r18", "atss_r18", "fcos_r18", "faster_rcnn_r18"])
def test_one_image_is_learned_by_heart(name: str) -> None:
    from torchvision.ops import box_iou

    detector = make(name, classes=2, size=96).train()
    images = torch.full((2, 3, 96, 96), 0.2)
    boxes, classes = (
        [torch.tensor([[20.0, 24, 60, 70]]), torch.tensor([[40.0, 40, 88, 80]])],
        [torch.tensor([1]), torch.tensor([0])],
    )
    images[0, :, 24:70, 20:60], images[1, :, 40:80, 40:88] = 0.9, 0.5
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    for _ in range(80 if detector.two_stage else 45):
        terms, _, _ = detector.losses(images, boxes, classes)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    for found, box, kind in zip(
        detector.detect(images, overlap=0.5), boxes, classes, strict=True
    ):  # in train mode: as it was seen
        assert int(found.classes[0]) == int(kind)
        assert float(box_iou(found.boxes[:1], box)) > 0.6


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "method"), [("retinanet_r18", "mimic"), ("faster_rcnn_r18", "none")])
def test_switches_for_speed_change_no_weight(
    tmp_path: Path, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switches, "BACKEND", "aot_eager")
    store, found = small_store(tmp_path), []
    for folder, speed in (("plain", Speed()), ("fast", Speed(channels_last=True, compile=True))):
        student = make(name, classes=1)
        distiller = _distiller(method, student, make(name, classes=1, seed=4))
        given = job(tmp_path / folder, store, student, epochs=1, distiller=distiller, speed=speed)
        medkd.detection.tv.fit(given)
        found.append(load_checkpoint(given.folder / FINAL)["network"])
        assert found[-1]["pyramid.bottom.body.0.0.weight"].is_contiguous()
        kept = student.pyramid.bottom.body[0][0].weight
        assert kept.is_contiguous(memory_format=torch.channels_last) == speed.channels_last
    assert list(found[0]) == list(found[1])
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["gfl_r18", "faster_rcnn_r18"])
def test_validation_knows_nothing_of_batches(tmp_path: Path, name: str) -> None:
    """Its loss is the mean of what every image gives alone, so that it is that of any number of processes, too."""
    store, detector = small_store(tmp_path, images=5), make(name, classes=1)
    cases, results = tuple(store.cases()), []
    for size in (1, 2, 4):
        given = replace(job(tmp_path / str(size), store, detector, budget=Budget(1, 1, size, 1e-3, 3)), val=cases)
        trainer = DetectionTrainer(given, loop_settings(given))
        detector.eval()
        results.append(trainer.validate())
    alone = []
    for case in cases:
        image, boxes, classes = load_sample(store, case, SIZE)
        terms = detector.losses(image[None], [boxes], [classes])[0]
        alone.append(sum(term.item() for term in terms.values()))
    for loss, score in results:
        assert loss == pytest.approx(sum(alone) / len(alone), rel=1e-4)
        assert score == pytest.approx(results[0][1], abs=1e-6)


def test_a_process_validates_as_many_images_at_once_as_it_trains_on(tmp_path: Path) -> None:
    store = small_store(tmp_path, images=7)
    given = job(tmp_path / "fold", store, make("gfl_r18", classes=1), budget=Budget(1, 1, 4, 1e-3, 3))
    trainer = DetectionTrainer(replace(given, val=tuple(store.cases())), loop_settings(given))
    seen: list[int] = []
    for number in range(2):
        trainer.ranks = Ranks(number=number, count=2)
        for places, batch in trainer._validation_batches():
            assert len(places) == len(batch[0]) <= 2
            seen += places
    assert sorted(seen) == list(range(7))
