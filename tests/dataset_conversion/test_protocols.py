"""Protocols: the files are valid, and every setting in them is obeyed by preprocessing, training, prediction and
validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import medkd.training.run as training_run
import medkd.training.segmentation_task as training
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, PlanError
from medkd.core.features import Progress
from medkd.core.files import read_json, write_json
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan, Resampling
from medkd.core.protocol import Protocol, TrainingRule
from medkd.core.protocol_files import FOLDER, find_protocol, protocol_names, read_protocols
from medkd.core.run import Budget
from medkd.core.serial import load, save
from medkd.inference.predictor import Predictor
from medkd.inference.sliding_window import predict_logits
from medkd.io.volumes import read_volume
from medkd.preprocessing.cropping import crop_box, nonzero_mask
from medkd.preprocessing.fingerprint import Fingerprint
from medkd.preprocessing.normalisation import normalise
from medkd.preprocessing.planner import make_plan
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore, recipe_of
from medkd.runtime.tiles import tile_starts
from medkd.training.loader import PatchBatches
from medkd.training.losses import SegmentationLoss
from medkd.training.options import TrainOptions
from medkd.training.run import make_job, read_fold
from medkd.training.sampling import PatchSampler
from medkd.training.segmentation import SegmentationTrainer
from medkd.training.segmentation_lesson import loop_settings
from medkd.training.simple_augmentation import SimpleAugmentation
from medkd.training.trainer import LoopSettings, Trainer
from tests.dataset_conversion.trees import SHAPE, SPACING, convert, make_brats, make_btcv, make_synapse
from tests.training.builders import make_dataset

ACF = ("btcv", "word", "brats")


def fmt(name: str) -> dict:
    return {"medkd": {"format": name}}


def test_every_shipped_protocol_is_valid_and_says_what_it_is_for() -> None:
    assert (
        set(protocol_names())
        == {"acf_bckd", "crosskd", "fourier_kd", "mmseg_kd", "sfd_kd"}
        == {p.stem for p in FOLDER.glob("*.json")}
    )
    assert set(read_protocols("acf_bckd").variants) == set(ACF)
    assert set(read_protocols("mmseg_kd").variants) == {"synapse_slices"}
    sfd = read_protocols("sfd_kd")
    assert (
        not sfd.variants
        and sfd.detection["grazpedwri_faster_rcnn"].image_size == 640
        and sfd.detection["fracatlas_yolo"].epochs == 300
    )
    for format in ACF:
        protocol = find_protocol("acf_bckd", fmt(format))
        assert protocol.name == f"acf_bckd:{format}" and "2025" in protocol.reference


def test_the_numbers_of_the_publication() -> None:
    word, brats = (find_protocol("acf_bckd", fmt(name)) for name in ("word", "brats"))
    assert word.preprocessing.spacing == (2.0, 1.5, 1.5) and word.preprocessing.normalization == ("window(-175, 250)",)
    assert (word.training.epochs, word.training.iterations_per_epoch, word.training.floor) == (300, 100, 1e-6)
    assert (brats.training.epochs, brats.training.distilled_epochs, brats.training.distilled_floor) == (100, 50, 1e-4)
    assert not brats.training.cross_entropy and brats.training.foreground == 0
    for protocol in (word, brats):
        assert (
            protocol.training.patch_size == (96, 96, 96)
            and protocol.inference.blending == "constant"
            and not protocol.inference.mirror
        )
    mmseg = find_protocol("mmseg_kd:synapse_slices", {})
    assert mmseg.training.epochs * mmseg.training.iterations_per_epoch == 40_000 and mmseg.training.decay == "step"


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("acf_bkcd", "btcv", "Did you mean 'acf_bckd'"),
        ("acf_bckd", "msd", "no variant 'msd'.*btcv, word, brats"),
        ("acf_bckd", "", "acf_bckd:VARIANT"),
        ("acf_bckd:liver", "btcv", "no variant 'liver'"),
        ("sfd_kd", "grazpedwri", "for detection"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(text: str, format: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        find_protocol(text, fmt(format) if format else {})


def test_a_file_of_the_users_own_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    content = {"name": "mine", "reference": "", "variants": {"x": {"preprocessing": {"configuration": "2d"}}}}
    write_json(path, content)
    assert find_protocol(f"{path}:x", {}).training == TrainingRule()
    content["variants"]["x"]["training"] = {"epoch": 5}
    write_json(path, content)
    with pytest.raises(DataError, match="Did you mean 'epochs'"):
        find_protocol(f"{path}:x", {})
    content["variants"]["x"] = {"preprocessing": {"configuration": "2d", "interpolation": "cubic"}}
    write_json(path, content)
    with pytest.raises(PlanError, match=r"spline, linear.*'cubic'"):
        find_protocol(f"{path}:x", {})


def test_defaults_are_medkds_own_settings() -> None:
    rule, settings = TrainingRule(), LoopSettings(budget=Budget(1, 1, 1, 1e-2, 0), device=torch.device("cpu"))
    for name in ("momentum", "nesterov", "weight_decay", "clip", "power", "floor"):
        assert getattr(rule, name) == getattr(settings, name)
    assert settings.per_step == (rule.decay == "step")


@pytest.fixture(scope="module")
def btcv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """BTCV's imitation, planned and preprocessed by the protocol."""
    base = tmp_path_factory.mktemp("btcv")
    source = make_btcv(base / "download", numbers=(1, 2))
    convert("btcv", source, base / "root")
    return base / "root", plan_and_preprocess(7, root=base / "root", workers=1, protocol="acf_bckd")


