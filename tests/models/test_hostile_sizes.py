"""Descriptions that would take hours or all of the memory are refused at once, whatever the kind of model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json, write_json
from medkd.models.base import open_model
from medkd.models.bundle.config import read_file
from tests.models.test_bundle import write
from tests.training.test_imported_teacher import describe

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0" / "plain_unet__3d_fullres"


@pytest.fixture(autouse=True)
def _quickly() -> Iterator[None]:
    begun = time.perf_counter()
    yield
    assert time.perf_counter() - begun < 20


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("SegResNet", {"blocks_down": [1, 10**7]}),
        ("SegResNet", {"blocks_down": [1] * 10**6}),
        ("SegResNet", {"init_filters": 10**9}),
        ("UNet", {"channels": [4, 8], "strides": [2], "num_res_units": 10**7}),
        ("UNet", {"channels": [4096, 4096, 4096, 4096], "strides": [2, 2, 2]}),
        ("UNet", {"channels": [4, 8], "strides": [2], "kernel_size": 10**4}),
        ("DynUNet", {"kernel_size": [[3, 3, 3]] * 10**5, "strides": [[1, 1, 1]], "upsample_kernel_size": [2]}),
        ("SwinUNETR", {"feature_size": 4080}),
        ("SwinUNETR", {"depths": [2, 2, 10**8, 2]}),
        ("AttentionUnet", {"channels": [8, float("inf")], "strides": [2]}),
    ],
)
def test_arguments_of_absurd_size_are_refused(tmp_path: Path, network: str, arguments: dict[str, Any]) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    model = open_model(describe(tmp_path, network=network, arguments=arguments, patch_size=[32, 32, 32]))
    with pytest.raises(MedkdError, match=r"more than|Infinity|not finite"):
        model.load()


@pytest.mark.parametrize("key", ["patch_size", "batch_size"])
def test_sizes_of_absurd_size_are_refused(tmp_path: Path, key: str) -> None:
    value = {"patch_size": [2**20] * 3, "batch_size": 10**12}[key]
    with pytest.raises(MedkdError, match=key):
        open_model(describe(tmp_path, **{key: value})).describe()


@pytest.mark.parametrize("place", ["network_def", "postprocessing"])
def test_references_that_multiply_are_refused(tmp_path: Path, place: str) -> None:
    def edit(config: dict[str, Any]) -> None:
        for i in range(12):
            config[f"level{i}"] = [f"@level{i + 1}"] * 10
        config["level12"] = {"transforms": []}
        if place == "network_def":
            config["network_def"]["channels"] = "@level0"
        else:
            config["postprocessing"] = "@level0"

    with pytest.raises(RunError, match="more than 10000 values"):
        open_model(write(tmp_path / "bundle", edit)).describe()


@pytest.mark.parametrize("kind", ["aliases", "itself", "merges", "digits", "depth"])
def test_yaml_that_multiplies_is_refused(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("yaml")
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    merges = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9))]
    text = {
        "aliases": "\n".join(lines),
        "itself": "a: &a [" + ", ".join(["*a"] * 1000) + "]",
        "merges": "\n".join(merges),
        "digits": "a: " + "9" * 10**5,
        "depth": "a: " + "[" * 3000 + "]" * 3000,
    }[kind]
    (tmp_path / "inference.yaml").write_text(text)
    with pytest.raises(RunError, match=r"inference\.yaml"):
        read_file(tmp_path / "inference.yaml")


def test_a_run_folder_of_absurd_size_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in ("run.json", "plans.json", "dataset.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((OLD / name).read_bytes())
    run = read_json(folder / "run.json")
    run["network"]["architecture"]["blocks_encoder"][0] = 10**8
    write_json(folder / "run.json", run)
    save_checkpoint(folder / "fold_0" / "checkpoint_final.pt", load_checkpoint(OLD / "fold_0" / "checkpoint_final.pt"))
    with pytest.raises(RunError, match="expected blocks of a stage from 1 to 128, found 1e\\+08"):
        open_model(folder).load()
