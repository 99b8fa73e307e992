"""A protocol's rows: they set what a publication says of a method and a network, the user wins, and a row that matches
nothing is refused.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import medkd.training.segmentation_task as training
from medkd.cli.train_distill import main as train_distill_command
from medkd.core.errors import DataError, MedkdError, PlanError
from medkd.core.files import read_json, write_json
from medkd.core.plan import Plan
from medkd.core.protocol import ProtocolRow
from medkd.core.protocol_files import find_detection_protocol, find_protocol, protocol_names, read_protocols
from medkd.core.protocol_rows import published_for
from medkd.training.job import Job
from medkd.training.options import TrainOptions
from medkd.training.run import make_job, read_fold, rehearse
from medkd.training.segmentation_lesson import loop_settings
from tests.training.builders import NAME, make_dataset

TASK = training.SegmentationTask()


def rows_of(text: str, method: str | None, network: str, teacher: str | None = None) -> dict[str, Any]:
    """Parameters and settings that a protocol's rows give."""
    name, _, variant = text.partition(":")
    found = published_for(find_protocol(text, {}).rows, method, network, teacher)
    assert all(found.sources.values()) and name in protocol_names() and variant
    return {**found.parameters, **found.training}


@pytest.mark.parametrize(
    ("variant", "method", "expected"),
    [
        ("btcv", "cwd", {"cwd.weight": 1.0, "cwd.temperature": 4.0}),
        ("word", "cwd", {"cwd.weight": 1.0}),
        ("brats", "cwd", {"cwd.weight": 0.1}),
        ("btcv", "nkd", {"nkd.weight": 1.0}),
        ("word", "dkd", {"dkd.temperature": 4.0, "dkd.beta": 8.0, "dkd.weight": 0.1}),
        ("btcv", "dist", {"dist.temperature": 4.0, "dist.weight": 1.0}),
        ("btcv", "kd", {"kd.temperature": 1.0, "kd.weight": 10.0, "kd.variant": "paper"}),
        ("word", "at", {"at.weight": 200.0, "at.taps": "all"}),
        ("word", "acf_bckd", {"acf_bckd.floor": 0.5, "acf_bckd.decay": 0.0015, "acf_bckd.variant": "paper"}),
        ("brats", "acf_bckd", {"acf_bckd.floor": 0.5, "acf_bckd.decay": 0.01}),
        ("btcv", "acf_bckd", {"acf_bckd.floor": 0.001, "acf_bckd.decay": 0.001}),
    ],
)
def test_the_rows_of_the_3d_comparison(variant: str, method: str, expected: dict[str, Any]) -> None:
    found = rows_of(f"acf_bckd:{variant}", method, "unet_tiny", "res_unet")
    assert {name: found[name] for name in expected} == expected


def test_a_row_for_one_teacher_and_some_students() -> None:
    second = rows_of("acf_bckd:btcv", "acf_bckd", "unet_tiny", "segresnet")
    other = rows_of("acf_bckd:btcv", "acf_bckd", "lcov_net", "segresnet")
    assert (second["acf_bckd.floor"], second["acf_bckd.decay"]) == (0.5, 0.0005)
    assert (other["acf_bckd.floor"], other["acf_bckd.decay"]) == (0.001, 0.001)


def test_students_of_brats_have_fifty_epochs_alone_too() -> None:
    assert rows_of("acf_bckd:brats", None, "unet_tiny") == {"epochs": 50, "floor": 1e-4}
    assert rows_of("acf_bckd:brats", None, "res_unet") == {}


def test_the_rows_of_the_2d_library() -> None:
    def of(method: str | None, network: str = "mobile_unet") -> dict[str, Any]:
        return rows_of("mmseg_kd:synapse_slices", method, network)

    assert of("cwd")["cwd.weight"] == 3.0 and of("cwd")["epochs"] == 200
    dkd = of("dkd")
    assert [dkd[f"dkd.{name}"] for name in ("temperature", "beta", "weight")] == [4.0, 20.0, 1e-5]
    assert dkd["epochs"] * dkd["iterations_per_epoch"] == 20_000
    assert (of("kd")["kd.temperature"], of("kd")["kd.weight"]) == (2.0, 10.0)
    assert (of("at")["at.weight"], of("at")["at.logits"], of("at")["at.taps"]) == (250.0, False, "deep")
    assert of("dist")["dist.temperature"] == 1.0
    swin = of(None, "swin_unetr")
    assert (swin["optimizer"], swin["learning_rate"], swin["schedule"]) == ("adamw", 2e-4, "cosine")
    assert of(None, "fcn_r18_d8")["auxiliary"] == 0.5


