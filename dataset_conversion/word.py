"""WORD: 16 organs on 150 abdominal CT scans.

Luo et al., WORD: A large scale dataset, benchmark and clinical applicable study for abdominal organ segmentation from
CT image, Medical Image Analysis 82, 2022, doi:10.1016/j.media.2022.102642, arXiv:2111.02403.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.findings import problem
from dataset_conversion.folder import list_volumes, pair_files, volume_job
from dataset_conversion.layout import contents, existing_folder, find_parent
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.splits import PublishedSplit, finish_converted
from dataset_conversion.writer import CaseJob, RawWriter
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.io.checks import Finding
from medkd.io.volumes import stem

GUIDE = """\
WORD, whole abdominal organs: 150 CT scans, 16 organs; 100 for training, 20 for validation, 30 for testing.
download:  https://github.com/HiLab-git/WORD (ask the authors for the link and the password; several GB)
licence:   academic research only, see there
source:    the unpacked folder, or any folder above it:
             WORD-V0.1.0/imagesTr/word_0001.nii.gz     and labelsTr/word_0001.nii.gz
             WORD-V0.1.0/imagesVal, labelsVal          become training cases too; the official split is fold 0
             WORD-V0.1.0/imagesTs, labelsTs            test cases; labelsTs may be missing"""

ORGANS = (
    "liver",
    "spleen",
    "left_kidney",
    "right_kidney",
    "stomach",
    "gallbladder",
    "esophagus",
    "pancreas",
    "duodenum",
    "colon",
    "intestine",
    "adrenal",
    "rectum",
    "bladder",
    "left_head_of_femur",
    "right_head_of_femur",
)
LABELS = LabelSpec.from_names(ORGANS)


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the WORD download.

    Raises:
        DataError: the source is not laid out as :data:`GUIDE` says, or the output cannot be written.
    """
    source = existing_folder(source, "word")
    root = find_parent(source, ("imagesTr", "labelsTr"))
    if root is None:
        raise DataError(f"{source}: expected the folders imagesTr and labelsTr of WORD, found {contents(source)}.")
    train, findings = _labelled(root, "Tr")
    val, more = _labelled(root, "Val")
    if not train:
        raise DataError(
            f"{root}: expected images and label maps of the same names in imagesTr and labelsTr, found no pair."
        )
    notes = [] if val else [f"{root} has no imagesVal and labelsVal, so the official split is not known"]
    writer = RawWriter(folder, "word", root, options)
    tests, strays = _test(root)
    writer.report_findings([*findings, *more, *strays])
    writer.convert([*train, *val, *tests])
    split = None
    if val:
        names = "official folders imagesTr and imagesVal of WORD"
        split = PublishedSplit.single(map(_case, train), map(_case, val), names)
    return finish_converted(
        writer, "word", DatasetDescription(channel_names=("CT",), labels=LABELS, num_training=0), split, notes
    )


def _case(job: CaseJob) -> str:
    return job.case


def _labelled(root: Path, part: str) -> tuple[list[CaseJob], tuple[Finding, ...]]:
    pairs = pair_files(root / f"images{part}", root / f"labels{part}")
    jobs = []
    for case, label in sorted(pairs.labels.items()):
        images = list(pairs.images[case].values())
        jobs.append(volume_job(case, images, label, 1, LABELS.values))
    return jobs, pairs.findings


def _test(root: Path) -> tuple[list[CaseJob], list[Finding]]:
    """The test scans, with label maps where there are some, and an error for each label map without a scan."""
    labels = {stem(path): path for path in list_volumes(root / "labelsTs")}
    jobs = []
    for path in list_volumes(root / "imagesTs"):
        case = stem(path)
        jobs.append(volume_job(case, [path], labels.pop(case, None), 1, LABELS.values, split="Ts"))
    findings = []
    for case, path in labels.items():
        expected, action = f"an image {case} in {root / 'imagesTs'}", "add the image or remove the label map"
        findings.append(problem(case, path, expected, "none", action))
    return jobs, findings


CONVERTERS.register("word")(Converter("WORD: CT, 16 abdominal organs", GUIDE, convert, lambda _: "WORD"))
