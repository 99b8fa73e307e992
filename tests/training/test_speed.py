"""torch's switches for speed: the same training, checkpoints that know nothing of them, and sentences where they do
nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medkd.cli.train import main
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.run import FINAL, LATEST
from medkd.core.speed import Speed
from medkd.training import speed as switches
from medkd.training.hooks import SaveLatest
from medkd.training.logs import read_log
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run, train, train_distill, train_side_by_side
from tests.training.builders import make_dataset

LAST, COMPILED = {"channels_last": True}, {"compile": True}


def _options(root: Path, **changes: Any) -> TrainOptions:
    values: dict = {"root": root, "epochs": 2, "iterations_per_epoch": 3, "workers": 0, "device": "cpu", **changes}
    return TrainOptions(**{"width_divisor": 2, "validate": False, "save_every": 1, **values})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher."""
    place = tmp_path_factory.mktemp("root")
    make_dataset(place)
    train(900, "plain_unet", 0, _options(place, iterations_per_epoch=6, width_divisor=1))
    return place


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Networks are traced as always, but their graphs run without a compiler; which ones are noted."""
    monkeypatch.setattr(switches, "BACKEND", "aot_eager")
    found: list[nn.Module] = []
    original = nn.Module.compile

    def noted(self: nn.Module, **how: Any) -> None:
        found.append(self)
        original(self, **how)

    monkeypatch.setattr(nn.Module, "compile", noted)
    return found


def _apart(first: Path, second: Path) -> float:
    """The largest difference of the weights; names, sizes and the order in memory are equal."""
    a, b = (load_checkpoint(folder / FINAL)["network"] for folder in (first, second))
    assert list(a) == list(b)
    assert all(value.stride() == b[name].stride() for name, value in a.items())
    return max(float((value - b[name]).abs().max()) for name, value in a.items())


@pytest.mark.parametrize(("configuration", "changes"), [("3d_fullres", {**LAST, **COMPILED}), ("2d", LAST)])
def test_a_training_ends_with_the_same_weights(
    root: Path, configuration: str, changes: dict[str, bool], quick: list[nn.Module]
) -> None:
    plain = train(900, "plain_unet", 0, _options(root, configuration=configuration, tag="plain", overwrite=True))
    made = train(
        900, "plain_unet", 0, _options(root, configuration=configuration, tag="fast", overwrite=True, **changes)
    )
    assert _apart(plain, made) < 1e-5
    assert len(quick) == ("compile" in changes)
    state = load_checkpoint(made / LATEST)
    momenta = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    assert momenta and all(momentum.is_contiguous() for momentum in momenta)
    recorded = json.loads((made.parent / "run.json").read_text())["speed"]
    wanted = {"tf32": None, "channels_last": False, "cudnn_benchmark": False, "compile": False, **changes}
    assert recorded == wanted


def test_methods_of_outputs_are_taught_the_same_alone_and_side_by_side(root: Path, quick: list[nn.Module]) -> None:
    def options(tag: str, **changes: bool) -> TrainOptions:
        return _options(root, tag=tag, epochs=1, **changes)

    methods = ("kd", "bckd")
    fast = train_side_by_side(900, "plain_unet", "plain_unet", methods, 0, options("beside", **COMPILED))
    assert len(quick) == len(methods)
    for method, folder in zip(methods, fast, strict=True):
        plain = train_distill(900, "plain_unet", "plain_unet", method, 0, options("slow"))
        assert _apart(plain, folder) < 1e-4
        lines = [
            [json.loads(line)["terms"] for line in (f / "log.jsonl").read_text().splitlines()] for f in (plain, folder)
        ]
        for own, other in zip(*lines, strict=True):
            assert own == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_the_layout_reaches_student_and_teacher(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[bool] = set()
    original = nn.Conv3d.forward

    def noted(self: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
        order = torch.channels_last_3d
        seen.add(self.weight.is_contiguous(memory_format=order))
        return original(self, x)

    monkeypatch.setattr(nn.Conv3d, "forward", noted)
    train_distill(900, "plain_unet", "plain_unet", "at", 0, _options(root, tag="seen", **LAST))
    assert seen == {True}


def test_features_cannot_be_read_of_a_compiled_student(root: Path) -> None:
    wanted = r"^--compile leaves no features of the student to read, but kd\+at reads its tap '\w+'; leave it out"
    for start in (train_distill, train_side_by_side):
        methods: Any = "kd+at" if start is train_distill else ("kd", "kd+at")
        with pytest.raises(RunError, match=wanted):
            start(900, "plain_unet", "plain_unet", methods, 0, _options(root, tag="refused", **COMPILED))
    assert not list((root / "results").glob("*/*refused*"))


def _stop(self: SaveLatest, trainer: Any) -> None:
    raise KeyboardInterrupt


def test_a_training_goes_on_with_other_switches(root: Path) -> None:
    whole = train(900, "plain_unet", 0, _options(root, tag="whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SaveLatest, "after_save", _stop)
        train(900, "plain_unet", 0, _options(root, tag="parts", **LAST))
    lines = dry_run(900, "plain_unet", 0, _options(root, tag="parts", resume=True, **LAST))
    assert "speed      --channels-last" in lines
    folder = train(900, "plain_unet", 0, _options(root, tag="parts", resume=True))
    assert len(read_log(folder)) == 2 and _apart(whole, folder) < 1e-5
    assert not json.loads((folder.parent / "run.json").read_text())["speed"]["channels_last"]


@pytest.mark.parametrize("option", [["--tf32", "on"], ["--tf32", "off"], ["--cudnn-benchmark"]])
def test_what_is_for_cuda_is_refused_elsewhere(
    root: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["900", "plain_unet", "0", "--root", str(root), "--device", "cpu", "--tag", "cuda", *option]) == 1
    assert capsys.readouterr().err == f"error: {option[0]} is for CUDA, but the training is on cpu; leave it out.\n"


def test_compiling_is_for_one_process() -> None:
    switches.check_speed(Speed(channels_last=True), torch.device("cpu"), 2)
    with pytest.raises(RunError, match=r"^--compile is for a training in one process, found 2; leave it out\.$"):
        switches.check_speed(Speed(compile=True), torch.device("cpu"), 2)


def test_switches_are_those_of_the_process_again() -> None:
    def now() -> tuple[bool, ...]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark

    before = now()
    for speed, wanted in (
        (Speed(), before),
        (Speed(tf32=True), (True, True, before[2])),
        (Speed(tf32=False, cudnn_benchmark=True), (False, False, True)),
    ):
        with pytest.raises(KeyError), switches.switched(speed):
            assert now() == wanted
            raise KeyError
        assert now() == before


def test_a_network_that_cannot_be_compiled_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no compiler\nis here")

    monkeypatch.setattr(switches, "BACKEND", broken)
    with pytest.raises(RunError, match=r"^torch\.compile failed \(.*\); leave out --compile, or") as caught:
        train(900, "plain_unet", 0, _options(root, tag="broken", **COMPILED))
    assert "\n" not in str(caught.value)
