"""Cityscapes: street scenes with the 19 classes of its benchmark.

Cordts et al., The Cityscapes dataset for semantic urban scene understanding, CVPR 2016, arXiv:1604.01685.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset_conversion.findings import problem
from dataset_conversion.layout import contents, existing_folder, find_parent
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter, Split
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.io.checks import Finding
from medkd.io.pictures import read_voxels

GUIDE = """\
Cityscapes: 2975 training and 500 validation scenes of 2048 x 1024, 19 classes; 1525 test scenes without labels.
download:  https://www.cityscapes-dataset.com (account): leftImg8bit_trainvaltest.zip (11 GB), gtFine_trainvaltest.zip
licence:   non-commercial, see there
source:    the folder with both unpacked, or any folder above it:
             leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png       and val, test
             gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png        and val
result:    PNGs as they are, red, green and blue as channels; train and val are fold 0, test scenes go to imagesTs.
labels:    the benchmark's train id plus one, since 0 is the background of nnU-Net's layout, which occurs nowhere here:
           1 road (train id 0) to 19 bicycle (18); what has no train id (255) is ignored, value 20."""

CLASSES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic_light"},
    **{20: "traffic_sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
"""Value in ``labelIds`` → name, in the order of the train ids."""
LABELS = replace(LabelSpec.from_names(tuple(CLASSES.values())), ignore=len(CLASSES) + 1)
_IMAGES, _TRUTH = "leftImg8bit", "gtFine"
_IMAGE_ENDING, _TRUTH_ENDING = f"_{_IMAGES}.png", f"_{_TRUTH}_labelIds.png"
_LAST_ID, _PLATE = 33, 255  # licence plates have the id −1
_ANEW = "download the file again"


def train_values(ids: np.ndarray) -> np.ndarray:
    """Values of ``labelIds`` → label values of the data set, uint8.

    >>> train_values(np.array([7, 33, 0, 255])).tolist()
    [1, 19, 20, 20]
    """
    table = np.full(256, LABELS.ignore, np.uint8)
    for value, identity in enumerate(CLASSES, start=1):
        table[identity] = value
    return np.asarray(table[ids])


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the Cityscapes download.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, or the output cannot be written.
    """
    source = existing_folder(source, "cityscapes")
    root = find_parent(source, (_IMAGES, _TRUTH))
    if root is None:
        raise DataError(f"{source}: expected the folders {_IMAGES} and {_TRUTH}, found {contents(source)}.")
    parts = {part: _scenes(root, part) for part in ("train", "val", "test")}
    if not parts["train"]:
        raise DataError(f"{root}: expected {_IMAGES}/train/CITY/NAME{_IMAGE_ENDING}, found no such file.")
    writer = RawWriter(folder, "cityscapes", root, options, file_ending=".png")
    writer.report_findings(_strays(root, parts["train"], "train") + _strays(root, parts["val"], "val"))
    jobs = [_job(root, image, "Ts" if part == "test" else "Tr") for part, images in parts.items() for image in images]
    writer.convert(jobs)
    split, notes = None, [f"{root} has no validation scenes, so the published split is not used"]
    if parts["val"]:
        split = PublishedSplit.single(map(_case, parts["train"]), map(_case, parts["val"]), "Cityscapes' train and val")
        notes = []
    description = DatasetDescription(channel_names=("red", "green", "blue"), labels=LABELS, num_training=0)
    return finish_converted(writer, "cityscapes", description, split, notes)


def _scenes(root: Path, part: str) -> list[Path]:
    return sorted(path for path in (root / _IMAGES / part).glob(f"*/*{_IMAGE_ENDING}") if path.name[0] != ".")


def _case(image: Path) -> str:
    return image.name.removesuffix(_IMAGE_ENDING)


def _truth(root: Path, image: Path) -> Path:
    return root / _TRUTH / image.parent.parent.name / image.parent.name / f"{_case(image)}{_TRUTH_ENDING}"


def _strays(root: Path, images: Sequence[Path], part: str) -> list[Finding]:
    """Label maps whose image is missing."""
    known = {_truth(root, image) for image in images}
    strays = []
    for path in sorted((root / _TRUTH / part).glob(f"*/*{_TRUTH_ENDING}")):
        if path not in known and path.name[0] != ".":
            case = path.name.removesuffix(_TRUTH_ENDING)
            strays.append(problem(case, path, f"an image {case}{_IMAGE_ENDING} in {_IMAGES}/{part}", "none", _ANEW))
    return strays


def _job(root: Path, image: Path, split: Split) -> CaseJob:
    case, truth = _case(image), _truth(root, image)
    if split == "Ts":
        return CaseJob(case=case, sources=(image,), prepare=lambda: CaseContent(images=(image,)), split=split)
    sources = (image, truth) if truth.exists() else (image,)
    return CaseJob(
        case=case, sources=sources, prepare=lambda: _prepare(case, image, truth), recipe="train ids", split=split
    )


def _prepare(case: str, image: Path, truth: Path) -> CaseContent:
    if not truth.exists():
        return CaseContent(images=(), findings=(problem(case, truth, "a label map", "none", _ANEW),))
    ids, scene = read_voxels(truth)[0], read_voxels(image)[0]
    found = _fault(ids, scene)
    if found:
        expected = "a colour image and labelIds (0 to 33) of one size"
        return CaseContent(images=(), findings=(problem(case, truth, expected, found, _ANEW),))
    labels = train_values(ids[:, :, 0].T)
    values = tuple(int(value) for value in np.unique(labels))
    return CaseContent(images=(image,), label=np.ascontiguousarray(labels), values=values)


def _fault(ids: np.ndarray, scene: np.ndarray) -> str:
    """What is wrong with a label map ``(x, y, 1)`` and its image ``(x, y, 1, 3)``; empty where nothing is."""
    if ids.ndim != 3 or scene.shape != (*ids.shape, 3):
        return f"an image of {_shown(scene)} and a label map of {_shown(ids)}"
    if ids.dtype != np.uint8:
        return f"values of {ids.dtype}"
    unknown = set(np.unique(ids).tolist()) - {*range(_LAST_ID + 1), _PLATE}
    return f"the value {min(unknown)}" if unknown else ""


def _shown(array: np.ndarray) -> str:
    channels = array.shape[3] if array.ndim == 4 else 1
    return f"{array.shape[0]} x {array.shape[1]} with {channels} channels"


CONVERTERS.register("cityscapes")(
    Converter("Cityscapes street scenes, 19 classes", GUIDE, convert, lambda _: "Cityscapes")
)
