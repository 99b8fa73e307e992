"""Parts that converters of radiographs share: finding images, preparing a case, duplicates, folds, and the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from dataset_conversion.boxes import Box, Drawn, Size, clean_boxes
from dataset_conversion.findings import problem, warning
from dataset_conversion.leaks import Kinship, leak_findings, without_leaks
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter, Split
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.folds import SEED, joined_groups, stratified_folds
from medkd.core.numbers import whole_number
from medkd.core.resolve import FileIndex, files_ending
from medkd.core.serial import to_data
from medkd.core.splits import SPLITS_FILE
from medkd.io.checks import Finding
from medkd.io.radiographs import SCALING, Radiograph, Scaling, read_radiograph, to_eight_bit
from medkd.io.verify_detection import duplicate_findings, duplicate_groups, pixel_digest

Annotate = Callable[[Size], tuple[Drawn, list[Finding]]]
"""(width, height) of the upright image → its boxes, and what was noticed on the way."""

Classes = Mapping[str, Sequence[int]]
"""Case → the numbers of the classes that it has boxes of; of an image with crowds alone, those of the crowds."""
Marks = tuple[str, ...]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
CHANNELS = ("X-ray",)
RESERVED = ("background", "ignore")
SETTINGS = {
    "negatives": "images without a box: all (default), none, or how many of them",
    "unlabelled": (
        "folder, in SOURCE or elsewhere, of images that nobody has annotated: those in it that have no annotation "
        "become imagesUn, from which students learn with a teacher"
    ),
    "patients": "CSV file with the columns image and patient; a patient's images stay in one fold",
    "scaling": (
        "how more than 8 bits become 8: percentile (default: 0.05 to 99.95 %% of the pixels) or range (0 to the "
        "highest value)"
    ),
}


_NOBODY_LEFT = problem(
    "",
    "",
    "training images of patients who are not validated or tested on",
    "none",
    "divide the images anew, by patients",
)


@dataclass(frozen=True)
class Rules:
    """How all cases of a data set are converted.

    Attributes:
        known: classes that the annotations may use.
        categories: classes of the new data set; boxes of other known classes are left out.
        scaling: of images with more than 8 bits.
    """

    known: tuple[str, ...]
    categories: tuple[str, ...]
    scaling: Scaling = "percentile"

    @classmethod
    def choose(cls, known: Sequence[str], options: ConversionOptions) -> Rules:
        """Rules for the classes that a source knows; ``--labels`` chooses and orders some of them.

        Raises:
            DataError: ``--labels`` names a class that the source does not know, a class cannot be called so, two differ
            in capitals only, or the scaling is unknown.
        """
        if options.reorient is not None:
            raise DataError("--reorient turns scans, but this data set has radiographs; leave it out.")
        wanted = options.labels or tuple(known)
        for name in wanted:
            if name not in known:
                raise DataError(f"--labels names '{name}', but the classes of this data set are {', '.join(known)}.")
        _check_classes(wanted, known)
        scaling = options.settings.get("scaling", "percentile")
        if scaling not in get_args(Scaling):
            raise DataError(f"--scaling must be {' or '.join(get_args(Scaling))}, found '{scaling}'.")
        return cls(tuple(known), tuple(wanted), scaling)

    def notes(self) -> list[str]:
        """The decisions, for the report."""
        dropped = [name for name in self.known if name not in self.categories]
        return [f"boxes of the classes {', '.join(dropped)} were left out, as --labels says"] if dropped else []


def _check_classes(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse, before anything is converted, what cannot be the classes of a data set."""
    for name in wanted:
        if _is_reserved(name):
            others = [other for other in dict.fromkeys(known) if other != name and not _is_reserved(other)]
            raise DataError(
                f"A class cannot be called '{name}'; rename it in the annotations, or choose the others with --labels "
                f"{','.join(others)}."
            )
    _check_spellings(known)
    for names in (known, wanted):
        name, times = Counter(names).most_common(1)[0] if names else ("", 0)
        if times > 1:
            raise DataError(f"The class '{name}' is named twice; name each class once.")


def _is_reserved(name: str) -> bool:
    return not name.strip() or name.strip().casefold() in RESERVED


def _check_spellings(known: Sequence[str]) -> None:
    spellings: dict[str, str] = {}
    for name in known:
        plain = " ".join(name.split()).casefold()
        other = spellings.setdefault(plain, name)
        if other != name:
            raise DataError(
                f"The classes '{other}' and '{name}' differ in capitals or blanks only; call them the same in the "
                "annotations."
            )


def image_index(folder: Path) -> FileIndex:
    """The image files below a folder, found by the names that lists and annotations give them."""
    return FileIndex(folder, files_ending(folder, *SUFFIXES), _image_stem)


def _image_stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name