def test_the_rows_of_the_detectors() -> None:
    def of(text: str, method: str, network: str) -> dict[str, Any]:
        found = published_for(find_detection_protocol(text, {})[1].rows, method, network, None)
        return {**found.parameters, **found.training}

    fcos = of("crosskd:coco_2x_ms", "crosskd+pkd", "fcos_r50")
    assert (fcos["crosskd.class_weight"], fcos["crosskd.box_weight"], fcos["pkd.weight"]) == (0.4, 0.75, 2.0)
    assert of("crosskd:coco_1x", "pkd", "gfl_r50")["pkd.weight"] == 6.0
    assert of("crosskd:coco_1x", "pkd", "atss_r50")["pkd.weight"] == 1.0
    assert of("fourier_kd:coco_2x", "fourier", "faster_rcnn_r50") == {
        "learning_rate": 0.02,
        "fourier.variant": "paper",
        "fourier.weight": 7.0,
    }
    one, two = (find_detection_protocol(f"crosskd:coco_{n}x", {})[1] for n in (1, 2))
    assert (one.epochs, one.milestones, two.epochs, two.milestones) == (12, (8, 11), 24, (16, 22))
    yolo = find_detection_protocol("sfd_kd:fracatlas_yolo", {})[1]
    assert (yolo.epochs, yolo.learning_rate) == (300, 0.01)
    notes = published_for(yolo.rows, "dkd", "yolov8_r18", None).notes
    assert any("one class" in note for note in notes)


