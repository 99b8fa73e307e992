"""A raw data set on disk: its description and the files of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medkd.core.boxes import IMAGE_ENDINGS, LABEL_ENDING
from medkd.core.errors import DataError
from medkd.core.files import read_json, understood, write_json
from medkd.core.labels import LabelSpec
from medkd.core.paths import Root
from medkd.core.resolve import FileIndex, case_spellings, files_below

UNLABELLED_FOLDER = "imagesUn"  # scans without labels; nnU-Net passes over a folder of this name

SEGMENTATION = "segmentation"
"""The task of a data set that names none."""


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """What ``dataset.json`` says (nnU-Net v2's keys; medkd's own live under ``"medkd"``).

    Attributes:
        channel_names: name of each input channel in order; ``"CT"`` and ``"noNorm"`` select the normalisation.
        labels: label values or regions; for detection ``background`` and the categories, so that nnU-Net can read the
            file.
        num_training: number of training cases.
        file_ending: for example ``".nii.gz"``.
        patients: case id → patient id, where known; splits are grouped by it.
        extra: any other keys of the file, kept as they are.
        task: ``"detection"`` where the labels are boxes; a name in :data:`medkd.tasks.TASKS`.
        categories: for detection, the classes of the boxes in order.
    """

    channel_names: tuple[str, ...]
    labels: LabelSpec
    num_training: int
    file_ending: str = ".nii.gz"
    patients: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    task: str = SEGMENTATION
    categories: tuple[str, ...] = ()

    @classmethod
    def detection(cls, channels: tuple[str, ...], categories: tuple[str, ...], **more: Any) -> DatasetDescription:
        """A description for boxes of these categories; ``more`` as in the constructor.

        Raises:
            DataError: no category, one twice, or one called ``background`` or ``ignore``.
        """
        _check_categories(categories, "categories")
        return cls(
            channel_names=channels,
            labels=LabelSpec.from_names(categories),
            task="detection",
            categories=tuple(categories),
            **{"num_training": 0} | more,
        )

    @classmethod
    def load(cls, path: Path) -> DatasetDescription:
        """Read a ``dataset.json``.

        Raises:
            DataError: the file or one of its required keys is missing or of the wrong form.
        """
        data = read_json(path)
        with understood(path, "a dataset.json of nnU-Net v2's form", "mend it"):
            return cls.from_json(data, str(path))

    @classmethod
    def from_json(cls, data: Any, where: str) -> DatasetDescription:
        """Build from the content of a ``dataset.json``; ``where`` names the file in error texts.

        Raises:
            DataError: a required key is missing, or a key is of the wrong form.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"{where}: expected a JSON object, found {type(data).__name__}.")
        data = dict(data)
        if is_version_1(data):
            raise DataError(
                f"{where}: this is the dataset.json of nnU-Net v1 or the Decathlon, which numbers its labels; convert "
                "the folder with medkd_convert nnunet (files named CASE_0000) or medkd_convert msd."
            )
        if "channel_names" not in data and "modality" in data:  # Decathlon and nnU-Net v1 say "modality"
            data["channel_names"] = data.pop("modality")
        task = _task(data.pop("task", SEGMENTATION), where)
        categories = _categories(data, where) if task == "detection" else ()
        for key in ("channel_names", "labels", "file_ending"):
            if key not in data:
                raise DataError(f"{where}: the key '{key}' is missing; see nnU-Net v2's dataset.json format.")
        names = _channel_names(data.pop("channel_names"), where)
        labels = LabelSpec.from_json(data.pop("labels"), data.pop("regions_class_order", None), where)
        own = _object(data.pop("medkd", None), f"{where}: 'medkd'")
        patients = _patients(own.get("patients", data.pop("patients", None)), where)
        extra = {**data, "medkd": {k: v for k, v in own.items() if k != "patients"}}
        extra = {k: v for k, v in extra.items() if v not in ({}, None)}
        count, ending = extra.pop("numTraining", 0), extra.pop("file_ending", None)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise DataError(f"{where}: 'numTraining' must be the number of training cases, found {count!r}.")
        if not isinstance(ending, str) or not ending:
            raise DataError(f"{where}: 'file_ending' must be a text such as \".nii.gz\", found {ending!r}.")
        return cls(
            channel_names=names,
            labels=labels,
            num_training=count,
            file_ending=ending,
            patients=patients,
            extra=extra,
            task=task,
            categories=categories,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``dataset.json``; region order is kept."""
        own = {**self.extra.get("medkd", {}), **({"patients": dict(self.patients)} if self.patients else {})}
        rest = {k: v for k, v in self.extra.items() if k != "medkd"}
        head = {"channel_names": {str(i): n for i, n in enumerate(self.channel_names)}, **self.labels.to_json()}
        head |= {"task": self.task} if self.task != SEGMENTATION else {}
        head |= {"categories": list(self.categories)} if self.task == "detection" else {}
        head |= {"numTraining": self.num_training, "file_ending": self.file_ending, **rest}
        return {**head, **({"medkd": own} if own else {})}

    def save(self, path: Path) -> None:
        """Write ``dataset.json``."""
        write_json(path, self.to_json())


def is_version_1(data: Any) -> bool:
    """Whether the content of a ``dataset.json`` is of nnU-Net v1 or the Decathlon: labels are numbers with names."""
    labels = data.get("labels") if isinstance(data, Mapping) else None
    if not isinstance(labels, Mapping) or not labels:
        return False
    return all(str(key).isdecimal() for key in labels) and all(isinstance(name, str) for name in labels.values())


def _channel_names(value: Any, where: str) -> tuple[str, ...]:
    """The names of the channels in order, from an object of numbers and names, or a list of names."""
    names: list[Any] = []
    if isinstance(value, list):
        names = value
    elif isinstance(value, Mapping) and all(isinstance(key, str) and key.isdecimal() for key in value):
        names = [value[key] for key in sorted(value, key=int)]
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(
            f'{where}: \'channel_names\' must give the name of each channel by its number, for example {{"0": "CT"}}, '
            f"found {value!r}."
        )
    return tuple(names)


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"{what} must be an object, found {value!r}.")
    return value or {}


def _patients(value: Any, where: str) -> dict[str, str]:
    patients = _object(value, f"{where}: 'patients'")
    for case, patient in patients.items():
        if isinstance(patient, bool) or not isinstance(patient, (str, int)):
            raise DataError(f"{where}: 'patients' must name a patient for each case, found {patient!r} for {case}.")
    return {case: str(patient) for case, patient in patients.items()}


def _task(found: Any, where: str) -> str:
    """What ``"task"`` says; which names there are, the table of tasks knows."""
    if not isinstance(found, str) or not found:
        raise DataError(f"{where}: 'task' must be the name of a task, found {found!r}; mend it, or leave it out.")
    return found


def _categories(data: dict[str, Any], where: str) -> tuple[str, ...]:
    """Take ``categories`` out of the content of a ``dataset.json``, and see to it that it has ``labels``."""
    listed = data.pop("categories", None)
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise DataError(
            f"{where}: a detection data set needs 'categories', a list of the names of its classes; found {listed!r}."
        )
    _check_categories(listed, where)
    data["labels"] = {"background": 0, **{name: i + 1 for i, name in enumerate(listed)}}
    return tuple(listed)


def _check_categories(names: Sequence[str], where: str) -> None:
    if not names or len(set(names)) < len(names) or {"background", "ignore"} & set(names):
        raise DataError(
            f"{where}: expected one or more different categories, none called background or ignore, found "
            f"{list(names)}."
        )


def dataset_task(root: Root, dataset: str | int) -> str:
    """``segmentation`` or ``detection``, by the preprocessed ``dataset.json``, else the raw one.

    Args:
        root: medkd's folders.
        dataset: number or full name.

    Raises:
        DataError: there is no such data set, or its description is missing or damaged.
    """
    name = root.dataset_name(dataset)
    places = [folder / name / "dataset.json" for folder in (root.preprocessed, root.raw)]
    found = next((path for path in places if path.exists()), root.raw_dataset(name) / "dataset.json")
    return DatasetDescription.load(found).task


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: one image per channel, in channel order, and the label map (or boxes) where there is
    one.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None = None


def training_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """List the training cases of a raw data set, sorted by case id; existence of the files is not checked here.

    ``dataset.json`` may list the files itself under ``"dataset"`` (nnU-Net's alternative form), which are found however
    they are spelled, see :mod:`medkd.core.resolve`; otherwise the cases are the label files in ``labelsTr``. A listed
    file that is not there keeps the path that is stated, by which it is missed when it is read.

    The boxes of a detection data set are ``labelsTr/CASE.json``.

    Raises:
        DataError: there are no training cases, the list of files is of the wrong form, an entry of it means several
            files, or two cases have one label map.
    """
    if description.task == "detection" and not description.extra.get("dataset"):
        return detection_cases(folder, description)
    listed = _object(description.extra.get("dataset"), f"{folder / 'dataset.json'}: 'dataset'")
    if listed:
        cases = _listed_cases(folder, listed)
    else:
        ending = description.file_ending
        ids = sorted(
            p.name[: -len(ending)] for p in (folder / "labelsTr").glob(f"*{ending}") if not p.name.startswith(".")
        )
        cases = [
            CaseFiles(c, _channels(folder / "imagesTr", c, description), folder / "labelsTr" / f"{c}{ending}")
            for c in ids
        ]
    if not cases:
        raise DataError(
            f"{folder / 'labelsTr'}: found no label files with the ending '{description.file_ending}'; check "
            f"'file_ending' in dataset.json, or move scans that have no labels from imagesTr to {UNLABELLED_FOLDER}."
        )
    return cases


def labelled_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """:func:`training_cases`, or none where the data set consists of scans without labels.

    Raises:
        DataError: as for :func:`training_cases`; scans in ``imagesTr`` must have labels.
    """
    files = [p for place in ("imagesTr", "labelsTr") for p in (folder / place).glob("[!.]*")]
    if not files and not description.extra.get("dataset") and unlabelled_cases(folder, description):
        return []
    return training_cases(folder, description)


def unlabelled_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """The cases in ``imagesUn``, sorted by case id; existence of all their channels is not checked here.

    Scans without labels can only be learnt from with a teacher. They are never among the cases on which networks are
    judged against labels.

    Raises:
        DataError: there is such a folder with files, but no scan is named as it should be.
    """
    place = folder / UNLABELLED_FOLDER
    if description.task == "detection" or not any(place.glob("[!.]*")):
        return []
    suffix = f"_0000{description.file_ending}"
    ids = sorted(path.name.removesuffix(suffix) for path in place.glob(f"[!.]*{suffix}"))
    if not ids:
        raise DataError(f"{place}: expected scans named CASE{suffix} (one file per channel), found none; rename them.")
    return [CaseFiles(case, _channels(place, case, description)) for case in ids]


def check_case_name(case: str, where: str) -> None:
    """See to it that a case id is a plain file name: files are called after it.

    Raises:
        DataError: it has a separator or a NUL, is empty, or begins with a dot.
    """
    if not case or case.startswith(".") or any(letter in case for letter in "/\\\0"):
        raise DataError(f"{where}: expected case ids that are plain file names, found {case!r:.100}; rename the case.")


class _ListedFiles:
    """The files below a data set's folder, found by what its ``dataset.json`` calls them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where = folder / "dataset.json"
        self._index: FileIndex | None = None

    def find(self, text: str, case: str, near: str) -> Path:
        """The file that an entry of a case names, first looked for in the sub-folder ``near``.

        Raises:
            DataError: several files are meant.
        """
        stated = self._folder / text
        if "\0" not in text and stated.exists():
            return stated
        if self._index is None:
            self._index = FileIndex(self._folder, files_below(self._folder), lambda name: case_spellings(name)[:2][-1])
        try:
            return self._index.find(text, self._folder / near) or stated
        except DataError as error:
            raise DataError(f"{self._where}: 'dataset' names no file of its own for {case}. {error}") from error


def _listed_cases(folder: Path, listed: Mapping[str, Any]) -> list[CaseFiles]:
    where = folder / "dataset.json"
    files_there = _ListedFiles(folder)
    owners: dict[Path | None, str] = {}
    cases: list[CaseFiles] = []
    for case, files in sorted(listed.items()):
        images, label = _stated_files(where, case, files)
        found = CaseFiles(
            case,
            tuple(files_there.find(text, case, "imagesTr") for text in images),
            files_there.find(label, case, "labelsTr"),
        )
        owner = owners.setdefault(found.label, case)
        if owner != case or found.label in found.images:
            raise DataError(
                f"{where}: 'dataset' must give a label map of its own for each case, found {label!r} for {case}, which "
                f"is {found.label}, a file of {owner} as well; correct the entry."
            )
        cases.append(found)
    return cases


def _stated_files(where: Path, case: str, files: Any) -> tuple[list[str], str]:
    check_case_name(case, str(where))
    images, label = (files.get("images"), files.get("label")) if isinstance(files, Mapping) else (None, None)
    names = images if isinstance(images, list) else []
    if names and all(isinstance(name, str) for name in names) and isinstance(label, str):
        return names, label
    expected = "'images', a list of files, and 'label', a file"
    raise DataError(f"{where}: 'dataset' must give {expected}, for each case, found {files!r} for {case}.")


def detection_cases(
    folder: Path, description: DatasetDescription, split: Literal["Tr", "Ts"] = "Tr"
) -> list[CaseFiles]:
    """List the cases of a detection data set that have boxes (or an empty list of them), sorted by case id.

    The image of a case is the file ``CASE_0000`` with any ending of :data:`~medkd.core.boxes.IMAGE_ENDINGS`: JPEGs that
    can stay as they are lie beside PNGs.

    Raises:
        DataError: there are no training cases; a data set need not have test cases.
    """
    labels = sorted(p for p in (folder / f"labels{split}").glob(f"*{LABEL_ENDING}") if not p.name.startswith("."))
    if not labels and split == "Tr":
        raise DataError(
            f"{folder / 'labelsTr'}: expected the boxes of the training cases as CASE{LABEL_ENDING}, found none."
        )
    images = _images_by_case(folder / f"images{split}")
    wanted = ((p.name.removesuffix(LABEL_ENDING), p) for p in labels)
    missing = folder / f"images{split}"
    return [
        CaseFiles(c, (images.get(c, missing / f"{c}_0000{description.file_ending}"),), label) for c, label in wanted
    ]


def _images_by_case(folder: Path) -> dict[str, Path]:
    """Case id → ``CASE_0000.png`` or ``.jpg``; one listing of the folder, since tens of thousands are common."""
    if not folder.is_dir():
        return {}
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
    return {p.stem.removesuffix("_0000"): p for p in images if p.stem.endswith("_0000")}


def image_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """List the unlabelled cases in a folder of images named ``CASE_0000.nii.gz``, sorted by case id.

    Raises:
        DataError: the folder is missing or holds no such image, or a channel of a case is missing.
    """
    suffix = f"_0000{description.file_ending}"
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist.")
    if description.task == "detection" and (images := _images_by_case(folder)):
        return [CaseFiles(case, (path,)) for case, path in sorted(images.items())]
    ids = sorted(p.name[: -len(suffix)] for p in folder.glob(f"*{suffix}") if not p.name.startswith("."))
    if not ids:
        raise DataError(f"{folder}: expected images named CASE{suffix} (one file per channel), found none.")
    cases = [CaseFiles(c, _channels(folder, c, description)) for c in ids]
    for missing in (p for c in cases for p in c.images if not p.exists()):
        raise DataError(
            f"{missing}: this channel of the case is missing; expected {len(description.channel_names)} channels per "
            "case."
        )
    return cases


def _channels(folder: Path, case: str, description: DatasetDescription) -> tuple[Path, ...]:
    return tuple(folder / f"{case}_{i:04d}{description.file_ending}" for i in range(len(description.channel_names)))
