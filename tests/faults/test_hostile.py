"""Crafted artefacts for everything that reads files of others: refused in a sentence, in little time and memory, and
nothing in them runs.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_conversion.archive import unpack_tar
from dataset_conversion.slices import read_pair
from medkd.core.checkpoint import load_checkpoint, read_inert
from medkd.core.errors import MedkdError
from medkd.core.files import read_json
from medkd.detection.weights import read_detector_weights
from medkd.detection.yolo.checkpoints import read_state
from medkd.io.radiographs import read_radiograph
from medkd.io.volumes import read_volume
from medkd.models.base import open_model
from medkd.models.bundle.config import read_file
from medkd.preprocessing.store import CaseStore
from medkd.runtime.package import check_network, read_exported
from medkd.training.targets import TargetStore
from tests.faults.confined import MEMORY, confined
from tests.faults.tally import Tally
from tests.preprocessing.builders import make_raw
from tests.training.test_imported_teacher import describe

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


# --- weights -------------------------------------------------------------------------------------------------------


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
LOADERS: dict[str, Reader] = {
    "checkpoint": load_checkpoint,
    "inert": read_inert,
    "detector weights": read_detector_weights,
    "described network": lambda path: open_model(describe(path.parent, weights=path.name)).load(),
    "YOLO state": read_state,
}
HARMLESS = {"a tensor of 4 TB", "a pickle behind a sound file", "a list that holds itself", "a TorchScript", "nothing"}


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_that_attack(loader: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally = Tally(f"hostile: {loader}", 0, [])
    for number, (name, make) in enumerate(WEIGHTS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "last.pt"
        make(path)
        check(tally, LOADERS[loader], path, name, may_be_read=name in HARMLESS)
    tally.finish(request)


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


# --- arrays --------------------------------------------------------------------------------------------------------


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


# --- pictures, scans and archives -----------------------------------------------------------------------------------


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


def tiff_bomb(path: Path) -> None:
    Image.new("1", (60_000, 60_000)).save(path, compression="group4")


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


# --- model folders --------------------------------------------------------------------------------------------------


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
