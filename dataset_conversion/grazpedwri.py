"""GRAZPEDWRI-DX: 20,327 radiographs of children's wrists.

Nagy et al., A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine learning, Scientific Data 2022,
doi:10.1038/s41597-022-01328-z.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.boxes import Drawn, Size, disagreement
from dataset_conversion.layout import contents, existing_folder
from dataset_conversion.radiographs import (
    SETTINGS,
    SUFFIXES,
    Annotate,
    Rules,
    choose_negatives,
    finish_radiographs,
    radiograph_job,
    read_table,
)
from dataset_conversion.read_voc import read_voc
from dataset_conversion.read_yolo import read_yaml_names, read_yolo
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit
from dataset_conversion.writer import CaseJob, RawWriter
from medkd.core.errors import DataError
from medkd.core.files import is_file
from medkd.core.resolve import FileIndex, files_below
from medkd.io.checks import Finding

GUIDE = """\
GRAZPEDWRI-DX: 20,327 wrist radiographs of 6,091 children, 9 classes (fracture, text, metal, ...); several GB; CC BY 4.0.
download:  https://doi.org/10.6084/m9.figshare.14825193 (images_part1.zip to images_part4.zip, folder_structure.zip, dataset.csv);
           unpack them into one folder
source:    that folder:
             images_part1/ ... images_part4/STEM.png      often 16 bit; brought to 8 bit by the intensities that occur (--scaling)
             folder_structure/pascalvoc/STEM.xml           the boxes
             folder_structure/yolov5/labels/STEM.txt, meta.yaml   compared with them, or used where there is no pascalvoc
             dataset.csv                                   patients, so that all images of a child are in one fold
             STEM = patient_time_study_WRI-<side><projection>_<sex><age>
--labels fracture,text,... chooses classes and their order; --split FOLDER takes train_data.csv, valid_data.csv and test_data.csv
(column filestem) as fold 0 and test cases; otherwise there are five folds. There is no official split."""

CLASSES = (
    "boneanomaly",
    "bonelesion",
    "foreignbody",
    "fracture",
    "metal",
    "periostealreaction",
    "pronatorsign",
    "softtissue",
    "text",
)
"""In the order of the YOLO numbers; published code drops ``foreignbody`` and counts differently, so numbers are never
trusted.
"""

STEM = re.compile(
    r"^(?P<patient>\d{4})_(?P<time>\d{10})_(?P<study>\d{2})_WRI-(?P<side>[LR])(?P<projection>\d)_(?P<sex>[MFO])(?P<age>\d{3})$"
)
_TOLERANCE = 1.5  # pixels: VOC has whole ones
_SPLIT_FILES = {"train": "train_data.csv", "valid": "valid_data.csv", "test": "test_data.csv"}


@dataclass(frozen=True, kw_only=True)
class _Source:
    root: Path
    rows: Mapping[str, Mapping[str, str]]
    images: Mapping[str, Path]
    voc: Path | None
    yolo: Path | None
    names: tuple[str, ...]


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the unpacked parts of GRAZPEDWRI-DX.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, a setting is unknown, or the output cannot be
            written.
    """
    found, findings = _read(existing_folder(source, "grazpedwri"))
    rules = Rules.choose(found.names, options)
    parts, strays = _parts(options, found)
    writer = RawWriter(folder, "grazpedwri", found.root, options, file_ending=".png")
    absent = sorted(set(found.rows) - set(found.images))
    findings += [_absent(stem) for stem in absent]
    writer.report_list("absent", absent)
    usable, more = _usable(found)
    writer.report_findings([*findings, *strays, *more])
    without = [s for s in usable if _boxes_stated(found, s) == 0]
    dropped = set(without) - set(choose_negatives(without, options))
    jobs = [_job(found, stem, rules, parts) for stem in usable if stem not in dropped]
    writer.convert(jobs)
    split = None
    if parts:
        train = [stem for stem in usable if parts.get(stem) == "train"]
        val = [stem for stem in usable if parts.get(stem) == "valid"]
        split = PublishedSplit.single(train, val, f"{', '.join(_SPLIT_FILES.values())} in {options.settings['split']}")
    return finish_radiographs(writer, "grazpedwri", rules, split, _missing_values(found.rows))


