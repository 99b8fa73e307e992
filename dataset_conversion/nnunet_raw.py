"""An existing data set in nnU-Net v2's raw layout: checked and linked, not copied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset_conversion.decathlon import is_version_1, listed_pairs, modalities, numbered_labels
from dataset_conversion.findings import file_names, problem, warning
from dataset_conversion.folder import has_voxel_size, list_volumes, split_channel
from dataset_conversion.layout import existing_folder
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted, named_split, read_split
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter, Split
from medkd.core.dataset import CaseFiles, DatasetDescription, channel_files, labelled_cases, unlabelled_cases
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.core.patients import find_named
from medkd.core.splits import SPLITS_FILE
from medkd.io.checks import Finding
from medkd.io.verify_case import check_case
from medkd.io.volumes import any_ending, stem

GUIDE = """\
A data set in nnU-Net v2's raw layout; every case is checked, and the good ones are linked, not copied.
source:    nnUNet_raw/DatasetNNN_Name with
             dataset.json                      channel_names, labels, numTraining, file_ending
             imagesTr/CASE_0000.nii.gz         one file per channel; also .nii, .nrrd, .mha, .mgz
             labelsTr/CASE.nii.gz
             imagesTs, labelsTs                optional
             imagesUn                          optional: scans without labels
also:      a task folder of nnU-Net v1 (TaskNNN_Name, labels by number in dataset.json)
split:     a splits_final.json in this folder, or nnU-Net's own in nnUNet_preprocessed/DatasetNNN_Name beside
           nnUNet_raw, is taken over, so that both tools train on the same folds.
medkd also reads an nnUNet_raw folder as it is (set nnUNet_raw, or lay it under <root>/raw); conversion adds the check
and leaves out bad cases."""

_VARIABLE = "nnUNet_preprocessed"
_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesUn")
_FORM = {"images": "CASE_0000 and one for each further channel", "labels": "named like the case"}
_SIZED = (".tif", ".tiff")
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
    content = _describe(source, options)
    description = content.description
    jobs = [_job(case, description, "Tr") for case in content.cases]
    for case in _test_cases(source, description):
        jobs.append(_job(case, description, "Ts"))
    for case in unlabelled_cases(source, description):
        jobs.append(_job(case, description, "Un"))
    writer = RawWriter(folder, "nnunet", source, options, mode="link", file_ending=description.file_ending)
    split, entries = _split(source, content)
    named = find_named(description.patients, [job.case for job in jobs])
    lost = [_lost_patient(source, fault) for fault in named.faults]
    writer.report_findings([*content.findings, *entries, *lost, *_unused(source, jobs, content)])
    writer.convert(jobs)
    # 'dataset' listed the files, which now have their usual names
    extra = dict(description.extra)
    extra.pop("dataset", None)
    notes = [*content.notes, "the files are linked to the source; keep it where it is"]
    return finish_converted(writer, "nnunet", replace(description, extra=extra, patients=named.of), split, notes)


def _lost_patient(source: Path, fault: str) -> Finding:
    """A name in ``patients`` that is not taken over."""
    return problem(
        "", source / "dataset.json", "'patients' by the names of the cases", fault, "correct it or remove it"
    )


@dataclass(frozen=True)
class _Content:
    """What a raw data set says of itself."""

    description: DatasetDescription
    cases: Sequence[CaseFiles]
    findings: Sequence[Finding]
    notes: tuple[str, ...] = ()


def _describe(source: Path, options: ConversionOptions) -> _Content:
    where = source / "dataset.json"
    data = read_json(where)
    if is_version_1(data):
        return _version_1(source, data, options)
    description = DatasetDescription.from_json(data, str(where))
    _check_ending(description.file_ending, where)
    cases = labelled_cases(source, description)
    return _Content(description, cases, _without_label(source, description, cases))


def _version_1(source: Path, data: Mapping[str, Any], options: ConversionOptions) -> _Content:
    """A task folder of nnU-Net v1: numbered labels, ``modality``, and a list of pairs without the channels' numbers."""
    where = source / "dataset.json"
    channels = tuple(options.channels) or modalities(data.get("modality"), str(where))
    labels = numbered_labels(data["labels"], options.labels, str(where))
    pairs = listed_pairs(source, data.get("training"))
    if pairs is None:
        raise DataError(f"{where}: expected the list 'training' of nnU-Net v1, found none; list the pairs there.")
    cases = []
    findings = list(pairs.findings)
    for case, (images, label) in sorted(pairs.cases.items()):
        cases.append(CaseFiles(case, images, label))
        if len(images) != len(channels):
            expected = f"{len(channels)} channels, {case}_0000 to {case}_{len(channels) - 1:04d}"
            findings.append(problem(case, where, expected, file_names(images), "add the missing files"))
            cases.pop()
    description = DatasetDescription(channel_names=channels, labels=labels, num_training=len(cases))
    return _Content(description, cases, findings, ("this is a task folder of nnU-Net v1",))


