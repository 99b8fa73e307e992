"""Several processes that train one network: the same as one, and an end where one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import medkd
from medkd.cli.reproduce import main as reproduce
from medkd.cli.train import main
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.run import FINAL, LATEST
from medkd.detection.task import DetectionTask
from medkd.preprocessing.store import CaseStore
from medkd.training.augmentation import Augmentation
from medkd.training.job import TrainingTask
from medkd.training.loader import PatchBatches
from medkd.training.loading import explained
from medkd.training.logs import read_log
from medkd.training.options import TrainOptions
from medkd.training.ranks import Ranks, current, own_device
from medkd.training.run import train, train_distill
from medkd.training.sampling import PatchSampler
from medkd.training.segmentation_task import SegmentationTask, dry_run
from tests.processes import COUNT, LIMIT, free_port, processes, stop_after_first_epoch, train_together, until
from tests.training.builders import NAME, PATCH, make_dataset
from tests.training.ranks_worker import run_all
from tests.training.unlabelled_builders import make_mixed


@dataclass(frozen=True)
class Training:
    """A training that both sides do, under its own tag.

    Attributes:
        rounding: by how much (relatively) the losses may differ. Where nothing but the order of sums differs, they are
            equal to 1e-6; ``cirkd`` sorts and draws, so that a single process differs by 5e-4 with another number of
            threads, too.
        root: below the test's folder: ``plain``, or ``mixed`` with scans without labels.
    """

    tag: str
    network: str = "unet_tiny"
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    rounding: float = 2e-5
    root: str = "plain"

    def arguments(self, root: Path, side: str) -> dict[str, Any]:
        options = {
            "root": str(root / self.root),
            "epochs": 2,
            "iterations_per_epoch": 4,
            "batch_size": 4,
            "workers": 0,
            "save_every": 10,
            "device": "cpu",
            "validate": False,
            "tag": f"{self.tag}-{side}",
            **self.options,
        }
        taught = {} if self.method is None else {"teacher": "plain_unet", "method": self.method}
        return {"network": self.network, "options": options, **taught}


TRAININGS = [
    Training("alone", options={"iterations_per_epoch": 10}),  # and with two validation batches
    Training("live", method="kd", options={"channels_last": True}),
    Training("helpers", method="reviewkd"),
    Training("memory", method="cirkd", rounding=5e-3),
    Training("cached", method="kd", options={"targets": "cached"}),
    Training(
        "norm", network="unet_r18", options={"configuration": "2d", "epochs": 1, "iterations_per_epoch": 2}
    ),  # normalisation and Dice over the batch
    Training("gaps", method="kd", root="mixed"),  # scans and voxels without labels
    Training("first_stage", method="maskd", options={"method_parameters": {"maskd.iterations": 3}}),
    Training("inherited", network="plain_unet", method="none", options={"init": "teacher", "width_divisor": 2}),
    Training("continued", method="reviewkd", options={"epochs": 3, "save_every": 1}),  # after an epoch by one process
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A root where everything was trained by one process, and by two."""
    root = tmp_path_factory.mktemp("ranks")
    make_dataset(root / "plain")
    make_mixed(root / "mixed", labels=LabelSpec((("background", (0,)), ("small", (1,)), ("large", (2,))), ignore=3))
    for name in ("plain", "mixed"):
        teacher = Training("", network="plain_unet", options={"tag": None, "epochs": 1}, root=name)
        run_all([teacher.arguments(root, "")])
    run_all([training.arguments(root, "one") for training in TRAININGS])
    assert not torch.distributed.is_initialized()
    stop_after_first_epoch(lambda: run_all([TRAININGS[-1].arguments(root, "two")]))
    TRAININGS[-1].options["resume"] = True
    train_together("tests.training.ranks_worker", [training.arguments(root, "two") for training in TRAININGS], root)
    return root


