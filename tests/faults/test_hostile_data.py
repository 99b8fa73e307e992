"""Arrays, scans, pictures and archives that attack: refused in one sentence, within seconds and two gigabytes."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.archive import unpack_tar
from dataset_conversion.slices import read_pair
from medkd.io.radiographs import read_radiograph
from medkd.io.volumes import read_volume
from medkd.preprocessing.store import CaseStore
from tests.faults.bombs import HUGE, Runs, check, npy_head, zeros, zip_bomb
from tests.faults.confined import confined
from tests.faults.tally import Tally
from tests.preprocessing.builders import make_raw


def npz_with(path: Path, **arrays: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)


def object_array(mark: Path) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Runs(mark)], dtype=object), allow_pickle=True)
    return out.getvalue()


def array(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def broken_deflate(path: Path) -> None:
    content = array(np.arange(4000.0))
    npz_with(path, image=content, label=content, **{"1": content})
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = os.urandom(len(data) // 2 - len(data) // 4)
    path.write_bytes(bytes(data))


ARRAYS: dict[str, Callable[[Path], object]] = {
    "pickled objects": lambda p: npz_with(p, **dict.fromkeys(("image", "label", "1"), object_array(p.parent / "ran"))),
    "a bare pickle": lambda p: p.write_bytes(pickle.dumps(Runs(p.parent / "ran"))),
    "8 GB in a zip": lambda p: zip_bomb(p, "image.npy", npy_head((HUGE // 4,)), {"label.npy": array(np.zeros(3))}),
    "a shape of 10^15": lambda p: npz_with(p, **dict.fromkeys(("image", "label", "1"), npy_head((10**15,)))),
    "a negative shape": lambda p: npz_with(p, **dict.fromkeys(("image", "label", "1"), npy_head((-5, 7)))),
    "texts": lambda p: npz_with(p, **dict.fromkeys(("image", "label", "1"), array(np.array(["a", "b"])))),
    "broken compression": broken_deflate,
    "a damaged zip": lambda p: p.write_bytes(b"PK\x03\x04" + os.urandom(500)),
    "no zip": lambda p: p.write_bytes(b"\x93NUMPY" + os.urandom(100)),
    "other names": lambda p: npz_with(p, x=array(np.zeros(3))),
    "an empty file": lambda p: p.write_bytes(b""),
    "a pipe": lambda p: os.mkfifo(p),
    "a folder": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("reader", ["pair", "store"])
def test_arrays_that_attack(reader: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally(f"hostile: arrays, {reader}", 0, [])
    for number, (name, make) in enumerate(ARRAYS.items()):
        folder = tmp_path / str(number)
        if reader == "pair":
            folder.mkdir()
            path = folder / "case0001_slice001.npz"
            make(path)
            check(tally, read_pair, path, name)
            continue
        path = stored_case(folder) / "c0.locations.npz"
        path.unlink()
        make(path)
        check(tally, lambda file: CaseStore(file.parent).open("c0"), path, name)
    tally.finish(request)


def stored_case(folder: Path) -> Path:
    """A folder with one stored case."""
    from medkd.core.dataset import DatasetDescription
    from medkd.core.geometry import Geometry
    from medkd.preprocessing.pipeline import preprocess_case
    from medkd.preprocessing.store import describe_source, recipe_of
    from tests.preprocessing.builders import make_configuration, plan_of

    raw = make_raw(folder, cases=1)
    description = DatasetDescription.load(raw / "dataset.json")
    configuration = make_configuration((2.0, 1.0, 1.0))
    plan = plan_of(configuration)
    image, label = np.random.default_rng(0).normal(size=(1, 6, 7, 8)).astype(np.float32), np.ones((6, 7, 8), np.int16)
    prepared = preprocess_case("c0", image, Geometry.from_spacing((6, 7, 8), (2, 1, 1)), plan, configuration, label)
    store = CaseStore(folder / "store")
    recipe = recipe_of(plan, configuration, description.labels)
    store.write("c0", prepared, description.labels, [describe_source(raw / "dataset.json")], recipe)
    return store.folder


STORED: dict[str, Callable[[Path], object]] = {
    "pickled objects": lambda p: p.write_bytes(object_array(p.parent / "ran")),
    "a shape of 10^15": lambda p: p.write_bytes(npy_head((10**5, 10**5, 10**5))),
    "another rank": lambda p: p.write_bytes(array(np.zeros(3, np.float32))),
    "texts": lambda p: p.write_bytes(array(np.array(["a"]))),
    "other numbers": lambda p: p.write_bytes(array(np.zeros((1, 6, 7, 8), np.complex128))),
    "another shape": lambda p: p.write_bytes(array(np.zeros((1, 2, 3, 4), np.float32))),
    "an empty file": lambda p: p.write_bytes(b""),
    "a folder": lambda p: p.mkdir(),
    "a pipe": lambda p: os.mkfifo(p),
}


@pytest.mark.parametrize("part", ["image", "label"])
def test_stored_arrays_that_attack(part: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally(f"hostile: stored {part}", 0, [])
    for number, (name, make) in enumerate(STORED.items()):
        path = stored_case(tmp_path / str(number)) / f"c0.{part}.npy"
        path.unlink()
        make(path)
        check(tally, lambda file: CaseStore(file.parent).open("c0"), path, name)
    tally.finish(request)


def png_bomb(path: Path) -> None:
    """30 000 × 30 000 × 4 pixels in a few megabytes; the end is missing, and no reader should get there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    size = (60_000).to_bytes(4, "big")
    head = chunk(b"IHDR", size * 2 + bytes([8, 6, 0, 0, 0]))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**26), 9)) + chunk(b"IEND", b""))


