"""Scans without labels: what is stored of them, what is learnt from them, and where they must not be."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import LeakError, MedkdError, RunError
from medkd.core.features import Progress, Target
from medkd.core.files import read_json, write_json
from medkd.core.run import FINAL, LATEST
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.distillation.completion import completed
from medkd.inference.predictor import Predictor
from medkd.models.guard import seen_by
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore
from medkd.training.distillation import DistillationTrainer
from medkd.training.foresight import foresee
from medkd.training.options import TAUGHT, TrainOptions
from medkd.training.run import rehearse
from medkd.training.sampling import UNLABELLED
from medkd.training.segmentation_lesson import SegmentationLesson
from medkd.training.segmentation_task import SegmentationTask, dry_run, train, train_distill
from medkd.training.targets import TargetStore
from tests.training.builders import NAME
from tests.training.unlabelled_builders import make_mixed, without_labels, write_scan

RUN = "plain_unet__3d_fullres"
SCANS = ("scan_00", "scan_01", "scan_02", "scan_03")


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 4,
        "workers": 0,
        "save_every": 1,
        "device": "cpu",
        "validate": False,
    }
    return TrainOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with labelled and unlabelled cases, and a teacher for fold 0."""
    root = tmp_path_factory.mktemp("mixed")
    make_mixed(root)
    train(900, "plain_unet", 0, _options(root, iterations_per_epoch=30))
    return root


@pytest.fixture()
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(trained, tmp_path / "root")
    return tmp_path / "root"


def _lesson(root: Path, method: str = "kd", **changes: object) -> SegmentationLesson:
    """Networks and data of a distillation that is ready to start."""
    options = _options(root, overwrite=True, **changes)
    job, _ = rehearse(SegmentationTask(), 900, "plain_unet", 0, options, "plain_unet", method)
    lesson = SegmentationLesson(job)
    lesson.prepare()
    return lesson


@pytest.mark.parametrize("targets", ["cached", "live"])
def test_labelled_and_unlabelled_patches_are_drawn_by_the_share(root: Path, targets: str) -> None:
    for share, expected in ((None, 4 / 8), (0.25, 0.25), (1.0, 1.0)):
        lesson = _lesson(root, targets=targets, unlabelled_share=share, iterations_per_epoch=100)
        trainer = lesson.trainer()
        flags = [bool((label == UNLABELLED).all()) for batch in trainer.batches(0) for label in batch[1]]
        assert abs(np.mean(flags) - expected) < 0.1
        mixed = [bool((label == UNLABELLED).any()) for batch in trainer.batches(0) for label in batch[1]]
        assert mixed == flags


