"""Data sets cut into 2D slices (``.npz``, ``.h5``): the slices of a case are put back together to one volume.

Such files carry no voxel size and no orientation. Volumes are written with 1 mm along every axis, so that distances
count voxels.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from dataset_conversion.layout import contents, existing_folder
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter, Split
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.resolve import NameIndex, files_below, part_of_name, path_parts, read_lines
from medkd.io.checks import Finding, finite_finding, label_finding, label_values
from medkd.io.volumes import Volume, as_label

UNIT_SPACING = "the source states no voxel size: 1 mm is written along every axis, so that HD95 and NSD count voxels; train the configuration 2d"

_ENDINGS = (".npy.h5", ".h5", ".hdf5", ".npz")
_HDF5 = (".h5", ".hdf5")
_SLICE = re.compile(r"^(?P<case>.+?)_slice_?(?P<phase>[A-Za-z]{2})?_?(?P<index>\d+)$", re.IGNORECASE)
_VOLUME = re.compile(r"^(?P<case>.+?)_volume_?(?P<phase>[A-Za-z]{2})$", re.IGNORECASE)
_PATIENT = re.compile(r"^(?P<patient>.+?)_(?:frame\d+|E[DS])$")
_IMAGE, _LABEL = ("image", "img"), ("label", "mask")
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
        return (self.volume,) if self.volume else tuple(path for _, path in sorted(self.slices.items()))


def convert_slices(
    format: str, source: Path, folder: Path, options: ConversionOptions, labels: LabelSpec, channel: str
) -> ConversionReport:
    """Convert a tree of slices and volumes.

    Folders whose name begins with ``test`` hold test cases, with ``val`` the validation cases of fold 0; ``train.list``,
    ``val.list`` and ``test.list`` (one case or file per line) say the same. A line that is no case, or may be several,
    is an error that names it, and so is a case that lists have in two parts.

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
    for case in cases.values():
        if any(path.name.lower().endswith(_HDF5) for path in case.files):
            _h5py()
    labels = LabelSpec.from_names(options.labels) if options.labels else labels
    jobs = [_job(name, case, labels) for name, case in sorted(cases.items())]
    writer = RawWriter(folder, format, source, options)
    writer.report_findings(findings)
    writer.convert(jobs)
    train = [name for name, case in cases.items() if case.part == "train"]
    val = [name for name, case in cases.items() if case.part == "val"]
    split = PublishedSplit.single(train, val, "validation cases of the download") if val else None
    description = DatasetDescription(channel_names=options.channels or (channel,), labels=labels, num_training=0)
    return finish_converted(writer, format, description, split, [UNIT_SPACING])


def find_cases(source: Path) -> tuple[dict[str, SlicedCase], list[Finding]]:
    """All cases below a folder by name, and the files that were not used and the lines of lists that are wrong.

    Raises:
        DataError: a list cannot be read, or none of its lines is a case.
    """
    cases: dict[str, SlicedCase] = {}
    findings = []
    for path in files_below(source):
        if not path.name.lower().endswith(_ENDINGS):
            continue
        name, index = _case_and_index(path)
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
    return Finding(
        case=name,
        file=str(path),
        expected="each slice and each volume once",
        found=f"also {first}",
        action="the first one was used",
        error=False,
    )


def _apply_lists(source: Path, cases: dict[str, SlicedCase]) -> list[Finding]:
    """Give the cases the parts that lists state; those that lists have in two parts are left out."""
    index = NameIndex(cases, _case_spellings)
    parts: dict[str, dict[str, Path]] = {}
    findings = []
    for path in files_below(source, "*.list"):
        part = part_of_name(path.stem)
        if part is None:
            continue
        lines = [line for _, line in read_lines(path)]
        listed, faults = index.find_all(lines)
        if lines and not listed:
            raise DataError(f"{path}: none of its lines is a case below {source}, the first is '{lines[0][:200]}'.")
        for case in listed:
            parts.setdefault(case, {})[part] = path
        findings += [_line_finding(path, text, fault) for text, fault in faults.items()]
    for case, stated in parts.items():
        if len(stated) > 1:
            del cases[case]
            where = " and ".join(str(path) for path in stated.values())
            findings.append(_line_finding(next(iter(stated.values())), case, f"'{case}' in {where}"))
            continue
        part = next(iter(stated))
        findings += _other_folder(case, cases[case], part, stated[part])
        cases[case].part = _stricter(cases[case].part, part)
    return findings


def _case_spellings(name: str) -> list[str]:
    """What a line of a list may call a case: the case, one of its files, or one of its slices."""
    spellings = [name]
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), None)
    if ending is not None:
        spellings.append(name[: -len(ending)])
    spellings.append(_parsed(spellings[-1])[0])
    return spellings


