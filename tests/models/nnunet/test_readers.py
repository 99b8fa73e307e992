"""Models by the reader of their training: pictures, stacks and turned scans, with regions and an ignore label.

The stored label maps are nnU-Net 2.8.1's own for the same weights; where it is installed it predicts here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.inference.folder import predict_folder
from medkd.io.volumes import read_image, read_label, read_volume, write_volume
from medkd.models.base import open_model
from medkd.models.like import plan_like
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train_distill
from tests.models.nnunet.builders import (
    ORACLE,
    configured,
    dataset_of,
    nnunet_probabilities,
    plans_of,
    write_model,
)
from tests.models.test_contract import wanted
from tests.training.builders import NAME, boxes_case

REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
IGNORED = {"background": 0, "small": 1, "large": 2, "ignore": 3}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A model and the files of the case ``scan``.

    Attributes:
        channels: of a file's colours or of several files.
        files: how many files the case has.
    """

    reader: str
    ending: str
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0, "small": 1, "large": 2})
    channels: int = 1
    files: int = 1
    flat: bool = False
    code: str = "RAS"


EXAMPLES = {
    "rgb_png": Example(reader="NaturalImage2DIO", ending=".png", channels=3, flat=True),
    "two_bmp": Example(reader="NaturalImage2DIO", ending=".bmp", channels=2, files=2, flat=True, labels=REGIONS),
    "grey_tif": Example(reader="NaturalImage2DIO", ending=".tif", flat=True, labels=IGNORED),
    "stack": Example(reader="Tiff3DIO", ending=".tif", labels=IGNORED),
    "two_stacks": Example(reader="Tiff3DIO", ending=".tiff", channels=2, files=2, labels=REGIONS),
    "turned_regions": Example(reader="SimpleITKIOWithReorient", ending=".nii.gz", labels=REGIONS, code="PIR"),
    "turned_ignore": Example(reader="NibabelIOWithReorient", ending=".nii.gz", labels=IGNORED, code="LAS"),
    "plain_regions": Example(reader="NibabelIO", ending=".nii.gz", labels=REGIONS, code="PIR"),
}
SPACING = (1.5, 1.0, 0.8)


def model_of(example: Example, folder: Path, seed: int = 4) -> Path:
    """A model with random weights."""
    channels = [f"channel {index}" for index in range(example.channels)]
    order = {"regions_class_order": [1, 2]} if "whole" in example.labels else {}
    data = dataset_of(example.labels, channels, file_ending=example.ending, **order)
    name, size, patch = ("2d", (1.0, 1.0), (16, 16)) if example.flat else ("3d_fullres", (1.2,) * 3, (16,) * 3)
    plans = plans_of({name: configured(size, patch, example.channels)}, example.reader, example.channels)
    return write_model(folder, plans, data, name, seed=seed, axes=range(len(patch)))


