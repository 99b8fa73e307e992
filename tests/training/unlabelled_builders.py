"""Raw data sets with scans that have no labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from medkd.core.dataset import DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.volumes import write_volume
from medkd.preprocessing.prepare import plan_and_preprocess
from tests.training.builders import NAME, boxes_case, make_dataset

LABELLED, UNLABELLED = 6, 4


def write_scan(path: Path, seed: int) -> np.ndarray:
    """Write the image of :func:`boxes_case` with this seed; returns its label map."""
    image, label = boxes_case(seed)
    write_volume(path, image[0], Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0)))
    return label


def make_mixed(
    root: Path,
    *,
    labels: LabelSpec | None = None,
    labelled: int = LABELLED,
    unlabelled: int = UNLABELLED,
    only: int | None = None,
) -> Path:
    """A raw data set ``case_00``, … with labels and ``scan_00``, … without, planned and preprocessed.

    With ``only`` its label maps show this structure alone, as label 1.
    """
    folder = make_dataset(root, labelled, labels=labels)
    raw = root / "raw" / NAME
    for index in range(labelled):
        label = write_scan(raw / "imagesTr" / f"case_{index:02d}_0000.nii.gz", index)
        if only is not None:
            shown = (label == only).astype(np.uint8)
            geometry = Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0))
            write_volume(raw / "labelsTr" / f"case_{index:02d}.nii.gz", shown, geometry)
    for index in range(unlabelled):
        write_scan(raw / "imagesUn" / f"scan_{index:02d}_0000.nii.gz", 100 + index)
    shutil.rmtree(folder / "3d_fullres")
    shutil.rmtree(folder / "2d")
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    return folder


def without_labels(root: Path, scans: int = 5) -> Path:
    """The preprocessed folder of a data set of scans without labels, with the plan of :func:`make_dataset`."""
    folder = make_dataset(root, 1)
    raw = root / "raw" / NAME
    shutil.rmtree(raw / "labelsTr")
    description = DatasetDescription.load(raw / "dataset.json")
    DatasetDescription(channel_names=description.channel_names, labels=description.labels, num_training=0).save(
        raw / "dataset.json"
    )
    for index in range(scans):
        write_scan(raw / "imagesUn" / f"scan_{index:02d}_0000.nii.gz", 200 + index)
    shutil.rmtree(folder / "3d_fullres")
    shutil.rmtree(folder / "2d")
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])
    return folder
