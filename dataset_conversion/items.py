"""What the converters of anybody's radiographs (COCO, YOLO, VOC) share: a list of images, each in a named part of the
data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.findings import file_names, problem, warning
from dataset_conversion.patients import patients_note, read_patients
from dataset_conversion.radiographs import (
    SUFFIXES,
    Annotate,
    Rules,
    choose_negatives,
    finish_radiographs,
    radiograph_job,
    unlabelled_job,
)
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit
from dataset_conversion.tables import unique_cases
from dataset_conversion.writer import CaseJob, RawWriter
from medkd.core.errors import DataError
from medkd.core.resolve import FileIndex, files_ending, part_of_name, read_lines
from medkd.io.checks import Finding

Names = Mapping[Path, str]
"""Image → case id."""
SPLIT_NAMES = ("train", "val", "test")
_FLAGS = (" 1", " 0", " -1")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image and how to get its boxes.

    Attributes:
        image: the file.
        annotate: gives its boxes.
        annotations: the files that ``annotate`` reads.
        part: ``train``, ``val`` or ``test``; None where the source does not say.
        negative: there is no box.
        annotated: False where no file is about the image, so that it counts as a negative by a rule of the format.
        recipe: anything else that the boxes depend on.
    """

    image: Path
    annotate: Annotate
    annotations: tuple[Path, ...] = ()
    part: str | None = None
    negative: bool = False
    annotated: bool = True
    recipe: str = ""


def split_name(path: Path, source: Path) -> str | None:
    """``train``, ``val`` or ``test``, by the words in the name of a file or of the folders above it (below ``source``),
    if any.
    """
    for name in reversed(path.relative_to(source).parts):
        part = part_of_name(name)
        if part is not None:
            return part
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
    items, plain = _without_annotation(items, source, options)
    findings = [finding for finding in (*findings, *doubles) if Path(finding.file) not in plain]
    if not items:
        raise _no_items(format, source, findings)
    names = unique_cases((*(item.image for item in items), *plain), source)
    patients, rows = read_patients(options, names, source)
    items = _with_chosen_negatives(items, names, options)
    writer = RawWriter(folder, format, source, options, file_ending=".png")
    writer.report_findings([*findings, *rows])
    jobs: list[CaseJob] = []
    shown: dict[Path, str] = {}
    for item in items:
        shown[item.image] = names[item.image]
        jobs.append(_job(item, names[item.image], rules, patients.get(item.image)))
    for image in plain:
        shown[image] = names[image]
        jobs.append(unlabelled_job(names[image], image, rules, patients.get(image)))
    writer.convert(jobs)
    notes = ["images that are not upright, whole and 8 bit were written as PNG, all others stay the files they are"]
    notes += patients_note(shown, patients)
    return finish_radiographs(writer, format, rules, _official(items, names, source), notes)


def _without_annotation(
    items: Sequence[Item], source: Path, options: ConversionOptions
) -> tuple[list[Item], list[Path]]:
    """The annotated images, and those in the folder of ``--unlabelled`` that no annotation is about.

    Raises:
        DataError: there is no such folder, or no such image in it.
    """
    wanted = options.settings.get("unlabelled")
    if wanted is None:
        return list(items), []
    folder = _folder_of(wanted, source)
    there = files_ending(folder, *SUFFIXES)
    annotated = {item.image for item in items if item.annotated}
    plain = [image for image in there if image not in annotated]
    if not plain:
        raise DataError(
            f"--unlabelled {folder}: expected images without annotation, found {len(there)} images, all annotated; "
            "leave the option out, or name another folder."
        )
    left = set(plain)
    return [item for item in items if item.image not in left], plain


def _folder_of(wanted: str, source: Path) -> Path:
    for place in (source / wanted, Path(wanted)):
        if place.is_dir():
            return place
    raise DataError(f"--unlabelled names {wanted}, which is no folder, neither in {source} nor elsewhere.")


def _with_chosen_negatives(items: Sequence[Item], names: Names, options: ConversionOptions) -> list[Item]:
    """The images without those negatives that ``--negatives`` leaves out."""
    negatives = [names[item.image] for item in items if item.negative]
    dropped = set(negatives).difference(choose_negatives(negatives, options))
    return [item for item in items if names[item.image] not in dropped]


def _no_items(format: str, source: Path, findings: Iterable[Finding]) -> DataError:
    problems = [finding for finding in findings if finding.error]
    if problems:
        first = problems[0].text()
        return DataError(f"{source}: no image can be used; the first of {len(problems)} problems: {first}")
    return DataError(
        f"{source}: expected images with annotations, found none; medkd_convert {format} --help shows the layout."
    )


