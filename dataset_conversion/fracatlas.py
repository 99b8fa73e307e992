"""FracAtlas: 4,083 musculoskeletal radiographs, 717 of them with fractures.

Abedeen et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of Musculoskeletal
Radiographs, Scientific Data 2023, doi:10.1038/s41597-023-02432-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.boxes import Drawn, Size, disagreement
from dataset_conversion.findings import problem, warning
from dataset_conversion.layout import existing_folder, find_parent
from dataset_conversion.radiographs import (
    SETTINGS,
    Annotate,
    Rules,
    choose_negatives,
    finish_radiographs,
    image_index,
    radiograph_job,
)
from dataset_conversion.read_coco import Coco, read_coco
from dataset_conversion.read_voc import read_voc
from dataset_conversion.read_yolo import read_yolo
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit
from dataset_conversion.tables import read_table
from dataset_conversion.writer import CaseJob, RawWriter, Split
from medkd.core.errors import DataError
from medkd.core.resolve import FileIndex, path_parts
from medkd.core.run import DETECTION
from medkd.io.checks import Finding

GUIDE = """\
FracAtlas: 4,083 radiographs of hand, leg, hip and shoulder; 922 boxes in 717 of them; one class; CC BY 4.0.
download:  https://doi.org/10.6084/m9.figshare.22363012 (FracAtlas.zip, 322 MB); unpack it
source:    the unpacked folder:
             FracAtlas/images/Fractured/IMG0000019.jpg ..., images/Non_fractured/
             FracAtlas/Annotations/COCO JSON/COCO_fracture_masks.json    the boxes
             FracAtlas/Annotations/YOLO/, PASCAL VOC/                    compared with them, where they are there
             FracAtlas/Utilities/Fracture Split/{train,valid,test}.csv   fold 0 and the test cases
             FracAtlas/dataset.csv
The official split has fractured images only. Images without fracture are training cases (--negatives), so that the
validation and test cases are those that others report on; --folds five makes five folds with negatives in all of them
instead."""

_TOLERANCE = 1.5  # pixels: VOC rounds down to whole ones, YOLO has four digits
_SPLITS = "Utilities/Fracture Split"
_KNOWN = ("fractured",)


@dataclass(frozen=True)
class _Source:
    root: Path
    coco: Coco
    rows: Mapping[str, Mapping[str, str]]
    images: Mapping[str, Path]
    splits: Mapping[str, frozenset[str]]

    @property
    def negatives(self) -> list[str]:
        """Images that should have no box, on disk or not."""
        known = {*self.rows, *self.images}
        return sorted(known - set(self.coco.images))


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the unpacked FracAtlas.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, a setting is unknown, or the output cannot be
            written.
    """
    found = _read(existing_folder(source, "fracatlas"))
    rules = Rules.choose(_KNOWN, options)
    negatives = choose_negatives(_whole(found), options)
    folds = options.settings.get("folds", "official")
    if folds not in ("official", "five"):
        raise DataError(f"--folds must be official or five, found '{folds}'.")
    writer = RawWriter(folder, "fracatlas", found.root, options, file_ending=".jpg")
    writer.report_findings(found.coco.findings)
    writer.report_findings(_table_findings(found))
    writer.report_findings(_absent(writer, found, options))
    fractured = sorted(found.coco.images.keys() & found.images.keys())
    converted = [*fractured, *negatives]
    writer.convert([_job(found, name, rules) for name in converted])
    notes = [
        f"{len(fractured)} images with and {len(negatives)} without fracture were found",
        "images that are not upright or not whole were written as PNG, all others stay the JPEGs they are",
    ]
    official = None
    if folds == "official" and found.splits:
        official = _official(found, fractured, negatives)
    return finish_radiographs(writer, "fracatlas", rules, official, notes)


def _whole(source: _Source) -> list[str]:
    """Images without fracture: they are there, without boxes, and not in the folder of the fractured ones."""
    names = []
    for name in source.negatives:
        if name in source.images and not _in_fractured(source, name):
            names.append(name)
    return names