def write_case(example: Example, folder: Path, case: str = "scan", seed: int = 0) -> list[Path]:
    """The files of a case in the form that the reader wants."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [boxes_case(seed + index)[0][0] * 20 for index in range(example.channels)]
    array = np.clip(np.stack(images), 0, 255).astype(np.uint8)
    names = [folder / f"{case}_{index:04d}{example.ending}" for index in range(example.files)]
    if example.flat:
        slices = array[:, 9]
        colours = [np.moveaxis(slices, 0, -1)] if example.files == 1 and example.channels > 1 else list(slices)
        for name, colour in zip(names, colours, strict=True):
            Image.fromarray(colour).save(name)
        return names
    if example.reader == "Tiff3DIO":
        write_json(folder / f"{case}.json", {"spacing": list(SPACING)})
        for name, volume in zip(names, array, strict=True):
            tifffile.imwrite(name, volume)
        return names
    for name, volume in zip(names, array, strict=True):
        write_volume(name, volume, _grid(volume.shape, example.code))
    return names


def _grid(shape: tuple[int, ...], code: str) -> Geometry:
    """A grid whose axes ``(x, y, z)`` point to the letters of an axis code."""
    matrix = np.zeros((4, 4))
    for axis, (letter, size) in enumerate(zip(code, reversed(SPACING), strict=True)):
        row = next(index for index, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        matrix[row, axis] = size if letter in "RAS" else -size
    matrix[:3, 3], matrix[3, 3] = (3, -7, 11), 1
    return Geometry.from_affine(shape, matrix)


@pytest.mark.parametrize("name", EXAMPLES)
def test_predictions_are_those_that_nnunet_made(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    files = write_case(example, tmp_path / "in")
    predict_folder(tmp_path / "in", tmp_path / "out", model_of(example, tmp_path / "model"), device="cpu")
    found = read_label(tmp_path / "out" / f"scan{example.ending}")
    with np.load(ORACLE / "readers.npz") as stored:
        expected = stored[name]
    assert len(np.unique(expected)) > 1 and set(np.unique(expected)) <= {0, 1, 2}
    assert found.array.shape == expected.shape and (found.array == expected).mean() > 0.999
    image = read_image(files, "scan")[1]
    assert found.geometry.differences(image) == []


@pytest.mark.parametrize("name", ["rgb_png", "two_stacks", "plain_regions"])
def test_probabilities_are_those_that_nnunet_makes_here(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    files, model = write_case(example, tmp_path / "in"), model_of(example, tmp_path / "model")
    expected = nnunet_probabilities(model, files, tmp_path / "theirs", mirror=True)
    predict_folder(tmp_path / "in", tmp_path / "out", model, device="cpu", save_probabilities=True)
    with np.load(tmp_path / "out" / "scan.npz") as stored:
        assert np.abs(stored["probabilities"].astype(np.float32) - expected).max() < 2e-3


@pytest.mark.parametrize("name", ["rgb_png", "stack", "turned_regions"])
def test_students_of_such_models_learn_on_such_files(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    raw = tmp_path / "raw" / NAME
    for index in range(4):
        case = f"case_{index:02d}"
        files = write_case(example, raw / "imagesTr", case, seed=10 * index)
        image, geometry = read_image(files, case)
        _, label = boxes_case(10 * index)
        label = label[9:10] if example.flat else label
        write_volume(raw / "labelsTr" / f"{case}{example.ending}", label, geometry)
        assert len(image) == example.channels
    write_case(example, raw / "imagesUn", "plain", seed=77)
    model = model_of(example, tmp_path / "model")
    write_json(raw / "dataset.json", {**read_json(model / "dataset.json"), "numTraining": 4})
    cases = [f"case_{index:02d}" for index in range(4)]
    write_json(model / "splits_final.json", [{"train": cases[1:], "val": cases[:1]}])
    plan_like(900, model, root=tmp_path, workers=1)
    configuration = "2d" if example.flat else "3d_fullres"
    options = TrainOptions(
        root=tmp_path,
        epochs=1,
        iterations_per_epoch=1,
        workers=0,
        device="cpu",
        configuration=configuration,
        patch_size=(32, 32) if example.flat else (16, 16, 16),
        batch_size=2,
    )
    folder = train_distill(900, str(model), "unet_tiny", "kd", 0, options)
    assert read_json(folder / "split.json")["unlabelled"] == ["plain"]
    assert read_json(folder / "validation" / "summary.json")["metric_per_case"]


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("colours", [1, 3])
def test_pictures_are_read_as_they_are(tmp_path: Path, ending: str, colours: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (5, 7, 3) if colours == 3 else (5, 7)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{ending}")
    image, geometry = read_image([tmp_path / f"a{ending}"], "a")
    assert geometry.shape == (1, 5, 7) and geometry.spacing == (999, 1, 1)
    assert np.array_equal(image[:, 0], np.moveaxis(np.atleast_3d(pixels), -1, 0))


def test_palettes_and_sixteen_bits_keep_their_meaning(tmp_path: Path) -> None:
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[1:3, 1:3] = (200, 10, 60)
    Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert np.array_equal(read_image([tmp_path / "p.png"], "p")[0][:, 0], np.moveaxis(colours, -1, 0))
    deep = (np.arange(20).reshape(4, 5) * 3000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    assert np.array_equal(read_image([tmp_path / "d.png"], "d")[0][0, 0], deep)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".tiff"])
def test_label_maps_come_back(tmp_path: Path, ending: str) -> None:
    label = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    grid = Geometry.from_spacing((1, 3, 4), (999.0, 1.0, 1.0))
    write_volume(tmp_path / f"a{ending}", label, grid)
    found = read_label(tmp_path / f"a{ending}")
    assert np.array_equal(found.array, label) and found.geometry == grid
    assert not list(tmp_path.glob("*.json"))


def test_stacks_have_their_voxel_size_beside_them(tmp_path: Path) -> None:
    label = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_volume(tmp_path / "a.tif", label, Geometry.from_spacing((2, 3, 4), SPACING))
    assert read_json(tmp_path / "a.json") == {"spacing": list(SPACING)}
    found = read_volume(tmp_path / "a.tif")
    assert np.array_equal(found.array, label) and np.allclose(found.geometry.spacing, SPACING)
    for content in ({"spacing": [1, 2]}, {"spacing": [1, 2, 0]}, {"spacing": "1"}, []):
        write_json(tmp_path / "a.json", content)
        with pytest.raises(DataError, match=r"a\.json: expected .*spacing"):
            read_volume(tmp_path / "a.tif")


def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for ending in (".png", ".tif"):
        (tmp_path / f"a{ending}").write_bytes(b"nothing of that kind")
        with pytest.raises(DataError, match="cannot be read"):
            read_volume(tmp_path / f"a{ending}")
    with pytest.raises(DataError, match="holds one slice"):
        write_volume(tmp_path / "b.png", np.zeros((2, 3, 4), np.uint8), Geometry.from_spacing((2, 3, 4), (1, 1, 1)))
    assert not (tmp_path / "b.png").exists()


def test_previews_beside_scans_are_no_scans(tmp_path: Path) -> None:
    example = EXAMPLES["turned_regions"]
    write_case(example, tmp_path / "in")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "in" / "preview.png")
    report = predict_folder(tmp_path / "in", tmp_path / "out", model_of(example, tmp_path / "model"), device="cpu")
    assert report.predicted == ["scan"] and not report.failed


def test_a_model_of_pictures_does_not_teach_on_scans(tmp_path: Path) -> None:
    model = open_model(model_of(EXAMPLES["grey_tif"], tmp_path / "model"))
    plan, configuration, dataset = wanted(model)
    model.check_fits(plan, configuration, replace(dataset, file_ending=".tif"))
    with pytest.raises(RunError, match=r"trained on files ending in \.tif, the data set has \.nii\.gz"):
        model.check_fits(plan, configuration, replace(dataset, file_ending=".nii.gz"))
