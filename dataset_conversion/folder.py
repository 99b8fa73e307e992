"""Parts that converters of volume files share: pairing images with label maps, and checking and preparing one case."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.findings import file_names, has_errors, problem
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.writer import CaseContent, CaseJob, Piece, Split
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.resolve import stands_for_file
from medkd.io.checks import Finding, finite_finding, grid_findings, label_finding, label_values, unreadable_finding
from medkd.io.verify import worker_count
from medkd.io.volumes import Volume, as_label, file_ending, read_channels, read_label, read_volume, stem

NamedLabels = tuple[LabelSpec, dict[int, int] | None, list[str]]
"""Labels, source value → new value where values were renumbered, and notes for the report."""
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Pairs:
    """Images and label maps that belong together.

    Attributes:
        images: case → channel number → file.
        labels: case → label map.
        findings: images without label, label maps without image.
    """

    images: Mapping[str, Mapping[int, Path]]
    labels: Mapping[str, Path]
    findings: tuple[Finding, ...]


def list_volumes(folder: Path) -> list[Path]:
    """The image files of a folder, sorted, links to nothing among them, and empty folders called like one; hidden files
    and the ``._`` files that macOS leaves in archives are ignored.
    """
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if path.name.startswith(".") or not file_ending(path):
            continue
        if not path.is_dir() or stands_for_file(path):
            found.append(path)
    return sorted(found)


def split_channel(name: str) -> tuple[str, int]:
    """``case_0002`` → ``("case", 2)``; a name without such an ending is channel 0."""
    match = _CHANNEL.match(name)
    if match is None:
        return name, 0
    return match["case"], int(match["channel"])


def has_voxel_size(picture: Path) -> bool:
    """Whether a JSON file that is called as the picture states one; others, as annotations, are nobody's business."""
    for name in {stem(picture), split_channel(stem(picture))[0]}:
        file = picture.with_name(f"{name}.json")
        content = read_json(file) if file.is_file() else None
        if isinstance(content, dict) and "spacing" in content:
            return True
    return False


def pair_files(images: Path, labels: Path) -> Pairs:
    """Pair two folders by file name; images may end in ``_0000``, ``_0001``, … (one file per channel)."""
    label_files = {stem(p): p for p in list_volumes(labels)}
    grouped: dict[str, dict[int, Path]] = {}
    findings = []
    for path in list_volumes(images):
        name = stem(path)
        case, channel = (name, 0) if name in label_files else split_channel(name)
        if case in label_files:
            grouped.setdefault(case, {})[channel] = path
        else:
            action = f"add the label map, or move the image to {images.parent / 'imagesTs'}"
            findings.append(problem(case, path, f"a label map {case} in {labels}", "none", action))
    for case, path in label_files.items():
        if case not in grouped:
            findings.append(
                problem(case, path, f"an image {case} in {images}", "none", "add the image or remove the label map")
            )
    for case in label_files.keys() - grouped.keys():
        del label_files[case]
    return Pairs(grouped, label_files, tuple(findings))


def find_values(labels: Mapping[str, Path], workers: int | None = None) -> dict[int, int]:
    """Label value → number of cases that hold it, over all readable label maps."""

    def values(path: Path) -> tuple[int, ...]:
        try:
            return label_values(read_label(path).array)
        except DataError:  # the case itself is reported when it is converted
            return ()

    counts: Counter[int] = Counter()
    with ThreadPoolExecutor(workers or worker_count(labels.values())) as pool:
        for found in pool.map(values, labels.values()):
            counts.update(found)
    return dict(sorted(counts.items()))


def name_values(counts: Mapping[int, int], labels: Path) -> NamedLabels:
    """Labels for values that the source does not name; gaps are closed, since labels must be consecutive.

    Args:
        counts: label value → number of cases, as :func:`find_values` gives them.
        labels: their folder, for error texts.

    Returns:
        The labels, source value → new value where values were renumbered, and notes for the report.

    Raises:
        DataError: there is no positive value, or the values are those of an image.
    """
    values = [value for value in counts if value != 0]
    _check_values(values, labels)
    seen = ", ".join(f"{value} (in {cases} cases)" for value, cases in counts.items())
    names = [f"label_{value}" for value in values]
    notes = [f"label values found: {seen}; they were named {', '.join(names)}; give --labels for better names"]
    spec = LabelSpec.from_names(names)
    recode = dict(zip(values, range(1, len(values) + 1), strict=True))
    if values == list(range(1, len(values) + 1)):
        return spec, None, notes
    pairs = ", ".join(f"{old}→{new}" for old, new in recode.items())
    notes.append(f"label values were renumbered: {pairs}")
    return spec, recode, notes


