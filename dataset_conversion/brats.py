"""BraTS adult glioma of 2021 and 2023: four MR sequences, three overlapping tumour regions.

Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark on Brain Tumor Segmentation and Radiogenomic Classification,
arXiv:2107.02314.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.findings import has_errors, problem, warning
from dataset_conversion.folder import volume_job
from dataset_conversion.layout import existing_folder
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted
from dataset_conversion.writer import CaseContent, CaseJob, RawWriter
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.resolve import files_ending
from medkd.io.checks import Finding, label_values
from medkd.io.volumes import READERS, read_label, stem

GUIDE = """\
BraTS adult glioma: four registered, skull-stripped MR sequences at 1 mm; about 1,251 training cases, about 13 GB.
download:  2021: https://www.synapse.org/Synapse:syn25829067 or the copy at TCIA (RSNA-ASNR-MICCAI-BraTS-2021)
           2023: https://www.synapse.org/Synapse:syn51156910 (adult glioma, "GLI"); both need a free account
licence:   terms of use of the challenge, to be accepted there
source:    the unpacked folder, or any folder above it; each case has its folder:
             BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz                  2021
             BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t2f,t1n,t1c,t2w,seg}.nii.gz           2023
           Cases of a folder that has no seg file at all (validation data) become test cases.
result:    channels t1c, t1n, t2f, t2w; labels 1 necrosis, 2 edema, 3 enhancing tumour (4 in 2021 becomes 3) in
           nnU-Net's region form: whole tumour {1,2,3}, tumour core {1,3}, enhancing tumour {3}.
           Time points of one patient share a fold."""

CHANNELS = ("t1c", "t1n", "t2f", "t2w")
# painted in this order, each over the ones before: edema, necrosis, enhancing tumour
LABELS = LabelSpec(
    (("background", (0,)), ("whole_tumor", (1, 2, 3)), ("tumor_core", (1, 3)), ("enhancing_tumor", (3,))),
    regions=True,
    order=(2, 1, 3),
)

_NAME = re.compile(
    r"^(?P<case>BraTS\d+(?:_Training|_Validation)?_\d+)_(?P<old>flair|t1ce|t1|t2|seg)$"
    r"|^(?P<case23>(?P<patient>BraTS-GLI-\d+)-\d+)-(?P<new>t1c|t1n|t2f|t2w|seg)$"
)
_SAME = {"t1ce": "t1c", "t1": "t1n", "flair": "t2f", "t2": "t2w"}
_OLD_ENHANCING, _ENHANCING = 4, 3
STRIDED = "strided"


@dataclass
class _Case:
    """Files by sequence (``seg`` too); ``group`` is the folder that holds the case folders."""

    files: dict[str, Path]
    patient: str | None
    group: Path


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert BraTS case folders.

    Raises:
        DataError: the source holds no BraTS case, an option is unknown, or the output cannot be written.
    """
    source = existing_folder(source, "brats")
    rule = options.settings.get("split")
    if rule not in (None, STRIDED):
        raise DataError(f"--split for brats must be '{STRIDED}', found '{rule}'.")
    cases, findings = _cases(source)
    if not cases:
        raise DataError(
            f"{source}: expected files such as BraTS2021_00000_flair.nii.gz or BraTS-GLI-00000-000-t2f.nii.gz, found "
            "none."
        )
    jobs, incomplete = _jobs(cases)
    writer = RawWriter(folder, "brats", source, options)
    writer.report_findings([*findings, *incomplete])
    writer.convert(jobs)
    split = strided_split(writer.training_cases) if rule else None
    return finish_converted(
        writer, "brats", DatasetDescription(channel_names=CHANNELS, labels=LABELS, num_training=0), split
    )


def _jobs(cases: Mapping[str, _Case]) -> tuple[list[CaseJob], list[Finding]]:
    """A job for each complete case, and an error for each of the others."""
    labelled = {case.group for case in cases.values() if "seg" in case.files}
    jobs: list[CaseJob] = []
    findings: list[Finding] = []
    for name, case in sorted(cases.items()):
        wanted = (*CHANNELS, "seg") if case.group in labelled else CHANNELS
        missing = [kind for kind in wanted if kind not in case.files]
        if not missing:
            jobs.append(_job(name, case))
            continue
        folder = next(iter(case.files.values())).parent
        action = "download the case again, or remove its folder"
        findings.append(problem(name, folder, f"the file {', '.join(missing)}", "none", action))
    return jobs, findings


def strided_split(cases: tuple[str, ...]) -> PublishedSplit:
    """Every fifth of the sorted cases, from the fifth on, for validation: the split of ACF-BCKD's experiments.

    It knows no patients: in the data of 2023 two time points of one patient may fall on both sides.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    for index, case in enumerate(sorted(cases)):
        parts[index % 5 == 4].append(case)
    return PublishedSplit.single(
        *parts, "every fifth case of the sorted names (4, 9, 14, …) for validation, as in ACF-BCKD's experiments"
    )


def _cases(source: Path) -> tuple[dict[str, _Case], list[Finding]]:
    cases: dict[str, _Case] = {}
    findings = []
    for path in files_ending(source, *READERS):
        match = _NAME.match(stem(path))
        if match is None:
            expected, action = "a BraTS file name", "it was ignored; check whether it belongs to a case"
            findings.append(warning("", path, expected, path.name, action))
            continue
        name = match["case"] or match["case23"]
        sequence = match["new"] or _SAME.get(match["old"], match["old"])
        case = cases.setdefault(name, _Case({}, match["patient"], path.parent.parent))
        if case.files.setdefault(sequence, path) is not path:
            expected = f"one file {sequence} per case"
            findings.append(warning(name, path, expected, f"also {case.files[sequence]}", "the first one was used"))
    return cases, findings


def _job(name: str, case: _Case) -> CaseJob:
    images = [case.files[sequence] for sequence in CHANNELS]
    label = case.files.get("seg")
    if label is None:
        return volume_job(name, images, None, len(CHANNELS), None, split="Ts")
    recode = {_OLD_ENHANCING: _ENHANCING}
    job = volume_job(name, images, label, len(CHANNELS), LABELS.values, recode=recode, patient=case.patient)

    def prepare() -> CaseContent:
        """Refuse a label map with both conventions before they are merged."""
        content = job.prepare()
        if has_errors(content.findings):
            return content
        findings = _ambiguous(name, label, content)
        return replace(content, findings=(*content.findings, *findings))

    return replace(job, prepare=prepare)


def _ambiguous(name: str, label: Path, content: CaseContent) -> list[Finding]:
    if (
        isinstance(content.label, Path) or _ENHANCING not in content.values
    ):  # taken over as it is: there was no 4 to recode
        return []
    if not {_OLD_ENHANCING, _ENHANCING} <= set(label_values(read_label(label).array)):
        return []
    expected = "the enhancing tumour as 4 (2021) or as 3 (2023)"
    return [problem(name, label, expected, "both values", "download the case again; the two cannot be told apart")]


CONVERTERS.register("brats")(
    Converter(
        "BraTS adult glioma 2021 or 2023: four MR sequences, three tumour regions",
        GUIDE,
        convert,
        lambda _: "BraTS",
        {"split": f"'{STRIDED}': every fifth case for validation (default: five folds by patient)"},
    )
)
