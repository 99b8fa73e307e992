"""GRAZPEDWRI-DX: 20,327 radiographs of children's wrists.

Nagy et al., A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine learning, Scientific Data 2022,
doi:10.1038/s41597-022-01328-z.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.boxes import Drawn, Size, disagreement
from dataset_conversion.findings import problem, warning
from dataset_conversion.layout import contents, existing_folder
from dataset_conversion.radiographs import (
    SETTINGS,
    SUFFIXES,
    Annotate,
    Rules,
    choose_negatives,
    finish_radiographs,
    radiograph_job,
)
from dataset_conversion.read_voc import read_voc
from dataset_conversion.read_yolo import read_yaml_names, read_yolo
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit
from dataset_conversion.tables import read_table
from dataset_conversion.writer import CaseJob, RawWriter, Split
from medkd.core.errors import DataError
from medkd.core.files import is_file
from medkd.core.resolve import FileIndex, files_ending
from medkd.core.run import DETECTION
from medkd.io.checks import Finding

GUIDE = """\
GRAZPEDWRI-DX: 20,327 wrist radiographs of 6,091 children, 9 classes (fracture, text, metal, ...); several GB; CC BY 4.0
download:  https://doi.org/10.6084/m9.figshare.14825193 (images_part1.zip to images_part4.zip, folder_structure.zip,
           dataset.csv); unpack them into one folder
source:    that folder:
             images_part1/ ... images_part4/STEM.png       often 16 bit; brought to 8 bit by the intensities that
                                                           occur (--scaling)
             folder_structure/pascalvoc/STEM.xml           the boxes
             folder_structure/yolov5/labels/STEM.txt,      compared with them, or used where there is no
             folder_structure/yolov5/meta.yaml             pascalvoc
             dataset.csv                                   patients, so that all images of a child are in one fold
             STEM = patient_time_study_WRI-<side><projection>_<sex><age>
