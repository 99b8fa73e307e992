"""Small Decathlon tasks and folders laid out like them, and their conversion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion.convert import Converted
from medkd.core.geometry import Geometry
from medkd.io.nifti import write_nifti
from medkd.io.volumes import write_volume

SHAPE = (5, 6, 7)
GRID = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0))


def make_task(folder: Path, cases: int = 3, channels: int = 2) -> Path:
    """A Decathlon task with the traps of the real ones: 4D images, ``./`` paths, ``._`` files, a float label map."""
    rng = np.random.default_rng(0)
    entries = []
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for i in range(cases + 1):
        array = rng.integers(0, 1000, (7, 6, 5, channels)).astype(np.int16)
        write_nifti(
            folder / f"images{'Tr' if i < cases else 'Ts'}/BRATS_{i:03d}.nii.gz",
            np.squeeze(array),
            np.diag([1.0, 1, 2, 1]),
        )
        if i < cases:
            label = rng.integers(0, 3, SHAPE).astype(np.float32 if i == 1 else np.uint8)
            write_volume(folder / f"labelsTr/BRATS_{i:03d}.nii.gz", label, GRID)
            entries.append({"image": f"./imagesTr/BRATS_{i:03d}.nii.gz", "label": f"./labelsTr/BRATS_{i:03d}.nii.gz"})
            (folder / f"imagesTr/._BRATS_{i:03d}.nii.gz").write_bytes(b"\0\5\26\7Mac OS X")
    description = {
        "name": "BRATS",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w"} if channels == 2 else {"0": "CT"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "numTraining": cases,
        "training": entries,
        "test": [f"./imagesTs/BRATS_{cases:03d}.nii.gz"],
        "licence": "CC-BY-SA 4.0",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def make_plain(folder: Path, values: tuple[int, ...] = (0, 1, 2), cases: int = 3) -> Path:
    """Images and label maps without ``dataset.json``."""
    rng = np.random.default_rng(0)
    for i in range(cases):
        write_volume(folder / f"imagesTr/p{i}.nii.gz", rng.normal(size=SHAPE).astype(np.float32), GRID)
        write_volume(folder / f"labelsTr/p{i}.nii.gz", rng.choice(values, SHAPE).astype(np.uint8), GRID)
    return folder


def convert(source: Path, root: Path, **options: object) -> Converted:
    return convert_dataset("msd", source, 7, root=root, name="Test", options=ConversionOptions(**options))  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
