"""FracAtlas: 4,083 musculoskeletal radiographs, 717 of them with fractures.

Abedeen et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of Musculoskeletal
Radiographs, Scientific Data 2023, doi:10.1038/s41597-023-02432-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.boxes import Drawn, Size, disagreement
from dataset_conversion.layout import existing_folder, find_parent
from dataset_conversion.radiographs import (
    SETTINGS,
    Annotate,
    Rules,
    choose_negatives,
    finish_radiographs,
    image_index,
    radiograph_job,
    read_table,
)
from dataset_conversion.read_coco import Coco, read_coco
from dataset_conversion.read_voc import read_voc
from dataset_conversion.read_yolo import read_yolo
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit
from dataset_conversion.writer import CaseJob, RawWriter
from medkd.core.errors import DataError
from medkd.core.resolve import FileIndex, path_parts
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
The official split has fractured images only. Images without fracture are training cases (--negatives), so that the validation and
test cases are those that others report on; --folds five makes five folds with negatives in all of them instead."""

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
        return sorted((set(self.rows) | set(self.images)) - set(self.coco.images))


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the unpacked FracAtlas.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, a setting is unknown, or the output cannot be
            written.
    """
    found = _read(existing_folder(source, "fracatlas"))
    rules = Rules.choose(_KNOWN, options)
    negatives = choose_negatives(
        [n for n in found.negatives if n in found.images and not _in_fractured(found, n)], options
    )
    folds = options.settings.get("folds", "official")
    if folds not in ("official", "five"):
        raise DataError(f"--folds must be official or five, found '{folds}'.")
    writer = RawWriter(folder, "fracatlas", found.root, options, file_ending=".jpg")
    writer.report_findings([*found.coco.findings, *_table_findings(found), *_absent(writer, found, options)])
    fractured = sorted(set(found.coco.images) & set(found.images))
    writer.convert([_job(found, name, rules) for name in [*fractured, *negatives]])
    notes = [
        f"{len(fractured)} images with and {len(negatives)} without fracture were found",
        "images that are not upright or not whole were written as PNG, all others stay the JPEGs they are",
    ]
    official = _official(found, fractured, negatives) if folds == "official" and found.splits else None
    return finish_radiographs(writer, "fracatlas", rules, official, notes)


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
    stated = {_name(index, name): drawn for name, drawn in content.images.items()}
    return _Source(root, replace(content, images=stated), rows, images, _splits(root, index))


def _name(index: FileIndex, text: str) -> str:
    """The name of the image that is meant; of an image that is not there the name that is stated.

    Raises:
        DataError: several images are meant.
    """
    image = index.find(text)
    parts = path_parts(text)
    return image.name if image is not None else parts[-1] if parts else text


def _splits(root: Path, index: FileIndex) -> dict[str, frozenset[str]]:
    """The names that the lists of the official split have; none where one of the lists is missing."""
    splits: dict[str, frozenset[str]] = {}
    for part in ("train", "valid", "test"):
        path = root / _SPLITS / f"{part}.csv"
        if not path.exists():
            return {}
        splits[part] = frozenset(_name(index, row["image_id"]) for row in read_table(path, ("image_id",)))
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
    return radiograph_job(
        Path(name).stem, source.images[name], annotate, annotations, rules, recipe=recipe, split="Ts" if test else "Tr"
    )


def _annotator(name: str, stated: Drawn | None, yolo: Path, voc: Path) -> Annotate:
    """Boxes by COCO; what the other two files say differently is a warning."""

    def annotate(size: Size) -> tuple[Drawn, list[Finding]]:
        drawn = stated or Drawn(voc)
        frame = drawn.size or size
        others = [read_yolo(yolo, _KNOWN, frame)] if yolo.exists() else []
        others += [read_voc(voc)[0]] if voc.exists() else []
        findings = []
        for other in others:
            found = disagreement(drawn.boxes, other.boxes, _TOLERANCE)
            if found is None and stated and other.size not in (None, drawn.size):
                found = f"an image of {other.size} px"
            if found:
                action = "the COCO file was believed; look at the contact sheet"
                findings.append(
                    Finding(
                        case=Path(name).stem,
                        file=str(other.file),
                        expected="the boxes of the COCO file",
                        found=found,
                        action=action,
                        error=False,
                    )
                )
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
    absent = sorted((set(source.coco.images) | set(source.rows)) - set(source.images))
    with_boxes = [name for name in absent if name in source.coco.images]
    negatives = [name for name in absent if name not in source.coco.images]
    action = "download it again, or go on without it"
    findings = [
        Finding(
            case=Path(n).stem,
            file=n,
            expected="an image in images/Fractured, as the COCO file lists",
            found="no such file",
            action=action,
        )
        for n in with_boxes
    ]
    if negatives and options.settings.get("negatives", "all") == "all":
        found = f"{len(negatives)} of them are not there (listed as absent, without boxes)"
        findings.append(
            Finding(
                case="",
                file="dataset.csv",
                expected="all images without fracture",
                found=found,
                action="download them, or choose a number with --negatives",
            )
        )
    writer.report_list("absent, with boxes", with_boxes)
    writer.report_list("absent, without boxes", negatives)
    return findings


def _table_findings(source: _Source) -> list[Finding]:
    """What dataset.csv, the folders and the split say differently from the COCO file."""
    findings = []
    for name, row in sorted(source.rows.items()):
        boxes = len(source.coco.images[name].boxes) if name in source.coco.images else 0
        flag = row["fractured"] == "1"
        if flag != bool(boxes) or row["fracture_count"] != str(boxes):
            found = f"fractured {row['fractured']}, fracture_count {row['fracture_count']}"
            expected = f"what the COCO file has, {boxes} boxes"
            findings.append(
                Finding(
                    case=Path(name).stem,
                    file="dataset.csv",
                    expected=expected,
                    found=found,
                    action="the COCO file was believed",
                    error=False,
                )
            )
    for name in sorted(set(source.images) - set(source.rows)):
        findings.append(
            Finding(
                case=Path(name).stem,
                file=str(source.images[name]),
                expected="a row in dataset.csv",
                found="none",
                action="check the file",
                error=False,
            )
        )
    for name in sorted(set(source.images) - set(source.coco.images)):
        if _in_fractured(source, name):
            path = str(source.images[name])
            action = "annotate it, or move it to Non_fractured"
            findings.append(
                Finding(
                    case=Path(name).stem,
                    file=path,
                    expected="boxes in the COCO file for an image in Fractured",
                    found="none",
                    action=action,
                )
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
    named = {n for names in source.splits.values() for n in names}
    train = [Path(n).stem for n in [*fractured, *negatives] if n in source.splits["train"] or n not in named]
    val = [Path(n).stem for n in fractured if n in source.splits["valid"]]
    sizes = " / ".join(str(len(source.splits[part])) for part in ("train", "valid", "test"))
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
            **{k: v for k, v in SETTINGS.items() if k == "negatives"},
            "folds": "official (default: train.csv and valid.csv as fold 0) or five",
        },
    )
)
