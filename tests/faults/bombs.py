"""Crafted files that attack a loader: pickles that run, archives that explode, depths without end."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.confined import MEMORY, confined
from tests.faults.tally import Tally

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0" / "plain_unet__3d_fullres"


Reader = Callable[[Path], object]
pytest.importorskip("monai.networks.nets")  # imported here, not within the seconds of an artefact


MANY = {"background": 0, **{f"l{i}": i for i in range(1, 10**5)}}


HUGE = 8 * 2**30  # bytes that a bomb unpacks to


class Runs:
    """What a pickle makes run: it leaves a folder beside the file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def zeros(size: int, kind: int) -> bytes:
    """``size`` zero bytes, deflated; made of equal blocks, so that it takes no time.

    Args:
        size: a multiple of 16 MB.
        kind: as zlib's ``wbits``: -15 for a bare stream, 31 for gzip members.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, kind)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FINISH if kind == 31 else zlib.Z_FULL_FLUSH)
    return block * (size // 2**24)


def zip_bomb(path: Path, entry: str, head: bytes = b"", more: dict[str, bytes] | None = None) -> None:
    """A zip whose entry unpacks to 8 GB of zeros after a head."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (more or {}).items():
            archive.writestr(name, content)
        archive.writestr(entry, start + zeros(HUGE, -15))
        info = archive.getinfo(entry)  # of the directory at the end, which readers believe
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(head) + HUGE


def npy_head(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """The first bytes of a ``.npy``."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    return head.getvalue()


def running_pickle(path: Path) -> None:
    torch.save({"network": Runs(path.parent / "ran"), "model": Runs(path.parent / "ran")}, path)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"network": Runs(path.parent / "ran")}))


def old_format(path: Path) -> None:
    torch.save({"network": Runs(path.parent / "ran")}, path, _use_new_zipfile_serialization=False)


def running_joined(path: Path) -> None:
    """A sound state dict whose pickle is followed by another one."""
    torch.save({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes() + pickle.dumps(Runs(path.parent / "ran")))


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(path))


def weights_bomb(path: Path) -> None:
    zip_bomb(path, "archive/data.pkl", more={"archive/version": b"3", "archive/byteorder": b"little"})


def pickle_of_depth(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"(" * 200_000 + b".")


def long_of_digits(path: Path) -> None:
    path.write_bytes(b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"\x01.")


def expanded(path: Path) -> None:
    """A tensor of 4 TB on a storage of one number."""
    torch.save({"network": {"a": torch.zeros(1).expand(2**40)}}, path)


def in_a_zip(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3")

    return make


WEIGHTS: dict[str, Callable[[Path], None]] = {
    "a pickle that runs": running_pickle,
    "a bare pickle that runs": bare_pickle,
    "an old file that runs": old_format,
    "a pickle behind a sound file": running_joined,
    "a TorchScript": torchscript,
    "8 GB in a zip": weights_bomb,
    "a pickle of 200 000 marks": pickle_of_depth,
    "a number of 2 GB": long_of_digits,
    "a tensor of 4 TB": expanded,
    "a call of eval": in_a_zip(b'cbuiltins\neval\n(S\'__import__("os").mkdir("ran")\'\ntR.'),
    "a call through getattr": in_a_zip(b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'mkdir ran'\ntR."),
    "a call of torch.hub": in_a_zip(b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR."),
    "a list that holds itself": in_a_zip(b"]q\x00h\x00a."),
    "nothing": lambda path: path.write_bytes(b""),
    "no dictionary": lambda path: torch.save([1, 2], path),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
}


def check(
    tally: Tally, reader: Reader, path: Path, name: str, *, may_be_read: bool = False, memory: int = MEMORY
) -> None:
    """Count one artefact: refused in a sentence (or read without harm where it may be), and nothing ran."""
    home = path.parent

    def work() -> None:
        os.chdir(home)
        reader(path)

    found = confined(work, memory=memory)
    ran = (home / "ran").exists()
    held = found.kind == "refused" or (may_be_read and found.kind == "done")
    short = len(found.said) < 1500 and "\n" not in found.said.strip()
    what = f"{name}: {found.kind} after {found.seconds:.1f} s{', and it RAN' if ran else ''}: {found.said[:300]}"
    tally.check(held and short and not ran, what)