def test_every_row_of_every_protocol_names_its_source() -> None:
    for name in protocol_names():
        content = read_protocols(name)
        rows = [protocol.rows for protocol in content.variants.values()]
        rows += [protocol.rows for protocol in content.detection.values()]
        for variant in rows:
            assert variant
            assert all("configs/" in row.source or "mdistiller" in row.source for row in variant)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "kd", "parameters": {"temperatur": 2}}, "'temperatur'.*Did you mean 'temperature'"),
        ({"method": "cakd", "parameters": {"beta": 2}}, "'beta', which the method 'cakd' does not have"),
        ({"method": "kdd", "parameters": {"weight": 2}}, "unknown method 'kdd'"),
        ({"networks": ["unet_tinny"], "training": {"epochs": 2}}, "unknown network 'unet_tinny'"),
        ({"method": "kd", "teachers": ["res_unett"], "training": {"epochs": 2}}, "unknown network 'res_unett'"),
        ({"method": "kd"}, "sets nothing"),
        ({"teachers": ["res_unet"], "training": {"epochs": 2}}, "no method"),
        ({"training": {"epoch": 2}}, "Did you mean 'epochs'"),
        ({"training": {"epochs": "many"}}, "expected int"),
    ],
)
def test_a_row_that_matches_nothing_is_an_error_when_it_is_read(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = tmp_path / "mine.json"
    variant = {"preprocessing": {"configuration": "2d"}, "rows": [{"source": "here", **row}]}
    write_json(path, {"name": "mine", "reference": "", "variants": {"x": variant}})
    with pytest.raises((PlanError, DataError), match=message):
        find_protocol(f"{path}:x", {})


def test_a_row_of_a_detectors_protocol_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    row = {"source": "here", "method": "acf_bckd", "parameters": {"floor": 0.5}}
    variant = {"image_size": 640, "batch_size": 2, "rows": [row]}
    write_json(path, {"name": "mine", "reference": "", "detection": {"x": variant}})
    with pytest.raises(PlanError, match="unknown method 'acf_bckd'"):  # it is none for detectors
        find_detection_protocol(f"{path}:x", {})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A root with a preprocessed data set whose plan follows no protocol."""
    make_dataset(tmp_path)
    return tmp_path


def own_protocol(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A protocol of the user's, as a value of ``--protocol``."""
    path = folder / "own.json"
    training = {"epochs": 3, "iterations_per_epoch": 2, "batch_size": 2, "clip": None, "learning_rate": 0.02}
    variant = {"preprocessing": {"configuration": "3d_fullres"}, "training": training, "rows": rows}
    write_json(path, {"name": "own", "reference": "", "variants": {"x": variant}})
    return f"{path}:x"


def job_of(data: Path, text: str, method: str | None, **settings: Any) -> Job[Any, Any, Any]:
    options = TrainOptions(root=data, device="cpu", workers=0, protocol=text, **settings)
    return make_job(TASK, read_fold(TASK, NAME, 0, options, write=False), "unet_tiny", None, method)


def test_a_training_takes_the_rows_of_its_method_and_records_them(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {
            "source": "a.py:3",
            "method": "kd",
            "parameters": {"weight": 7.0, "temperature": 3.0},
            "training": {"epochs": 9},
        },
        {"source": "b.py:4", "method": "cwd", "parameters": {"weight": 5.0}},
    ]
    text = own_protocol(data, rows)
    with caplog.at_level(logging.INFO):
        job = job_of(data, text, "kd", method_parameters={"kd.temperature": "2"})
    assert job.run.method_parameters == {"kd.weight": 7.0, "kd.temperature": "2"}
    assert job.run.budget.epochs == 9 and job.run.budget.learning_rate == 0.02
    assert job.run.published == {"epochs": "9 (a.py:3)", "kd.weight": "7.0 (a.py:3)"}
    assert job.run.protocol == "own:x"
    assert "kd.temperature is 2 as given, not the protocol's 3.0" in caplog.text
    alone = job_of(data, text, None)
    assert alone.run.budget.epochs == 3 and alone.run.published == {} and not alone.run.method_parameters
    assert job_of(data, text, "kd", epochs=4).run.budget.epochs == 4  # the user's options win


def test_the_loop_obeys_optimiser_schedule_and_warm_up(data: Path) -> None:
    settings = {"optimizer": "adamw", "schedule": "cosine", "warmup": 2, "decay": "step", "learning_rate": 1.0}
    job = job_of(data, own_protocol(data, [{"source": "s", "networks": ["unet_tiny"], "training": settings}]), None)
    loop = loop_settings(job)
    rates = [loop.learning_rate(step // 2, step) for step in range(6)]
    assert rates[0] == pytest.approx(0.5) and rates[3] == pytest.approx(0.5) and rates[5] < 0.1
    assert loop.optimizer == "adamw"
    steps = replace(loop, schedule="steps", milestones=(1 / 3, 2 / 3), warmup=0)
    assert [steps.learning_rate(0, step) for step in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_plan_that_follows_a_protocol_needs_no_option_and_can_be_told_otherwise(data: Path) -> None:
    path = data / "preprocessed" / NAME / "plans.json"
    plan, found = Plan.load(path), find_protocol("acf_bckd:word", {})
    from medkd.core.serial import save

    rule = replace(found.training, patch_size=None, batch_size=None)
    save(path, replace(plan, protocol=replace(found, training=rule)))
    options = TrainOptions(root=data, device="cpu", workers=0)
    job = make_job(TASK, read_fold(TASK, NAME, 0, options, write=False), "unet_tiny", None, "acf_bckd")
    assert job.run.method_parameters == {"acf_bckd.variant": "paper", "acf_bckd.floor": 0.5, "acf_bckd.decay": 0.0015}
    plain = replace(options, protocol="none")
    job = make_job(TASK, read_fold(TASK, NAME, 0, plain, write=False), "unet_tiny", None, "acf_bckd")
    assert job.run.method_parameters == {} and job.run.budget.epochs == 1000 and job.plan.protocol is None


def test_a_dry_run_and_run_json_say_what_the_protocol_set(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = TrainOptions(root=data, device="cpu", workers=0, epochs=1, iterations_per_epoch=1, validate=False)
    training.train(NAME, "unet_tiny", 0, teacher)
    text = own_protocol(data, [{"source": "c.py:9", "method": "kd", "parameters": {"weight": 7.0}, "note": "a note"}])
    words = [NAME, "unet_tiny", "mobile_unet", "kd", "0", "--root", str(data), "--device", "cpu", "--protocol", text]
    words += ["--epochs", "1", "--iterations-per-epoch", "1", "--workers", "0", "--no-validate", "--patch-size"]
    words += ["32", "32", "32"]
    assert train_distill_command([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "protocol   own:x" in printed and "kd.weight = 7.0 (c.py:9)" in printed
    assert train_distill_command(words) == 0
    (run,) = (data / "results" / NAME).glob("mobile_unet*/run.json")
    stored = read_json(run)
    assert stored["method_parameters"] == {"kd.weight": 7.0} and stored["published"] == {"kd.weight": "7.0 (c.py:9)"}
    assert train_distill_command([*words, "--continue"]) == 0  # the same settings


def test_an_unknown_protocol_is_refused(data: Path) -> None:
    with pytest.raises(MedkdError, match="Did you mean 'acf_bckd'"):
        rehearse(TASK, NAME, "unet_tiny", 0, TrainOptions(root=data, device="cpu", protocol="acf_bkcd:btcv"))


def test_a_joined_method_takes_the_rows_of_its_parts() -> None:
    rows = [
        ProtocolRow(source="a", method="kd", parameters={"weight": 1.0}),
        ProtocolRow(source="b", method="cwd", parameters={"weight": 2.0}, training={"epochs": 7}),
        ProtocolRow(source="c", method="at", parameters={"weight": 3.0}),
    ]
    found = published_for(rows, "kd + cwd", "unet_tiny", None)
    assert found.parameters == {"kd.weight": 1.0, "cwd.weight": 2.0} and found.training == {"epochs": 7}