def _absent(stem: str) -> Finding:
    return Finding(
        case=stem,
        file=f"{stem}.png",
        expected="an image in images_part1 to images_part4",
        found="no such file",
        action="download and unpack the part again, or go on without it",
    )


def parse_stem(stem: str) -> dict[str, str] | None:
    """What a file name says: patient, time, study, side, projection, sex, age; None where it is no such name."""
    match = STEM.match(stem)
    return match.groupdict() if match else None


def _read(source: Path) -> tuple[_Source, list[Finding]]:
    root = _root(source)
    rows = {row["filestem"]: row for row in read_table(root / "dataset.csv", ("filestem", "patient_id"))}
    images, findings = _images(root)
    voc, yolo = root / "folder_structure/pascalvoc", root / "folder_structure/yolov5/labels"
    if not voc.is_dir() and not yolo.is_dir():
        raise DataError(
            f"{root}: expected folder_structure/pascalvoc or folder_structure/yolov5/labels, found neither; unpack "
            "them there."
        )
    names: tuple[str, ...] = CLASSES
    for meta in (yolo.parent / "data.yaml", yolo.parent / "meta.yaml"):  # the latter wins
        if meta.exists():
            names = read_yaml_names(meta)[1]
    found = _Source(
        root=root,
        rows=rows,
        images=images,
        voc=voc if voc.is_dir() else None,
        yolo=yolo if yolo.is_dir() else None,
        names=names,
    )
    return found, findings