def nifti(shape: tuple[int, ...], path: Path, body: int) -> None:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["pixdim"][1:4] = 1
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + zeros(body, 31))


def tiff_bomb(path: Path, side: int = 60_000) -> None:
    """A white picture of two colours: of fax group 4, every line is one bit that says "as above"."""
    lines = b"\xff" * -(-side // 8) + b"\x00\x10\x01"
    lines += bytes(len(lines) % 2)
    tags = {256: side, 257: side, 258: 1, 259: 4, 262: 0, 273: 8, 277: 1, 278: side, 279: len(lines)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    place = struct.pack("<I", 8 + len(lines))
    path.write_bytes(b"II*\x00" + place + lines + struct.pack("<H", len(tags)) + entries + bytes(4))


SCANS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a gzip of 700 MB": (".nii.gz", lambda p: nifti((500, 500, 670), p, 670 * 2**20)),
    "a header of 10^13 voxels": (".nii.gz", lambda p: nifti((30_000, 30_000, 30_000), p, 2**24)),
    "a gzip of 8 GB behind a small scan": (".nii.gz", lambda p: nifti((4, 4, 4), p, HUGE)),
    "an NRRD of 10^12": (
        ".nrrd",
        lambda p: p.write_bytes(
            b"NRRD0004\ntype: float\ndimension: 3\nsizes: 10000 10000 10000\nencoding: gzip\nendian: little\n"
            b"space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
        ),
    ),
    "an NRRD that names another file": (
        ".nhdr",
        lambda p: p.write_bytes(
            b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: /etc/passwd\n\n"
        ),
    ),
    "an MHD that names an endless file": (
        ".mhd",
        lambda p: p.write_text(
            "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = /dev/zero\n"
        ),
    ),
    "an MHA of 10^13": (
        ".mha",
        lambda p: p.write_text(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nCompressedDataSize = 10\n"
            "DimSize = 30000 30000 30000\nElementType = MET_FLOAT\nElementDataFile = LOCAL\nxxxxxxxxxx"
        ),
    ),
    "an MGH of 10^13": (
        ".mgh",
        lambda p: p.write_bytes(
            b"".join(n.to_bytes(4, "big") for n in (1, 30_000, 30_000, 30_000, 1, 3, 0)) + bytes(400)
        ),
    ),
}


# what may lie outside of a small scan's voxels, or what a header names on purpose, is no attack by itself
READ_ANYWAY = {
    "an NRRD that names another file",
    "an MHD that names an endless file",
}


@pytest.mark.parametrize("name", SCANS)
def test_scans_that_attack(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ending, make = SCANS[name]
    tally = Tally("hostile: scans", 0, [])
    path = tmp_path / f"scan{ending}"
    make(path)
    check(tally, read_volume, path, name, may_be_read=name in READ_ANYWAY, memory=2**29)
    tally.finish(request)


PICTURES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a PNG of 14 GB": (".png", png_bomb),
    "a TIFF of 3.6 gigapixels": (".tif", tiff_bomb),
    "a web page": (".png", lambda p: p.write_text("<html>")),
    "PostScript": (".png", lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n")),
    "an icon": (".jpg", lambda p: Image.new("L", (64, 64)).save(p, format="ICO")),
}


def test_the_tiff_that_attacks_is_a_picture(tmp_path: Path) -> None:
    tiff_bomb(tmp_path / "small.tif", 64)
    with Image.open(tmp_path / "small.tif") as picture:
        assert picture.size == (64, 64) and picture.getextrema() == (255, 255)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_attack(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ending, make = PICTURES[name]
    tally = Tally("hostile: pictures", 0, [])
    path = tmp_path / f"picture{ending}"
    make(path)
    check(tally, read_radiograph, path, name)
    tally.finish(request)


def tar_with(path: Path, *members: tuple[str, bytes, str]) -> None:
    kinds = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    with tarfile.open(path, "w:gz") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kinds[kind]
            info.size = len(content) if kind == "file" else 0
            info.linkname = content.decode() if kind != "file" else ""
            archive.addfile(info, io.BytesIO(content) if kind == "file" else None)


TARS: dict[str, tuple[tuple[str, bytes, str], ...]] = {
    "a path upwards": (("../escaped", b"x", "file"),),
    "an absolute path": (("/tmp/escaped_of_medkd", b"x", "file"),),
    "a path upwards inside": (("a/../../escaped", b"x", "file"),),
    "a backslash": (("..\\escaped", b"x", "file"),),
    "a link, then a file through it": (("up", b"..", "link"), ("up/escaped", b"x", "file")),
    "a hard link": (("a", b"/etc/passwd", "hard"),),
    "a device": (("a", b"", "device"),),
}


def test_archives_stay_inside(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally("hostile: archives", 0, [])
    for number, (name, members) in enumerate(TARS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        archive = folder / "a.tar.gz"
        tar_with(archive, *members)
        found = confined(lambda a=archive, f=folder: unpack_tar(a, f / "inside", lambda _: True))
        escaped = [p for p in (folder / "escaped", tmp_path / "escaped", Path("/tmp/escaped_of_medkd")) if p.exists()]
        linked = [p for p in folder.rglob("*") if p.is_symlink()]
        tally.check(found.kind in ("refused", "done") and not escaped and not linked, f"{name}: {found}, {escaped}")
    tally.finish(request)
