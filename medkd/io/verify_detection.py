"""Check a raw detection data set: radiographs and their boxes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.boxes import IMAGE_ENDINGS, BoxAnnotation, box_faults
from medkd.core.dataset import CaseFiles, DatasetDescription, detection_cases
from medkd.core.errors import DataError
from medkd.io.checks import Finding, has_error
from medkd.io.comparison import alike_findings, spelling_findings
from medkd.io.radiographs import Radiograph, read_radiograph
from medkd.io.verify_patients import patient_findings
from medkd.io.verify_unlabelled import check_layout

_MEND = "correct the file or leave the case out"


@dataclass(frozen=True)
class DetectionCheck:
    """What the files of one case hold.

    Attributes:
        findings: problems and warnings.
        names: classes of the boxes.
        digest: fingerprint of the pixels, to find duplicates; empty where the image is unreadable.
    """

    case: str
    findings: tuple[Finding, ...]
    names: tuple[str, ...] = ()
    digest: str = ""

    @property
    def good(self) -> bool:
        """Whether the case can be used."""
        return not has_error(self.findings)


def check_detection(
    folder: Path, description: DatasetDescription, *, workers: int | None = None
) -> tuple[list[DetectionCheck], list[Finding]]:
    """Check the training and test cases of a detection data set.

    Images without annotation (``imagesUn``) are checked for what can be wrong with an image.

    Checked: unreadable images, images that are not 8 bit, upright and whole, annotations of another form or image size,
    unknown classes, boxes outside of the image or without area, equal boxes, images without annotation,
    ``numTraining``, categories without a box, equal images.

    Args:
        folder: the raw data set.
        description: its ``dataset.json``.
        workers: threads; None takes the cores.

    Returns:
        The checks of the training cases, and the findings about the data set and its test cases.

    Raises:
        DataError: there are no training cases.
    """
    training = detection_cases(folder, description)
    plain, layout = check_layout(folder, description, {case.case for case in training}, IMAGE_ENDINGS)
    cases = [*training, *detection_cases(folder, description, "Ts"), *plain]
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as pool:
        checks = list(pool.map(lambda case: check_detection_case(case, description.categories), cases))
    findings = layout + patient_findings(folder, description)
    for check in checks[len(training) :]:
        findings += check.findings
    findings += duplicate_findings({check.case: check.digest for check in checks})
    findings += alike_findings([check.case for check in checks])
    if description.num_training != len(training):
        findings.append(
            Finding(
                case="",
                file=str(folder / "dataset.json"),
                expected=f"{description.num_training} training cases (numTraining)",
                found=f"{len(training)} annotations",
                action="correct numTraining or restore the missing cases",
            )
        )
    findings += _stray_images(folder / "imagesTr", training)
    findings += _unused(description.categories, checks)
    findings += spelling_findings(folder / "dataset.json", "categories", description.categories)
    return checks[: len(training)], findings


def check_detection_case(files: CaseFiles, categories: tuple[str, ...]) -> DetectionCheck:
    """Check one image and its boxes."""
    image, label = files.images[0], files.label
    findings: list[Finding] = []
    radiograph: Radiograph | None = None
    try:
        radiograph = read_radiograph(image)
        findings += _image_findings(files.case, image, radiograph)
    except DataError as error:
        findings.append(
            Finding(
                case=files.case,
                file=str(image),
                expected="a readable PNG or JPEG",
                found=str(error).rstrip("."),
                action="replace the file",
            )
        )
    names: tuple[str, ...] = ()
    if label is not None:
        try:
            annotation = BoxAnnotation.load(label)
        except DataError as error:
            findings.append(
                Finding(
                    case=files.case,
                    file=str(label),
                    expected="a readable annotation",
                    found=str(error).rstrip("."),
                    action=_MEND,
                )
            )
        else:
            names = annotation.names
            findings += _annotation_findings(files.case, label, annotation, radiograph, categories)
    return DetectionCheck(files.case, tuple(findings), names, pixel_digest(radiograph.pixels) if radiograph else "")


def pixel_digest(pixels: np.ndarray) -> str:
    """Fingerprint of pixels and their arrangement."""
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def duplicate_groups(digests: Mapping[str, str]) -> list[list[str]]:
    """Cases with equal images, in groups of two or more; cases without digest are in none."""
    same: dict[str, list[str]] = defaultdict(list)
    for case, digest in sorted(digests.items()):
        if digest:
            same[digest].append(case)
    return [cases for cases in same.values() if len(cases) > 1]


def duplicate_findings(digests: Mapping[str, str]) -> list[Finding]:
    """A warning for each group of cases with equal images."""
    action = "they must be in one fold; keep one of them if their boxes contradict each other"
    findings = []
    for cases in duplicate_groups(digests):
        findings.append(
            Finding(
                case=cases[0],
                file="",
                expected="different images in different cases",
                found=f"the same pixels in {', '.join(cases)}",
                action=action,
                error=False,
            )
        )
    return findings


def _image_findings(case: str, path: Path, image: Radiograph) -> list[Finding]:
    found = None
    if image.truncated:
        found = "a JPEG whose end is missing"
    elif image.orientation != 1:
        found = f"EXIF orientation {image.orientation}, which not every reader applies"
    elif not image.plain:
        found = f"{image.pixels.dtype} pixels or a format that readers decode differently"
    if found is None:
        return _constant(case, path, image)
    return [
        Finding(
            case=case,
            file=str(path),
            expected="an upright, whole 8-bit image with one or three channels",
            found=found,
            action="convert the data set with medkd_convert",
        )
    ]


def _constant(case: str, path: Path, image: Radiograph) -> list[Finding]:
    """A warning about a picture of nothing."""
    value = image.pixels.flat[0]
    if not (image.pixels == value).all():
        return []
    return [
        Finding(
            case=case,
            file=str(path),
            expected="an image that shows something",
            found=f"the value {value} in all pixels",
            action="an empty image says nothing to the network: restore it, or leave the case out",
            error=False,
        )
    ]


def _annotation_findings(
    case: str, path: Path, annotation: BoxAnnotation, image: Radiograph | None, categories: tuple[str, ...]
) -> list[Finding]:
    findings = []
    size = (annotation.width, annotation.height)
    if image is not None and image.size != size:
        found = f"{image.size[0]}×{image.size[1]} px"
        findings.append(
            Finding(
                case=case,
                file=str(path),
                expected=f"an image of {size[0]}×{size[1]} px, as annotated",
                found=found,
                action=_MEND,
            )
        )
    for name, count in Counter(annotation.names).items():
        if name not in categories:
            findings.append(
                Finding(
                    case=case,
                    file=str(path),
                    expected=f"only the categories {', '.join(categories)} of dataset.json",
                    found=f"{count} boxes of '{name}'",
                    action=f"add it to 'categories' or {_MEND}",
                )
            )
    return findings + _box_findings(case, path, annotation)


def _box_findings(case: str, path: Path, annotation: BoxAnnotation) -> list[Finding]:
    """Boxes outside of the image or without area, and boxes that are there several times."""
    findings = []
    boxes = list(zip(annotation.boxes, annotation.names, strict=True))
    for box, name in boxes:
        fault = box_faults(box, annotation.width, annotation.height)
        if fault is not None:
            findings.append(
                Finding(
                    case=case,
                    file=str(path),
                    expected="boxes with area inside the image",
                    found=f"{name} {list(box)} with {fault}",
                    action=_MEND,
                )
            )
    for (box, name), count in Counter(boxes).items():
        if count > 1:
            findings.append(
                Finding(
                    case=case,
                    file=str(path),
                    expected="each box once",
                    found=f"{name} {list(box)} {count} times",
                    action="remove the copies",
                    error=False,
                )
            )
    return findings


def _stray_images(folder: Path, cases: list[CaseFiles]) -> list[Finding]:
    known = {case.images[0].name for case in cases}
    findings = []
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        if path.name in known or path.name.startswith("."):
            continue
        severe = path.suffix.lower() in IMAGE_ENDINGS
        action = "add its annotation (an empty list of boxes for a negative) or remove it" if severe else "remove it"
        findings.append(
            Finding(
                case="",
                file=str(path),
                expected="one image CASE_0000.png or .jpg per annotation",
                found=path.name,
                action=action,
                error=severe,
            )
        )
    return findings


def _unused(categories: tuple[str, ...], checks: list[DetectionCheck]) -> list[Finding]:
    present: set[str] = set()
    for check in checks:
        present.update(check.names)
    unused = [name for name in categories if name not in present]
    if not unused:
        return []
    found = f"no box of {', '.join(unused)}"
    return [
        Finding(
            case="",
            file="dataset.json",
            expected="every category to occur",
            found=found,
            action="its average precision cannot be measured",
            error=False,
        )
    ]