def _check_ending(ending: str, where: Path) -> None:
    if any_ending(Path(f"x{ending}")) != ending:
        raise DataError(f"{where}: medkd does not read files ending in '{ending}'; convert them first.")
    if ending in _TWO_FILES:
        raise DataError(
            f"{where}: scans ending in '{ending}' keep their voxels in a second file, which a link would not find; "
            "convert them to .nii.gz first."
        )
    if ending in _SIZED and any(map(has_voxel_size, where.parent.glob(f"images*/[!.]*{ending}"))):
        raise DataError(
            f"{where}: the voxel sizes of scans ending in '{ending}' stand in JSON files beside them, which a link "
            "would not find; lay the folder under <root>/raw as it is, or convert the scans to .nii.gz."
        )


def _job(case: CaseFiles, description: DatasetDescription, split: Split) -> CaseJob:
    files = (*case.images, case.label) if case.label else case.images
    labels: LabelSpec | None = description.labels if case.label else None

    def prepare() -> CaseContent:
        check = check_case(case, labels)
        return CaseContent(images=case.images, label=case.label, values=check.values, findings=check.findings)

    return CaseJob(case=case.case, sources=files, prepare=prepare, recipe=str(description.labels), split=split)


def _test_cases(source: Path, description: DatasetDescription) -> list[CaseFiles]:
    """Cases of ``imagesTs``; a missing channel is found when the case is converted."""
    ending, cases = description.file_ending, []
    folder = source / "imagesTs"
    for name in _names(folder, ending):
        images = channel_files(folder, name, description)
        label = source / "labelsTs" / f"{name}{ending}"
        cases.append(CaseFiles(name, images, label if os.path.lexists(label) else None))
    return cases


def _without_label(source: Path, description: DatasetDescription, cases: list[CaseFiles]) -> list[Finding]:
    if description.extra.get("dataset"):
        return []
    known = {case.case for case in cases}
    where, ending = source / "imagesTr", description.file_ending
    findings = []
    for name in _names(where, ending):
        if name not in known:
            expected, action = f"a label map labelsTr/{name}{ending}", "add the label map or move the image to imagesTs"
            path = where / f"{name}_0000{ending}"
            findings.append(problem(name, path, expected, "none", action))
    return findings


def _unused(source: Path, jobs: Sequence[CaseJob], content: _Content) -> list[Finding]:
    """A warning for each scan or label map in the usual folders that belongs to no case."""
    used: set[Path] = set()
    for job in jobs:
        used.update(job.sources)
    said: set[str] = set()
    for finding in content.findings:
        said.update((finding.file, finding.case))
    findings = []
    for name in _FOLDERS:
        for path in list_volumes(source / name):
            case = split_channel(stem(path))[0]
            if path not in used and str(path) not in said and case not in said:
                expected, action = f"a file of a case, {_FORM[name[:6]]}", "it was ignored; rename or remove it"
                findings.append(warning("", path, expected, "none", action))
    return findings


def _names(folder: Path, ending: str) -> list[str]:
    suffix = f"_0000{ending}"
    names = []
    for path in folder.glob(f"*{suffix}"):
        if not path.name.startswith("."):
            names.append(path.name.removesuffix(suffix))
    return sorted(names)


def _split(source: Path, content: _Content) -> tuple[PublishedSplit | None, list[Finding]]:
    """The user's folds, and an error for each entry that is no training case."""
    place = source.absolute()
    places = [place, place.parents[1] / "nnUNet_preprocessed" / place.name]
    if os.environ.get(_VARIABLE):
        places.append(Path(os.environ[_VARIABLE]) / place.name)
    for folder in places:
        path = folder / SPLITS_FILE
        if path.exists():
            cases = {files.case for files in content.cases}
            cases.update(finding.case for finding in content.findings)
            name = f"{SPLITS_FILE} of {path.parent.parent.name}/{source.name}"
            stated = PublishedSplit(tuple(read_split(path)), name)
            return named_split(stated, cases - {""}, path)
    return None, []


CONVERTERS.register("nnunet")(
    Converter("an existing nnUNet_raw data set, checked and linked", GUIDE, convert, name_from_path)
)