def radiograph_job(
    case: str,
    image: Path,
    annotate: Annotate,
    annotations: Iterable[Path],
    rules: Rules,
    *,
    recipe: str = "",
    split: Split = "Tr",
    patient: str | None = None,
) -> CaseJob:
    """A job for one radiograph.

    The image file is taken over as it is where every reader sees the same upright 8-bit pixels in it; otherwise the
    pixels are written as PNG, without loss. So JPEGs stay JPEGs and cost no more disk than before.

    Args:
        case: case id in the new data set.
        image: the image file.
        annotate: gives its boxes.
        annotations: the files that ``annotate`` reads, by which a change is noticed.
        rules: classes and scaling.
        recipe: anything else that the result depends on.
        split: ``Tr`` or ``Ts``.
        patient: patient id where known.
    """

    def prepare() -> CaseContent:
        radiograph = read_radiograph(image)
        drawn, remarks = annotate(radiograph.size)
        radiograph, mismatch = _fit(case, image, radiograph, drawn)
        stated, faults = clean_boxes(case, drawn, radiograph.size, rules.known)
        names: list[str] = []
        boxes: list[Box] = []
        for name, box in stated:
            if name in rules.categories:
                names.append(name)
                boxes.append(box)
        crowds = drawn.ignored_within(radiograph.size, rules.categories)
        of_crowds = [name for name, _ in crowds]
        marks, noticed = _marks(case, image, radiograph, not boxes and not crowds)
        pixels, window = to_eight_bit(radiograph.pixels, rules.scaling)
        wide = radiograph.pixels.dtype != np.uint8
        width, height = radiograph.size
        annotation = BoxAnnotation(
            width=width,
            height=height,
            boxes=tuple(boxes),
            names=tuple(names),
            ignored=tuple(box for _, box in crowds),
            ignored_names=tuple(of_crowds),
            window=window if wide else None,
        )
        return CaseContent(
            images=(image if radiograph.plain else pixels,),
            label=to_data(annotation),
            values=tuple(number for number, name in enumerate(rules.categories, 1) if name in (names or of_crowds)),
            findings=(*remarks, *mismatch, *faults, *noticed),
            marks=marks,
            digest=pixel_digest(pixels),
        )

    fingerprint = json.dumps([rules.known, rules.categories, rules.scaling, recipe])
    sources = (image, *annotations)
    return CaseJob(case=case, sources=sources, prepare=prepare, recipe=fingerprint, split=split, patient=patient)


def unlabelled_job(case: str, image: Path, rules: Rules, patient: str | None = None) -> CaseJob:
    """A job for a radiograph that nobody has annotated; the arguments are those of :func:`radiograph_job`."""

    def prepare() -> CaseContent:
        radiograph = read_radiograph(image)
        _, noticed = _marks(case, image, radiograph, False)
        pixels, _ = to_eight_bit(radiograph.pixels, rules.scaling)
        piece = image if radiograph.plain else pixels
        return CaseContent(images=(piece,), findings=tuple(noticed), digest=pixel_digest(pixels))

    return CaseJob(case=case, sources=(image,), prepare=prepare, recipe=rules.scaling, split="Un", patient=patient)


