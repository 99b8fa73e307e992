"""ultralytics' trainer on medkd's jobs: alone, with a method's terms, killed and continued, and with its own
distillation.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import pytest
import torch
from torch import nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import DataError, MethodError, RunError
from medkd.detection.base import Detector
from medkd.detection.plan import DetectionAugmentation
from medkd.detection.published import ultralytics_precision
from medkd.detection.yolo import YoloDetector, fit, trainer
from medkd.detection.yolo.data import EpochSampler
from medkd.detection.yolo.offline import quiet
from medkd.detection.yolo.settings import settings_of
from medkd.training.logs import read_log
from tests.detection.builders import Told
from tests.detection.yolo.builders import SIZE, ToyDistiller, calibrated, make, make_job

ROOT = Path(__file__).parents[3]


def state_of(detector: YoloDetector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def weights_of(folder: Path, name: str) -> Any:
    """The network in a file of ultralytics, read with ultralytics' guarded loader."""
    from ultralytics.nn.tasks import torch_safe_load

    return torch_safe_load(folder / "ultralytics" / "weights" / name, safe_only=True)[0]["model"]


def test_a_detector_is_trained_alone(tmp_path: Path) -> None:
    detector = make()
    before = state_of(detector)
    told = Told()
    job = make_job(tmp_path, detector, tracking=told)
    fit(job)
    final, best = (load_checkpoint(job.folder / f"checkpoint_{name}.pt") for name in ("final", "best"))
    assert final["schema"] == best["schema"] == 1 and final["epoch"] == 1
    assert any(
        not torch.equal(before[name], value) for name, value in final["network"].items() if "conv.weight" in name
    )
    other = make(seed=3)
    other.load_state_dict(final["network"])
    assert all(torch.equal(value, state_of(detector)[name]) for name, value in final["network"].items())
    records = read_log(job.folder)
    assert told.records == records
    assert [r.epoch for r in records] == [0, 1]
    assert set(records[0].terms) == {"box_loss", "cls_loss", "dfl_loss"} and records[0].validation_score is not None
    network = weights_of(job.folder, "last.pt")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value.float(), final["network"][name].float(), atol=1e-2, rtol=1e-3)
    fit(replace(job, resume=True))  # finished: nothing happens
    assert read_log(job.folder) == records
    assert not (job.store / "labels.cache").exists()


def test_terms_of_a_method_train_student_and_helpers(tmp_path: Path) -> None:
    detector, distiller = make(), ToyDistiller(teacher=make(seed=4), frozen=True)
    teacher = state_of(distiller.teacher)
    helper = distiller.method[0].weight.detach().clone(), distiller.method[0].bias.detach().clone()
    job = make_job(tmp_path, detector, distiller)
    fit(job)
    assert [(epoch, step) for epoch, step, _ in distiller.calls] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert not torch.equal(distiller.method[0].weight, helper[0]) and torch.equal(distiller.method[0].bias, helper[1])
    assert all(torch.equal(value, teacher[name]) for name, value in distiller.teacher.state_dict().items())
    records = read_log(job.folder)
    assert list(records[0].terms) == ["box_loss", "cls_loss", "dfl_loss", "imitation", "sometimes"]
    assert (job.folder / "ultralytics" / "results.csv").read_text().splitlines()[0].count("train/") == 5
    final = load_checkpoint(job.folder / "checkpoint_final.pt")["network"]
    assert final.keys() == make().state_dict().keys()
    for name in ("best.pt", "last.pt"):
        network = weights_of(job.folder, name)
        assert type(network).__name__ == "DetectionModel" and network.state_dict().keys() == final.keys()
    assert not list(job.folder.rglob("state_*.pt"))


