"""Model folders, descriptions and texts that attack: refused in one sentence, within seconds and two gigabytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import MedkdError
from medkd.core.files import read_json
from medkd.models.base import open_model
from medkd.models.bundle.config import read_file
from medkd.runtime.package import check_network, read_exported
from medkd.training.targets import TargetStore
from tests.faults.bombs import MANY, OLD, Reader, check
from tests.faults.confined import confined
from tests.faults.tally import Tally
from tests.faults.test_hostile_data import STORED
from tests.training.test_imported_teacher import describe


def old_run(folder: Path, **changes: Callable[[Any], None]) -> Path:
    """A copy of a run of version 0.1.0 with changed files."""
    import shutil

    run = folder / "plain_unet__3d_fullres"
    shutil.copytree(OLD, run)
    for name, change in changes.items():
        path = run / f"{name}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return run


def deep(key: str, value: Any) -> Callable[[Any], None]:
    """Set the value under a dotted key."""

    def change(content: Any) -> None:
        *way, last = key.split(".")
        for step in way:
            content = content[step]
        content[last] = value

    return change


def loaded(path: Path) -> object:
    model = open_model(path.parent)
    return model.load()


def linked_fold(folder: Path) -> Path:
    run = old_run(folder)
    import shutil

    shutil.rmtree(run / "fold_0")
    (run / "fold_0").symlink_to("/proc/self/root")
    return run


def nan_weights(folder: Path) -> Path:
    run = old_run(folder)
    path = run / "fold_0" / "checkpoint_final.pt"
    content = load_checkpoint(path)
    name = next(iter(content["network"]))
    content["network"][name].fill_(float("nan"))
    torch.save(content, path)
    return run


PLANNED = "configurations.3d_fullres.architectures.plain_unet"


RUNS: dict[str, Callable[[Path], Path]] = {
    "a class from outside": lambda f: old_run(f, run=deep("network.name", "os.system")),
    "a name that is a path": lambda f: old_run(f, run=deep("network.name", "../../x")),
    "10^9 channels": lambda f: old_run(f, run=deep("network.architecture.features_per_stage", [10**9, 10**9])),
    "a plan's name that is a path": lambda f: old_run(f, run=deep("configuration", "../../../x")),
    "labels beyond all limits": lambda f: old_run(f, dataset=deep("labels", {"background": 0, "a": 10**12})),
    "10^5 labels": lambda f: old_run(f, dataset=deep("labels", MANY)),
    "no kernels": lambda f: old_run(f, plans=deep(f"{PLANNED}.kernel_sizes", [])),
    "a spacing of 0": lambda f: old_run(f, plans=deep("configurations.3d_fullres.spacing", [0, 1, 1])),
    "axes twice": lambda f: old_run(f, plans=deep("transpose", [0, 0, 1])),
    "a patch of 10^18": lambda f: old_run(f, run=deep("network.architecture.patch_size", [10**6] * 3)),
    "a fold that is a link": linked_fold,
    "weights that are no numbers": nan_weights,
}  # fmt: skip


def test_run_folders_that_attack(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("hostile: run folders", 0, [])
    for number, (name, make) in enumerate(RUNS.items()):
        run = make(tmp_path / str(number))
        check(tally, loaded, run / "run.json", name, may_be_read=name == "a patch of 10^18")  # it is not used yet
    tally.finish(request)


DESCRIBED: dict[str, dict[str, Any]] = {
    "weights upwards": {"weights": "../../weights.pt"},
    "weights of the system": {"weights": "/etc/passwd"},
    "weights with NUL": {"weights": "a\0b"},
    "a network that is a module": {"network": "os.system"},
    "10^7 blocks": {"network": "UNet", "arguments": {"channels": [4, 8], "strides": [2], "num_res_units": 10**7}},
    "arguments of no network": {"network": "UNet", "arguments": {"__class__": "x"}},
    "text for numbers": {"network": "UNet", "arguments": {"channels": ["9" * 10**6], "strides": [2]}},
    "a spacing of 0": {"spacing": [0, 1, 1]},
    "a patch without end": {"patch_size": [2**40] * 3},
    "10^5 classes": {"labels": MANY},
    "channels that are numbers": {"channels": [1, 2]},
    "train of everything": {"train": {"a": 1}},
}


def test_descriptions_that_attack(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("hostile: teacher.json", 0, [])
    for number, (name, changes) in enumerate(DESCRIBED.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.save({"a": torch.zeros(1)}, folder / "weights.pt")
        describe(folder, **changes)
        check(tally, loaded, folder / "teacher.json", name)
    tally.finish(request)


EXPORTED: dict[str, dict[str, Any] | bytes] = {
    "a network upwards": {"network": "../../model.onnx"},
    "a network of the system": {"network": "/etc/passwd"},
    "no description": {},
    "no JSON": b"\x80\x02]q\x00.",
    "a deep one": b"[" * 10**6,
}


def test_exported_models_that_attack(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("hostile: exported models", 0, [])
    for number, (name, content) in enumerate(EXPORTED.items()):
        path = tmp_path / str(number) / "preprocessing.json"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        check(tally, lambda file: check_network(file.parent, read_exported(file.parent)), path, name)
    tally.finish(request)


ALIASES = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 13))]


TEXTS: dict[str, tuple[str, Callable[[Path], object], Reader]] = {
    "YAML that multiplies": (
        ".yaml",
        lambda p: p.write_text("\n".join(ALIASES)),
        read_file,
    ),
    "YAML that runs": (".yaml", lambda p: p.write_text("a: !!python/object/apply:os.mkdir [ran]"), read_file),
    "YAML without end": (".yaml", lambda p: p.write_text("{" * 10**5), read_file),
    "JSON of 10^6 brackets": (".json", lambda p: p.write_text("[" * 10**6), read_json),
    "JSON with a number of 10^6 digits": (".json", lambda p: p.write_text("9" * 10**6), read_json),
    "JSON without end": (".json", lambda p: p.symlink_to("/dev/zero"), read_json),
    "JSON from a pipe": (".json", lambda p: os.mkfifo(p), read_json),
    "JSON of 4 GB": (".json", lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 2**32), read_json),
}  # fmt: skip


def test_texts_that_attack(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("hostile: texts", 0, [])
    for number, (name, (ending, make, reader)) in enumerate(TEXTS.items()):
        path = tmp_path / str(number) / f"config{ending}"
        path.parent.mkdir()
        make(path)
        check(tally, reader, path, name)
    tally.finish(request)


def test_cached_targets_that_attack(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("hostile: cached targets", 0, [])
    record = {"source": "x", "coding": {"step": 1.0, "low": 0.0, "outputs": 3, "regions": False}}
    for number, (name, make) in enumerate(STORED.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "c0.json").write_text(json.dumps(record))
        make(folder / "c0.npy")
        check(tally, lambda file: TargetStore(file.parent).open("c0"), folder / "c0.npy", name)
    tally.finish(request)


def test_what_is_confined_is_told_apart(tmp_path: Path) -> None:
    def refuse() -> None:
        raise MedkdError("One sentence.")

    def hold() -> None:
        np.ones(2**30)

    def endless() -> Iterator[int]:
        while True:
            yield 1

    assert confined(lambda: None).kind == "done"
    assert confined(refuse).kind == "refused" and confined(refuse).said == "One sentence."
    assert confined(lambda: 1 / 0).kind == "raised"
    assert confined(hold, memory=2**28).kind == "raised"
    assert confined(lambda: sum(endless()), seconds=0.3).kind == "hung"
