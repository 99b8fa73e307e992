"""Published splits: written beside the raw data as ``splits_final.json``, with a note of where they come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.findings import problem
from dataset_conversion.report import ConversionReport
from dataset_conversion.writer import RawWriter
from medkd.core.dataset import DatasetDescription
from medkd.core.files import read_json, write_json
from medkd.core.resolve import NameIndex, case_spellings, path_parts
from medkd.core.splits import SPLITS_FILE, load_splits
from medkd.io.checks import Finding


@dataclass(frozen=True)
class PublishedSplit:
    """Folds that somebody published.

    Attributes:
        folds: training and validation cases of each fold; fold 0 is the split itself where there is only one.
        source: where it comes from, in words; recorded as ``split_source`` under ``"medkd"`` in ``dataset.json``.
    """

    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    source: str

    @classmethod
    def single(cls, train: Iterable[str], val: Iterable[str], source: str) -> PublishedSplit:
        """One split as fold 0."""
        return cls(((tuple(sorted(train)), tuple(sorted(val))),), source)


def finish_converted(
    writer: RawWriter,
    format: str,
    description: DatasetDescription,
    split: PublishedSplit | None,
    notes: Iterable[str] = (),
) -> ConversionReport:
    """Write the split, ``dataset.json`` and the report.

    ``dataset.json`` also records the format under ``"medkd"``, by which a protocol finds its settings. Without a
    published split, training makes five folds, grouped by patient where patients are known. A ``splits_final.json``
    that is there already wins.

    Args:
        writer: all cases are converted by now.
        format: name of the converter.
        description: channels and labels.
        split: the published split, if there is one; cases that were left out are taken out of it.
        notes: decisions that the converter took.

    Raises:
        DataError: the folder cannot be written to, or holds a damaged ``splits_final.json``.
    """
    own = {**description.extra.get("medkd", {}), "format": format}
    notes = list(notes)
    if split is not None:
        folds = _present(split, writer.training_cases)
        path = writer.folder / SPLITS_FILE
        if not folds:
            notes.append(f"{split.source}: no fold has training and validation cases here, so the split was not used")
        elif path.exists() and read_json(path) != folds:
            notes.append(
                f"{SPLITS_FILE} was there already and was kept; delete it and convert again to get {split.source}"
            )
        else:
            write_json(path, folds)
            own["split_source"] = split.source
            notes.append(f"{SPLITS_FILE}: {split.source}; {_sizes(folds, writer.training_cases)}")
    return writer.finish(replace(description, extra={**description.extra, "medkd": own}), notes)


def read_split(path: Path) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Read a ``splits_final.json``.

    Raises:
        DataError: the file is not a list of ``{"train": [...], "val": [...]}``.
    """
    return [(split.train, split.val) for split in load_splits(path)]


def named_split(
    split: PublishedSplit,
    cases: Iterable[str],
    path: Path,
    spellings: Callable[[str], Sequence[str]] | None = None,
) -> tuple[PublishedSplit, list[Finding]]:
    """The split in case ids, whatever its entries are called (``imagesTr/case_01_0000.nii.gz``), and what is wrong.

    An entry that is no case, or may be several, is an error that names it, and so is a case in both parts of a fold.

    Args:
        split: as its file states it.
        cases: all training cases of the source, those that cannot be converted too.
        path: the file, for the report.
        spellings: see :class:`~medkd.core.resolve.NameIndex`.
    """
    index = NameIndex(cases, spellings)
    folds: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    findings: list[Finding] = []
    for number, (train, val) in enumerate(split.folds):
        named: list[tuple[str, ...]] = []
        for part, texts in (("train", train), ("val", val)):
            found, faults = index.find_all(texts)
            named.append(tuple(found))
            for text, fault in faults.items():
                findings.append(_entry_finding(path, text, f"in '{part}' of fold {number}: {fault}"))
        for case in sorted({*named[0]} & {*named[1]}):
            findings.append(_entry_finding(path, case, f"'{case}' in 'train' and in 'val' of fold {number}"))
        folds.append((named[0], named[1]))
    return replace(split, folds=tuple(folds)), findings


def _entry_finding(path: Path, text: str, found: str) -> Finding:
    parts = path_parts(text)
    case = case_spellings(parts[-1])[-1] if parts else ""
    expected = "cases of this data set, each in one part of a fold"
    return problem(case, path, expected, found, "correct or remove the entry")


def _present(split: PublishedSplit, cases: Collection[str]) -> list[dict[str, list[str]]]:
    known = set(cases)
    folds = []
    for train, val in split.folds:
        fold = {"train": list(filter(known.__contains__, train)), "val": list(filter(known.__contains__, val))}
        if fold["train"] and fold["val"]:
            folds.append(fold)
    return folds


def _sizes(folds: list[dict[str, list[str]]], cases: Collection[str]) -> str:
    sizes = [f"{len(fold['train'])} + {len(fold['val'])}" for fold in folds]
    text = ", ".join(sizes)
    unnamed = set(cases)
    for fold in folds:
        unnamed.difference_update(fold["train"], fold["val"])
    return f"training + validation cases per fold: {text}" + (
        f"; {len(unnamed)} cases are in no fold" if unnamed else ""
    )