def choose_negatives(names: Sequence[str], options: ConversionOptions) -> list[str]:
    """The images without a box that are to be converted: ``--negatives all`` (default), ``none``, or a number, evenly
    spaced.

    Raises:
        DataError: the setting is something else.
    """
    wanted = options.settings.get("negatives", "all")
    names = sorted(names)
    if wanted == "all":
        return names
    if wanted == "none":
        return []
    number = whole_number(wanted)
    if number is None:
        raise DataError(f"--negatives must be all, none or a number, found '{wanted}'.")
    total = len(names)
    count = min(number, total)
    return [names[i * total // count] for i in range(count)]


def finish_radiographs(
    writer: RawWriter,
    format: str,
    rules: Rules,
    official: PublishedSplit | None,
    notes: Iterable[str] = (),
    **extra: object,
) -> ConversionReport:
    """Look for duplicates, write folds, ``dataset.json`` and the report.

    Without a published split there are five folds, stratified by class, in which a patient's images and equal images
    stay together. From a published one, training images that equal one of its validation images (or a test image), or
    show a patient of one, are taken out. In a ``splits_final.json`` that is there already, such images are an error.

    Args:
        writer: all cases are converted by now.
        format: name of the converter.
        rules: of the conversion.
        official: the published split, if there is one.
        notes: decisions that the converter took.
        extra: further keys for ``"medkd"`` in ``dataset.json``.
    """
    entries = writer.entries
    digests: dict[str, str] = {}
    plain: dict[str, str] = {}
    classes: dict[str, tuple[int, ...]] = {}
    tests: set[str] = set()
    for key, entry in entries.items():
        part, _, case = key.partition("/")
        if part == "Un":  # in no fold
            plain[case] = entry.digest
            continue
        digests[case] = entry.digest
        classes[case] = entry.values
        if part == "Ts":
            tests.add(case)
    twins = duplicate_groups(digests)
    writer.report_findings(duplicate_findings(digests | plain))
    writer.report_list("duplicates", map(" = ".join, twins))
    writer.report_findings(_contradictions(twins, classes))
    kin = Kinship(writer.patients, twins, tests)
    split, more = _split(writer, kin, official, classes)
    users = writer.folder / SPLITS_FILE
    writer.report_findings(leak_findings(users, kin, writer.training_cases))
    own: dict[str, object] = {SCALING: rules.scaling, **extra}
    if twins:
        own["duplicates"] = twins
    description = DatasetDescription.detection(CHANNELS, rules.categories)
    description = replace(description, extra={"medkd": own})
    all_notes = [*notes, *rules.notes(), *more]
    return finish_converted(writer, format, description, split, all_notes)


def _split(
    writer: RawWriter, kin: Kinship, official: PublishedSplit | None, classes: Classes
) -> tuple[PublishedSplit | None, list[str]]:
    """The folds without leaks, and notes about what was taken out of training."""
    training = writer.training_cases
    equal: Sequence[str] = ()
    split: PublishedSplit | None
    if official is not None:
        split, equal, same = without_leaks(official, kin)
    else:
        like_test, of_test_patients = kin.leaks(training, ())
        same = sorted(of_test_patients)
        usable = set(training).difference(like_test, of_test_patients)
        groups = joined_groups(training, writer.patients, kin.twins)
        split = make_folds({case: classes[case] for case in usable}, groups)
    writer.report_list("taken out of training with their patients", same)
    if same and not _trains(split):
        writer.report_findings([_NOBODY_LEFT])
    notes = []
    if equal:
        notes.append(f"taken out of training, since an equal image is validated or tested on: {', '.join(equal)}")
    if same:
        reason = "since other images of their patients are validated or tested on"
        notes.append(f"taken out of training, {reason}: {kin.named(same)}")
    return split, notes


def _trains(split: PublishedSplit | None) -> bool:
    """Whether some fold has a training case."""
    return split is not None and any(train for train, _ in split.folds)


def make_folds(classes: Classes, groups: Mapping[str, str]) -> PublishedSplit | None:
    """Five folds, stratified by the rarest class of an image, groups kept whole (scikit-learn's
    ``StratifiedGroupKFold``).

    Args:
        classes: case → the classes of its boxes; none for a negative.
        groups: case → what must stay together.

    Returns:
        The folds; None where there are fewer than two groups.
    """
    folds = stratified_folds(classes, groups)
    if not folds:
        return None
    return PublishedSplit(
        tuple(folds), f"{len(folds)} folds, stratified by class, patients and equal images kept together, seed {SEED}"
    )


def _fit(case: str, path: Path, image: Radiograph, drawn: Drawn) -> tuple[Radiograph, list[Finding]]:
    """The image in the frame of its annotation, judged by the size that the annotation states."""
    if drawn.size is None or drawn.size == image.size:
        return image, []
    expected = f"{drawn.size[0]}×{drawn.size[1]} px, as {drawn.file.name} says"
    found = f"{image.size[0]}×{image.size[1]} px"
    if drawn.size == image.stored_size:
        action = "it was drawn on the image as stored, so the image was not turned; look at it in the contact sheet"
        note = warning(case, path, expected, f"{found} after EXIF orientation {image.orientation}", action)
        return read_radiograph(path, upright=False), [note]
    return image, [problem(case, path, expected, found, "find the image that was annotated, or remove it")]


def _marks(case: str, path: Path, image: Radiograph, negative: bool) -> tuple[Marks, list[Finding]]:
    facts = {
        "negative": negative,
        "rotated": image.orientation != 1,
        "truncated": image.truncated,
        "16 bit": image.pixels.dtype != np.uint8,
    }
    findings = []
    if image.truncated:
        action = "what can be read was written as PNG, the rest is black; look at it in the contact sheet"
        found = f"one whose end is missing, and with it {image.lost:.1%} of the pixels"
        findings.append(warning(case, path, "a whole JPEG", found, action))
    marks = tuple(filter(facts.__getitem__, facts))
    return marks, findings


def _contradictions(twins: Sequence[Sequence[str]], classes: Classes) -> list[Finding]:
    """Equal images of which one has boxes of a class that the other one has not."""
    expected = "boxes of the same classes in equal images"
    findings = []
    for group in twins:
        different = {tuple(classes[case]) for case in group}
        if len(different) > 1:
            found = f"different classes, or boxes in one of them only, in {', '.join(group)}"
            findings.append(warning(group[0], "", expected, found, "correct or remove one of them"))
    return findings