--labels fracture,text,... chooses classes and their order; --split FOLDER takes train_data.csv, valid_data.csv and
test_data.csv (column filestem) as fold 0 and test cases; otherwise there are five folds. There is no official split."""

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
    absent = sorted(found.rows.keys() - found.images.keys())
    findings += map(_absent, absent)
    writer.report_list("absent", absent)
    usable, more = _usable(found)
    writer.report_findings([*findings, *strays, *more])
    dropped = _dropped(found, usable, options)
    jobs = [_job(found, stem, rules, parts) for stem in usable if stem not in dropped]
    writer.convert(jobs)
    split = _split(usable, parts, options) if parts else None
    return finish_radiographs(writer, "grazpedwri", rules, split, _missing_values(found.rows))


def _dropped(source: _Source, usable: Sequence[str], options: ConversionOptions) -> set[str]:
    """Images without a box that ``--negatives`` leaves out."""
    without = [stem for stem in usable if _boxes_stated(source, stem) == 0]
    return set(without).difference(choose_negatives(without, options))


def _split(usable: Sequence[str], parts: Mapping[str, str], options: ConversionOptions) -> PublishedSplit:
    members: dict[str, list[str]] = {part: [] for part in _SPLIT_FILES}
    for stem in usable:
        if stem in parts:
            members[parts[stem]].append(stem)
    where = f"{', '.join(_SPLIT_FILES.values())} in {options.settings['split']}"
    return PublishedSplit.single(members["train"], members["valid"], where)


def _absent(stem: str) -> Finding:
    return problem(
        stem,
        f"{stem}.png",
        "an image in images_part1 to images_part4",
        "no such file",
        "download and unpack the part again, or go on without it",
    )


def parse_stem(stem: str) -> dict[str, str] | None:
    """What a file name says: patient, time, study, side, projection, sex, age; None where it is no such name."""
    match = STEM.match(stem)
    return match.groupdict() if match else None


def _read(source: Path) -> tuple[_Source, list[Finding]]:
    root = _root(source)
    table = read_table(root / "dataset.csv", ("filestem", "patient_id"))
    rows = {row["filestem"]: row for row in table}
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
    for path in files_ending(root, *SUFFIXES):
        if not path.relative_to(root).parts[0].startswith("images"):
            continue
        first = images.setdefault(path.stem, path)
        if first != path:
            action = f"the one in {first.parent.name} was used"
            findings.append(warning(path.stem, path, "each image once", "the image again", action))
    if not images:
        raise DataError(
            f"{root}: expected PNG files in images_part1 to images_part4, found none; unpack the archives there."
        )
    return images, findings


def _root(source: Path) -> Path:
    for folder in (source, *sorted(source.iterdir())):
        if (folder / "dataset.csv").exists():
            return folder
    raise DataError(
        f"{source}: expected dataset.csv, images_part1 to images_part4 and folder_structure, found {contents(source)}."
    )


def _usable(source: _Source) -> tuple[list[str], list[Finding]]:
    """Images that can be converted: their patient is known and there is an annotation."""
    usable, findings = [], []
    for stem in sorted(source.images):
        path, parsed = str(source.images[stem]), parse_stem(stem)
        row = source.rows.get(stem)
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
            findings.append(warning(stem, path, expected, stem, "the patient was taken from dataset.csv"))
        elif row["patient_id"] and _number(row["patient_id"]) != _number(parsed["patient"]):
            found = f"{parsed['patient']} in the file name"
            findings.append(
                warning(
                    stem, path, f"patient {row['patient_id']}, as in dataset.csv", found, "both count as one patient"
                )
            )
        if _boxes_stated(source, stem) is None:
            findings.append(
                problem(
                    stem, path, f"an annotation {stem}.xml or {stem}.txt", "none", "unpack folder_structure.zip again"
                )
            )
        elif row is not None or parsed is not None:
            usable.append(stem)
    return usable, findings


def _annotation_files(source: _Source, stem: str) -> tuple[Path | None, Path | None]:
    voc = source.voc / f"{stem}.xml" if source.voc else None
    yolo = source.yolo / f"{stem}.txt" if source.yolo else None
    return _if_there(voc), _if_there(yolo)


def _if_there(path: Path | None) -> Path | None:
    """A file, or what lies in its place and cannot be read."""
    return path if path is not None and os.path.lexists(path) else None


def _boxes_stated(source: _Source, stem: str) -> int | None:
    """Number of boxes; None without annotation. Without pascalvoc a missing YOLO file means that there is nothing to
    see.
    """
    voc, yolo = _annotation_files(source, stem)
    path = voc or yolo
    if path is None:
        return 0 if source.voc is None else None
    if not is_file(path):  # said when the image is converted
        return 1
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")  # UTF-16 too
    if path == voc:
        return text.count("<object>")
    lines = map(str.strip, text.splitlines())
    return len(list(filter(None, lines)))


def _job(source: _Source, stem: str, rules: Rules, parts: Mapping[str, str]) -> CaseJob:
    voc, yolo = _annotation_files(source, stem)
    row = source.rows.get(stem, {})
    parsed = parse_stem(stem) or {}
    patient = _number(row.get("patient_id") or parsed.get("patient", stem))
    annotate = _annotator(stem, voc, yolo, source.names, has_voc=source.voc is not None)
    files = [path for path in (voc, yolo) if path is not None]
    split: Split = "Ts" if parts.get(stem) == "test" else "Tr"
    return radiograph_job(stem, source.images[stem], annotate, files, rules, split=split, patient=patient)


def _without_voc(stem: str, yolo: Path | None) -> list[Finding]:
    """A warning for an image without an XML file, where others have one."""
    action = "the YOLO file was believed; unpack folder_structure.zip again"
    return [warning(stem, yolo or "", f"an annotation pascalvoc/{stem}.xml", "none", action)]


def _annotator(stem: str, voc: Path | None, yolo: Path | None, names: Sequence[str], *, has_voc: bool) -> Annotate:
    """Boxes by Pascal VOC, which names the classes; where YOLO differs it is a warning."""

    def annotate(size: Size) -> tuple[Drawn, list[Finding]]:
        numbered = read_yolo(yolo, names, size) if yolo else Drawn(Path(f"{stem}.txt"))
        if voc is None:
            return numbered, _without_voc(stem, yolo) if has_voc else []
        named = read_voc(voc)[0]
        found = disagreement(named.boxes, numbered.boxes, _TOLERANCE)
        if found is None or (yolo is None and not named.boxes):
            return named, []
        if yolo is None:
            return named, []
        action = "Pascal VOC was believed, since it names the classes; look at the contact sheet"
        return named, [warning(stem, yolo, f"the boxes of {voc.name}", found, action)]

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
                        problem(text, folder / name, "stems of images", f"'{text}'", "correct or remove it")
                    )
                continue
            other = parts.setdefault(image.stem, part)
            if other != part:
                raise DataError(f"{folder}: {image.stem} is both in {_SPLIT_FILES[other]} and in {name}.")
    return parts, findings


def _missing_values(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A note about empty cells of dataset.csv; most flags are 1 or empty, where empty may mean no or unknown."""
    empty: Counter[str] = Counter()
    for row in rows.values():
        empty.update(column for column, value in row.items() if not value)
    shares = [f"{column} {count / len(rows):.1%}" for column, count in empty.most_common()]
    return [f"empty cells in dataset.csv: {', '.join(shares)}"] if shares else []


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
            "negatives": SETTINGS["negatives"],
            "scaling": SETTINGS["scaling"],
            "split": "folder with train_data.csv, valid_data.csv and test_data.csv (column filestem)",
        },
        task=DETECTION,
    )
)
