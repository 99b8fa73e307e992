"""Data sets cut into 2D slices (``.npz``, ``.h5``): the slices of a case are put back together to one volume.

Such files carry no voxel size and no orientation. Volumes are written with 1 mm along every axis, so that distances
count voxels.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from dataset_conversion.findings import problem, warning
from dataset_conversion.layout import contents, existing_folder
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter, Split
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import check_file
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.resolve import NameIndex, files_ending, part_of_name, path_parts, read_lines
from medkd.io.checks import Finding, finite_finding, label_finding, label_values
from medkd.io.volumes import Volume, as_label

UNIT_SPACING = (
    "the source states no voxel size: 1 mm is written along every axis, so that HD95 and NSD count voxels; train the "
    "configuration 2d"
)

_ENDINGS = (".npy.h5", ".h5", ".hdf5", ".npz")
_HDF5 = (".h5", ".hdf5")
_SLICE = re.compile(r"^(?P<case>.+?)_slice_?(?P<phase>[A-Za-z]{2})?_?(?P<index>\d+)$", re.IGNORECASE)
_VOLUME = re.compile(r"^(?P<case>.+?)_volume_?(?P<phase>[A-Za-z]{2})$", re.IGNORECASE)
_PATIENT = re.compile(r"^(?P<patient>.+?)_(?:frame\d+|E[DS])$")
_IMAGE, _LABEL = ("image", "img"), ("label", "mask")
_DAMAGED = (OSError, ValueError, EOFError, LookupError, RuntimeError, TypeError, OverflowError, MemoryError) + (
    zipfile.BadZipFile,
    zlib.error,
)
_ORDER = ("train", "val", "test")


@dataclass
class SlicedCase:
    """The files of one case: slices by number, or one volume; ``part`` is ``train``, ``val`` or ``test``."""

    part: str
    slices: dict[int, Path] = field(default_factory=dict)
    volume: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What the case is made from: the volume where there is one, else its slices in order."""
        if self.volume is not None:
            return (self.volume,)
        numbers = sorted(self.slices)
        return tuple(self.slices[number] for number in numbers)


def convert_slices(
    format: str, source: Path, folder: Path, options: ConversionOptions, labels: LabelSpec, channel: str
) -> ConversionReport:
    """Convert a tree of slices and volumes.

    Folders whose name begins with ``test`` hold test cases, with ``val`` the validation cases of fold 0;
    ``train.list``, ``val.list`` and ``test.list`` (one case or file per line) say the same. A line that is no case, or
    may be several, is an error that names it, and so is a case that lists have in two parts.

    Args:
        format: name of the converter.
        source: the folder.
        folder: to write.
        options: the user's; ``labels`` and ``channels`` replace the format's own.
        labels: the format's labels.
        channel: the format's channel name.

    Raises:
        DataError: there are no such files, h5py is missing, or the output cannot be written.
    """
    source = existing_folder(source, format)
    cases, findings = find_cases(source)
    if not cases:
        raise DataError(f"{source}: expected .npz or .h5 files with slices or volumes, found {contents(source)}.")
    _check_reader(cases.values())
    if options.labels:
        labels = LabelSpec.from_names(options.labels)
    writer = RawWriter(folder, format, source, options)
    writer.report_findings(findings)
    writer.convert(_jobs(cases, labels))
    split = _split(cases)
    description = DatasetDescription(channel_names=options.channels or (channel,), labels=labels, num_training=0)
    return finish_converted(writer, format, description, split, [UNIT_SPACING])


def _check_reader(cases: Iterable[SlicedCase]) -> None:
    """Ask for h5py before anything is converted, if one of the files needs it."""
    for case in cases:
        for path in case.files:
            if path.name.lower().endswith(_HDF5):
                _h5py()
                return


def _jobs(cases: Mapping[str, SlicedCase], labels: LabelSpec) -> list[CaseJob]:
    """A job for each case; the slices of all are numbered from 0 or all from 1."""
    first = 1
    for case in cases.values():
        if 0 in case.slices:
            first = 0
    return [_job(name, case, labels, first) for name, case in sorted(cases.items())]