def test_a_share_of_nothing_draws_what_was_drawn_before_there_were_such_scans(root: Path) -> None:
    with_scans = _lesson(root, unlabelled_share=0.0).trainer()
    shutil.rmtree(root / "preprocessed" / NAME / "3d_fullres" / "unlabelled")
    without = _lesson(root).trainer()
    for one, other in zip(with_scans.batches(0), without.batches(0), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_cached_and_live_targets_draw_the_same_patches(root: Path) -> None:
    cached = _lesson(root, targets="cached").trainer()
    live = _lesson(root, targets="live").trainer()
    for one, other in zip(cached.batches(0), live.batches(0), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        assert len(one) == 3 and len(other) == 2


def test_patches_of_unlabelled_scans_are_centred_on_what_the_teacher_sees(root: Path) -> None:
    """Independent: the teacher's own prediction of the whole scan, at the patch's centre."""
    lesson = _lesson(root, targets="cached")
    folder = lesson._places
    assert folder is not None

    for scan in SCANS:
        target = TargetStore(folder)
        codes = target.open(scan)
        logits = codes.coding.decode(torch.from_numpy(np.array(codes.codes)))
        predicted = logits.argmax(0).numpy()
        places = target.places(scan)
        assert set(places) == {1, 2}
        for value, voxels in places.items():
            assert len(voxels) == (predicted == value).sum() or len(voxels) >= 10_000
            assert all(predicted[tuple(voxel)] == value for voxel in voxels)


def _gradients(lesson: SegmentationLesson, batch: tuple[Tensor, ...]) -> dict[str, dict[str, Tensor]]:
    trainer = lesson.trainer()
    trainer.network.train()
    terms = trainer.training_terms(batch, Progress())
    found = {}
    weights = [p for p in trainer.network.parameters() if p.requires_grad]
    for name, term in terms.items():
        grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        found[name] = {str(i): g for i, g in enumerate(grads) if g is not None}
    return found


@pytest.mark.parametrize("targets", ["cached", "live"])
def test_unlabelled_patches_have_no_supervised_gradient_and_one_of_the_method(root: Path, targets: str) -> None:
    lesson = _lesson(root, targets=targets, unlabelled_share=1.0)
    batch = next(iter(lesson.trainer().batches(0)))
    lesson = _lesson(root, targets=targets, unlabelled_share=1.0)
    found = _gradients(lesson, batch)
    for name in ("dice", "ce"):
        assert all(not grad.any() for grad in found[name].values())
    assert any(grad.any() for grad in found["kd"].values())


def test_the_supervised_loss_of_a_mixed_batch_is_that_of_its_labelled_patches(root: Path) -> None:
    trainer = _lesson(root, unlabelled_share=0.5, iterations_per_epoch=30).trainer()
    mixed = next(
        batch for batch in trainer.batches(0) if len({bool((label == UNLABELLED).all()) for label in batch[1]}) == 2
    )
    own = [i for i, label in enumerate(mixed[1]) if not (label == UNLABELLED).any()]
    images, target = trainer.move(mixed, Progress())
    with torch.no_grad():
        logits = trainer.network(images)
    scales = [logits] if isinstance(logits, Tensor) else list(logits)
    found = trainer.supervised(logits, target)
    labels, valid = trainer.data.labels.encode(mixed[1][own])
    expected = trainer.loss([scale[own] for scale in scales], labels, valid)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_on_unlabelled_patches(root: Path) -> None:
    lesson = _lesson(root, unlabelled_share=1.0)
    trainer = lesson.trainer()
    teacher = lesson.job.teacher.network()  # type: ignore[union-attr]
    trainer.network.load_state_dict(teacher.state_dict())
    trainer.network.eval()
    batch = next(iter(trainer.batches(0)))
    terms = {name: term.detach() for name, term in trainer.training_terms(batch, Progress()).items()}
    assert float(terms["kd"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["dice"]) == float(terms["ce"]) == 0


def test_cached_targets_say_on_unlabelled_scans_what_the_teacher_says_live(root: Path) -> None:
    """Without augmentation, on scans that fit into one tile, both are the same up to the byte coding."""
    lesson = _lesson(root, targets="cached", unlabelled_share=1.0)
    trainer = lesson.trainer()

    predictor = Predictor.from_run(root / "results" / NAME / RUN, [0], torch.device("cpu"), mirror=False)
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    assert trainer.data.targets is not None
    for scan in SCANS:
        live = predictor.predict_preprocessed(store.open(scan).image)
        stored = TargetStore(trainer.data.targets).open(scan)
        cached = stored.coding.decode(torch.from_numpy(np.array(stored.codes)))
        assert torch.allclose(cached.softmax(0), live.softmax(0), atol=0.008)


@pytest.mark.parametrize("targets", ["cached", "live"])
def test_without_any_label_the_labels_are_never_looked_at(root: Path, targets: str) -> None:
    """Wrong label maps of the labelled cases change nothing."""
    train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root, targets=targets, labels="none"))
    run = root / "results" / NAME / "unet_tiny__3d_fullres__kd__from_plain_unet"
    first = load_checkpoint(run / "fold_0" / FINAL)["network"]
    shutil.rmtree(run)
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    for case in store.cases():
        path = store.folder / f"{case}.label.npy"
        label = np.load(path)
        np.save(path, np.where(label > 0, 0, np.where(label == 0, 1, label)).astype(label.dtype))
    train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root, targets=targets, labels="none"))
    second = load_checkpoint(run / "fold_0" / FINAL)["network"]
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert read_json(run / "run.json")["labels"] == "none"


