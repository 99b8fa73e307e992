"""DICOM series with label maps in NIfTI (or another volume format): one case per series."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.findings import modality_findings, problem, some, warning
from dataset_conversion.folder import compact_label, list_volumes, named_labels, recode_values
from dataset_conversion.layout import existing_folder
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import finish_converted
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter, Split
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.checks import Finding, grid_findings, label_finding, label_values, unreadable_finding
from medkd.io.dicom import Series, Study, find_series, no_scan_text, read_files
from medkd.io.volumes import Volume, read_label, stem

GUIDE = """\
DICOM series (CT, MR, ...) and label maps: every series becomes a case, in rescaled values (HU for CT), on its own grid.
needs:     pip install 'medkd[dicom]'
source:    a folder with a series, or any tree with several; files may have any name, DICOMDIR and other files are
           ignored
             SOURCE/patient1/CT/*          case patient1_CT: the folders below SOURCE, joined by _
             SOURCE/patient2/*             series that share a folder get their number and description appended
labels:    --label-folder FOLDER with FOLDER/patient1_CT.nii.gz, named like the case and on the same grid; its axes may
           be flipped or permuted, they are brought to the order of the series. Name the values with --labels A,B.
           Series without a label map become test cases (imagesTs). To predict only, give the series to medkd_predict.
refused:   gantry tilt, missing or double slices, mixed orientations, sizes or spacings within a series: each with its
           reason
left out:  localizers, single slices, screenshots, reports, segmentations; the report lists them
privacy:   no name, birth date or patient number is taken over; folder names and series descriptions are"""

Labels = Mapping[str, Path]
"""Case → label map."""
_SETTING = "label-folder"


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the series below ``source`` that have a label map, and the others of the same modality as test cases.

    Raises:
        DataError: there are no series, no label folder or no pair; the labelled series are of several modalities; files
            were to be linked; or the output cannot be written.
    """
    source = existing_folder(source, "dicom")
    if options.mode == "link":
        raise DataError("DICOM slices become one .nii.gz file per series and cannot be linked to; leave out --link.")
    study = find_series(source)
    if not study.scans:
        raise DataError(no_scan_text(source, study))
    label_folder, labels = _labels(options)
    training = _training(study, labels, label_folder)
    channel, notes = _channel(study, training, options)
    spec, recode, found = named_labels(options, training, label_folder)
    notes += found
    jobs, other = _jobs(study, training, spec, recode, channel)
    writer = RawWriter(folder, "dicom", source, options)
    writer.report_findings(_unmatched(labels, training, source))
    writer.report_findings([*other, *_damaged(study)])
    writer.convert(jobs)
    scans = [f"{series.name} = {series.text()}" for series in study.scans]
    writer.report_list("series", scans)
    others = [f"{series.text()}: {series.not_a_scan}" for series in study.others]
    writer.report_list("not scans", others)
    description = DatasetDescription(channel_names=(channel,), labels=spec, num_training=0)
    return finish_converted(writer, "dicom", description, None, notes)


def _training(study: Study, labels: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Series that have a label map → the label map.

    Raises:
        DataError: there is none.
    """
    names = sorted(series.name for series in study.scans)
    training = {name: labels[name] for name in names if name in labels}
    if not training:
        files = sorted(path.name for path in labels.values())
        found = some(files) or "none"
        raise DataError(f"{folder}: expected label maps named like the series ({some(names)}), found {found}.")
    return training


def align(label: Volume, grid: Geometry) -> Volume:
    """Flip and permute the axes of a label map so that they run like those of ``grid``; no voxel value changes.

    The result lies where the label map lay; whether this is the place of ``grid`` is for the caller to check.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    order = io_orientation(np.linalg.inv(grid.matrix) @ label.geometry.matrix)
    if np.isnan(order).any():
        return label
    array = apply_orientation(label.array.T, order).T
    affine = label.geometry.matrix @ inv_ornt_aff(order, label.array.T.shape)
    return Volume(np.ascontiguousarray(array), Geometry.from_affine(array.shape, affine))


def _labels(options: ConversionOptions) -> tuple[Path, dict[str, Path]]:
    given = options.settings.get(_SETTING)
    if not given:
        raise DataError(
            f"A training set needs label maps: give their folder with --{_SETTING}; to predict only, use medkd_predict."
        )
    folder = Path(given)
    if not folder.is_dir():
        raise DataError(f"The folder of the label maps, {folder}, does not exist.")
    return folder, {stem(path): path for path in list_volumes(folder)}


def _channel(study: Study, training: Labels, options: ConversionOptions) -> tuple[str, list[str]]:
    """The name of the only channel, and a note where it was taken from the series."""
    modalities: dict[str, str] = {}
    for series in study.scans:
        if series.name in training:
            modalities[series.headers[0].modality] = series.name
    if len(modalities) > 1:
        pairs = sorted(modalities.items())
        found = ", ".join(f"{modality or 'unnamed'} ({name})" for modality, name in pairs)
        raise DataError(
            f"The labelled series must be of one modality, found {found}; convert each with a label folder of its own."
        )
    if len(options.channels) > 1:
        raise DataError(
            f"Each DICOM series is a case with one channel, found {len(options.channels)} names in --channels; give "
            "one."
        )
    if options.channels:
        return options.channels[0], []
    modality = next(iter(modalities)) or "image"
    return modality, [
        f"the channel was named {modality} after the modality of the series; give --channels to change it"
    ]


def _jobs(
    study: Study, training: Labels, spec: LabelSpec, recode: Mapping[int, int] | None, channel: str
) -> tuple[list[CaseJob], list[Finding]]:
    """Jobs for all series of the training cases' modality, and findings about the rest."""
    labelled = [series for series in study.scans if series.name in training]
    used = {series.headers[0].modality for series in labelled}
    patients = patients_of(labelled)
    jobs: list[CaseJob] = []
    findings: list[Finding] = []
    for series in study.scans:
        modality = series.headers[0].modality
        if modality not in used:
            expected = f"series of the modality {', '.join(used)}"
            findings.append(warning(series.name, series.folder, expected, modality or "none", "it was left out"))
            continue
        label, patient = training.get(series.name), patients.get(series.name)
        split: Split = "Tr" if label else "Ts"
        jobs.append(series_job(series, label, spec, recode, patient, split, channel))
    return jobs, findings


def series_job(
    series: Series,
    label: Path | None,
    spec: LabelSpec,
    recode: Mapping[int, int] | None,
    patient: str | None,
    split: Split,
    channel: str,
) -> CaseJob:
    """A job for a DICOM series; one of another modality than its channel is warned of.

    Args:
        series: which becomes a case.
        label: its label map, or None.
        spec: the labels that may occur.
        recode: source value → value in the new data set.
        patient: patient id where known.
        split: where the case belongs.
        channel: name of the data set's channel.
    """
    odd = tuple(modality_findings(series.name, series.folder, series.headers[0].modality, channel))

    def prepare() -> CaseContent:
        voxels, affine = read_files(series.files)
        array = np.ascontiguousarray(voxels.T)
        image = Volume(array, Geometry.from_affine(array.shape, affine))
        if label is None:
            return CaseContent(images=(image,), findings=odd)
        try:
            aligned = align(read_label(label), image.geometry)
        except DataError as error:
            return CaseContent(images=(image,), findings=(*odd, unreadable_finding(series.name, label, error)))
        if recode is not None:
            recode_values(aligned.array, recode)
        values = label_values(aligned.array)
        findings = grid_findings(series.name, series.folder, image.geometry, label, aligned.geometry)
        findings += label_finding(series.name, label, values, spec.values)
        geometry = aligned.geometry if findings else image.geometry  # equal but for rounding in the label's header
        return CaseContent(
            images=(image,),
            label=compact_label(Volume(aligned.array, geometry)),
            values=values,
            findings=(*odd, *findings),
        )

    renumbered = sorted((recode or {}).items())
    recipe = json.dumps([list(spec.values), renumbered])
    sources = (*series.files, label) if label else tuple(series.files)
    return CaseJob(case=series.name, sources=sources, prepare=prepare, recipe=recipe, split=split, patient=patient)


def patients_of(scans: Sequence[Series]) -> dict[str, str]:
    """Case → a running number instead of the PatientID; empty where the IDs do not tell patients apart."""
    ids: dict[str, str] = {}
    for series in scans:
        patient = series.headers[0].patient
        if patient:
            ids[series.name] = patient
    different = sorted(set(ids.values()))
    if len(different) < 2:  # removed, or the same dummy in all files
        return {}
    for case, patient in ids.items():
        ids[case] = f"patient_{different.index(patient) + 1}"
    return ids


def _unmatched(labels: Labels, training: Labels, source: Path) -> Iterator[Finding]:
    for name in sorted(labels.keys() - training.keys()):
        action = "rename the label map like its case (the report lists them), or remove it"
        yield problem(name, labels[name], f"a series {name} in {source}", "none", action)


def _damaged(study: Study) -> Iterator[Finding]:
    """Damaged files that are in no scan's folder; the others are reported with their case."""
    reported: set[Path] = set()
    for series in study.scans:
        reported.update(series.damaged)
    for path in sorted(study.damaged.keys() - reported):
        yield problem(
            "", path, "a DICOM file that can be read", study.damaged[path].rstrip("."), "restore the file or remove it"
        )


CONVERTERS.register("dicom")(
    Converter(
        "DICOM series with label maps in NIfTI",
        GUIDE,
        convert,
        name_from_path,
        {_SETTING: "folder of the label maps, CASE.nii.gz"},
    )
)