def test_the_plan_follows_the_protocol_and_records_it(btcv: tuple[Path, Plan]) -> None:
    root, plan = btcv
    assert list(plan.configurations) == ["3d_fullres"]
    configuration = plan.configuration("3d_fullres")
    assert configuration.spacing == (2.0, 1.5, 1.5) and configuration.normalization == ("window(-175, 250)",)
    assert configuration.crop == "above(-175)" and not configuration.batch_dice
    assert configuration.resampling == Resampling(
        image_order=1,
        image_order_z=1,
        label_order=0,
        label_order_z=0,
        logits_order=1,
        logits_order_z=1,
        force_separate_z=False,
    )
    for network in ("plain_unet", "resenc_unet_l", "unet_tiny"):
        architecture = configuration.architecture(network)
        assert architecture.patch_size == (96, 96, 96) and architecture.batch_size == 4
        assert 96 % np.prod(architecture.strides, axis=0).max() == 0 and len(architecture.features_per_stage) == len(
            architecture.strides
        )
    stored = Plan.load(root / "preprocessed/Dataset007_BTCV/plans.json")
    assert stored == plan and stored.protocol == find_protocol("acf_bckd", fmt("btcv"))


def test_stored_cases_are_windowed_cropped_to_the_body_and_on_the_protocols_grid(btcv: tuple[Path, Plan]) -> None:
    root, _ = btcv
    stored = CaseStore(root / "preprocessed/Dataset007_BTCV/3d_fullres").open("img0001")
    raw = read_volume(root / "raw/Dataset007_BTCV/imagesTr/img0001_0000.nii.gz").array
    body = np.argwhere(raw > -175)
    box = tuple((int(a), int(b) + 1) for a, b in zip(body.min(0), body.max(0), strict=True))
    assert stored.properties.crop == box != tuple((0, n) for n in SHAPE)
    expected = tuple(round((b - a) * old / new) for (a, b), old, new in zip(box, SPACING, (2.0, 1.5, 1.5), strict=True))
    assert stored.image.shape[1:] == expected
    assert stored.image.min() >= 0 and stored.image.max() <= 1
    assert set(np.unique(stored.label)) <= set(range(-1, 14))


def test_another_protocol_needs_a_new_plan_and_a_plain_one_can_come_back(btcv: tuple[Path, Plan]) -> None:
    root, plan = btcv
    assert plan_and_preprocess(7, root=root, workers=1, protocol="acf_bckd") == plan
    assert plan_and_preprocess(7, root=root, workers=1) == plan
    with pytest.raises(PlanError, match=r"follows acf_bckd:btcv, not acf_bckd:word; give --overwrite-plan"):
        plan_and_preprocess(7, root=root, workers=1, protocol="acf_bckd:word")
    folder = root / "preprocessed/Dataset007_BTCV"
    fingerprint, description = (
        load(Fingerprint, folder / "fingerprint.json"),
        DatasetDescription.load(folder / "dataset.json"),
    )
    with pytest.raises(PlanError, match="is for 3d_fullres"):
        make_plan(plan.dataset, fingerprint, description, configurations=["2d"], protocol=plan.protocol)


def test_brats_is_normalised_inside_the_brain_and_synapse_is_not_touched(tmp_path: Path) -> None:
    make_brats(tmp_path / "brats", cases=2)
    convert("brats", tmp_path / "brats", tmp_path / "root")
    plan = plan_and_preprocess(7, root=tmp_path / "root", workers=1, protocol="acf_bckd")
    configuration = plan.configuration("3d_fullres")
    assert configuration.use_mask_for_norm == (True,) * 4 and configuration.normalization == ("zscore",) * 4
    image = CaseStore(tmp_path / "root/preprocessed/Dataset007_BraTS/3d_fullres").open("BraTS-GLI-00000-000").image
    np.testing.assert_allclose(image.mean((1, 2, 3)), 0, atol=1e-4)
    source = make_synapse(tmp_path / "synapse", train=(5, 6))
    raw = convert("synapse_slices", source, tmp_path / "root", number=8).folder
    plan = plan_and_preprocess(8, root=tmp_path / "root", workers=1, protocol="mmseg_kd")
    assert list(plan.configurations) == ["2d"] and plan.configuration("2d").architecture("unet_tiny").patch_size == (
        512,
        512,
    )
    image = CaseStore(tmp_path / "root/preprocessed/Dataset008_SynapseSlices/2d").open("case0005").image
    np.testing.assert_array_equal(image[0], read_volume(raw / "imagesTr/case0005_0000.nii.gz").array)


