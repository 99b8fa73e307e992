"""BTCV abdomen: 13 organs on 30 portal-venous CT scans.

Landman, Xu, Igelsias, Styner, Langerak, Klein: MICCAI Multi-Atlas Labeling Beyond the Cranial Vault, 2015,
doi:10.7303/syn3193805.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dataset_conversion.findings import problem, warning
from dataset_conversion.folder import first_existing, list_volumes, volume_job
from dataset_conversion.layout import contents, existing_folder, find_parent
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted, named_split
from dataset_conversion.writer import CaseJob, RawWriter
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.io.checks import Finding
from medkd.io.volumes import stem

GUIDE = """\
BTCV abdomen ("Beyond the Cranial Vault"): 30 labelled and 20 unlabelled CT scans, 13 organs.
download:  https://www.synapse.org/Synapse:syn3193805 (free account; Files → Abdomen → RawData.zip, about 1.5 GB)
licence:   terms of use of the challenge at Synapse, to be accepted there
source:    the unpacked folder, or any folder above it:
             RawData/Training/img/img0001.nii.gz       numbers 1-10 and 21-40
             RawData/Training/label/label0001.nii.gz
             RawData/Testing/img/img0061.nii.gz        optional, without labels
           or the same files in imagesTr, labelsTr, imagesTs, as MONAI's tutorials arrange them
split:     dataset_0.json of MONAI's tutorials (24 training, 6 validation cases), found beside these folders or given
           with --split FILE, becomes fold 0; without it training makes five folds."""

ORGANS = (
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_vein",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
LABELS = LabelSpec.from_names(ORGANS)

_LAYOUTS = (("img", "label"), ("imagesTr", "labelsTr"))
_TESTS = ("../Testing/img", "Testing/img", "imagesTs")
_SPLIT = "dataset_0.json"
_NUMBER = re.compile(r"^(?:img|label)(\d{4})$", re.IGNORECASE)


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the BTCV download.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, or the output cannot be written.
    """
    source = existing_folder(source, "btcv")
    training, images, labels = _training(source)
    tests = first_existing(training, _TESTS)
    scans = _numbered(tests) if tests else {}
    findings = _unpaired(images, labels, training)
    used = {*images.values(), *labels.values(), *scans.values()}
    for place in _folders(training, tests):
        findings += _unnumbered(place, used)
    both = sorted(images.keys() & labels.keys())
    jobs = [_job(number, images[number], labels[number]) for number in both]
    if not jobs:
        raise DataError(f"{training}: expected images img0001.nii.gz and label maps label0001.nii.gz, found no pair.")
    for number, path in sorted(scans.items()):
        jobs.append(_job(number, path, None))
    cases = [f"img{number}" for number in images.keys() | labels.keys()]
    split, entries = _split(source, training, options, cases)
    writer = RawWriter(folder, "btcv", training, options)
    writer.report_findings([*findings, *entries])
    writer.convert(jobs)
    return finish_converted(
        writer, "btcv", DatasetDescription(channel_names=("CT",), labels=LABELS, num_training=0), split
    )


def _training(source: Path) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """The folder with the training data, and its images and label maps by number."""
    for names in _LAYOUTS:
        training = find_parent(source, names)
        if training is not None:
            return training, _numbered(training / names[0]), _numbered(training / names[1])
    raise DataError(f"{source}: expected RawData/Training/img and RawData/Training/label, found {contents(source)}.")


def _numbered(folder: Path) -> dict[str, Path]:
    numbered: dict[str, Path] = {}
    for path in list_volumes(folder):
        match = _NUMBER.match(stem(path))
        if match:
            numbered[match[1]] = path
    return numbered


def _folders(training: Path, tests: Path | None) -> list[Path]:
    """The folders that hold scans or label maps, where they are there."""
    folders = [tests] if tests else []
    for images, labels in _LAYOUTS:
        folders += (training / images, training / labels)
    return folders


def _unnumbered(folder: Path, used: Collection[Path]) -> list[Finding]:
    """A warning for each scan or label map whose name says no number."""
    expected, action = "a name such as img0001.nii.gz or label0001.nii.gz", "it was ignored; rename or remove it"
    found = []
    for path in list_volumes(folder):
        if path not in used:
            found.append(warning("", path, expected, path.name, action))
    return found


def _job(number: str, image: Path, label: Path | None) -> CaseJob:
    return volume_job(
        f"img{number}", [image], label, 1, LABELS.values if label else None, split="Tr" if label else "Ts"
    )


def _unpaired(images: Mapping[str, Path], labels: Mapping[str, Path], training: Path) -> list[Finding]:
    findings = []
    for number in sorted(images.keys() ^ labels.keys()):
        path = images.get(number) or labels[number]
        missing = f"label{number}.nii.gz" if number in images else f"img{number}.nii.gz"
        action = "unpack the download again, or remove the file"
        findings.append(problem(f"img{number}", path, f"{missing} for it below {training}", "none", action))
    return findings


def _split(
    source: Path, training: Path, options: ConversionOptions, cases: Sequence[str]
) -> tuple[PublishedSplit | None, list[Finding]]:
    """The split of MONAI's file, and an error for each of its entries that is no training case."""
    path = _split_file(source, training, options)
    if path is None:
        return None, []
    data = read_json(path)
    try:
        train = [entry["image"] for entry in data["training"]]
        val = [entry["image"] for entry in data["validation"]]
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{path}: expected the lists 'training' and 'validation' of objects with 'image', as MONAI's {_SPLIT}."
        ) from error
    texts = PublishedSplit.single(map(str, train), map(str, val), f"training and validation lists of {path.name}")
    return named_split(texts, cases, path)


def _split_file(source: Path, training: Path, options: ConversionOptions) -> Path | None:
    given = options.settings.get("split")
    if given:
        return Path(given)
    for folder in (training, training.parent, source):
        if (folder / _SPLIT).exists():
            return folder / _SPLIT
    return None


CONVERTERS.register("btcv")(
    Converter(
        "BTCV abdomen: CT, 13 organs",
        GUIDE,
        convert,
        lambda _: "BTCV",
        {"split": f"MONAI's {_SPLIT} (default: the one beside the images)"},
    )
)
