"""The keys of a ``dataset.json``, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError
from medkd.core.files import read_json


def is_version_1(data: Any) -> bool:
    """Whether the content of a ``dataset.json`` is of nnU-Net v1 or the Decathlon: labels are numbers with names."""
    labels = data.get("labels") if isinstance(data, Mapping) else None
    if not isinstance(labels, Mapping) or not labels:
        return False
    return all_texts(list(labels.values())) and all(str(key).isdecimal() for key in labels)


def channel_names_of(value: Any, where: str) -> tuple[str, ...]:
    """The names of the channels in order, from an object of numbers and names, or a list of names."""
    names: list[Any] = []
    if isinstance(value, list):
        names = value
    elif isinstance(value, Mapping) and all(isinstance(key, str) and key.isdecimal() for key in value):
        names = [value[key] for key in sorted(value, key=int)]
    if not names or not all_texts(names):
        raise DataError(
            f'{where}: \'channel_names\' must give the name of each channel by its number, for example {{"0": "CT"}}, '
            f"found {value!r}."
        )
    return tuple(names)


def check_meant(file: Path) -> None:
    """Refuse what a ``dataset.json`` hardly means, although it can be read; of new data only, since models that were
    trained on such data are no worse for it.

    Args:
        file: of a raw data set, which can be read.

    Raises:
        DataError: channels are numbered with gaps or twice, or in two orders, a label holds a value twice, or one is
            called ``ignore`` in another spelling.
    """
    data = read_json(file)
    channels = data.get("channel_names", data.get("modality"))
    numbers = sorted(map(int, channels)) if isinstance(channels, Mapping) else []
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise DataError(
            f"{file}: 'channel_names' must number the channels one after another, found {channels!r:.200}; mend it."
        )
    older = data.get("modality", channels)
    first, second = ([name.casefold() for name in channel_names_of(names, str(file))] for names in (channels, older))
    if len(first) != len(second) or (first != second and sorted(first) == sorted(second)):
        raise DataError(
            f"{file}: 'channel_names' says {channels!r:.200} and 'modality' says {older!r:.200}; leave out one of them."
        )
    if data.get("task") != "detection":  # whose classes are a list
        _check_labels_meant(data["labels"], file)


def _check_labels_meant(labels: Mapping[str, Any], file: Path) -> None:
    for name, values in labels.items():
        if isinstance(values, list) and len(set(values)) < len(values):
            raise DataError(f"{file}: label '{name}' must hold each value once, found {values}; correct it.")
        if name.strip().casefold() == "ignore" != name:
            raise DataError(
                f"{file}: expected the label 'ignore' for places without annotation, found '{name}', which would be a "
                "structure; rename it."
            )


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """The value of a key as an object, empty where there is none; refused where it is something else."""
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"{what} must be an object, found {value!r}.")
    return value or {}


def take_patients(data: dict[str, Any], where: str) -> dict[str, str]:
    """Take ``patients`` out of the content of a ``dataset.json``: from below ``medkd``, else from the top."""
    own = dict(as_object(data.pop("medkd", None), f"{where}: 'medkd'"))
    at_the_top = data.pop("patients", None)
    stated = own.pop("patients", at_the_top)
    data["medkd"] = own
    patients = {}
    for case, patient in as_object(stated, f"{where}: 'patients'").items():
        if isinstance(patient, bool) or not isinstance(patient, (str, int)):
            raise DataError(f"{where}: 'patients' must name a patient for each case, found {patient!r} for {case}.")
        patients[case] = str(patient)
    return patients


def without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of the file when keys that say nothing are left out."""
    kept = {}
    for key, value in data.items():
        if value not in ({}, None):
            kept[key] = value
    return kept


def number_of_cases(value: Any, where: str) -> int:
    """The value of ``numTraining``, refused where it is no number of cases."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"{where}: 'numTraining' must be the number of training cases, found {value!r}.")
    return value


def file_ending_of(value: Any, where: str) -> str:
    """The value of ``file_ending``, refused where it is no text."""
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: 'file_ending' must be a text such as \".nii.gz\", found {value!r}.")
    return value


def all_texts(values: Any) -> bool:
    """Whether this is a list of texts."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def task_of(found: Any, where: str) -> str:
    """What ``"task"`` says; which names there are, the table of tasks knows."""
    if not isinstance(found, str) or not found:
        raise DataError(f"{where}: 'task' must be the name of a task, found {found!r}; mend it, or leave it out.")
    return found


def take_categories(data: dict[str, Any], where: str) -> tuple[str, ...]:
    """Take ``categories`` out of the content of a ``dataset.json``, and see to it that it has ``labels``."""
    listed = data.pop("categories", None)
    if not all_texts(listed):
        raise DataError(
            f"{where}: a detection data set needs 'categories', a list of the names of its classes; found {listed!r}."
        )
    check_categories(listed, where)
    values = {"background": 0}
    for value, name in enumerate(listed, start=1):
        values[name] = value
    data["labels"] = values
    return tuple(listed)


def check_categories(names: Sequence[str], where: str) -> None:
    """Refuse the names of classes where they are none, equal, or taken by what is no class."""
    if not are_categories(names):
        raise DataError(
            f"{where}: expected one or more different categories, none called background or ignore or without a name, "
            f"found {list(names)}."
        )


def are_categories(names: Sequence[str]) -> bool:
    """Whether names may be those of classes of boxes: different ones, none of them that of what is no class.

    >>> are_categories(["fracture"]), are_categories(["fracture", " Background"])
    (True, False)
    """
    spelled = {" ".join(name.split()).casefold() for name in names}
    return bool(names) and len(set(names)) == len(names) and not {"background", "ignore", ""} & spelled