def _folder(root: Path, tag: str) -> Path:
    (found,) = root.glob(f"*/results/{NAME}/*__{tag}")
    return found / "fold_0"


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.tag)
def test_two_processes_train_as_one_does(root: Path, training: Training) -> None:
    one, two = (_folder(root, f"{training.tag}-{side}") for side in ("one", "two"))
    for ours, theirs in zip(read_log(two), read_log(one), strict=True):
        assert ours.terms == pytest.approx(theirs.terms, rel=training.rounding, abs=1e-6)
        assert ours.gradient_norms == pytest.approx(theirs.gradient_norms, rel=10 * training.rounding, abs=1e-6)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=training.rounding)
        assert ours.validation_dice == pytest.approx(theirs.validation_dice, abs=max(1e-3, 4 * training.rounding))
    a, b = (load_checkpoint(folder / LATEST) for folder in (one, two))
    for part in ("network", "method"):
        for key, value in a[part].items():
            assert torch.allclose(value.double(), b[part][key].double(), rtol=1e-3, atol=10 * training.rounding), key


def test_the_first_of_two_processes_alone_writes(root: Path) -> None:
    one, two = (_folder(root, f"alone-{side}") for side in ("one", "two"))
    assert [record.epoch for record in read_log(two)] == [0, 1]
    listed = [sorted(path.name for path in folder.iterdir()) for folder in (one, two)]
    assert listed[0] == listed[1] and not list(two.parent.glob(".*"))
    assert len(list((two / "tensorboard").iterdir())) == 1
    others = (root / "log.1").read_text()
    assert "epoch" not in others and "2 processes train together" not in others
    assert "The processes differ." in others and "The processes differ." in (root / "log.0").read_text()


