"""A raw data set on disk: its description and the files of its cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medkd.core.boxes import COLOURED, IMAGE_ENDINGS, LABEL_ENDING
from medkd.core.dataset_keys import (
    all_texts,
    as_object,
    channel_names_of,
    check_categories,
    file_ending_of,
    is_version_1,
    number_of_cases,
    take_categories,
    take_patients,
    task_of,
    without_empty,
)
from medkd.core.errors import DataError
from medkd.core.files import read_json, understood, write_json
from medkd.core.labels import LabelSpec
from medkd.core.paths import Root
from medkd.core.resolve import FileIndex, case_spellings, files_below

UNLABELLED_FOLDER = "imagesUn"  # scans without labels; nnU-Net passes over a folder of this name

SEGMENTATION = "segmentation"
"""The task of a data set that names none."""

_LONGEST_NAME = 200  # bytes of a case id, to which files add their endings; file systems take 255 in all


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
        check_categories(categories, "categories")
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
        task = task_of(data.pop("task", SEGMENTATION), where)
        categories = take_categories(data, where) if task == "detection" else ()
        for key in ("channel_names", "labels", "file_ending"):
            if key not in data:
                raise DataError(f"{where}: the key '{key}' is missing; see nnU-Net v2's dataset.json format.")
        names = channel_names_of(data.pop("channel_names"), where)
        order = data.pop("regions_class_order", None)
        labels = LabelSpec.from_json(data.pop("labels"), order, where)
        patients = take_patients(data, where)
        extra = without_empty(data)
        return cls(
            channel_names=names,
            labels=labels,
            num_training=number_of_cases(extra.pop("numTraining", 0), where),
            file_ending=file_ending_of(extra.pop("file_ending", None), where),
            patients=patients,
            extra=extra,
            task=task,
            categories=categories,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``dataset.json``; region order is kept."""
        data: dict[str, Any] = {"channel_names": {}}
        for number, name in enumerate(self.channel_names):
            data["channel_names"][str(number)] = name
        data |= self.labels.to_json()
        if self.task != SEGMENTATION:
            data["task"] = self.task
        if self.task == "detection":
            data["categories"] = list(self.categories)
        data |= {"numTraining": self.num_training, "file_ending": self.file_ending}
        data |= self.extra
        own = dict(data.pop("medkd", {}))
        if self.patients:
            own["patients"] = dict(self.patients)
        if own:  # the last key of the file
            data["medkd"] = own
        return data

    def save(self, path: Path) -> None:
        """Write ``dataset.json``."""
        write_json(path, self.to_json())


def dataset_task(root: Root, dataset: str | int) -> str:
    """``segmentation`` or ``detection``, by the preprocessed ``dataset.json``, else the raw one.

    Args:
        root: medkd's folders.
        dataset: number or full name.

    Raises:
        DataError: there is no such data set, or its description is missing or damaged.
    """
    name = root.dataset_name(dataset)
    for folder in (root.preprocessed / name, root.raw / name):
        if (folder / "dataset.json").exists():
            return DatasetDescription.load(folder / "dataset.json").task
    return DatasetDescription.load(root.raw_dataset(name) / "dataset.json").task


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
    listed = as_object(description.extra.get("dataset"), f"{folder / 'dataset.json'}: 'dataset'")
    if listed:
        cases = _listed_cases(folder, listed)
    else:
        cases = []
        for case in _cases_in(folder / "labelsTr", description.file_ending):
            images = channel_files(folder / "imagesTr", case, description)
            cases.append(CaseFiles(case, images, folder / "labelsTr" / f"{case}{description.file_ending}"))
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
    has_files = any((folder / "imagesTr").glob("[!.]*")) or any((folder / "labelsTr").glob("[!.]*"))
    listed = description.extra.get("dataset")
    if not has_files and not listed and unlabelled_cases(folder, description):
        return []
    return training_cases(folder, description)