def _check_values(values: Sequence[int], labels: Path) -> None:
    if not values:
        found = "only background"
    elif values[0] < 0 or len(values) > 255:
        found = f"{values[0]}..{values[-1]} ({len(values)} values)"
    else:
        return
    raise DataError(
        f"{labels}: expected a few positive label values, found {found}; name them with --labels, or check the folder."
    )


def named_labels(options: ConversionOptions, labels: Mapping[str, Path], folder: Path) -> NamedLabels:
    """The labels that ``--labels`` names, else those that the label maps hold; see :func:`name_values`."""
    if options.labels:
        return LabelSpec.from_names(options.labels), None, []
    return name_values(find_values(labels, options.workers), folder)


def volume_job(
    case: str,
    images: Sequence[Path],
    label: Path | None,
    channels: int,
    allowed: Sequence[int] | None,
    *,
    recode: Mapping[int, int] | None = None,
    split: Split = "Tr",
    patient: str | None = None,
) -> CaseJob:
    """A job for a case of volume files.

    A ``.nii.gz`` file that is right as it is is taken over unchanged; other formats, 4D images (split into channels),
    label maps stored as floats and recoded label maps are written anew.

    Args:
        case: case id in the new data set.
        images: one file per channel in order, or one 4D file.
        label: label map, or None.
        channels: how many channels there must be.
        allowed: label values that may occur after recoding; None allows all.
        recode: source value → value in the new data set; values that it does not name stay.
        split: ``Tr`` or ``Ts``.
        patient: patient id where known.
    """

    def prepare() -> CaseContent:
        pieces, findings, first = _prepare_images(case, images, channels)
        if label is None:
            return CaseContent(images=pieces, findings=tuple(findings))
        try:
            stored = read_volume(label, None)
            volume = as_label(stored, label)
        except DataError as error:
            return CaseContent(images=pieces, findings=(*findings, unreadable_finding(case, label, error)))
        changed = recode is not None and recode_values(volume.array, recode)
        values = label_values(volume.array)
        if first:
            findings += grid_findings(case, *first, label, volume.geometry)
        if allowed is not None:
            findings += label_finding(case, label, values, allowed)
        whole_numbers = stored.array.dtype.kind in "iu"
        keep = not changed and whole_numbers and _is_plain(label)
        written = label if keep else compact_label(volume)
        return CaseContent(images=pieces, label=written, values=values, findings=tuple(findings))

    renumbered = sorted((recode or {}).items())
    recipe = json.dumps([channels, list(allowed or ()), renumbered])
    sources = (*images, label) if label else tuple(images)
    return CaseJob(case=case, sources=sources, prepare=prepare, recipe=recipe, split=split, patient=patient)


def _prepare_images(
    case: str, paths: Sequence[Path], channels: int
) -> tuple[tuple[Piece, ...], list[Finding], tuple[Path, Geometry] | None]:
    pieces: list[Piece] = []
    findings: list[Finding] = []
    first: tuple[Path, Geometry] | None = None
    for path in paths:
        try:
            volumes = read_channels(path)
        except DataError as error:
            findings.append(unreadable_finding(case, path, error))
            continue
        first = first or (path, volumes[0].geometry)
        findings += grid_findings(case, *first, path, volumes[0].geometry)
        for volume in volumes:
            findings += finite_finding(case, path, volume.array)
        pieces += [path] if len(volumes) == 1 and _is_plain(path) else volumes
    if len(pieces) != channels and not has_errors(findings):
        findings.append(channels_finding(case, len(pieces), paths, channels))
    return tuple(pieces), findings, first


def channels_finding(case: str, count: int, paths: Sequence[Path], channels: int) -> Finding:
    """A case with too many or too few images."""
    return problem(
        case,
        "",
        f"{channels} channels",
        f"{count} ({file_names(paths)})",
        "add the missing files or name the channels with --channels",
    )


def _is_plain(path: Path) -> bool:
    """Whether the file can be taken over unchanged: ``.nii.gz``, and three axes in the header too."""
    from medkd.io.nifti import read_header

    return path.name.endswith(".nii.gz") and len(read_header(path)[0]) == 3


def recode_values(array: np.ndarray, recode: Mapping[int, int]) -> bool:
    """Replace values in place by a lookup table; returns whether anything changed."""
    if not array.size:
        return False
    low, high = int(array.min()), int(array.max())
    table = np.arange(low, high + 1, dtype=array.dtype)
    for old, new in recode.items():
        if low <= old <= high:
            table[old - low] = new
    same = np.array_equal(table, np.arange(low, high + 1))
    if not same:
        array[...] = table[array - low if low else array]
    return not same


def compact_label(label: Volume) -> Volume:
    """The label map as uint8 where its values fit."""
    array = label.array
    if not array.size or (array.min() >= 0 and array.max() < 256):
        array = array.astype(np.uint8)
    return Volume(array, label.geometry)


def first_existing(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these sub-folders that exists."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    return None
