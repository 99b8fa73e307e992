"""Medical Segmentation Decathlon tasks as downloaded, and folders of images and label maps laid out like them.

Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022, doi:10.1038/s41467-022-30695-9.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dataset_conversion.archive import is_tar, unpack_tar
from dataset_conversion.decathlon import images_without_label, listed_pairs, modalities, numbered_labels
from dataset_conversion.findings import file_names
from dataset_conversion.folder import first_existing, list_volumes, named_labels, pair_files, volume_job
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from dataset_conversion.writer import CaseJob, Mode, RawWriter
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.core.resolve import is_hidden
from medkd.io.checks import Finding

GUIDE = """\
Medical Segmentation Decathlon: ten tasks, CT and MR, CC BY-SA 4.0.
download:  http://medicaldecathlon.com (TaskNN_Name.tar, from 27 MB for Task04_Hippocampus to 27 GB for Task03_Liver)
source:    the .tar itself, or the unpacked folder:
             TaskNN_Name/dataset.json               names of modalities and labels, list of the training pairs
             TaskNN_Name/imagesTr/CASE.nii.gz       4D images hold one modality per volume; they are split
             TaskNN_Name/labelsTr/CASE.nii.gz
             TaskNN_Name/imagesTs/CASE.nii.gz       optional
also:      any folder with imagesTr and labelsTr (or images and labels) and no dataset.json: files are paired by name,
           one file per channel may be named CASE_0000, CASE_0001, ...; give --labels and --channels (CT selects the CT
           normalisation). Without --labels the label values that are found become label_1, label_2, ..."""

_IMAGES = ("imagesTr", "images", "img", "image")
_LABELS = ("labelsTr", "labels", "label", "masks")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be converted: training jobs need ``labels`` to be known."""

    channels: tuple[str, ...]
    labels: LabelSpec
    training: Mapping[str, tuple[tuple[Path, ...], Path]]
    test: Mapping[str, tuple[Path, ...]]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    recode: Mapping[int, int] | None = None
    extra: Mapping[str, Any] | None = None


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a Decathlon task (folder or tar) or a folder of images and label maps.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, or the output cannot be written.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"The source {source} does not exist.")
    if source.is_dir():
        return _convert_folder(find_task(source), folder, options, None, None)
    if not is_tar(source):
        raise DataError(
            f"{source} is neither a folder nor a tar archive; give the downloaded .tar or the unpacked folder."
        )
    if options.mode == "link":
        raise DataError(f"{source} is an archive, its files cannot be linked to; leave out --link or unpack it first.")
    unpacked = (
        folder.parent / f".{folder.name}-unpacked"
    )  # the same disk, so that files can be moved; kept if killed, to continue
    unpack_tar(source, unpacked, _wanted)
    try:
        task = find_task(unpacked) if unpacked.exists() else None
        if task is None:
            raise DataError(f"{source} holds no .nii.gz files; give the .tar of a Decathlon task.")
    except DataError:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise
    report = _convert_folder(task, folder, options, "move", source)
    shutil.rmtree(unpacked, ignore_errors=True)
    return report


