"""A dry run says what a training would do, and does nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.cli.train import main as train_command
from medkd.cli.train_distill import main as distill_command
from medkd.core.errors import LeakError, MedkdError
from medkd.core.features import Progress, Target
from medkd.core.live_memory import LivePeak
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.networks import build_network
from medkd.networks.reference import build_weightless
from medkd.training.dry_run import DryRun, LeakGuard, step_memory
from medkd.training.losses import SegmentationLoss
from medkd.training.options import TrainOptions
from medkd.training.run import rehearse
from medkd.training.segmentation_lesson import SegmentationLesson
from medkd.training.segmentation_task import SegmentationTask, train, train_distill
from medkd.training.tap_pairs import tap_pairs
from tests.training.builders import NAME, make_dataset


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 2,
        "iterations_per_epoch": 2,
        "workers": 0,
        "device": "cpu",
        "validate": False,
        **changes,
    }
    return TrainOptions(**values)


def dry_run(*arguments: Any, **more: Any) -> DryRun:
    """What the command prints, before it becomes lines."""
    lesson = rehearse(SegmentationTask(), *arguments, **more)[1]
    assert isinstance(lesson, SegmentationLesson)
    return lesson.describe()


def _files(root: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a teacher trained on fold 0."""
    root = tmp_path_factory.mktemp("root")
    make_dataset(root)
    train(900, "plain_unet", 0, _options(root))
    return root