def _split(cases: Mapping[str, SlicedCase]) -> PublishedSplit | None:
    """The training and validation cases as fold 0; None without validation cases."""
    parts: dict[str, list[str]] = {part: [] for part in _ORDER}
    for name, case in cases.items():
        parts[case.part].append(name)
    if not parts["val"]:
        return None
    return PublishedSplit.single(parts["train"], parts["val"], "validation cases of the download")


def find_cases(source: Path) -> tuple[dict[str, SlicedCase], list[Finding]]:
    """All cases below a folder by name, and the files that were not used and the lines of lists that are wrong.

    Raises:
        DataError: a list cannot be read, or none of its lines is a case.
    """
    cases: dict[str, SlicedCase] = {}
    names: dict[str, str] = {}
    findings = []
    for path in files_ending(source, *_ENDINGS):
        name, index = _case_and_index(path)
        name = names.setdefault(name.casefold(), name)
        part = _part(path.relative_to(source))
        case = cases.setdefault(name, SlicedCase(part))
        case.part = _stricter(case.part, part)
        first = case.volume if index is None else case.slices.get(index)
        if first is not None:
            findings.append(_twice(name, path, first))
        elif index is None:
            case.volume = path
        else:
            case.slices[index] = path
    return cases, [*findings, *_apply_lists(source, cases)]


def _twice(name: str, path: Path, first: Path) -> Finding:
    return warning(name, path, "each slice and each volume once", f"also {first}", "the first one was used")


def _apply_lists(source: Path, cases: dict[str, SlicedCase]) -> list[Finding]:
    """Give the cases the parts that lists state; those that lists have in two parts are left out."""
    index = NameIndex(cases, _case_spellings)
    parts: dict[str, dict[str, Path]] = {}
    findings = []
    for path in files_ending(source, ".list"):
        part = part_of_name(path.stem)
        if part is None:
            findings.append(_unknown_list(path))
            continue
        lines = [line for _, line in read_lines(path)]
        listed, faults = index.find_all(lines)
        if lines and not listed:
            raise DataError(f"{path}: none of its lines is a case below {source}, the first is '{lines[0][:200]}'.")
        for case in listed:
            parts.setdefault(case, {})[part] = path
        for text, fault in faults.items():
            findings.append(_line_finding(path, text, fault))
    return [*findings, *_apply_parts(parts, cases)]


def _apply_parts(parts: Mapping[str, Mapping[str, Path]], cases: dict[str, SlicedCase]) -> list[Finding]:
    """Case → part → the list that states it."""
    findings = []
    for name, stated in parts.items():
        part, path = next(iter(stated.items()))
        if len(stated) > 1:
            del cases[name]
            where = " and ".join(map(str, stated.values()))
            findings.append(_line_finding(path, name, f"'{name}' in {where}"))
            continue
        findings += _other_folder(name, cases[name], part, path)
        cases[name].part = _stricter(cases[name].part, part)
    return findings


def _unknown_list(path: Path) -> Finding:
    expected, action = "a list called train, val or test", "it was passed over; rename or remove it"
    return warning("", path, expected, path.name, action)


def _case_spellings(name: str) -> list[str]:
    """What a line of a list may call a case: the case, one of its files, or one of its slices."""
    short = _without_ending(name)
    case, _ = _parsed(short)
    return [name, short, case]


def _without_ending(name: str) -> str:
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _line_finding(path: Path, text: str, found: str) -> Finding:
    parts = path_parts(text)
    case = _case_spellings(parts[-1])[-1] if parts else ""
    expected = "lines that are a case each, in one list"
    return problem(case, path, expected, found, "correct or remove the line")


def _other_folder(name: str, case: SlicedCase, part: str, path: Path) -> list[Finding]:
    """A warning where the folder says something else than the list; folders without a part are ``train``."""
    if case.part in ("train", part):
        return []
    return [
        warning(
            name,
            path,
            f"the part of its folder, {case.part}",
            part,
            f"it was taken for {_stricter(case.part, part)}; correct the list or move the files",
        )
    ]


def _case_and_index(path: Path) -> tuple[str, int | None]:
    """The case that a file name says, and the number of the slice; None for a volume."""
    return _parsed(_without_ending(path.name))


def _parsed(name: str) -> tuple[str, int | None]:
    match = _SLICE.match(name) or _VOLUME.match(name)
    if match is None:
        return name, None
    phase = (match["phase"] or "").upper()
    case = f"{match['case']}_{phase}" if phase else match["case"]
    return case, int(match["index"]) if "index" in match.groupdict() else None