def find_task(source: Path) -> Path:
    """The folder with the images: ``source`` or the only sub-folder that has them.

    Raises:
        DataError: there is none, or more than one.
    """
    if _is_task(source):
        return source
    below: list[Path] = []
    for path in sorted(source.iterdir()):
        if path.is_dir() and not is_hidden(path, source):
            below.append(path)
    found = [path for path in below if _is_task(path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{source} holds several tasks ({file_names(found)}); give one of these folders.")
    content = file_names(below) or "no folders"
    raise DataError(f"{source}: expected the folders imagesTr and labelsTr (or images and labels), found {content}.")


def _is_task(folder: Path) -> bool:
    return first_existing(folder, _IMAGES) is not None and first_existing(folder, _LABELS) is not None


def _convert_folder(
    task: Path, folder: Path, options: ConversionOptions, mode: Mode | None, archive: Path | None
) -> ConversionReport:
    content = _decathlon(task, options) if (task / "dataset.json").exists() else _plain(task, options)
    writer = RawWriter(folder, "msd", task, options, mode=mode, label=archive)
    writer.report_findings(content.findings)
    writer.convert(list(_jobs(content)))
    return writer.finish(
        DatasetDescription(
            channel_names=content.channels, labels=content.labels, num_training=0, extra=content.extra or {}
        ),
        content.notes,
    )


def _jobs(task: _Task) -> Iterable[CaseJob]:
    channels = len(task.channels)
    for case, (images, label) in task.training.items():
        yield volume_job(case, images, label, channels, task.labels.values, recode=task.recode)
    for case, images in task.test.items():
        yield volume_job(case, images, None, channels, None, split="Ts")


def _decathlon(task: Path, options: ConversionOptions) -> _Task:
    """A task with its ``dataset.json``."""
    where = task / "dataset.json"
    data = read_json(where)
    if not isinstance(data, dict) or not isinstance(data.get("labels"), dict):
        raise DataError(
            f"{where}: expected an object with 'modality', 'labels' and 'training', as the Decathlon publishes it."
        )
    modality = data.get("modality") or data.get("channel_names") or {"0": "image"}
    channels = tuple(options.channels) or modalities(modality, str(where))
    labels = numbered_labels(data["labels"], options.labels, str(where))
    pairs = listed_pairs(task, data.get("training"))
    notes: tuple[str, ...] = ()
    if pairs is None:
        paired = pair_files(first_existing(task, _IMAGES) or task, first_existing(task, _LABELS) or task)
        training, findings = _in_order(paired.images, paired.labels), paired.findings
    else:
        training, findings = pairs.cases, tuple(pairs.findings)
        notes = ("this is a task folder of nnU-Net v1, with one file per channel",) if pairs.split else ()
    return _Task(
        channels=channels,
        labels=labels,
        training=training,
        test=images_without_label(list_volumes(task / "imagesTs"), len(channels)),
        findings=findings,
        notes=notes,
        extra=_texts(data),
    )


def _texts(data: Mapping[str, Any]) -> dict[str, str]:
    keys = ("description", "reference", "licence", "license", "release")
    found: dict[str, str] = {}
    for key in keys:
        if isinstance(data.get(key), str):
            found[key] = data[key]
    return found


def _plain(task: Path, options: ConversionOptions) -> _Task:
    """A folder without ``dataset.json``."""
    images, labels = first_existing(task, _IMAGES), first_existing(task, _LABELS)
    if images is None or labels is None:
        raise DataError(f"{task}: expected the folders imagesTr and labelsTr.")
    pairs = pair_files(images, labels)
    training = _in_order(pairs.images, pairs.labels)
    if not training:
        raise DataError(
            f"{task}: expected images and label maps of the same names in {images.name} and {labels.name}, found no "
            "pair."
        )
    notes = []
    channels = options.channels or _made_up_channels(training)
    if not options.channels:
        notes.append(
            f"channels were named {', '.join(channels)}; give --channels (CT for computed tomography) to choose the "
            "normalisation"
        )
    spec, recode, found = named_labels(options, pairs.labels, labels)
    notes += found
    return _Task(
        channels=channels,
        labels=spec,
        training=training,
        test=images_without_label(list_volumes(task / "imagesTs"), len(channels)),
        findings=pairs.findings,
        notes=tuple(notes),
        recode=recode,
    )


def _made_up_channels(training: Mapping[str, tuple[tuple[Path, ...], Path]]) -> tuple[str, ...]:
    width = max(len(files) for files, _ in training.values())
    if width == 1:
        return ("image",)
    return tuple(f"channel_{number}" for number in range(width))


def _in_order(
    images: Mapping[str, Mapping[int, Path]], labels: Mapping[str, Path]
) -> dict[str, tuple[tuple[Path, ...], Path]]:
    pairs: dict[str, tuple[tuple[Path, ...], Path]] = {}
    for case in sorted(labels):
        channels = sorted(images[case].items())
        pairs[case] = tuple(path for _, path in channels), labels[case]
    return pairs


def _wanted(name: PurePosixPath) -> bool:
    """Of an archive's members: volumes and ``dataset.json``, without the ``._`` files of macOS."""
    return not name.name.startswith(".") and (name.name == "dataset.json" or name.name.endswith((".nii.gz", ".nii")))


CONVERTERS.register("msd")(
    Converter(
        "Medical Segmentation Decathlon task, or any folder of images and label maps", GUIDE, convert, name_from_path
    )
)