def _once(items: Sequence[Item]) -> tuple[list[Item], list[Finding]]:
    """Each image once, sorted; a warning for those that are stated twice, an error for those that are stated in two
    parts of the data set, which are left out.
    """
    first: dict[Path, Item] = {}
    findings: list[Finding] = []
    torn: set[Path] = set()
    for item in items:
        known = first.setdefault(item.image, item)
        if known is item:
            continue
        if known.part and item.part and known.part != item.part:
            torn.add(item.image)
            findings.append(part_finding(item.image, [known.part, item.part], "the annotation files"))
        else:
            findings.append(_twice(item))
    whole = sorted(first.keys() - torn)
    return list(map(first.__getitem__, whole)), findings


def _twice(item: Item) -> Finding:
    return warning(
        item.image.stem,
        item.image,
        "each image in one annotation file",
        f"it again{f' in {item.part}' if item.part else ''}",
        "the first one was used",
    )


def part_finding(image: Path, parts: Iterable[str], where: str) -> Finding:
    """An image in two parts of a data set; nobody knows whether it may be trained on."""
    return problem(
        image.stem,
        image,
        f"each image in one of train, val and test, as {where} divide them",
        f"it in {' and '.join(sorted(set(parts)))}",
        "it was left out; remove it from all but one",
    )


class PartLists:
    """Which images are in which part of a data set, as its lists say.

    Args:
        index: the images.
        source: the folder of the data set.
    """

    def __init__(self, index: FileIndex, source: Path) -> None:
        self._index = index
        self._source = source
        self._parts: dict[Path, set[str]] = {}
        self.lists: list[Path] = []
        self.findings: list[Finding] = []

    def add(self, part: str, path: Path, *near: Path, flags: bool = False, rest: bool = False) -> None:
        """Read a text file with a name or path of an image per line.

        A line that names no image, or several, is an error.

        Args:
            part: ``train``, ``val`` or ``test``.
            path: the list.
            near: folders that the lines may be relative to.
            rest: images of other lists are not meant.
            flags: a line may have a 1, 0 or -1 behind the name (ImageSets of Pascal VOC).

        Raises:
            DataError: the file cannot be read, or none of its lines names an image.
        """
        self.lists.append(path)
        lines = read_lines(path)
        faults = []
        for number, line in lines:
            name = line
            if flags and line.endswith(_FLAGS):
                name = line.rsplit(maxsplit=1)[0]
            try:
                image = self._index.find(name, path.parent, *near)
            except DataError as error:
                faults.append(self._fault(path, number, name, str(error).rstrip(".")))
                continue
            if image is None:
                faults.append(self._fault(path, number, name, f"'{name}', which is not there"))
            elif not rest or image not in self._parts:
                self._parts.setdefault(image, set()).add(part)
        if faults and len(faults) == len(lines):
            raise DataError(
                f"{path}: none of its {len(lines)} lines names an image below {self._source}, the first is "
                f"'{lines[0][1][:200]}'; correct the list or remove it."
            )
        self.findings += faults

    def state(self, part: str, image: Path) -> None:
        """Enter an image that is named by itself."""
        self.lists.append(image)
        self._parts.setdefault(image, set()).add(part)

    def part(self, image: Path) -> str | None:
        """The part that lists an image; None for an image that no list names, and for a torn one."""
        parts = self._parts.get(image, set())
        return next(iter(parts)) if len(parts) == 1 else None

    def torn(self) -> list[Path]:
        """Images in several parts."""
        several = [image for image, parts in self._parts.items() if len(parts) > 1]
        return sorted(several)

    def torn_findings(self) -> list[Finding]:
        """An error for each image in several parts."""
        where = file_names(self.lists)
        return [part_finding(image, self._parts[image], where) for image in self.torn()]

    def _fault(self, path: Path, number: int, name: str, found: str) -> Finding:
        return problem(
            Path(name.replace("\\", "/")).stem,
            f"{path}, line {number}",
            f"one image below {self._source}",
            found[:400],
            "correct the line or remove it",
        )


def _job(item: Item, case: str, rules: Rules, patient: str | None) -> CaseJob:
    return radiograph_job(
        case,
        item.image,
        item.annotate,
        item.annotations,
        rules,
        recipe=item.recipe,
        split="Ts" if item.part == "test" else "Tr",
        patient=patient,
    )


def _official(items: Sequence[Item], names: Names, source: Path) -> PublishedSplit | None:
    members: dict[str, list[str]] = {part: [] for part in SPLIT_NAMES}
    for item in items:
        members[item.part or "train"].append(names[item.image])
    train, val = members["train"], members["val"]
    if not val:
        return None
    return PublishedSplit.single(train, val, f"train and val as {source.name} has them")
