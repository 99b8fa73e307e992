"""``dataset.json`` as the Medical Segmentation Decathlon and nnU-Net v1 write it: numbered labels, a list of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_conversion.folder import list_volumes, split_channel
from medkd.core.dataset_keys import is_version_1 as is_version_1
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.resolve import FileIndex, files_ending
from medkd.io.checks import Finding
from medkd.io.volumes import READERS, file_ending, stem

Images = tuple[Path, ...]


@dataclass
class Pairs:
    """The pairs that a ``training`` list names.

    Attributes:
        cases: case → images (one 4D file, or one file per channel) and label map.
        findings: what the list says wrongly.
        split: whether some case has one file per channel, ``CASE_0000``, …, as nnU-Net v1 has them.
    """

    cases: dict[str, tuple[Images, Path]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    split: bool = False


def _are_numbers(keys: Iterable[object]) -> bool:
    return all(map(str.isdecimal, map(str, keys)))


def modalities(table: object, where: str) -> tuple[str, ...]:
    """The names of the channels in the order of their numbers.

    Raises:
        DataError: these are no numbers with names.
    """
    if not isinstance(table, dict) or not _are_numbers(table):
        raise DataError(
            f'{where}: expected \'modality\' as numbers with names, such as {{"0": "CT"}}, found {table!r}; give '
            "--channels instead."
        )
    return tuple(str(table[key]) for key in sorted(table, key=int))


def numbered_labels(labels: Mapping[str, Any], names: Sequence[str], where: str) -> LabelSpec:
    """``{"1": "Anterior"}`` (Decathlon) or ``{"Anterior": 1}`` (nnU-Net v2); ``names``, where given, win.

    Raises:
        DataError: these are no labels.
    """
    if names:
        return LabelSpec.from_names(tuple(names))
    if not _are_numbers(labels):
        return LabelSpec.from_json(labels, None, where)
    values: dict[str, int] = {}
    for key in sorted(labels, key=int):
        name = "background" if int(key) == 0 else str(labels[key])
        if name in values:
            raise DataError(f"{where}: expected a name of its own for each label, found '{name}' twice; give --labels.")
        values[name] = int(key)
    return LabelSpec.from_json(values, None, where)


def listed_pairs(task: Path, entries: Any) -> Pairs | None:
    """The pairs of the ``training`` list of ``task/dataset.json``; None where there is no such list.

    Raises:
        DataError: the list is of another form.
    """
    if not isinstance(entries, list) or not entries:
        return None
    index = FileIndex(task, files_ending(task, *READERS), _stem)
    pairs = Pairs()
    images_of: dict[Images, str] = {}
    for entry in entries:
        image_text, label_text = _texts_of(entry, task)
        images, label = _find_all(index, image_text, label_text, pairs)
        if not images or label is None:
            continue
        case = stem(label)
        other = images_of.setdefault(images, case)
        if case in pairs.cases or other != case:
            found = f"'{image_text}' with '{label_text}' beside another pair of them"
            pairs.findings.append(_finding(case, task, "each image and label map once", found, "correct the list"))
            pairs.cases.pop(case, None)
            pairs.cases.pop(other, None)
        else:
            pairs.cases[case] = images, label
    for images, _ in pairs.cases.values():
        pairs.split = pairs.split or stem(images[0]).endswith("_0000")
    pairs.findings += _unlisted(task, pairs)
    return pairs


def _texts_of(entry: Any, task: Path) -> tuple[str, str]:
    try:
        return str(entry["image"]), str(entry["label"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{task / 'dataset.json'}: 'training' must list objects with 'image' and 'label', found {entry!r}."
        ) from error


def images_without_label(scans: Iterable[Path], channels: int) -> dict[str, Images]:
    """Case → images of a folder without labels.

    Four digits at the end of a name are a channel only where a case has all of them (``word_0001`` and ``word_0002``
    are two cases).
    """
    grouped: dict[str, dict[int, Path]] = {}
    for path in scans:
        case, channel = split_channel(stem(path))
        grouped.setdefault(case, {})[channel] = path
    cases: dict[str, Images] = {}
    for case, files in sorted(grouped.items()):
        if sorted(files) == list(range(len(files))) and len(files) in (1, channels):
            cases[case] = tuple(files[channel] for channel in sorted(files))
        else:
            for path in files.values():
                cases[stem(path)] = (path,)
    return cases


def _find_all(index: FileIndex, image: str, label: str, pairs: Pairs) -> tuple[Images, Path | None]:
    case = stem(Path(label.replace("\\", "/")))
    images: Images = ()
    found: Path | None = None
    try:
        images = _images(index, image)
        found = index.find(label)
    except DataError as error:
        action = "rename or remove the others"
        pairs.findings.append(_finding(case, index.folder, "one file", str(error).rstrip("."), action))
        return images, found
    for text, there in ((image, bool(images)), (label, found is not None)):
        if not there:
            action = "download the task again or leave the case out"
            where = index.folder / text
            pairs.findings.append(_finding(case, where, "the file that dataset.json lists", "no such file", action))
    return images, found


def _images(index: FileIndex, text: str) -> Images:
    """The file that is listed, else the channels of nnU-Net v1, which lists ``CASE`` for ``CASE_0000``, …"""
    listed = index.find(text)
    if listed is not None:
        return (listed,)
    ending = file_ending(Path(text)) or ""
    channels: list[Path] = []
    while True:
        channel = index.find(f"{text.removesuffix(ending)}_{len(channels):04d}{ending}")
        if channel is None:
            return tuple(channels)
        channels.append(channel)


def _unlisted(task: Path, pairs: Pairs) -> list[Finding]:
    listed: set[str] = set()
    for images, _ in pairs.cases.values():
        listed.update(path.name for path in images)
    named = " ".join(finding.file for finding in pairs.findings)
    findings = []
    for path in list_volumes(task / "imagesTr"):
        case, _ = split_channel(stem(path))
        if path.name not in listed and path.name not in named and case not in pairs.cases:
            action = "it was ignored; add it to 'training' if it belongs there"
            expected = "images listed in dataset.json"
            findings.append(_finding("", path, expected, "an unlisted image", action, error=False))
    return findings


def _finding(case: str, path: Path, expected: str, found: str, action: str, *, error: bool = True) -> Finding:
    return Finding(case=case, file=str(path), expected=expected, found=found, action=action, error=error)


def _stem(name: str) -> str:
    return stem(Path(name))
