"""Mutated headers of every image format: each file is read, or refused in one sentence that names it."""

from __future__ import annotations

import gzip
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medkd.core.dataset import CaseFiles
from medkd.core.errors import MedkdError
from medkd.core.geometry import Geometry
from medkd.io.radiographs import read_radiograph
from medkd.io.verify_case import check_case
from medkd.io.volumes import header_remarks, read_geometry, read_volume, write_volume
from tests.faults.tally import Tally, mutations
from tests.io.dicom_series import write_series

SHAPE = (5, 6, 7)
Reader = Callable[[Path], object]


def sound(folder: Path, kind: str) -> Path:
    """A file of this kind that can be read."""
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
    path = folder / f"scan{kind}"
    if kind in (".nii", ".nii.gz", ".nrrd", ".mha"):
        write_volume(path, array, Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.5)))
        if kind != ".nii.gz":
            image = sitk.ReadImage(str(path))
            sitk.WriteImage(image, str(path))  # uncompressed, so that a flipped byte is not lost in a checksum
    elif kind == ".mgz" or kind == ".mgh":
        nib.save(nib.MGHImage(array.astype(np.float32).T, np.diag([1.5, 1, 2, 1])), path)
    elif kind == ".dcm":
        write_series(folder / "series", array)
        return folder / "series"
    else:
        Image.fromarray(array[0].astype(np.uint8)).save(path)
    return path


def verdict(path: Path, reader: Reader) -> str:
    """Empty where the file was read or refused in one sentence that names it, else what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(path)
    except MedkdError as error:
        text = str(error)
        return "" if path.parent.name in text and len(text) < 1500 and "Traceback" not in text else f"unclear: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def read_all(path: Path) -> None:
    """Header, voxels and remarks, each of which may refuse."""
    read_geometry(path)
    header_remarks(path)
    volume = read_volume(path)
    assert np.isfinite(volume.geometry.matrix).all() and min(volume.geometry.spacing) > 0


INTERESTING = np.array([0, 1, 2, 0x7F, 0x80, 0xFF, 0xC0, 0x3F], np.uint8)


def mutated(content: bytes, rng: np.random.Generator, reach: int) -> bytes:
    """A few bytes exchanged within the first ``reach``, sometimes a cut, an insertion or a block of equal bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(min(reach, len(data))))
        kind = int(rng.integers(5))
        if kind == 0:
            data[place] = int(INTERESTING[rng.integers(len(INTERESTING))])
        elif kind == 1:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[place : place + 4] = np.float32(rng.choice([0, -1, np.inf, np.nan, 1e6, 1e-30, 1e38])).tobytes()
        elif kind == 3:
            data[place : place + 2] = np.int16(rng.choice([-1, 0, 32767, -32768, 8, 300])).tobytes()
        elif rng.random() < 0.3:
            del data[place : place + int(rng.integers(1, 40))]
        else:
            data[place : place + 8] = bytes([int(rng.integers(256))]) * 8
    return bytes(data)


KINDS = {
    ".nii": (352, 1200), ".nii.gz": (352, 400), ".nrrd": (400, 400), ".mha": (400, 400), ".mgh": (284, 400),
    ".mgz": (284, 200), ".png": (120, 400), ".jpg": (620, 400), ".dcm": (1200, 600),
}  # fmt: skip
"""Kind of file → bytes at its beginning that are mutated, and how many mutations are tried in a full run."""


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_headers_are_read_or_refused(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    reach, full = KINDS[kind]
    source = sound(tmp_path, kind)
    reader: Reader = read_radiograph if kind in (".png", ".jpg") else read_all
    reader(source)
    file = sorted(source.iterdir())[0] if source.is_dir() else source
    original = file.read_bytes()
    packed = kind in (".nii.gz", ".mgz")
    content = gzip.decompress(original) if packed else original
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    tally = Tally(f"headers: {kind}", 0, [])
    for number in range(mutations(full, 40)):
        changed = mutated(content, rng, reach)
        file.write_bytes(gzip.compress(changed, 1) if packed else changed)
        found = verdict(source, reader)
        tally.check(not found, f"mutation {number}: {found}")
    tally.finish(request)


FIELDS = (
    "sizeof_hdr", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units",
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "magic",
)  # fmt: skip


def test_mutated_nifti_fields_are_seen_as_itk_sees_them_or_named(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Where SimpleITK refuses the file or sees another voxel size, medkd refuses it or has a remark."""
    path = sound(tmp_path, ".nii")
    content = path.read_bytes()
    header = nib.Nifti1Header.from_fileobj(path.open("rb"))
    rng = np.random.default_rng(5)
    tally = Tally("headers: NIfTI fields against ITK", 0, [])
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for _ in range(mutations(1500, 80)):
        raw = header.structarr.copy()
        name = str(rng.choice(FIELDS))
        flat = raw[name].reshape(1) if raw[name].ndim == 0 else raw[name]
        if name == "magic":
            raw["magic"] = rng.choice([b"n+1", b"ni1", b"n+2", b"xxx"])
        else:
            place = int(rng.integers(flat.size))
            odd = [0, -1, 1, 2, 3, 7, 111, 255, -300, 1e6, 1e-6, np.inf, np.nan, 1.000001, 30000]
            with np.errstate(all="ignore"):
                flat[place] = np.array(rng.choice(odd)).astype(flat.dtype)
            raw[name] = flat if raw[name].ndim else flat[0]
        path.write_bytes(raw.tobytes() + content[348:])
        found = verdict(path, read_all)
        tally.check(not found, f"{name} = {raw[name]}: {found}")
        if not found:
            tally.check(agrees_with_itk(path), f"{name} = {raw[name]}: ITK sees another grid, and there is no remark")
    tally.finish(request)


def agrees_with_itk(path: Path) -> bool:
    """Whether both refuse the file, or see one voxel size; or medkd says what is odd."""
    try:
        own = read_volume(path)
    except MedkdError:
        return True
    if own.remarks:
        return True
    try:
        other = sitk.ReadImage(str(path))
    except RuntimeError:
        return False
    return bool(np.allclose(other.GetSpacing(), own.geometry.spacing[::-1], rtol=1e-2))


def test_pipes_and_devices_do_not_hang(tmp_path: Path, request: pytest.FixtureRequest) -> None:

    tally = Tally("headers: pipes and devices", 0, [])
    for kind in (".nii", ".nii.gz", ".nrrd", ".mha", ".mgz", ".png", ".jpg", ".dcm", ""):
        pipe, zero = tmp_path / f"pipe{kind}", tmp_path / f"zero{kind}"
        os.mkfifo(pipe)
        zero.symlink_to("/dev/zero")
        for path in (pipe, zero):
            for reader in (read_all, read_radiograph):
                done: list[str] = []
                thread = threading.Thread(target=lambda r=reader, p=path, d=done: d.append(verdict(p, r)), daemon=True)
                thread.start()
                thread.join(20)
                tally.check(done == [""], f"{path.name}: {done or 'hangs'}")
    tally.finish(request)


def test_a_damaged_case_is_a_finding_of_verification(tmp_path: Path) -> None:
    image, label = tmp_path / "c_0000.nii.gz", tmp_path / "c.nii.gz"
    write_volume(image, np.ones(SHAPE, np.float32), Geometry.from_spacing(SHAPE, (1, 1, 1)))
    label.write_bytes(b"\x1f\x8b" + bytes(30))
    check = check_case(CaseFiles("c", (image,), label), None)
    assert not check.good and "c.nii.gz" in check.findings[0].text()