def every_case(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """:func:`labelled_cases`, then :func:`unlabelled_cases`, which refuse what is wrong with them."""
    return [*labelled_cases(folder, description), *unlabelled_cases(folder, description)]


def unlabelled_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """The cases in ``imagesUn``, sorted by case id; existence of all their channels is not checked here.

    Of a detection data set these are images that nobody has annotated. They can only be learnt from with a teacher.

    Raises:
        DataError: there is such a folder with files, but no scan is named as it should be.
    """
    place = folder / UNLABELLED_FOLDER
    if not any(place.glob("[!.]*")):
        if place.is_file():
            raise DataError(f"{place}: expected a folder of scans without labels, found a file; remove it.")
        return []
    suffix, what = f"_0000{description.file_ending}", "scans"
    if description.task == "detection":
        images, what = _images_by_case(place), "images"
        cases = [CaseFiles(case, (images[case],)) for case in sorted(images)]
    else:
        cases = [CaseFiles(case, channel_files(place, case, description)) for case in _cases_in(place, suffix)]
    if not cases:
        raise DataError(f"{place}: expected {what} named CASE{suffix} (one file per channel), found none; rename them.")
    return cases


def _cases_in(folder: Path, ending: str) -> list[str]:
    """The names of a folder's files without their common ending, sorted; hidden files are left out."""
    found = []
    for path in folder.glob(f"*{ending}"):
        if not path.name.startswith("."):
            found.append(path.name[: -len(ending)])
    return sorted(found)


def check_case_name(case: str, where: str) -> None:
    """See to it that a case id is a plain file name: files are called after it.

    Raises:
        DataError: it has a separator or an unprintable letter, is empty, longer than 200 bytes, or begins with a dot.
    """
    odd = case.startswith(".") or not case.isprintable() or any(letter in case for letter in "/\\")
    if not case or odd or len(case.encode(errors="replace")) > _LONGEST_NAME:
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
    owners: dict[Path, str] = {}
    cases: list[CaseFiles] = []
    for case, files in sorted(listed.items()):
        names, label_name = _stated_files(where, case, files)
        images = tuple(files_there.find(name, case, "imagesTr") for name in names)
        label = files_there.find(label_name, case, "labelsTr")
        owner = owners.setdefault(label, case)
        if owner != case or label in images:
            raise DataError(
                f"{where}: 'dataset' must give a label map of its own for each case, found {label_name!r} for {case}, "
                f"which is {label}, a file of {owner} as well; correct the entry."
            )
        cases.append(CaseFiles(case, images, label))
    return cases


def _stated_files(where: Path, case: str, files: Any) -> tuple[list[str], str]:
    """What an entry names: the images of the channels, and the label map."""
    check_case_name(case, str(where))
    stated = files if isinstance(files, Mapping) else {}
    images, label = stated.get("images"), stated.get("label")
    if images and all_texts(images) and isinstance(label, str):
        return images, label
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
    image_folder, label_folder = folder / f"images{split}", folder / f"labels{split}"
    names = _cases_in(label_folder, LABEL_ENDING)
    if not names and split == "Tr":
        raise DataError(f"{label_folder}: expected the boxes of the training cases as CASE{LABEL_ENDING}, found none.")
    images = _images_by_case(image_folder)
    cases = []
    for case in names:
        missing = image_folder / f"{case}_0000{description.file_ending}"
        cases.append(CaseFiles(case, (images.get(case, missing),), label_folder / f"{case}{LABEL_ENDING}"))
    return cases


def _images_by_case(folder: Path) -> dict[str, Path]:
    """Case id → ``CASE_0000.png`` or ``.jpg``; one listing of the folder, since tens of thousands are common."""
    if not folder.is_dir():
        return {}
    images = {}
    for path in folder.iterdir():
        is_image = path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
        if is_image and path.stem.endswith("_0000"):
            images[path.stem.removesuffix("_0000")] = path
    return images


def image_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """List the unlabelled cases in a folder of images named ``CASE_0000.nii.gz``, sorted by case id.

    Raises:
        DataError: the folder is missing or holds no such image, or a channel of a case is missing.
    """
    suffix = f"_0000{description.file_ending}"
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist.")
    if description.task == "detection":
        images = _images_by_case(folder)
        if images:
            return [CaseFiles(case, (path,)) for case, path in sorted(images.items())]
    names = _cases_in(folder, suffix)
    if not names:
        raise DataError(f"{folder}: expected images named CASE{suffix} (one file per channel), found none.")
    cases = [CaseFiles(case, channel_files(folder, case, description)) for case in names]
    for case in cases:
        _check_channels(case)
    return cases


def _check_channels(case: CaseFiles) -> None:
    for path in case.images:
        if not path.exists():
            raise DataError(
                f"{path}: this channel of the case is missing; expected {len(case.images)} channels per case."
            )


def channel_files(folder: Path, case: str, description: DatasetDescription) -> tuple[Path, ...]:
    """The image files of a case, one per channel."""
    paths = []
    for channel in range(len(description.channel_names)):
        paths.append(folder / f"{case}_{channel:04d}{description.file_ending}")
    if description.file_ending.lower() in COLOURED:  # the channels may be the colours of fewer files
        return tuple(path for number, path in enumerate(paths) if number == 0 or path.exists())
    return tuple(paths)