def test_a_rank_reads_its_own_samples_of_the_one_batch(root: Path) -> None:
    """Which are centred on structures, and what augmentation does, is that of the whole batch."""
    store = CaseStore(root / "plain" / "preprocessed" / NAME / "3d_fullres")
    sampler = PatchSampler((22, 22, 22), PATCH)

    def batch(part: range | None) -> Any:
        augmentation = Augmentation(PATCH, (0, 1, 2))
        return PatchBatches(store.folder, store.cases(), sampler, 6, 3, 5, augmentation, part=part)[1]

    parts = [batch(Ranks(number=number, count=3).part(6)) for number in range(3)]
    for whole, *pieces in zip(batch(None), *parts, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_every_rank_has_its_own_dropout_and_the_same_numbers_afterwards() -> None:
    drawn, after = [], []
    for number, step in ((0, 5), (1, 5), (1, 6)):
        torch.manual_seed(3)
        with Ranks(number=number, count=2).own_chance(7, step, torch.device("cpu")):
            drawn.append(torch.rand(4))
        after.append(torch.rand(4))
    torch.manual_seed(3)
    assert all(torch.equal(numbers, after[0]) for numbers in (*after, torch.rand(4)))
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_the_commands_answer_without_torch() -> None:
    """Whether there are several processes is asked when something is trained."""
    words = (
        "import sys, medkd.cli.train, medkd.cli.train_distill, medkd.cli.reproduce; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False, timeout=LIMIT).returncode == 0


_ENDLESS = """
import sys, torch
from types import SimpleNamespace
from medkd.cli.common import run, parser
from medkd.training.ranks import current, together

def work(_):
    with together(SimpleNamespace(in_several_processes=True), SimpleNamespace(device="cpu")):
        while True:
            current().wait(torch.device("cpu"))
            open(sys.argv[1] + str(current().number), "w").close()

sys.exit(run(work, parser("", "medkd_train 4"), []))
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_with_a_sentence(tmp_path: Path, killed: int) -> None:
    """Without torchrun, which would end the other one; the first process is that through which they are connected."""
    log = tmp_path / "log"
    with processes(["-c", _ENDLESS, str(tmp_path / "at_work")], log) as started:
        until(lambda: len(list(tmp_path.glob("at_work*"))) == COUNT, started)
        started[killed].kill()
        begun = time.monotonic()
        assert started[1 - killed].wait(60) == 1
    assert time.monotonic() - begun < 60
    lines = Path(f"{log}.{1 - killed}").read_text().splitlines()
    assert [line for line in lines if line.startswith("error: ") and "--continue" in line], lines


def test_torchrun_ends_when_a_process_is_killed_and_one_process_goes_on(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    words = ["900", "plain_unet", "0", "--root", str(tmp_path), "--epochs", "30", "--iterations-per-epoch", "2"]
    words += ["--batch-size", "4", "--workers", "0", "--save-every", "4", "--device", "cpu", "--no-validate", "--tag"]
    folder, log = tmp_path / "results" / NAME / "plain_unet__3d_fullres__killed" / "fold_0", tmp_path / "log"
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(COUNT), "--master-port", str(free_port())]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        agent = subprocess.Popen(
            [sys.executable, *command, "-m", "medkd", "train", *words, "killed"], env=env, stdout=file, stderr=file
        )
    family = psutil.Process(agent.pid)
    try:
        until(lambda: (folder / LATEST).exists(), [agent])
        workers = [child for child in family.children() if "medkd" in child.cmdline()]
        workers[1].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        assert agent.wait(60) != 0
    finally:
        for process in [*family.children(recursive=True), family] if agent.poll() is None else []:
            process.kill()
        agent.wait()
    assert time.monotonic() - begun < 60
    assert "--continue to go on" in log.read_text() and not (folder / FINAL).exists()
    assert main([*words, "killed", "--continue"]) == 0 and main([*words, "whole"]) == 0
    whole = read_log(folder.parents[1] / "plain_unet__3d_fullres__whole" / "fold_0")
    for ours, theirs in zip(read_log(folder), whole, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)


def _as_one_of(count: int, patch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": count, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": count}.items():
        patch.setenv(name, str(value))


def test_memory_that_ran_out_is_not_told_as_a_lost_process(tmp_path: Path) -> None:
    def call(error: Exception) -> None:
        raise error

    ranks, full = Ranks(number=1, count=2), "NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'\nmore"
    with pytest.raises(RunError, match=r"lost each other.*Connection closed"):
        ranks._say(call, RuntimeError("Connection closed by peer.\nmore"))
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), RuntimeError(full)):
        told = rf"Memory ran out while {tmp_path} was trained \(.*out of memory.*smaller --batch-size"
        with pytest.raises(RunError, match=told) as caught, explained(tmp_path):
            ranks._say(call, error)
        assert "\n" not in str(caught.value)


def test_a_batch_that_cannot_be_divided_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_one_of(2, monkeypatch)
    with pytest.raises(RunError, match="found 3 samples; give --batch-size 4"):
        dry_run(900, "unet_tiny", 0, TrainOptions(root=root / "plain", batch_size=3, device="cpu"))


def test_a_device_that_several_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cuda:1") == torch.device("cuda", 1)  # of one process
    _as_one_of(2, monkeypatch)
    assert current() == Ranks(number=1, count=2, local=1, beside=2)
    assert own_device(None) == torch.device("cuda", 1) and own_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match="leave the number out"):
        own_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RunError, match="start one per GPU"):
        own_device("cuda")


def test_several_devices_for_one_process_are_refused() -> None:
    with pytest.raises(RunError, match="found '0,1'; give one of them; only trainings use several"):
        own_device("0,1")


def test_what_one_process_only_does_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _as_one_of(2, monkeypatch)
    with pytest.raises(RunError, match="medkd_compress works in one process"):
        medkd.compress("plain_unet", 900, root=tmp_path)
    assert reproduce(["quick_phantom", "--check"]) == 1 and "medkd_reproduce works in one" in capsys.readouterr().err


def test_a_task_that_shares_nothing_trains_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One from outside: each process would take the loss of the whole batch, and the sum of all would be its step."""

    class Third(SegmentationTask):
        name = "third"
        in_several_processes = TrainingTask.in_several_processes

    def never(*_: Any) -> Any:
        raise AssertionError

    _as_one_of(2, monkeypatch)
    monkeypatch.setattr("medkd.training.ranks._connected", never)
    options = TrainOptions(root=tmp_path, device="cpu")
    with pytest.raises(RunError, match=r"for third is trained by one process, but 2 were .* without torchrun"):
        train(Third(), 900, "unet_tiny", 0, options)
    with pytest.raises(RunError, match="for third is trained by one process, but 2"):
        train_distill(Third(), 900, "unet_tiny", "unet_tiny", "kd", 0, options)
    for own in (SegmentationTask(), DetectionTask()):
        with pytest.raises(AssertionError):
            train(own, 900, "unet_tiny", 0, options)