def test_terms_change_the_student(tmp_path: Path) -> None:
    finals = []
    for number, distiller in enumerate((None, ToyDistiller(), ToyDistiller())):
        job = make_job(tmp_path / str(number), make(), distiller)
        fit(replace(job, budget=replace(job.budget, epochs=1)))
        finals.append(load_checkpoint(job.folder / "checkpoint_final.pt")["network"]["model.0.conv.weight"])
    assert torch.equal(finals[1], finals[2])
    assert not torch.equal(finals[0], finals[1])


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """With the same momentum and average, too: the states of former versions had rounded both."""
    whole = ToyDistiller()
    unbroken = make_job(tmp_path / "whole", make(), whole)
    fit(unbroken)
    killed = ToyDistiller(stop_at=1)
    job = make_job(tmp_path / "killed", make(), killed)
    with pytest.raises(InterruptedError):
        fit(job)
    assert not (job.folder / "checkpoint_final.pt").exists()
    kept = load_checkpoint(job.folder / "ultralytics" / "weights" / "state_0.pt")
    assert torch.equal(kept["helpers"]["0.weight"], killed.method[0].weight)
    distiller, detector = ToyDistiller(), make(seed=8)
    nn.init.zeros_(distiller.method[0].weight)
    fit(replace(job, detector=detector, distiller=distiller, resume=True))
    assert [(epoch, step) for epoch, step, _ in distiller.calls] == [(1, 2), (1, 3)]
    assert torch.equal(distiller.calls[0][2], kept["helpers"]["0.weight"])
    first, second = read_log(unbroken.folder), read_log(job.folder)
    assert [r.epoch for r in second] == [0, 1]
    assert second[1].terms == pytest.approx(first[1].terms, rel=1e-2)
    torch.testing.assert_close(distiller.method[0].weight, whole.method[0].weight, rtol=1e-2, atol=1e-4)
    state = kept["network"]["model.9.cv2.conv.weight"], make().state_dict()["model.9.cv2.conv.weight"]
    assert not torch.equal(*state)
    for name, value in load_checkpoint(unbroken.folder / "checkpoint_final.pt")["network"].items():
        torch.testing.assert_close(state_of(detector)[name].float(), value.float(), rtol=1e-2, atol=1e-3)


def test_a_kill_after_the_last_epoch_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, make(), ToyDistiller())
    monkeypatch.setattr(trainer.YoloTrainer, "final_eval", lambda self: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        fit(job)
    monkeypatch.undo()
    before = load_checkpoint(job.folder / "checkpoint_final.pt")
    fit(replace(job, detector=make(seed=8), distiller=ToyDistiller(), resume=True))
    after = load_checkpoint(job.folder / "checkpoint_final.pt")
    assert before["epoch"] == after["epoch"] == 1 and torch.equal(
        before["network"]["model.0.conv.weight"], after["network"]["model.0.conv.weight"]
    )
    assert (
        not list(job.folder.rglob("state_*.pt"))
        and type(weights_of(job.folder, "last.pt")).__name__ == "DetectionModel"
    )


def test_an_infinite_loss_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ToyDistiller, "terms", lambda self, images, student, target: {"imitation": student.logits.mean() * float("inf")}
    )
    job = make_job(tmp_path, make(), ToyDistiller())
    job = replace(job, budget=replace(job.budget, iterations_per_epoch=1))
    with pytest.raises(RunError, match=r"'imitation' became infinite or NaN in epoch 0"):
        fit(job)
    assert not (job.folder / "checkpoint_final.pt").exists()


def test_a_batch_that_does_not_fit_is_refused_and_not_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: object) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ToyDistiller, "terms", runs_out)
    with pytest.raises(RunError, match=r"does not suffice for 2 images of 64 px"):
        fit(make_job(tmp_path, make(), ToyDistiller()))


def test_ultralytics_is_silent_but_for_warnings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="medkd")
    monkeypatch.setattr(
        logging.getLogger(), "handlers", []
    )  # a command that ran before has left one on a closed stream
    job = make_job(tmp_path, make())
    fit(replace(job, budget=replace(job.budget, epochs=1, iterations_per_epoch=1)))
    printed = "".join(capfd.readouterr())
    assert not [word for word in ("Optimizer stripped", "mAP50", "engine/trainer", "Instances") if word in printed]
    with quiet():
        logging.getLogger("ultralytics").warning("a warning is heard")
    assert logging.getLogger("ultralytics").level == logging.INFO


@pytest.mark.parametrize(("negatives", "categories", "val"), [(6, ("a",), True), (0, ("a", "b", "absent"), False)])
def test_odd_folds(tmp_path: Path, negatives: int, categories: tuple[str, ...], val: bool) -> None:
    job = make_job(tmp_path, make(categories=categories), ToyDistiller(), negatives=negatives)
    job = replace(job, budget=replace(job.budget, epochs=1, iterations_per_epoch=1), val=job.val if val else ())
    fit(job)
    (record,) = read_log(job.folder)
    assert (record.validation_score is None) == (not val)
    assert load_checkpoint(job.folder / "checkpoint_best.pt")["epoch"] == 0


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path, make())
    path = job.store / "images" / f"{job.train[0]}.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=job.train[0]):
        fit(job)


