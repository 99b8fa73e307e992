"""A training process that is killed outright at a random moment, and continued by the command line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medkd.cli.train import main
from medkd.core.checkpoint import load_checkpoint
from medkd.core.run import FINAL, LATEST
from medkd.training.logs import read_log
from tests.training.builders import NAME, make_dataset

_EPOCHS, _KILLED = 30, 10  # all, and until when at the latest


def _arguments(root: Path, tag: str) -> list[str]:
    budget = ["--epochs", str(_EPOCHS), "--iterations-per-epoch", "2", "--save-every", "1"]
    return [
        "900",
        "plain_unet",
        "0",
        "--root",
        str(root),
        "--tag",
        tag,
        "--workers",
        "0",
        "--device",
        "cpu",
        "--no-validate",
        *budget,
    ]


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_ends_with_the_unbroken_runs_weights(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    assert main(_arguments(tmp_path, "whole")) == 0
    folder = tmp_path / "results" / NAME / "plain_unet__3d_fullres__killed" / "fold_0"
    command = [sys.executable, "-c", f"from medkd.cli.train import main; main({_arguments(tmp_path, 'killed')!r})"]
    # the same number of threads as here: sums over other chunks would round differently
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}, stderr=subprocess.DEVNULL
    )
    deadline, epoch = time.monotonic() + 120, random.randrange(1, _KILLED)
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / LATEST).exists() and len(read_log(folder)) >= epoch:
            break
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(read_log(folder))
    assert (folder / LATEST).exists() and not (folder / FINAL).exists(), (
        f"killed too early or too late, after {done} epochs"
    )
    assert main([*_arguments(tmp_path, "killed"), "--continue"]) == 0
    whole = tmp_path / "results" / NAME / "plain_unet__3d_fullres__whole" / "fold_0"
    a, b = (load_checkpoint(f / FINAL)["network"] for f in (whole, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [(r.epoch, r.train_loss) for r in read_log(whole)] == [(r.epoch, r.train_loss) for r in read_log(folder)]
