"""Scans without labels, for a model that somebody else trained: labels, channels and their names are the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dataset_conversion.decathlon import images_without_label
from dataset_conversion.dicom import patients_of, series_job
from dataset_conversion.folder import channels_finding, has_voxel_size, list_volumes, volume_job
from dataset_conversion.layout import existing_folder
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter
from medkd.core.dataset import UNLABELLED_FOLDER, CaseFiles, DatasetDescription
from medkd.core.errors import DataError
from medkd.io.painted import MOST_SURE, painted_values
from medkd.io.verify_case import check_case
from medkd.io.volumes import PICTURES, read_volume

GUIDE = """\
Scans without labels, to teach students on them with a model that you have.
source:    a folder of volumes (SOURCE/CASE.nii.gz, or CASE_0000.nii.gz, CASE_0001.nii.gz, ... with one file per
           channel), or any tree with DICOM series (needs: pip install 'medkd[dicom]'); for a model of pictures a
           folder of these, with the ending of its dataset.json
needed:    --like MODEL: labels, channels and their names are those of the model (an nnU-Net v2 folder, a MONAI
           bundle, a run)
result:    all scans are in imagesUn, there is no labelsTr; next: medkd_plan_and_preprocess -d NNN --like MODEL"""

_LIKE = "like"
_LOOKED_AT = 3  # scans by which label maps in their place are told


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert scans without labels.

    The setting ``like`` is the description (:class:`~medkd.core.dataset.DatasetDescription`) of the model's data.

    Raises:
        DataError: there is no model, no scan, or the scans cannot have the model's channels.
    """
    source = existing_folder(source, "folder")
    model = options.settings.get(_LIKE)
    if not isinstance(model, DatasetDescription):
        raise DataError("Scans without labels need a model that says what is to be seen in them; give it with --like.")
    if options.labels or options.channels:
        raise DataError("Labels and channels are those of the model (--like); leave out --labels and --channels.")
    if model.task == "detection":
        raise DataError("The model of --like is a detector; expected one for segmentation.")
    jobs = _jobs(source, model, options)
    writer = RawWriter(folder, "folder", source, options, file_ending=model.file_ending)
    writer.convert(jobs)
    described = replace(model, num_training=0)
    return writer.finish(described, ("labels and channels are those of the model",))


def _jobs(source: Path, model: DatasetDescription, options: ConversionOptions) -> list[CaseJob]:
    channels = len(model.channel_names)
    _refuse_a_labelled_set(source)
    if model.file_ending in PICTURES:
        return _picture_jobs(source, model)
    if list_volumes(source):
        images = images_without_label(list_volumes(source), channels)
        _refuse_label_maps(source, [files[0] for files in images.values()], model)
        return [volume_job(case, files, None, channels, None, split="Un") for case, files in images.items()]
    return _series_jobs(source, model, options)


def _series_jobs(source: Path, model: DatasetDescription, options: ConversionOptions) -> list[CaseJob]:
    """Each DICOM series is a case."""
    from medkd.io.dicom import find_series, no_scan_text

    study = find_series(source)
    if not study.scans:
        none = not study.others and not study.damaged
        expected = (
            f"{source}: expected scans (CASE.nii.gz and the like, or DICOM series), found none; give their folder."
        )
        raise DataError(expected if none else no_scan_text(source, study))
    if options.mode == "link":
        raise DataError("DICOM slices become one .nii.gz file per series and cannot be linked to; leave out --link.")
    channels = len(model.channel_names)
    if channels > 1:
        raise DataError(
            f"Each DICOM series is a case with one channel, but the model has {channels} "
            f"({', '.join(model.channel_names)}); give a folder of volumes named CASE_0000 and so on."
        )
    patients, channel = patients_of(study.scans), model.channel_names[0]
    return [
        series_job(series, None, model.labels, None, patients.get(series.name), "Un", channel) for series in study.scans
    ]


def _picture_jobs(source: Path, model: DatasetDescription) -> list[CaseJob]:
    """Pictures, of which the colours may be the channels, as they are."""
    ending = model.file_ending
    pictures = sorted(path for path in source.glob(f"[!.]*{ending}") if path.is_file())
    if not pictures:
        raise DataError(
            f"{source}: expected pictures ending in '{ending}', as the model takes, found none; give their folder, or "
            "convert them."
        )
    if any(map(has_voxel_size, pictures)):
        raise DataError(
            f"{source}: the voxel sizes of scans ending in '{ending}' stand in JSON files beside them, which are not "
            f"taken over; lay the folder as it is under <root>/raw/DatasetNNN_NAME/{UNLABELLED_FOLDER}."
        )
    cases = images_without_label(pictures, len(model.channel_names))
    return [_picture_job(CaseFiles(case, images), model) for case, images in cases.items()]


def _picture_job(case: CaseFiles, model: DatasetDescription) -> CaseJob:
    channels = len(model.channel_names)

    def prepare() -> CaseContent:
        check = check_case(case, model.labels)
        findings = [*check.findings]
        if check.facts is not None and len(check.facts.channels) != channels:
            findings.append(channels_finding(case.case, len(check.facts.channels), case.images, channels))
        return CaseContent(images=case.images, findings=tuple(findings))

    recipe = f"{channels} {model.labels}"
    return CaseJob(case=case.case, sources=case.images, prepare=prepare, recipe=recipe, split="Un")


def _refuse_a_labelled_set(source: Path) -> None:
    """Scans of a data set that has labels, as nnU-Net and the Decathlon lay it out, would lose these."""
    if any((source / name).is_dir() for name in ("imagesTr", "labelsTr")):
        raise DataError(
            f"{source}: expected scans without labels, found a data set with imagesTr or labelsTr; convert it with "
            f"medkd_convert nnunet (or msd), or give the folder of its scans alone ({source / 'imagesTr'})."
        )


def _refuse_label_maps(source: Path, scans: Sequence[Path], model: DatasetDescription) -> None:
    """Label maps in the place of scans: the first few hold nothing but the model's label values."""
    found: set[int] = set()
    for path in scans[:_LOOKED_AT]:
        try:
            values = painted_values(read_volume(path).array, model.labels.values)
        except DataError:
            continue  # the conversion says so
        if not values:
            return
        found |= values
    if 0 < len(found) <= MOST_SURE:
        raise DataError(
            f"{source}: expected scans, found files with nothing but the values 0 to {max(found)}, which are those "
            "of the model's labels; these are label maps, so give the folder of the scans."
        )


CONVERTERS.register("folder")(
    Converter(
        "scans without labels, for students of a model that you have",
        GUIDE,
        convert,
        name_from_path,
        {_LIKE: "folder of the model whose labels and channels these are"},
    )
)