def test_builtin_distillation(tmp_path: Path) -> None:
    method = nn.Module()
    method.builtin, method.weight = True, 2.0  # type: ignore[assignment]
    teacher = calibrated("yolo11n", seed=3)
    job = make_job(tmp_path, make(), SimpleNamespace(method=method, teacher=teacher))
    fit(replace(job, budget=replace(job.budget, epochs=1)))
    (record,) = read_log(job.folder)
    assert record.terms["dis_loss"] > 0
    network = weights_of(job.folder, "best.pt")
    final = load_checkpoint(job.folder / "checkpoint_final.pt")["network"]
    assert (
        type(network).__name__ == "DetectionModel"
        and network.state_dict().keys() == final.keys() == make().state_dict().keys()
    )
    for wrong, text in ((None, "none"), (SimpleNamespace(spec=SimpleNamespace(name="fcos_r18")), "fcos_r18")):
        with pytest.raises(MethodError, match=text):
            fit(replace(job, distiller=SimpleNamespace(method=method, teacher=wrong)))
    teacher.taps = tuple(tap for tap in teacher.taps if tap.name != "p5")
    with pytest.raises(MethodError, match="equal levels"):
        fit(job)


def test_another_family_is_refused(tmp_path: Path) -> None:
    other = Detector()
    other.spec, other.family = make().spec, "torchvision"  # type: ignore[misc]
    with pytest.raises(RunError, match="not a YOLO detector"):
        fit(replace(make_job(tmp_path, make()), detector=other))


def test_passes_of_the_sampler_walk_through_the_epochs() -> None:
    epochs = [[0, 1, 2], [2, 0], [1, 1, 0], [2, 2, 1]]
    sampler = EpochSampler(lambda epoch: list(epochs[epoch]), 4)
    assert [list(sampler) for _ in range(2)] == [[0, 1, 2, 2], [0, 1, 1, 0]] and len(sampler) == 4
    later = EpochSampler(lambda epoch: list(epochs[epoch]), 4)
    later.go_to(1)
    assert list(later) == [0, 1, 1, 0]
    later.go_to(0)
    assert list(later) == [0, 1, 2, 2]


def test_the_plan_becomes_ultralytics_arguments(tmp_path: Path) -> None:
    job = make_job(tmp_path, make())
    augmentation = DetectionAugmentation(
        mosaic=0.1, close_mosaic=3, fliplr=0.2, flipud=0.3, scale=0.4, translate=0.05, degrees=6.0, brightness=0.7
    )
    job = replace(job, plan=replace(job.plan, augmentation=augmentation), precision="bf16", workers=3)
    settings = settings_of(job, tmp_path / "data.yaml", tmp_path)
    expected = {
        **{
            "mosaic": 0.1,
            "close_mosaic": 3,
            "fliplr": 0.2,
            "flipud": 0.3,
            "scale": 0.4,
            "translate": 0.05,
            "degrees": 6.0,
        },
        **{
            "hsv_h": 0.0,
            "hsv_s": 0.0,
            "hsv_v": 0.7,
            "optimizer": "SGD",
            "lr0": 0.01,
            "imgsz": SIZE,
            "batch": 2,
            "epochs": 2,
        },
        **{"amp": False, "workers": 3, "seed": 0, "device": "cpu"},
    }
    assert expected.items() <= settings.items()
    cuda = settings_of(replace(job, device=torch.device("cuda", 1)), tmp_path / "data.yaml", tmp_path)
    assert cuda["amp"] == "bf16" and cuda["device"] == "1"
    mps = settings_of(replace(job, device=torch.device("mps")), tmp_path / "data.yaml", tmp_path)
    assert mps["amp"] is False and mps["device"] == "mps"
    assert (settings["nbs"], settings["warmup_epochs"]) == (2, pytest.approx(0.2))