def _images(root: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Stem → image, and a warning for each image that is there twice."""
    images: dict[str, Path] = {}
    findings = []
    for path in files_below(root, "images*/**/*"):
        if path.suffix.lower() not in SUFFIXES:
            continue
        first = images.setdefault(path.stem, path)
        if first != path:
            action = f"the one in {first.parent.name} was used"
            findings.append(
                Finding(
                    case=path.stem,
                    file=str(path),
                    expected="each image once",
                    found="the image again",
                    action=action,
                    error=False,
                )
            )
    if not images:
        raise DataError(
            f"{root}: expected PNG files in images_part1 to images_part4, found none; unpack the archives there."
        )
    return images, findings


def _root(source: Path) -> Path:
    for folder in (source, *(p for p in sorted(source.iterdir()) if p.is_dir())):
        if (folder / "dataset.csv").exists():
            return folder
    raise DataError(
        f"{source}: expected dataset.csv, images_part1 to images_part4 and folder_structure, found {contents(source)}."
    )


def _usable(source: _Source) -> tuple[list[str], list[Finding]]:
    """Images that can be converted: their patient is known and there is an annotation."""
    usable, findings = [], []
    for stem in sorted(source.images):
        path, parsed, row = str(source.images[stem]), parse_stem(stem), source.rows.get(stem)
        if row is None:
            found = "none; the patient was taken from the file name" if parsed else "none, and the name says no patient"
            action = "check whether the file belongs to this data set"
            findings.append(
                Finding(
                    case=stem,
                    file=path,
                    expected="a row in dataset.csv",
                    found=found,
                    action=action,
                    error=parsed is None,
                )
            )
        elif parsed is None:
            expected = "a name like 0038_0775938745_03_WRI-L2_M014"
            findings.append(
                Finding(
                    case=stem,
                    file=path,
                    expected=expected,
                    found=stem,
                    action="the patient was taken from dataset.csv",
                    error=False,
                )
            )
        elif row["patient_id"] and _number(row["patient_id"]) != _number(parsed["patient"]):
            found = f"{parsed['patient']} in the file name"
            findings.append(
                Finding(
                    case=stem,
                    file=path,
                    expected=f"patient {row['patient_id']}, as in dataset.csv",
                    found=found,
                    action="both count as one patient",
                    error=False,
                )
            )
        if _boxes_stated(source, stem) is None:
            findings.append(
                Finding(
                    case=stem,
                    file=path,
                    expected=f"an annotation {stem}.xml or {stem}.txt",
                    found="none",
                    action="unpack folder_structure.zip again",
                )
            )
        elif row is not None or parsed is not None:
            usable.append(stem)
    return usable, findings


def _annotation_files(source: _Source, stem: str) -> tuple[Path | None, Path | None]:
    voc = source.voc / f"{stem}.xml" if source.voc else None
    yolo = source.yolo / f"{stem}.txt" if source.yolo else None
    return (voc if voc and is_file(voc) else None), (yolo if yolo and is_file(yolo) else None)


def _boxes_stated(source: _Source, stem: str) -> int | None:
    """Number of boxes; None without annotation. Without pascalvoc a missing YOLO file means that there is nothing to
    see.
    """
    voc, yolo = _annotation_files(source, stem)
    if voc is not None:
        return voc.read_text(encoding="utf-8", errors="replace").count("<object>")
    if yolo is not None:
        return sum(bool(line.strip()) for line in yolo.read_text(encoding="utf-8", errors="replace").splitlines())
    return 0 if source.voc is None else None


def _job(source: _Source, stem: str, rules: Rules, parts: Mapping[str, str]) -> CaseJob:
    voc, yolo = _annotation_files(source, stem)
    row, parsed = source.rows.get(stem), parse_stem(stem)
    patient = row["patient_id"] if row and row["patient_id"] else (parsed or {}).get("patient", stem)
    annotate = _annotator(stem, voc, yolo, source.names)
    files = [path for path in (voc, yolo) if path]
    split = "Ts" if parts.get(stem) == "test" else "Tr"
    return radiograph_job(stem, source.images[stem], annotate, files, rules, split=split, patient=_number(patient))  # type: ignore[arg-type]


def _annotator(stem: str, voc: Path | None, yolo: Path | None, names: Sequence[str]) -> Annotate:
    """Boxes by Pascal VOC, which names the classes; where YOLO differs it is a warning."""

    def annotate(size: Size) -> tuple[Drawn, list[Finding]]:
        numbered = read_yolo(yolo, names, size) if yolo else Drawn(Path(f"{stem}.txt"))
        if voc is None:
            return numbered, []
        named = read_voc(voc)[0]
        found = disagreement(named.boxes, numbered.boxes, _TOLERANCE)
        if found is None or (yolo is None and not named.boxes):
            return named, []
        if yolo is None:
            return named, []
        action = "Pascal VOC was believed, since it names the classes; look at the contact sheet"
        return named, [
            Finding(
                case=stem, file=str(yolo), expected=f"the boxes of {voc.name}", found=found, action=action, error=False
            )
        ]

    return annotate


def _parts(options: ConversionOptions, found: _Source) -> tuple[dict[str, str], list[Finding]]:
    """Stem → train, valid or test, from the files of ``--split``; an entry that names no image is an error."""
    if "split" not in options.settings:
        return {}, []
    folder = Path(options.settings["split"])
    index = FileIndex(found.root, found.images.values(), lambda name: name.removesuffix(Path(name).suffix))
    parts: dict[str, str] = {}
    findings = []
    for part, name in _SPLIT_FILES.items():
        for row in read_table(folder / name, ("filestem",)):
            text = row["filestem"]
            image = index.find(text)
            if image is None:
                if text not in found.rows:  # of those of dataset.csv it is said that they are absent
                    findings.append(
                        Finding(
                            case=text,
                            file=str(folder / name),
                            expected="stems of images",
                            found=f"'{text}'",
                            action="correct or remove it",
                        )
                    )
                continue
            other = parts.setdefault(image.stem, part)
            if other != part:
                raise DataError(f"{folder}: {image.stem} is both in {_SPLIT_FILES[other]} and in {name}.")
    return parts, findings


def _missing_values(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A note about empty cells of dataset.csv; most flags are 1 or empty, where empty may mean no or unknown."""
    empty = Counter(column for row in rows.values() for column, value in row.items() if not value)
    listed = ", ".join(f"{column} {count / len(rows):.1%}" for column, count in empty.most_common())
    return [f"empty cells in dataset.csv: {listed}"] if listed else []


def _number(text: str) -> str:
    """``0038``, ``38`` and ``38.0`` are one patient."""
    try:
        return f"{int(float(text)):04d}"
    except ValueError:
        return text


CONVERTERS.register("grazpedwri")(
    Converter(
        "GRAZPEDWRI-DX: wrist radiographs of children, 9 classes as boxes",
        GUIDE,
        convert,
        lambda _: "GRAZPEDWRI",
        {
            **{k: v for k, v in SETTINGS.items() if k != "patients"},
            "split": "folder with train_data.csv, valid_data.csv and test_data.csv (column filestem)",
        },
    )
)