@pytest.mark.parametrize("targets", ["cached", "live"])
def test_an_interrupted_training_continues_as_if_nothing_had_happened(root: Path, targets: str) -> None:
    def run(tag: str, **changes: object) -> Path:
        options = _options(root, epochs=3, targets=targets, tag=tag, **changes)
        return train_distill(900, "plain_unet", "unet_tiny", "kd", 0, options)

    whole = run("whole")

    class Killed(Exception):
        """Stands for a signal."""

    original = DistillationTrainer.training_terms

    def killed(self: DistillationTrainer, batch: tuple[Tensor, ...], progress: Progress) -> dict[str, Tensor]:
        if progress.step == 6:
            raise Killed
        return original(self, batch, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_terms", killed)
        with pytest.raises(Killed):
            run("parts")
    parts = run("parts", resume=True)
    one, other = (load_checkpoint(folder / LATEST)["network"] for folder in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_fold_records_the_scans_and_a_student_of_the_student_knows_them(root: Path) -> None:
    folder = train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root))
    split = read_json(folder / "split.json")
    assert split["unlabelled"] == list(SCANS) and not set(SCANS) & {*split["train"], *split["val"]}
    assert set(SCANS) <= seen_by(folder)
    shutil.rmtree(root / "preprocessed" / NAME / "3d_fullres" / "unlabelled")
    (folder / FINAL).unlink()
    with pytest.raises(RunError, match="unlabelled training cases differ"):
        train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root, resume=True, epochs=1))


def test_a_network_alone_passes_the_scans_over_and_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = train(900, "unet_tiny", 0, _options(root))
    assert "4 scans without labels" in caplog.text and "unlabelled" not in read_json(folder / "split.json")


@pytest.mark.parametrize("name", TAUGHT)
def test_a_network_alone_is_told_nothing_that_only_a_teacher_could_follow(trained: Path, name: str) -> None:
    """Nor is it before the data are there; both would pass it over in silence."""
    values = {"unlabelled_share": 0.5, "labels": "none", "confidence": 0.9, "targets": "cached", "targets_tta": True}
    values |= {"targets_limit": 1.0, "teachers": ("x",), "method_parameters": {"kd.temperature": 2}}
    options = _options(trained, tag="x", **{name: values[name]})
    for ask in (dry_run, train):
        with pytest.raises(RunError, match=f"{name} is about what a teacher teaches, but a network alone has no"):
            ask(900, "unet_tiny", 0, options)
    with pytest.raises(RunError, match=f"{name} is about what a teacher teaches"):
        foresee("unet_tiny", "0", options)


def test_scans_that_are_not_preprocessed_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(root / "raw" / NAME / "imagesUn" / "later_0000.nii.gz", 300)
    rehearsed = ("unet_tiny", 0, _options(root), RUN.partition("__")[0], "dml")
    dry_run(900, *rehearsed)
    assert "1 of 5 scans in imagesUn of Dataset900_Boxes are not preprocessed for 3d_fullres" in caplog.text
    with pytest.raises(RunError, match=r"take no part, for example later; run medkd_plan_and_preprocess"):
        dry_run(900, "unet_tiny", 0, _options(root, strict=True), *rehearsed[3:])


def test_a_scan_that_equals_a_validation_case_is_refused(root: Path) -> None:
    split = read_json(root / "preprocessed" / NAME / "splits_final.json")[0]
    judged, learnt = split["val"][0], split["train"][0]
    raw = root / "raw" / NAME
    write_scan(raw / "imagesUn" / "copy_0000.nii.gz", int(learnt[-2:]))
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root))
    write_scan(raw / "imagesUn" / "copy_0000.nii.gz", int(judged[-2:]))
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    with pytest.raises(LeakError, match=f"copy without labels equals {judged}"):
        train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root, tag="leak"))


def test_scans_of_a_patient_on_whom_the_fold_is_judged_are_left_out(root: Path) -> None:
    folder = root / "preprocessed" / NAME
    judged = read_json(folder / "splits_final.json")[0]["val"][0]
    data = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**data, "medkd": {"patients": {judged: "p", "scan_02": "p"}}})
    made = train_distill(900, "plain_unet", "unet_tiny", "kd", 0, _options(root))
    assert read_json(made / "split.json")["unlabelled"] == ["scan_00", "scan_01", "scan_03"]


