"""Whose scans the cases are, as a ``dataset.json`` says it, and which splits tear a patient apart."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.core.dataset import UNLABELLED_FOLDER, DatasetDescription, labelled_cases
from medkd.core.errors import DataError
from medkd.core.resolve import NameIndex, case_spellings
from medkd.core.run import DATASET_FILE

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedPatients:
    """What the names in ``patients`` mean.

    Attributes:
        of: case → patient.
        faults: why a name means no case, or not the patient that is stated; clauses.
    """

    of: Mapping[str, str]
    faults: tuple[str, ...]


def find_named(stated: Mapping[str, str], cases: Iterable[str]) -> NamedPatients:
    """Find the cases that ``patients`` names, which may be spelled as files are (``imagesTr/case_01_0000.nii.gz``).

    Args:
        stated: name → patient.
        cases: the case ids.

    >>> found = find_named({"a_0000.nii.gz": "p1", "x": "p2"}, ["a", "b"])
    >>> found.of, found.faults
    ({'a': 'p1'}, ("'x', which is no case",))
    """
    names = frozenset(cases)
    found = {name: patient for name, patient in stated.items() if name in names}
    others = [name for name in stated if name not in names]
    index = NameIndex(names if others else ())
    faults = []
    for text in others:
        case, fault = _find(index, text)
        if fault:
            faults.append(fault)
        elif found.setdefault(case, stated[text]) != stated[text]:
            faults.append(f"'{text[:200]}', which is {case}, of another patient than before")
    return _without_nameless(found, faults)


def _without_nameless(found: Mapping[str, str], faults: Sequence[str]) -> NamedPatients:
    """Without patients of no name, as empty cells of a table give them, who would all be one."""
    nameless = dict.fromkeys(case for case, patient in found.items() if not patient.strip())
    blank = [f"'{case}', whose patient has no name" for case in nameless]
    return NamedPatients({case: found[case] for case in found if case not in nameless}, (*faults, *blank))


def _find(index: NameIndex, text: str) -> tuple[str, str]:
    """The case that a name means, or why it means none."""
    cases, faults = index.find_all([text])
    return (cases or [""])[0], faults.get(text, "")


def named_patients(stated: Mapping[str, str], cases: Iterable[str]) -> dict[str, str]:
    """Case → patient, of the cases that are named; names that mean none are passed over, see :func:`find_named`."""
    return dict(find_named(stated, cases).of) if stated else {}


def known_patients(description: DatasetDescription, raw: Path, cases: Iterable[str]) -> dict[str, str]:
    """Case → patient, by a preprocessed ``dataset.json`` and, before it, by the raw one as it is now.

    Args:
        description: the preprocessed one.
        raw: the raw data set, which may have been removed.
        cases: of the data set, those without labels among them.
    """
    names = frozenset(cases)
    now = {case: patient for case, patient in patients_now(raw).items() if case in names}
    return named_patients(description.patients, names) | now


def patients_now(raw: Path) -> dict[str, str]:
    """Case → patient as a raw data set says it now; nothing where it is not there, or damaged."""
    if not (raw / DATASET_FILE).exists():
        return {}
    try:
        description = DatasetDescription.load(raw / DATASET_FILE)
    except DataError:  # reported where the raw data are needed
        return {}
    try:
        return named_patients(description.patients, every_name(raw, description)) if description.patients else {}
    except DataError:  # the scans were removed, and the description was left
        return dict(description.patients)


def every_name(folder: Path, description: DatasetDescription) -> set[str]:
    """All case ids of a raw data set: those with labels, without, and for tests.

    Raises:
        DataError: as for :func:`~medkd.core.dataset.labelled_cases`.
    """
    names = {files.case for files in labelled_cases(folder, description)}
    for part in (UNLABELLED_FOLDER, "imagesTs"):
        for path in (folder / part).glob("[!.]*"):
            names.add(case_spellings(path.name.removesuffix(description.file_ending))[-1])
    return names


def cases_and_patients(
    cases: Collection[str], patients: Mapping[str, str] | None, raw: Path | None
) -> tuple[set[str], dict[str, str]]:
    """All cases of a data set, raw and preprocessed, and their patients; names of patients that are no case are told.

    Args:
        cases: the preprocessed ones.
        patients: case → patient, where known.
        raw: the raw data set, which may have been removed.
    """
    known, stated = set(cases), dict[str, str]()
    try:
        if raw is not None:
            description = DatasetDescription.load(raw / DATASET_FILE)
            known |= {files.case for files in labelled_cases(raw, description)}
            stated.update(description.patients)
            faults = find_named(stated, known | every_name(raw, description)).faults if stated else ()
            if faults:
                _log.warning(
                    "%s names %d patients in vain, the first by %s", raw / DATASET_FILE, len(faults), faults[0]
                )
    except DataError:  # raw data may be removed after preprocessing
        pass
    return known, named_patients(patients or {}, known) | named_patients(stated, known)


@dataclass(frozen=True)
class Torn:
    """A fold that is judged on patients on whose other scans it is trained.

    Attributes:
        fold: its name.
        patients: who they are, sorted.
        trained: scans of the first of them that are trained on.
        judged: scans of the first of them that are judged.
    """

    fold: str
    patients: tuple[str, ...]
    trained: int
    judged: int

    def text(self) -> str:
        """A clause."""
        others = len(self.patients) - 1
        return (
            f"fold {self.fold} trains on {self.trained} and is judged on {self.judged} of the scans of patient "
            f"{self.patients[0]}{f' (patients torn beside: {others})' if others else ''}"
        )


def torn_patients(
    fold: int | str, train: Collection[str], val: Collection[str], patients: Mapping[str, str]
) -> Torn | None:
    """The patients whom a fold has on both sides; None where there are none."""
    judged, trained = ([patients[case] for case in part if case in patients] for part in (val, train))
    both = tuple(sorted(set(judged) & set(trained)))
    return Torn(str(fold), both, trained.count(both[0]), judged.count(both[0])) if both else None