def test_half_precision_is_ultralytics_on_cuda_alone() -> None:
    """On a CPU its ``amp`` is off, so that run.json must not say otherwise."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [ultralytics_precision("yolov8n", asked, cpu) for asked in (None, "auto", "fp32")] == ["fp32"] * 3
    assert [ultralytics_precision("yolov8n", asked, cuda) for asked in (None, "bf16")] == ["fp16", "bf16"]
    for device in (cpu, torch.device("mps")):
        with pytest.raises(RunError, match=f"computes in fp32 on {device.type}, found --precision bf16; leave it out"):
            ultralytics_precision("yolov8n", "bf16", device)


PLAIN = """
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "medkd":
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import numpy as np
from ultralytics import YOLO
for path in sys.argv[1:]:
    model = YOLO(path)
    result = model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)[0]
    assert type(model.model).__module__ == "ultralytics.nn.tasks" and result.names == {0: "fracture"}, result.names
assert "medkd" not in sys.modules
print("fine")
"""


def run(code: str, folder: Path, *arguments: str, **variables: str) -> str:
    """The output of a fresh process with an empty home, in which nothing of ultralytics is set up."""
    dropped = ("OMP_NUM_THREADS", "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_CONFIG_DIR", "ULTRALYTICS_SAFE_LOAD")
    kept = {name: value for name, value in os.environ.items() if name not in dropped and "PYTEST" not in name}
    home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config")}
    environment = {**kept, **home, "MPLCONFIGDIR": matplotlib.get_cachedir(), "OMP_WAIT_POLICY": "PASSIVE", **variables}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
def test_the_students_file_needs_no_medkd(tmp_path: Path) -> None:
    paths = []
    for name in ("yolov8_efficientnet_es", "yolov8_r18"):
        distiller = ToyDistiller()
        distiller.method[0] = nn.Conv2d(128, 4, 1)
        job = make_job(tmp_path / name, make(name), distiller)
        fit(replace(job, budget=replace(job.budget, epochs=1, iterations_per_epoch=1)))
        paths.append(str(job.folder / "ultralytics" / "weights" / "best.pt"))
    assert "fine" in run(PLAIN, tmp_path, *paths, YOLO_OFFLINE="1")


OFFLINE = """
import os, socket, sys
tried = []
def refuse(*arguments, **named):
    tried.append(arguments)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
import numpy as np, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(2)
torch.set_printoptions(precision=7)
numbers = np.get_printoptions()
import medkd.detection.yolo
assert "ultralytics" not in sys.modules
from tests.detection.yolo.builders import ToyDistiller, batch, make, make_job
from dataclasses import replace
detector = make(categories=("Fraktur\u00fc",))
def unchanged():
    return (torch.get_num_threads(), torch._tensor_str.PRINT_OPTS.precision, np.get_printoptions()) == (2, 7, numbers)
assert "ultralytics" in sys.modules and unchanged() and "OMP_NUM_THREADS" not in os.environ
job = make_job(Path.cwd(), detector, ToyDistiller(teacher=make(seed=1)))
medkd.detection.yolo.fit(replace(job, budget=replace(job.budget, epochs=1, iterations_per_epoch=1)))
detector.detect(batch()[0])
assert unchanged() and "OMP_NUM_THREADS" not in os.environ
assert not tried, tried
from ultralytics.utils import SETTINGS, USER_CONFIG_DIR
assert not SETTINGS["sync"] and USER_CONFIG_DIR.is_relative_to(Path.cwd() / "cache" / "medkd"), USER_CONFIG_DIR
assert not (Path.cwd() / "config" / "Ultralytics").exists()
print("fine")
"""


@pytest.mark.slow
def test_nothing_touches_the_network_or_the_process(tmp_path: Path) -> None:
    assert "fine" in run(OFFLINE, tmp_path, str(ROOT))


def test_without_ultralytics_one_sentence_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ultralytics'] = None\n"
        "import medkd.detection.yolo\nfrom medkd.core.errors import RunError\n"
        "from medkd.detection.base import DETECTORS, DetectorSpec\n"
        "try:\n    DETECTORS['yolov8n'].build(DetectorSpec('yolov8n', ('a',), 64))\n"
        "except RunError as error:\n    print(error)\n"
    )
    assert "pip install medkd[detection]" in run(code, tmp_path, PYTHONPATH=str(ROOT))
