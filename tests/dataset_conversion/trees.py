"""Small imitations of downloads, made by the tests: the trees, names and traps of the real ones with a few voxels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion.convert import Converted
from medkd.core.geometry import Geometry
from medkd.io.volumes import write_volume

SHAPE = (10, 24, 22)
SPACING = (3.0, 0.8, 0.8)


def blocks(seed: int, values: list[int], shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """CT-like image float32 (air around a body) and label uint8 with a block of every value; ``values`` cycle along
    y.
    """
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    rows = np.array_split(np.arange(2, shape[-2] - 2), len(values))
    for value, row in zip(values, rows, strict=True):
        label[..., row[0] : row[-1] + 1, 4:-4] = value
    image = np.full(shape, -1000.0, np.float32)
    image[..., 1:-1, 2:-2] = 20
    image += label * 15 + rng.normal(0, 5, shape).astype(np.float32)
    return image.astype(np.float32), label


def write_pair(
    image: Path, label: Path | None, seed: int, values: list[int], spacing: tuple[float, ...] = SPACING
) -> None:
    """An image and, where asked for, its label map."""
    array, mask = blocks(seed, values)
    grid = Geometry.from_spacing(SHAPE, spacing)
    write_volume(image, array.astype(np.int16), grid)
    if label is not None:
        write_volume(label, mask, grid)


def make_btcv(folder: Path, numbers: tuple[int, ...] = (1, 2, 10, 21, 22, 35), tests: tuple[int, ...] = (61,)) -> Path:
    """RawData as unpacked: numbers with gaps, image and label named differently, ``._`` files."""
    raw = folder / "Abdomen" / "RawData"
    for number in numbers:
        image = raw / f"Training/img/img{number:04d}.nii.gz"
        write_pair(image, raw / f"Training/label/label{number:04d}.nii.gz", number, list(range(1, 14)))
        image.with_name(f"._{image.name}").write_bytes(b"\0\5\26\7Mac OS X")
    for number in tests:
        write_pair(raw / f"Testing/img/img{number:04d}.nii.gz", None, number, [1])
    return folder


def make_cityscapes(
    folder: Path, train: int = 6, val: int = 2, test: int = 1, shape: tuple[int, int] = (48, 96)
) -> Path:
    """leftImg8bit and gtFine: scenes of cities, ids that the benchmark counts and others, files beside them."""
    from PIL import Image

    number = 0
    for part, city, count in (("train", "aachen", train), ("val", "munster", val), ("test", "bonn", test)):
        for _ in range(count):
            rng = np.random.default_rng(number)
            name = f"{city}_{number:06d}_000019"
            ids = np.repeat(np.arange(shape[0]), shape[1]).reshape(shape) * 34 // shape[0]
            image = folder / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png"
            truth = folder / f"gtFine/{part}/{city}/{name}_gtFine_labelIds.png"
            for path in (image, truth):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(
                rng.integers(0, 255, (*shape, 3), dtype=np.uint8) // 2 + ids[..., None].astype(np.uint8)
            ).save(image)
            Image.fromarray(ids.astype(np.uint8)).save(truth)
            Image.fromarray(ids.astype(np.uint8)).save(truth.with_name(f"{name}_gtFine_instanceIds.png"))
            number += 1
    return folder


def make_word(folder: Path, train: int = 4, val: int = 2, test: int = 1) -> Path:
    """WORD with its three parts; all scans are numbered through."""
    root, number = folder / "WORD-V0.1.0", 0
    for part, count in (("Tr", train), ("Val", val), ("Ts", test)):
        for _ in range(count):
            number += 1
            image, label = (root / f"{kind}{part}/word_{number:04d}.nii.gz" for kind in ("images", "labels"))
            write_pair(image, label, number, list(range(1, 17)))
    (root / "dataset.json").write_text(json.dumps({"name": "WORD", "labels": {"0": "background"}}))
    return folder


def make_brats(folder: Path, cases: int = 6, *, year: int = 2023) -> Path:
    """Case folders of one year, four sequences and a label map; 2021 calls the enhancing tumour 4. Zero outside the
    brain.
    """
    grid = Geometry.from_spacing((12, 14, 16), (1.0, 1.0, 1.0))
    for i in range(cases):
        if year == 2021:
            case, joint, names, values = f"BraTS2021_{i:05d}", "_", ("t1ce", "t1", "flair", "t2"), (1, 2, 4)
        else:
            case, joint, names, values = (
                f"BraTS-GLI-{i // 2:05d}-{i % 2:03d}",
                "-",
                ("t1c", "t1n", "t2f", "t2w"),
                (1, 2, 3),
            )
        rng = np.random.default_rng(i)
        label = np.zeros(grid.shape, np.uint8)
        label[3:9, 3:10, 3:12] = values[1]
        label[4:8, 4:8, 4:9] = values[0]
        label[5:7, 5:8, 5:8] = values[2]
        for c, name in enumerate(names):
            image = np.zeros(grid.shape, np.int16)
            image[1:-1, 1:-1, 1:-1] = (
                100 * (c + 1) + 30 * label[1:-1, 1:-1, 1:-1].astype(np.int16) + rng.integers(0, 9, (10, 12, 14))
            )
            write_volume(folder / case / f"{case}{joint}{name}.nii.gz", image, grid)
        write_volume(folder / case / f"{case}{joint}seg.nii.gz", label, grid)
    return folder


def make_synapse(
    folder: Path, train: tuple[int, ...] = (5, 6, 7, 9), test: tuple[int, ...] = (1,), edge: int = 32
) -> Path:
    """TransUNet's layout: slices with float labels for training, volumes for testing; values from 0 to 1."""
    import h5py

    (folder / "train_npz").mkdir(parents=True)
    (folder / "test_vol_h5").mkdir()
    for number in (*train, *test):
        image, label = blocks(number, list(range(1, 9)), (6, edge, edge))
        image = np.clip((image + 125) / 400, 0, 1).astype(np.float32)
        if number in test:
            with h5py.File(folder / f"test_vol_h5/case{number:04d}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label.astype(np.float32)
            continue
        for z in range(len(image)):
            np.savez(
                folder / f"train_npz/case{number:04d}_slice{z:03d}.npz",
                image=image[z],
                label=label[z].astype(np.float32),
            )
    return folder


def make_acdc(folder: Path, patients: int = 5) -> Path:
    """SSL4MIS's layout: a volume and slices (numbered from 0, no leading zeros) for two frames of each patient, and
    lists.
    """
    import h5py

    (folder / "data/slices").mkdir(parents=True)
    for p in range(1, patients + 1):
        for frame in (1, 12):
            case = f"patient{p:03d}_frame{frame:02d}"
            image, label = blocks(10 * p + frame, [1, 2, 3], (12, 20, 18 + 2 * p))
            image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
            with h5py.File(folder / f"data/{case}.h5", "w") as file:
                file["image"], file["label"] = image, label
            for z in range(len(image)):
                with h5py.File(folder / f"data/slices/{case}_slice_{z}.h5", "w") as file:
                    file["image"], file["label"] = image[z], label[z]
    (folder / "val.list").write_text("patient002_frame01\npatient002_frame12\n")
    (folder / "test.list").write_text(f"patient{patients:03d}_frame01\npatient{patients:03d}_frame12\n")
    return folder


def make_nnunet(folder: Path, cases: int = 5, *, ending: str = ".nii.gz") -> Path:
    """``nnUNet_raw/Dataset042_Thing`` with two channels, test images and labels."""
    root = folder / "nnUNet_raw/Dataset042_Thing"
    grid = Geometry.from_spacing(SHAPE, SPACING)
    for i in range(cases + 1):
        part = "Tr" if i < cases else "Ts"
        image, label = blocks(i, [1, 2])
        for channel in range(2):
            write_volume(root / f"images{part}/thing_{i:02d}_{channel:04d}{ending}", image + channel, grid)
        write_volume(root / f"labels{part}/thing_{i:02d}{ending}", label, grid)
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": cases,
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def convert(format: str, source: Path, root: Path, number: int = 7, **options: object) -> Converted:
    """Convert with two threads."""
    return convert_dataset(format, source, number, root=root, options=ConversionOptions(workers=2, **options))  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change and content."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def folds(folder: Path) -> list[dict[str, list[str]]]:
    """The raw folder's ``splits_final.json``."""
    return json.loads((folder / "splits_final.json").read_text())


def own(folder: Path) -> dict:
    """medkd's part of ``dataset.json``."""
    return json.loads((folder / "dataset.json").read_text())["medkd"]
