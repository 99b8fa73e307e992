"""What the converters of anybody's radiographs (COCO, YOLO, VOC) share: a list of images, each in a named part of the
data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.patients import read_patients
from dataset_conversion.radiographs import (
    Annotate,
    Rules,
    choose_negatives,
    finish_radiographs,
    radiograph_job,
    unique_cases,
)
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit
from dataset_conversion.writer import CaseJob, RawWriter
from medkd.core.errors import DataError
from medkd.io.checks import Finding

SPLIT_NAMES = ("train", "val", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Item:
    """One image and how to get its boxes.

    Attributes:
        image: the file.
        annotate: gives its boxes.
        annotations: the files that ``annotate`` reads.
        part: ``train``, ``val`` or ``test``; None where the source does not say.
        negative: there is no box.
        recipe: anything else that the boxes depend on.
    """

    image: Path
    annotate: Annotate
    annotations: tuple[Path, ...] = ()
    part: str | None = None
    negative: bool = False
    recipe: str = ""


def split_name(path: Path, source: Path) -> str | None:
    """``train``, ``val`` or ``test``, by the words in the name of a file or of the folders above it (below ``source``),
    if any.
    """
    for part in reversed(path.relative_to(source).parts):
        words = re.findall("[a-z]+", part.lower())
        found = {name for word in words if (name := _WORDS.get(word))}
        if len(found) == 1:
            return found.pop()
    return None


def convert_items(
    format: str,
    source: Path,
    folder: Path,
    items: Sequence[Item],
    rules: Rules,
    options: ConversionOptions,
    findings: Iterable[Finding] = (),
) -> ConversionReport:
    """Convert the images; ``train`` and ``val`` become fold 0, ``test`` the test cases, otherwise there are five folds.

    Raises:
        DataError: there is no image, a setting is unknown, or the output cannot be written.
    """
    items, doubles = _once(items)
    if not items:
        raise DataError(
            f"{source}: expected images with annotations, found none; medkd_convert {format} --help shows the layout."
        )
    names = unique_cases((item.image for item in items), source)
    patients = read_patients(options, names, source)
    negatives = choose_negatives([names[item.image] for item in items if item.negative], options)
    items = [item for item in items if not item.negative or names[item.image] in set(negatives)]
    writer = RawWriter(folder, format, source, "link" if options.mode == "link" else "copy", file_ending=".png")
    writer.report_findings([*findings, *doubles])
    writer.convert([_job(item, names[item.image], rules, patients.get(item.image)) for item in items], options.workers)
    notes = ["images that are not upright, whole and 8 bit were written as PNG, all others stay the files they are"]
    if patients:
        unknown = [names[item.image] for item in items if item.image not in patients]
        notes += (
            [f"{len(unknown)} images have no patient in the file of --patients; each counts as one: {unknown[0]}, …"]
            if unknown
            else []
        )
    return finish_radiographs(writer, format, rules, _official(items, names, source), notes)


def _once(items: Sequence[Item]) -> tuple[list[Item], list[Finding]]:
    """Each image once, sorted, and a warning for those that are stated twice."""
    first: dict[Path, Item] = {}
    findings = []
    for item in items:
        if first.setdefault(item.image, item) is not item:
            found = f"it again{f' in {item.part}' if item.part else ''}"
            action = "the first one was used"
            findings.append(
                Finding(
                    case=item.image.stem,
                    file=str(item.image),
                    expected="each image in one annotation file",
                    found=found,
                    action=action,
                    error=False,
                )
            )
    return [first[path] for path in sorted(first)], findings


def _job(item: Item, case: str, rules: Rules, patient: str | None) -> CaseJob:
    split = "Ts" if item.part == "test" else "Tr"
    return radiograph_job(
        case,
        item.image,
        item.annotate,
        item.annotations,
        rules,
        recipe=item.recipe,
        split=split,  # type: ignore[arg-type]  # one of the two
        patient=patient,
    )


def _official(items: Sequence[Item], names: dict[Path, str], source: Path) -> PublishedSplit | None:
    if not any(item.part == "val" for item in items):
        return None
    train = (names[item.image] for item in items if item.part in ("train", None))
    return PublishedSplit.single(
        train, (names[i.image] for i in items if i.part == "val"), f"train and val as {source.name} has them"
    )