def read_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image and label arrays of a ``.npz`` or ``.h5`` file.

    Raises:
        DataError: the file is damaged, lacks one of the two, or h5py is not installed.
    """
    check_file(path)
    try:
        if path.name.lower().endswith(_HDF5):
            with _h5py().File(path, "r") as stored:
                return _arrays(path, stored)
        with np.load(path, allow_pickle=False) as archive:
            return _arrays(path, archive)
    except _DAMAGED as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again.") from error


def _arrays(path: Path, stored: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for names in (_IMAGE, _LABEL):
        key = next((name for name in names if name in stored), None)
        if key is None:
            raise DataError(f"{path}: expected the arrays 'image' and 'label', found {', '.join(stored) or 'none'}.")
        array = np.asarray(stored[key])
        if array.dtype.kind not in "biuf":
            raise DataError(f"{path}: expected numbers in '{key}', found {array.dtype}; download it again.")
        arrays.append(array)
    return arrays[0], arrays[1]


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            "Reading .h5 files needs h5py, which is not installed; install it with: pip install 'medkd[h5]'."
        ) from error
    return h5py


def _part(path: Path) -> str:
    """What the folders above a file say; ``train`` where they say nothing."""
    found = "train"
    for name in path.parts[:-1]:
        for part in ("val", "test"):
            if name.lower().startswith(part):
                found = _stricter(found, part)
    return found


def _stricter(first: str, second: str) -> str:
    """A case that lies in several folders belongs to the part that training must not see."""
    return max(first, second, key=_ORDER.index)


def _job(name: str, case: SlicedCase, labels: LabelSpec, first: int) -> CaseJob:
    split: Split = "Ts" if case.part == "test" else "Tr"
    match = _PATIENT.match(name)
    recipe = f"stacked, labels {labels.values}"
    return CaseJob(
        case=name,
        sources=case.files,
        prepare=lambda: _prepare(name, case, labels, first),
        recipe=recipe,
        split=split,
        patient=match["patient"] if match else None,
    )


def _prepare(name: str, case: SlicedCase, labels: LabelSpec, first: int) -> CaseContent:
    gaps = [] if case.volume else _gaps(name, case.slices, first)
    if gaps:
        return CaseContent(images=(), findings=tuple(gaps))
    image, label = _volume(case.volume) if case.volume else _stack(case.files)
    grid = Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
    path = case.files[0]
    mapped = as_label(Volume(label, grid), path)
    values = label_values(mapped.array)
    findings = [*finite_finding(name, path, image), *label_finding(name, path, values, labels.values)]
    small = mapped.array
    if min(values) >= 0 and max(values) < 256:
        small = small.astype(np.uint8)
    return CaseContent(
        images=(Volume(image, grid),), label=Volume(small, grid), values=values, findings=tuple(findings)
    )


def _volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image, label = read_pair(path)
    if image.ndim != 3 or image.shape != label.shape:
        raise DataError(
            f"{path}: expected image and label of one shape (slices, y, x), found {image.shape} and {label.shape}."
        )
    return image.astype(np.float32), label


def _stack(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for path in paths:
        image, label = read_pair(path)
        expected = images[0].shape if images else image.shape
        if image.ndim != 2 or image.shape != expected or label.shape != expected:
            raise DataError(
                f"{path}: expected image and label slices of shape {expected}, found {image.shape} and {label.shape}."
            )
        images.append(image.astype(np.float32))
        labels.append(label)
    return np.stack(images), np.stack(labels)


def _gaps(name: str, slices: Mapping[int, Path], first: int) -> list[Finding]:
    """Slices that are missing in between; the numbers of a data set begin at ``first``, 0 or 1."""
    numbers = range(first, max(slices) + 1)
    missing = [number for number in numbers if number not in slices]
    if not missing:
        return []
    found = f"no slice {', '.join(map(str, missing[:10]))}" + (" …" if len(missing) > 10 else "")
    folder = str(next(iter(slices.values())).parent)
    return [
        problem(
            name, folder, f"all slices from {numbers[0]} to {numbers[-1]}", found, "download the missing files again"
        )
    ]