def test_nothing_is_written_not_even_the_splits(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    before = _files(tmp_path)
    found = dry_run(900, "plain_unet", 0, _options(tmp_path))
    assert _files(tmp_path) == before
    assert (
        found.state == "new"
        and found.teacher is None
        and found.guard is None
        and found.pairs == ()
        and found.helpers == 0
    )


def test_it_says_what_the_training_then_does(trained: Path) -> None:
    before = _files(trained)
    options = _options(trained, tag="told")
    found = dry_run(900, "unet_tiny", 0, options, teacher="plain_unet", method="mimic")
    assert _files(trained) == before
    folder = train_distill(900, "plain_unet", "unet_tiny", "mimic", 0, options)
    assert folder == found.folder and folder.parent.name == "unet_tiny__3d_fullres__mimic__from_plain_unet__told"
    student = build_network(found.run.network)
    assert found.student.parameters == sum(p.numel() for p in student.parameters())
    assert found.teacher is not None and 0 < found.teacher.parameters < found.student.parameters
    channels = [(p.student.shape[0], p.teacher.shape[0]) for p in found.pairs if p.student and p.teacher]
    assert found.helpers == sum(
        a * b + b for a, b in channels
    )  # convolutions from the student's channels to the teacher's, with bias
    assert found.guard == LeakGuard("plain_unet", "0", 4, 2)
    assert [p.teacher.shape for p in found.pairs if p.teacher] == [(4, 16, 16, 16)]
    again = dry_run(900, "unet_tiny", 0, replace(options, resume=True), teacher="plain_unet", method="mimic")
    assert again.state == "finished"


def test_what_the_training_refuses_the_dry_run_refuses(trained: Path) -> None:
    with pytest.raises(LeakError):
        dry_run(900, "plain_unet", 1, _options(trained), teacher="plain_unet", method="kd")
    with pytest.raises(MedkdError, match="--continue"):
        dry_run(900, "plain_unet", 0, _options(trained))
    with pytest.raises(MedkdError, match="larger --patch-size"):
        dry_run(900, "mednext_s", 0, _options(trained))  # one voxel is left at its lowest resolution
    with pytest.raises(MedkdError, match="temperature"):
        dry_run(
            900,
            "plain_unet",
            0,
            _options(trained, method_parameters={"kd.temprature": 1}),
            teacher="plain_unet",
            method="kd",
        )


def test_commands_print_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(trained)
    common = ["--root", str(trained), "--device", "cpu", "--dry-run", "--tag", "new"]
    assert train_command(["900", "unet_tiny", "0", *common]) == 0
    alone = capsys.readouterr().out
    assert (
        f"{NAME}/unet_tiny__3d_fullres__new/fold_0 (new)" in alone
        and "leak guard" not in alone
        and "M parameters" in alone
    )
    assert distill_command(["900", "plain_unet", "unet_tiny", "kd+mimic", "0", *common]) == 0
    told = capsys.readouterr().out
    assert "↔ dec0 (decoder, stride 1×1×1, 4 × 16 × 16 × 16)" in told
    assert "it has seen 4 cases, none of the 2 on which the student is judged" in told
    assert "MiB per step" in told and "an estimate" in told
    assert _files(trained) == before


def test_terms_that_cannot_teach_are_said_before_a_step_is_done(
    trained: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer than three places have no angles, and two have one distance."""
    small = ["--patch-size", "8", "8", "16", "--batch-size", "1", "--set", "rkd.taps=bottleneck"]
    words = ["900", "plain_unet", "unet_tiny", "rkd", "0", "--root", str(trained), "--device", "cpu", *small]
    assert distill_command([*words, "--dry-run"]) == 0
    said = "have no gradient to the student, so that nothing is learnt from it"
    assert "attention  The terms rkd_distance, rkd_angle " + said in capsys.readouterr().out
    assert distill_command([*words, "--epochs", "1", "--iterations-per-epoch", "1", "--no-validate"]) == 0
    assert said in caplog.text + capsys.readouterr().err

    fine = ["900", "plain_unet", "unet_tiny", "kd", "0", "--root", str(trained), "--device", "cpu", "--dry-run"]
    assert distill_command(fine) == 0
    assert "attention" not in capsys.readouterr().out


def test_cached_targets_are_named_in_place_of_a_teacher_that_is_not_run(trained: Path) -> None:
    found = dry_run(
        900, "unet_tiny", 0, _options(trained, tag="c", targets="cached"), teacher="plain_unet", method="kd"
    )
    text = "\n".join(found.lines())
    assert (
        found.teacher is None
        and "teacher    plain_unet, which is not run in training; its targets (plain predictions)" in text
    )
    assert "method     kd, 0 trainable parameters of its own" in text
    live = dry_run(900, "unet_tiny", 0, _options(trained, tag="c"), teacher="plain_unet", method="kd")
    assert live.teacher is not None and "which is not run" not in "\n".join(live.lines())


def _described(student: str, patch: tuple[int, ...], **spec: object) -> RunDescription:
    network = NetworkSpec(name=student, in_channels=1, num_outputs=3, patch_size=patch, **spec)  # type: ignore[arg-type]
    return RunDescription(
        dataset="Dataset900_Boxes",
        configuration="3d_fullres",
        network=network,
        budget=Budget(1, 1, 2, 0.01, 0),
        mirror_axes=(0,),
        method="none",
    )


@pytest.mark.parametrize("name", ["none", "kd", "mimic", "crosskd", "bckd", "rkd", "sfd"])
def test_the_estimate_is_near_a_measured_step(name: str) -> None:
    patch = (32, 32, 32)
    run = _described("unet_tiny", patch)
    student, teacher = build_network(run.network), build_network(replace(run.network, name="res_unet"))
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=3,
        regions=False,
        spacing=(1.0,) * 3,
        patch_size=patch,
    )
    loss = SegmentationLoss(regions=False, batch_dice=False)
    distiller = Distiller(teacher, build_method(name, context))
    image, labels = torch.randn(2, 1, *patch), torch.randint(0, 3, (2, 1, *patch))
    with LivePeak() as live:
        with distiller.student_capture(student):
            logits = student(image)
        terms = loss(logits, labels) | distiller.terms(image, logits, Target(labels, None, Progress(50, 100)))
        torch.stack(list(terms.values())).sum().backward()
    measured = live.highest + image.nbytes + labels.nbytes
    found = step_memory(run, build_weightless(run.network), loss, distiller)
    estimated = found.activations + found.gradients
    assert 0.8 * measured < estimated < 2.0 * measured, (measured / 2**20, found)
    held = [*student.parameters(), *distiller.parameters()]
    assert found.gradients == found.optimizer == 4 * sum(p.numel() for p in held)
    assert found.weights > found.gradients or name == "none"


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_publishes_the_taps_that_it_reads(name: str, rank: int) -> None:
    student, teacher = (
        build_weightless(NetworkSpec(name=n, in_channels=1, num_outputs=3, patch_size=(16,) * rank))
        for n in ("unet_tiny", "res_unet")
    )
    method = build_method(
        name,
        Context(
            student_taps=student.taps,
            teacher_taps=teacher.taps,
            num_outputs=3,
            regions=False,
            spacing=(1.0,) * rank,
            patch_size=(16,) * rank,
        ),
    )
    needs = method.needs()
    pairs = tap_pairs(method, name, (16,) * rank)
    assert {p.student.name for p in pairs if p.student} == set(needs.student)
    assert {p.teacher.name for p in pairs if p.teacher} == {*needs.teacher, *needs.teacher_corrections}
    for pair in pairs:
        for side in (pair.student, pair.teacher):
            assert side is None or side.shape[1:] == tuple(16 // s for s in side.stride)


def test_joined_methods_are_told_apart() -> None:
    student, teacher = (
        build_weightless(NetworkSpec(name=n, in_channels=1, num_outputs=3, patch_size=(16,) * 3))
        for n in ("unet_tiny", "res_unet")
    )
    method = build_method(
        "pkd+cwd+acf",
        Context(
            student_taps=student.taps,
            teacher_taps=teacher.taps,
            num_outputs=3,
            regions=False,
            spacing=(1.0,) * 3,
            patch_size=(16,) * 3,
        ),
    )
    assert {p.method for p in tap_pairs(method, "pkd+cwd+acf", (16,) * 3)} == {"pkd", "acf"}


def test_networks_that_offer_deep_supervision_are_trained_with_it_and_narrow_ones_say_so_in_their_name(
    trained: Path,
) -> None:
    options = _options(trained, tag="x", patch_size=(32, 32, 32))
    offered = {
        name: dry_run(900, name, 0, options).run.network.deep_supervision
        for name in ("mednext_s", "unet_tiny", "plain_unet")
    }
    assert offered == {"mednext_s": True, "unet_tiny": False, "plain_unet": True}
    narrow = dry_run(900, "plain_unet", 0, replace(options, width_divisor=2))
    assert narrow.folder.parent.name == "plain_unet_w2__3d_fullres__x"
    with pytest.raises(MedkdError, match="width-divisor"):
        dry_run(900, "unet_tiny", 0, replace(options, width_divisor=2))


def test_deep_supervision_and_half_precision_are_part_of_the_estimate() -> None:
    loss = SegmentationLoss(regions=False, batch_dice=False)
    one = _described("mednext_s", (32, 32), deep_supervision=False)
    deep = _described("mednext_s", (32, 32), deep_supervision=True)
    plain, several, half = (
        step_memory(run, build_weightless(run.network), loss).activations
        for run in (one, deep, replace(one, precision="bf16"))
    )
    assert several > plain > half > 0.4 * plain