def test_a_data_set_without_labels_is_judged_by_agreement_alone(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "free"
    without_labels(place)
    teacher = str(root / "results" / NAME / RUN)
    with pytest.raises(RunError, match="learns from labels only"):
        train(900, "unet_tiny", 0, _options(place))
    options = _options(place, validate=True)
    folder = train_distill(900, teacher, "unet_tiny", "kd", 0, options)
    split = read_json(folder / "split.json")
    assert split["train"] == [] and len(split["unlabelled"]) == 4 and len(split["val"]) == 1
    assert not (folder / "validation").exists()
    found = read_json(folder / "agreement" / "agreement.json")
    assert found["what"].startswith("agreement with the teacher") and "dice" not in str(found).lower()
    assert 0 <= found["agreement"] <= 1 and found["cases"] == split["val"]


def test_a_student_of_an_unknown_past_may_not_teach_where_labels_judge(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "free"
    without_labels(place)
    model = root / "results" / NAME / RUN
    (model / "fold_0" / "split.json").unlink()
    folder = train_distill(900, str(model), "plain_unet", "kd", 0, _options(place))
    with pytest.raises(RunError, match="nobody can say what it has seen"):
        train_distill(900, str(folder.parent), "unet_tiny", "kd", 0, _options(root))


@pytest.mark.parametrize("regions", [False, True])
def test_the_targets_of_methods_are_completed_like_a_slow_loop_does(regions: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 3, 4, 5, generator=generator) * 2
    shape = (3, 3 if regions else 1, 4, 5)
    labels = torch.randint(0, 2, shape, generator=generator)
    labels = labels.float() if regions else labels
    valid = torch.rand(3, 1, 4, 5, generator=generator) > 0.3
    labelled = torch.tensor([True, False, True])
    found = completed(Target(labels, valid, Progress(), labelled), logits, regions, 0.7)
    for b in range(3):
        for y in range(4):
            for x in range(5):
                own = logits[b, :, y, x]
                p = own.sigmoid() if regions else own.softmax(0)
                sure = min(max(float(v), 1 - float(v)) for v in p) if regions else float(p.max())
                kept = sure >= 0.7 and (bool(valid[b, 0, y, x]) if labelled[b] else True)
                assert bool(found.valid[b, 0, y, x]) == kept
                expected = labels[b, :, y, x]
                if not labelled[b]:
                    expected = (own > 0).float() if regions else torch.tensor([int(own.argmax())])
                assert torch.equal(found.labels[b, :, y, x], expected)
    assert found.labelled is None


@pytest.mark.parametrize("name", sorted(n for n in METHODS if METHODS[n].outputs_only and METHODS[n].needs_teacher))
@pytest.mark.parametrize("regions", [False, True])
def test_every_method_by_targets_learns_nothing_where_the_teacher_is_nowhere_sure(name: str, regions: bool) -> None:
    context = Context(
        student_taps=(),
        teacher_taps=(),
        num_outputs=3,
        regions=regions,
        spacing=(1.0, 1.0, 1.0),
        patch_size=(8, 8, 8),
    )
    try:
        method = build_method(name, context, {})
    except MedkdError:
        pytest.skip("not defined for regions")
    distiller = Distiller(None, method, cached=True, confidence=1.0)
    logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
    labels = torch.zeros(2, 3 if regions else 1, 8, 8, 8)
    target = Target(labels if regions else labels.long(), None, Progress(), torch.tensor([True, False]))
    with distiller.student_capture(torch.nn.Identity()):
        pass
    terms = distiller.terms(torch.zeros(2, 1, 8, 8, 8), logits, target, torch.randn(2, 3, 8, 8, 8))
    total = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(logits.grad.abs().max()) < 1e-6


def test_shares_outside_of_their_limits_are_refused(tmp_path: Path) -> None:
    for changes in ({"unlabelled_share": 1.5}, {"unlabelled_share": -0.1}, {"confidence": 2}, {"confidence": "x"}):
        with pytest.raises(RunError, match="a number from 0 to 1"):
            TrainOptions(root=tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="--labels must be one of"):
        TrainOptions(root=tmp_path, labels="some")  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "doubted"), [("kd", True), ("ensemble", True), ("kd+dml", False), ("dml", False)])
def test_methods_that_need_labels_beside_them_are_doubted(root: Path, method: str, doubted: bool) -> None:
    said = [line for line in _lesson(root, method).doubts() if "dml compares structures as wholes" in line]
    assert bool(said) == doubted
    assert not _lesson(root, method, unlabelled_share=0.0).doubts()
