"""A method with a first stage: it runs once, before the first step, and a continued run takes its result from the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import medkd.training.segmentation as segmentation
from medkd.core.checkpoint import load_checkpoint
from medkd.core.run import FINAL, LATEST
from medkd.distillation.prompts.first_stage import PromptMethod
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from tests.training.builders import make_dataset

ITERATIONS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    make_dataset(folder)
    train(
        900,
        "unet_tiny",
        0,
        TrainOptions(root=folder, epochs=2, iterations_per_epoch=3, workers=0, device="cpu", validate=False),
    )
    return folder


def distilled(root: Path, method: str, tag: str, resume: bool = False) -> Path:
    options = TrainOptions(
        root=root,
        epochs=2,
        iterations_per_epoch=2,
        workers=0,
        save_every=1,
        device="cpu",
        validate=False,
        tag=tag,
        resume=resume,
        method_parameters={f"{method}.iterations": str(ITERATIONS)},
    )
    return train_distill(900, "unet_tiny", "unet_tiny", method, 0, options)


@pytest.mark.parametrize(("method", "dies_at"), [("maskd", ITERATIONS + 1), ("freekd", ITERATIONS + 4)])
def test_a_killed_run_continues_with_the_masks_that_it_learnt(
    root: Path, method: str, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distilled(root, method, "whole")
    original, calls, stages = segmentation.iterate, 0, []
    first_stage = PromptMethod.prepare

    def counted(self: PromptMethod, *args: Any) -> None:
        stages.append(self.name)
        first_stage(self, *args)

    def dying(*args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal calls
        for batch in original(*args, **kwargs):
            calls += 1
            if calls == dies_at:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(PromptMethod, "prepare", counted)
    monkeypatch.setattr(segmentation, "iterate", dying)
    with pytest.raises(KeyboardInterrupt):
        distilled(root, method, "broken")
    monkeypatch.setattr(segmentation, "iterate", original)
    part = distilled(root, method, "broken", resume=True)
    assert stages == [method]
    a, b = (load_checkpoint(folder / FINAL)["network"] for folder in (whole, part))
    assert all(torch.equal(a[k], b[k]) for k in a)
    states = [load_checkpoint(folder / LATEST)["method"] for folder in (whole, part)]
    assert bool(states[0]["prepared"]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
