"""An existing data set in nnU-Net v2's raw layout: checked and linked, not copied."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dataset_conversion.layout import existing_folder
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import SPLITS_FILE, PublishedSplit, finish_converted, read_split
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter
from medkd.core.dataset import CaseFiles, DatasetDescription, training_cases
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.io.checks import Finding
from medkd.io.verify import check_case
from medkd.io.volumes import file_ending

GUIDE = """\
A data set in nnU-Net v2's raw layout; every case is checked, and the good ones are linked, not copied.
source:    nnUNet_raw/DatasetNNN_Name with
             dataset.json                      channel_names, labels, numTraining, file_ending
             imagesTr/CASE_0000.nii.gz         one file per channel; also .nii, .nrrd, .mha, .mgz
             labelsTr/CASE.nii.gz
             imagesTs, labelsTs                optional
split:     a splits_final.json in this folder, or nnU-Net's own in nnUNet_preprocessed/DatasetNNN_Name beside nnUNet_raw, is taken
           over, so that both tools train on the same folds.
medkd also reads an nnUNet_raw folder as it is (set nnUNet_raw, or lay it under <root>/raw); conversion adds the check and leaves
out bad cases."""

_VARIABLE = "nnUNet_preprocessed"
_TWO_FILES = (".mhd", ".nhdr")  # a header that names the file of the voxels


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Check and link a raw data set.

    Raises:
        DataError: ``dataset.json`` is missing or invalid, the source is the result itself, or the output cannot be
            written.
    """
    source = existing_folder(source, "nnunet")
    if source.resolve() == Path(folder).resolve():
        raise DataError(
            f"{source} lies where the result would be written; it can be used as it is: run medkd_plan_and_preprocess."
        )
    description = DatasetDescription.load(source / "dataset.json")
    if file_ending(Path(f"x{description.file_ending}")) != description.file_ending:
        raise DataError(
            f"{source / 'dataset.json'}: medkd does not read files ending in '{description.file_ending}'; convert them "
            "first."
        )
    if description.file_ending in _TWO_FILES:
        raise DataError(
            f"{source / 'dataset.json'}: scans ending in '{description.file_ending}' keep their voxels in a second "
            "file, which a link "
            "would not find; convert them to .nii.gz first."
        )
    cases = training_cases(source, description)
    findings = _without_label(source, description, cases)
    jobs = [_job(case, description, "Tr") for case in cases]
    jobs += [_job(case, description, "Ts") for case in _test_cases(source, description)]
    writer = RawWriter(folder, "nnunet", source, "link", file_ending=description.file_ending)
    writer.report_findings(findings)
    writer.convert(jobs, options.workers)
    extra = {
        key: value for key, value in description.extra.items() if key != "dataset"
    }  # files now have their usual names
    known = {case: patient for case, patient in description.patients.items() if case in writer.training_cases}
    description = replace(description, extra=extra, patients=known)
    return finish_converted(
        writer, "nnunet", description, _split(source), ["the files are linked to the source; keep it where it is"]
    )


def _job(case: CaseFiles, description: DatasetDescription, split: str) -> CaseJob:
    files = (*case.images, *([case.label] if case.label else []))
    labels: LabelSpec | None = description.labels if case.label else None

    def prepare() -> CaseContent:
        check = check_case(case, labels)
        return CaseContent(case.images, case.label, check.values, check.findings)

    return CaseJob(case.case, files, prepare, str(description.labels), "Ts" if split == "Ts" else "Tr")


def _test_cases(source: Path, description: DatasetDescription) -> list[CaseFiles]:
    """Cases of ``imagesTs``; a missing channel is found when the case is converted."""
    ending, cases = description.file_ending, []
    for name in _names(source / "imagesTs", ending):
        images = tuple(source / "imagesTs" / f"{name}_{i:04d}{ending}" for i in range(len(description.channel_names)))
        label = source / "labelsTs" / f"{name}{ending}"
        cases.append(CaseFiles(name, images, label if label.exists() else None))
    return cases


def _without_label(source: Path, description: DatasetDescription, cases: list[CaseFiles]) -> list[Finding]:
    if description.extra.get("dataset"):
        return []
    known = {case.case for case in cases}
    action = "add the label map or move the image to imagesTs"
    where, ending = source / "imagesTr", description.file_ending
    missing = [name for name in _names(where, ending) if name not in known]
    return [
        Finding(
            case=n,
            file=str(where / f"{n}_0000{ending}"),
            expected=f"a label map labelsTr/{n}{ending}",
            found="none",
            action=action,
        )
        for n in missing
    ]


def _names(folder: Path, ending: str) -> list[str]:
    suffix = f"_0000{ending}"
    return sorted(p.name.removesuffix(suffix) for p in folder.glob(f"*{suffix}") if not p.name.startswith("."))


def _split(source: Path) -> PublishedSplit | None:
    places = [source, source.absolute().parents[1] / "nnUNet_preprocessed" / source.absolute().name]
    if os.environ.get(_VARIABLE):
        places.append(Path(os.environ[_VARIABLE]) / source.absolute().name)
    path = next((p / SPLITS_FILE for p in places if (p / SPLITS_FILE).exists()), None)
    return (
        None
        if path is None
        else PublishedSplit(tuple(read_split(path)), f"{SPLITS_FILE} of {path.parent.parent.name}/{source.name}")
    )


CONVERTERS.register("nnunet")(
    Converter("an existing nnUNet_raw data set, checked and linked", GUIDE, convert, name_from_path)
)