def test_a_window_is_clipped_and_scaled_and_wrong_ones_are_refused() -> None:
    values = np.array([-1000, -175, 0, 250, 900], np.float32)
    np.testing.assert_allclose(normalise(values.copy(), "window(-175, 250)"), [0, 0, 175 / 425, 1, 1], rtol=1e-6)
    for wrong in ("window(250, -175)", "window(1)", "window(a, b)"):
        with pytest.raises(PlanError, match="window\\(low, high\\)"):
            normalise(values.copy(), wrong)


def test_a_crop_keeps_the_smallest_box_in_any_channel() -> None:
    image = np.full((2, 6, 7, 8), -500.0, np.float32)
    image[0, 2, 3, 4], image[1, 4, 1, 5] = 10, -100
    mask = nonzero_mask(image)
    assert crop_box(image, mask, "above(-175)") == ((2, 5), (1, 4), (4, 6))
    assert crop_box(image, mask, "above(0)") == ((2, 3), (3, 4), (4, 5))
    assert crop_box(image, mask, "none") == crop_box(image, mask, "nonzero") == ((0, 6), (0, 7), (0, 8))
    with pytest.raises(PlanError, match="Unknown crop 'body'"):
        crop_box(image, mask, "body")


def test_the_learning_rate_falls_to_the_floor_by_epoch_or_by_step() -> None:
    settings = LoopSettings(budget=Budget(10, 4, 2, 1e-2, 0), device=torch.device("cpu"), floor=1e-4)
    assert settings.learning_rate(0, 0) == pytest.approx(1e-2)
    assert settings.learning_rate(5, 20) == settings.learning_rate(5, 23) == pytest.approx(1e-4 + 9.9e-3 * 0.5**0.9)
    per_step = replace(settings, per_step=True)
    assert per_step.learning_rate(5, 21) == pytest.approx(1e-4 + 9.9e-3 * (19 / 40) ** 0.9)


class Recorder(Trainer):
    """Notes the learning rate that the optimiser has in every step."""

    def batches(self, first_step: int) -> Iterator[None]:
        self.rates: list[float] = []
        while True:
            yield None

    def training_terms(self, batch: None, progress: Progress) -> dict[str, torch.Tensor]:
        self.rates.append(self._optimizer.param_groups[0]["lr"])
        return {"loss": sum(p.square().sum() for p in self.network.parameters())}  # type: ignore[dict-item]

    def validate(self) -> tuple[None, None]:
        return None, None


@pytest.mark.parametrize("per_step", [False, True])
def test_every_step_is_made_with_its_own_learning_rate(tmp_path: Path, per_step: bool) -> None:
    settings = LoopSettings(budget=Budget(2, 3, 1, 1e-2, 0), device=torch.device("cpu"), floor=1e-3, per_step=per_step)
    trainer = Recorder(torch.nn.Linear(2, 1), settings, tmp_path)
    trainer.fit()
    done = [step / 6 for step in range(6)] if per_step else [0, 0, 0, 0.5, 0.5, 0.5]
    assert trainer.rates == pytest.approx([1e-3 + 9e-3 * (1 - share) ** 0.9 for share in done])


def test_a_case_stored_with_another_crop_is_made_anew(btcv: tuple[Path, Plan]) -> None:
    _, plan = btcv
    configuration, labels = plan.configuration("3d_fullres"), LabelSpec.from_names(["a"])
    recipes = {
        recipe_of(plan, replace(configuration, crop=crop), labels) for crop in ("nonzero", "none", "above(-175)")
    }
    assert len(recipes) == 3


def boxes_with(root: Path, protocol: Protocol) -> Path:
    """The training tests' data set, with a protocol in its plan."""
    folder = make_dataset(root, cases=4)
    save(folder / "plans.json", replace(load(Plan, folder / "plans.json"), protocol=protocol))
    return folder