def _line_finding(path: Path, text: str, found: str) -> Finding:
    parts = path_parts(text)
    case = _case_spellings(parts[-1])[-1] if parts else ""
    expected = "lines that are a case each, in one list"
    return Finding(case=case, file=str(path), expected=expected, found=found, action="correct or remove the line")


def _other_folder(name: str, case: SlicedCase, part: str, path: Path) -> list[Finding]:
    """A warning where the folder says something else than the list; folders without a part are ``train``."""
    if case.part in ("train", part):
        return []
    return [
        Finding(
            case=name,
            file=str(path),
            expected=f"the part of its folder, {case.part}",
            found=part,
            action=f"it was taken for {_stricter(case.part, part)}; correct the list or move the files",
            error=False,
        )
    ]


def _case_and_index(path: Path) -> tuple[str, int | None]:
    """The case that a file name says, and the number of the slice; None for a volume."""
    return _parsed(_name(path))


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
    try:
        if path.name.lower().endswith(_HDF5):
            with _h5py().File(path, "r") as stored:
                return _arrays(path, stored)
        with np.load(path, allow_pickle=False) as archive:
            return _arrays(path, archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again.") from error


def _arrays(path: Path, stored: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for names in (_IMAGE, _LABEL):
        key = next((name for name in names if name in stored), None)
        if key is None:
            raise DataError(f"{path}: expected the arrays 'image' and 'label', found {', '.join(stored) or 'none'}.")
        arrays.append(np.asarray(stored[key]))
    return arrays[0], arrays[1]


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            "Reading .h5 files needs h5py, which is not installed; install it with: pip install 'medkd[h5]'."
        ) from error
    return h5py


def _name(path: Path) -> str:
    return next(path.name[: -len(ending)] for ending in _ENDINGS if path.name.lower().endswith(ending))


def _part(path: Path) -> str:
    folders = [name.lower() for name in path.parts[:-1]]
    return next((part for part in ("test", "val") if any(name.startswith(part) for name in folders)), "train")


def _stricter(first: str, second: str) -> str:
    """A case that lies in several folders belongs to the part that training must not see."""
    return max(first, second, key=_ORDER.index)


def _job(name: str, case: SlicedCase, labels: LabelSpec) -> CaseJob:
    split: Split = "Ts" if case.part == "test" else "Tr"
    match = _PATIENT.match(name)
    recipe = f"stacked, labels {labels.values}"
    return CaseJob(
        name, case.files, lambda: _prepare(name, case, labels), recipe, split, match["patient"] if match else None
    )


def _prepare(name: str, case: SlicedCase, labels: LabelSpec) -> CaseContent:
    gaps = [] if case.volume else _gaps(name, case.slices)
    if gaps:
        return CaseContent((), findings=tuple(gaps))
    image, label = _volume(case.volume) if case.volume else _stack(case.files)
    grid = Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
    path = case.files[0]
    mapped = as_label(Volume(label, grid), path)
    values = label_values(mapped.array)
    findings = [*finite_finding(name, path, image), *label_finding(name, path, values, labels.values)]
    small = Volume(mapped.array.astype(np.uint8) if min(values) >= 0 and max(values) < 256 else mapped.array, grid)
    return CaseContent((Volume(image, grid),), small, values, tuple(findings))


def _volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image, label = read_pair(path)
    if image.ndim != 3 or image.shape != label.shape:
        raise DataError(
            f"{path}: expected image and label of one shape (slices, y, x), found {image.shape} and {label.shape}."
        )
    return image.astype(np.float32), label


def _stack(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for path in paths:
        image, label = read_pair(path)
        expected = pairs[0][0].shape if pairs else image.shape
        if image.ndim != 2 or image.shape != expected or label.shape != expected:
            raise DataError(
                f"{path}: expected image and label slices of shape {expected}, found {image.shape} and {label.shape}."
            )
        pairs.append((image.astype(np.float32), label))
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def _gaps(name: str, slices: Mapping[int, Path]) -> list[Finding]:
    """Slices that are missing in between; numbering may begin at 0 or 1."""
    numbers = range(0 if 0 in slices else 1, max(slices) + 1)
    missing = [number for number in numbers if number not in slices]
    if not missing:
        return []
    found = f"no slice {', '.join(map(str, missing[:10]))}" + (" …" if len(missing) > 10 else "")
    folder = str(next(iter(slices.values())).parent)
    return [
        Finding(
            case=name,
            file=folder,
            expected=f"all slices from {numbers[0]} to {numbers[-1]}",
            found=found,
            action="download the missing files again",
        )
    ]
