"""Checkpoints on a full disk, and damaged ones."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import RunError

CONTENT = {
    "network": {"weight": torch.arange(12.0).reshape(3, 4), "steps": torch.tensor(7)},
    "epoch": 3,
    "name": "unet",
}
FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]), {"network": {"weight": torch.zeros(100_000)}})
except RunError as error:
    print(error)
"""


class Harmful:
    pass


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", CONTENT)
    found = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(found["network"]["weight"], CONTENT["network"]["weight"]) and found["epoch"] == 3  # type: ignore[index]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_a_full_disk_is_one_sentence_and_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, CONTENT)
    before = path.read_bytes()
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.startswith(f"Writing {path} failed (")
        and "is the disk full?" in result.stdout
        and result.stdout.count("\n") == 1
    )
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at inline_container.cc:671] . unexpected pos\nframe #0",
        "PytorchStreamWriter failed writing file data/0",
    ],
)
def test_all_that_torch_says_of_a_full_disk_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def save(content: object, path: Path) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunError, match="is the disk full") as caught:
        save_checkpoint(tmp_path / "a.pt", CONTENT)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_error_that_is_not_of_the_disk_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(content: object, path: Path) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        save_checkpoint(tmp_path / "a.pt", CONTENT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (bytes(1000), "is damaged"),
        (b"hello world\n" * 30, "is damaged"),
        (b"\x80", "is damaged"),
        (b"PK\x03\x04", "is damaged"),
    ],
)
def test_an_empty_or_foreign_file_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "()" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_changed_and_cut_bytes_are_refused_or_read_but_raise_nothing_else(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.pt", random.Random(0)
    save_checkpoint(path, CONTENT)
    whole = path.read_bytes()
    refused = 0
    for attempt in range(150):
        data = bytearray(whole if attempt % 3 else whole[: rng.randrange(1, len(whole))])
        for _ in range(attempt % 3 * 5):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data))
        try:
            load_checkpoint(path)
        except RunError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_objects_that_could_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"network": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(RunError, match="could run code"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(RunError, match="not a checkpoint"):
        load_checkpoint(tmp_path)