def _read(source: Path) -> _Source:
    root = find_parent(source, ("images", "Annotations"))
    if root is None:
        raise DataError(f"{source}: expected a folder with images and Annotations; see medkd_convert fracatlas --help.")
    files = sorted((root / "Annotations").glob("COCO*/*.json"))
    if len(files) != 1:
        raise DataError(
            f"{root}: expected one COCO file in 'Annotations/COCO JSON', found {len(files)}; unpack the download again."
        )
    index = image_index(root / "images")
    images = {path.name: path for path in index.paths}
    rows: dict[str, Mapping[str, str]] = {}
    for row in read_table(root / "dataset.csv", ("image_id", "fractured", "fracture_count")):
        rows[_name(index, row["image_id"])] = row
    content = read_coco(files[0])
    stated: dict[str, Drawn] = {}
    for text, drawn in content.images.items():
        stated[_name(index, text)] = drawn
    content = replace(content, images=stated)
    return _Source(root, content, rows, images, _splits(root, index))


def _name(index: FileIndex, text: str) -> str:
    """The name of the image that is meant; of an image that is not there the name that is stated.

    Raises:
        DataError: several images are meant.
    """
    image = index.find(text)
    parts = path_parts(text)
    if image is not None:
        return image.name
    return parts[-1] if parts else text


def _splits(root: Path, index: FileIndex) -> dict[str, frozenset[str]]:
    """The names that the lists of the official split have; none where there are no lists.

    Raises:
        DataError: one of the lists is missing or cannot be read, or two have the same image.
    """
    splits: dict[str, frozenset[str]] = {}
    if not (root / _SPLITS).is_dir() or not any((root / _SPLITS).iterdir()):
        return {}
    for part in ("train", "valid", "test"):
        path = root / _SPLITS / f"{part}.csv"
        rows = read_table(path, ("image_id",))
        splits[part] = frozenset(_name(index, row["image_id"]) for row in rows)
        for other, names in splits.items():
            both = sorted(names & splits[part])
            if other != part and both:
                raise DataError(
                    f"{root / _SPLITS}: expected each image in one list, found {both[0]} in {other}.csv and "
                    f"{part}.csv; remove it from one."
                )
    return splits


def _job(source: _Source, name: str, rules: Rules) -> CaseJob:
    yolo, voc = _annotation_files(source, name)
    test = name in source.splits.get("test", ())
    stated = source.coco.images.get(name)
    recipe = ""
    if stated is not None:
        recipe = f"{stated.size} {stated.boxes}" + (f" {stated.unusable}" if stated.unusable else "")
    annotations = [path for path in (yolo, voc) if path.exists()]
    annotate = _annotator(name, stated, yolo, voc)
    image = source.images[name]
    split: Split = "Ts" if test else "Tr"
    return radiograph_job(_case(name), image, annotate, annotations, rules, recipe=recipe, split=split)


def _case(name: str) -> str:
    return Path(name).stem


def _annotator(name: str, stated: Drawn | None, yolo: Path, voc: Path) -> Annotate:
    """Boxes by COCO; what the other two files say differently is a warning."""

    def annotate(size: Size) -> tuple[Drawn, list[Finding]]:
        drawn = stated or Drawn(voc)
        frame = drawn.size or size
        others = []
        if yolo.exists():
            others.append(read_yolo(yolo, _KNOWN, frame))
        if voc.exists():
            others.append(read_voc(voc)[0])
        findings = []
        for other in others:
            found = disagreement(drawn.boxes, other.boxes, _TOLERANCE)
            if found is None and stated and other.size not in (None, drawn.size):
                found = f"an image of {other.size} px"
            if found:
                action = "the COCO file was believed; look at the contact sheet"
                findings.append(warning(Path(name).stem, other.file, "the boxes of the COCO file", found, action))
        return drawn, findings

    return annotate


