"""A small preprocessed data set for the training tests: two bright boxes per case on a noisy ground."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from medkd.core.dataset import DatasetDescription
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.core.serial import save, to_data
from medkd.io.volumes import write_volume
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.store import CaseStore, describe_source, recipe_of

NAME = "Dataset900_Boxes"
PATCH = (16, 16, 16)


def boxes_case(seed: int, shape: tuple[int, int, int] = (20, 18, 22)) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(1, z, y, x)`` and label ``(z, y, x)`` with a box of label 1 and one of label 2."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value in (1, 2):
        corner = [int(rng.integers(1, s - 7)) for s in shape]
        label[tuple(slice(c, c + 5) for c in corner)] = value
    image = label * 3.0 + rng.normal(0, 0.5, shape) + 5
    return image[None].astype(np.float32), label


def make_dataset(root: Path, cases: int = 6, *, regions: bool = False, labels: LabelSpec | None = None) -> Path:
    """Write raw labels, plan and store below ``root``; returns the preprocessed folder."""
    if labels is None:
        labels = LabelSpec.from_names(["small", "large"])
        if regions:
            labels = LabelSpec((("background", (0,)), ("whole", (1, 2)), ("core", (2,))), True, (1, 2))
    architecture = Architecture(
        patch_size=PATCH,
        batch_size=2,
        features_per_stage=(4, 8),
        kernel_sizes=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0, 1.0, 1.0),
        median_shape=(20, 18, 22),
        normalization=("zscore",),
        use_mask_for_norm=(False,),
        batch_dice=False,
        architectures={"plain_unet": architecture},
    )
    flat = Architecture(
        patch_size=(16, 16),
        batch_size=2,
        features_per_stage=(4, 8),
        kernel_sizes=((3, 3),) * 2,
        strides=((1, 1), (2, 2)),
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    slices = Configuration(
        name="2d",
        spacing=(1.0, 1.0),
        median_shape=(18, 22),
        normalization=("zscore",),
        use_mask_for_norm=(False,),
        batch_dice=True,
        architectures={"plain_unet": flat},
    )
    statistics = IntensityStatistics(
        mean=0.0, median=0.0, std=1.0, min=0.0, max=1.0, percentile_00_5=0.0, percentile_99_5=1.0
    )
    plan = Plan(
        dataset=NAME,
        transpose=(0, 1, 2),
        intensities=(statistics,),
        configurations={"3d_fullres": configuration, "2d": slices},
    )
    description = DatasetDescription(channel_names=("MR",), labels=labels, num_training=cases)
    folder = root / "preprocessed" / NAME
    save(folder / "plans.json", plan)
    for target in (folder, root / "raw" / NAME):
        description.save(target / "dataset.json")
    for index in range(cases):
        case, (image, label) = f"case_{index:02d}", boxes_case(index)
        geometry = Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0))
        path = root / "raw" / NAME / "labelsTr" / f"{case}.nii.gz"
        write_volume(path, label, geometry)
        for configured in (configuration, slices):
            prepared = preprocess_case(case, image, geometry, plan, configured, label.astype(np.int16))
            recipe = recipe_of(plan, configured, labels)
            CaseStore(folder / configured.name).write(case, prepared, labels, [describe_source(path)], recipe)
    return folder


def write_scans(root: Path, cases: int = 6) -> None:
    """The raw images of :func:`make_dataset`, for what reads them, and for the records of its stored cases."""
    for index in range(cases):
        name, (image, label) = f"case_{index:02d}", boxes_case(index)
        path = root / "raw" / NAME / "imagesTr" / f"{name}_0000.nii.gz"
        write_volume(path, image[0], Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0)))
        for record in (root / "preprocessed" / NAME).glob(f"*/{name}.json"):
            content = read_json(record)
            write_json(record, {**content, "files": [to_data(describe_source(path)), content["files"][-1]]})


def lend_store(folder: Path, source: str, target: str) -> None:
    """The cases of one configuration as those of another, which is planned: their voxels do not matter."""
    shutil.copytree(folder / source, folder / target)
    note_as_prepared(folder, target)


def note_as_prepared(folder: Path, configuration: str) -> None:
    """Stored cases as if plan and labels of today had made them: their voxels do not matter."""
    plan, labels = Plan.load(folder / "plans.json"), DatasetDescription.load(folder / "dataset.json").labels
    recipe = recipe_of(plan, plan.configuration(configuration), labels)
    for path in (folder / configuration).glob("*.json"):
        write_json(path, {**read_json(path), "recipe": recipe})