def test_training_uses_the_protocols_settings_and_the_users_options_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = replace(find_protocol("acf_bckd", fmt("brats")).training, patch_size=None, batch_size=None)
    rule = replace(rule, epochs=4, distilled_epochs=2, iterations_per_epoch=3)
    boxes_with(tmp_path, replace(find_protocol("acf_bckd", fmt("brats")), training=rule, rows=()))
    seen: list[SegmentationTrainer] = []
    monkeypatch.setattr(SegmentationTrainer, "fit", lambda trainer, *, resume=False: seen.append(trainer))
    monkeypatch.setattr(training_run, "finish", lambda task, job: job.folder)
    options = TrainOptions(root=tmp_path, device="cpu", workers=0, learning_rate=0.5)
    training.train(900, "unet_tiny", 0, options)
    trainer = seen[0]
    settings = trainer.settings
    assert settings.budget == Budget(4, 3, 2, 0.5, 0) and settings.floor == 0.0
    group = trainer.make_optimizer().param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 5e-4)
    assert settings.clip is None and not trainer.loss.cross_entropy
    augmentation, read = trainer._augmentation()
    assert isinstance(augmentation, SimpleAugmentation) and read == trainer.data.patch_size
    assert trainer.data.mirror_axes == (0, 1, 2)
    task = training.SegmentationTask()
    job = make_job(task, read_fold(task, 900, 0, replace(options, tag="taught")), "unet_tiny", None, "kd")
    assert job.run.budget.epochs == 2 and loop_settings(job).floor == 1e-4
    spied: list[bool] = []
    monkeypatch.setattr(
        PatchSampler,
        "sample",
        lambda *a, foreground: spied.append(foreground) or (np.zeros((1, 16, 16, 16), np.float32),) * 2,
    )
    next(trainer.batches(0))
    assert spied == [False, False]


def test_the_share_of_foreground_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset(tmp_path, cases=1) / "3d_fullres"
    spied: list[bool] = []
    monkeypatch.setattr(
        PatchSampler,
        "sample",
        lambda *a, foreground: spied.append(foreground) or (np.zeros((1, 4, 4, 4), np.float32),) * 2,
    )
    sampler = PatchSampler((4, 4, 4), (4, 4, 4))
    for share, expected in ((0.0, 0), (0.5, 2), (1.0, 4)):
        PatchBatches(folder, ["case_00"], sampler, 4, 1, 0, foreground=share)[0]
        assert sum(spied) == expected
        spied.clear()


def test_dice_with_background_and_cross_entropy_is_monais_dice_ce() -> None:
    from monai.losses import DiceCELoss, DiceLoss

    logits, target = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 1, 5, 6, 7))
    ours = SegmentationLoss(regions=False, batch_dice=False, background=True)(logits, target)
    reference = DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, target)
    torch.testing.assert_close(sum(ours.values()), reference)
    regions = torch.randint(0, 2, (2, 4, 5, 6, 7)).float()
    alone = SegmentationLoss(regions=True, batch_dice=False, cross_entropy=False)(logits, regions)
    assert list(alone) == ["dice"]
    torch.testing.assert_close(alone["dice"], DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, regions))


def test_constant_blending_is_the_plain_mean_of_the_tiles() -> None:
    image = torch.randn(1, 20, 9, 9)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * x.mean((1, 2, 3, 4), keepdim=True)

    found = predict_logits(forward, image, (8, 9, 9), 1, step_size=0.5, blending="constant")
    total, count = torch.zeros_like(image), torch.zeros_like(image)
    for start in tile_starts(20, 8, 0.5):
        tile = image[:, start : start + 8]
        total[:, start : start + 8] += tile * tile.mean()
        count[:, start : start + 8] += 1
    torch.testing.assert_close(found, total / count)
    assert not torch.allclose(found, predict_logits(forward, image, (8, 9, 9), 1, step_size=0.5))


def test_a_run_predicts_and_is_scored_as_its_protocol_says_and_a_user_may_overrule(tmp_path: Path) -> None:
    protocol = find_protocol("acf_bckd", fmt("btcv"))
    rule = replace(protocol.training, epochs=1, iterations_per_epoch=1)
    boxes_with(tmp_path, replace(protocol, training=rule, inference=replace(protocol.inference, step_size=0.75)))
    fold = training.train(900, "unet_tiny", 0, TrainOptions(root=tmp_path, device="cpu", workers=0))
    predictor, image = Predictor.from_run(fold.parent, device="cpu"), torch.randn(1, 24, 16, 16)
    settings = predictor.settings
    assert (settings.step_size, settings.blending, settings.mirror) == (0.75, "constant", False)
    constant = predictor.predict_preprocessed(image)
    predictor.settings = replace(settings, blending="gaussian")
    assert not torch.allclose(constant, predictor.predict_preprocessed(image))
    overruled = Predictor.from_run(fold.parent, step_size=0.5, mirror=True).settings
    assert (overruled.step_size, overruled.mirror) == (0.5, True)
    legacy = read_json(fold / "validation/summary.json")["medkd"]["legacy"]
    assert legacy["voxel_mm"] == [2.0, 1.5, 1.5] and legacy["pairs"] == 2 * len(read_json(fold / "split.json")["val"])