def _annotation_files(source: _Source, name: str) -> tuple[Path, Path]:
    stem = Path(name).stem
    return (
        source.root / "Annotations" / "YOLO" / f"{stem}.txt",
        source.root / "Annotations" / "PASCAL VOC" / f"{stem}.xml",
    )


def _in_fractured(source: _Source, name: str) -> bool:
    return source.images[name].parent.name.lower() == "fractured"


def _absent(writer: RawWriter, source: _Source, options: ConversionOptions) -> list[Finding]:
    """Images that are listed but not there: one finding for each with boxes, one for all negatives."""
    with_boxes = sorted(source.coco.images.keys() - source.images.keys())
    negatives = sorted(source.rows.keys() - source.images.keys() - source.coco.images.keys())
    action = "download it again, or go on without it"
    expected = "an image in images/Fractured, as the COCO file lists"
    findings = []
    for name in with_boxes:
        findings.append(problem(_case(name), name, expected, "no such file", action))
    if negatives and options.settings.get("negatives", "all") == "all":
        found = f"{len(negatives)} of them are not there (listed as absent, without boxes)"
        findings.append(
            problem(
                "",
                "dataset.csv",
                "all images without fracture",
                found,
                "download them, or choose a number with --negatives",
            )
        )
    writer.report_list("absent, with boxes", with_boxes)
    writer.report_list("absent, without boxes", negatives)
    return findings


def _table_findings(source: _Source) -> list[Finding]:
    """What dataset.csv, the folders and the split say differently from the COCO file."""
    findings = []
    for name, row in sorted(source.rows.items()):
        stated = source.coco.images.get(name)
        boxes = len(stated.boxes) if stated is not None else 0
        flag = row["fractured"] == "1"
        if flag != bool(boxes) or row["fracture_count"] != str(boxes):
            found = f"fractured {row['fractured']}, fracture_count {row['fracture_count']}"
            expected = f"what the COCO file has, {boxes} boxes"
            findings.append(warning(Path(name).stem, "dataset.csv", expected, found, "the COCO file was believed"))
    for name in sorted(source.images.keys() - source.rows.keys()):
        findings.append(warning(Path(name).stem, source.images[name], "a row in dataset.csv", "none", "check the file"))
    for name in sorted(source.images.keys() - source.coco.images.keys()):
        if _in_fractured(source, name):
            path = str(source.images[name])
            action = "annotate it, or move it to Non_fractured"
            findings.append(
                problem(Path(name).stem, path, "boxes in the COCO file for an image in Fractured", "none", action)
            )
    return [*findings, *_split_findings(source)]


def _split_findings(source: _Source) -> list[Finding]:
    findings = []
    for part, names in source.splits.items():
        for name in sorted(names - set(source.coco.images)):
            there = name in source.images or name in source.rows
            findings.append(
                Finding(
                    case="" if there else Path(name).stem,
                    file=f"{_SPLITS}/{part}.csv",
                    expected="images of the COCO file",
                    found=f"{name} in {part}.csv",
                    action="it was ignored" if there else "correct the name, or remove it",
                    error=not there,
                )
            )
    return findings


def _official(source: _Source, fractured: list[str], negatives: list[str]) -> PublishedSplit:
    named = frozenset[str]().union(*source.splits.values())
    train, val = [], []
    for name in (*fractured, *negatives):
        if name in source.splits["train"] or name not in named:
            train.append(_case(name))
        if name in source.splits["valid"] and name in source.coco.images:
            val.append(_case(name))
    sizes = " / ".join(str(len(names)) for names in source.splits.values())
    return PublishedSplit.single(
        train,
        val,
        f"official train.csv, valid.csv and test.csv of FracAtlas ({sizes} images), negatives added to training",
    )


CONVERTERS.register("fracatlas")(
    Converter(
        "FracAtlas: radiographs, fractures as boxes",
        GUIDE,
        convert,
        lambda _: "FracAtlas",
        {
            "negatives": SETTINGS["negatives"],
            "folds": "official (default: train.csv and valid.csv as fold 0) or five",
        },
        task=DETECTION,
    )
)
