"""What a fold must not train on: images that equal one of its validation images or a test image, or show a patient of
one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.findings import problem, some
from dataset_conversion.splits import PublishedSplit, named_split, read_split
from medkd.core.folds import joined_groups
from medkd.io.checks import Finding


@dataclass(frozen=True)
class Kinship:
    """Which cases show the same.

    Attributes:
        patients: case → patient, where known.
        twins: cases with equal images, two or more each.
        test: the test cases.
    """

    patients: Mapping[str, str]
    twins: Sequence[Sequence[str]]
    test: Collection[str]

    def leaks(self, train: Iterable[str], val: Iterable[str]) -> tuple[set[str], set[str]]:
        """Training cases whose image is held out, and the others whose patient is (patients are joined over equal
        images).
        """
        train, val = set(train), set(val)
        held_out = {*val, *self.test}
        equal: set[str] = set()
        for twin in self.twins:
            if not held_out.isdisjoint(twin):
                equal.update(twin)
        equal &= train - val
        groups = joined_groups({*train, *held_out}, self.patients, self.twins)
        seen = {groups[case] for case in held_out}
        relatives = {case for case in train if groups[case] in seen}
        return equal, relatives - equal - val

    def named(self, cases: Iterable[str]) -> str:
        """``12 images of 2 patients (P1, P2)``."""
        cases = set(cases)
        found = sorted({self.patients[case] for case in cases & self.patients.keys()})
        count = f"{len(found)} patient{'' if len(found) == 1 else 's'}"
        return f"{len(cases)} image{'' if len(cases) == 1 else 's'} of {count} ({some(found)})"


def without_leaks(split: PublishedSplit, kin: Kinship) -> tuple[PublishedSplit, list[str], list[str]]:
    """The split without the training cases that it must not have.

    Returns:
        The split; what was taken out because an equal image is held out; what was because another image of its patient
        is.
    """
    folds, equal, same = [], set[str](), set[str]()
    for train, val in split.folds:
        twins, relatives = kin.leaks(train, val)
        equal |= twins
        same |= relatives
        held_back = twins | relatives
        kept = tuple(case for case in train if case not in held_back)
        folds.append((kept, val))
    reasons = [f"{len(equal)} training images that equal a validation or test image"] if equal else []
    reasons += [f"{len(same)} training images of patients who are validated or tested on"] if same else []
    source = ", without ".join([split.source, " and ".join(reasons)]) if reasons else split.source
    return replace(split, folds=tuple(folds), source=source), sorted(equal), sorted(same)


def leak_findings(path: Path, kin: Kinship, cases: Iterable[str]) -> list[Finding]:
    """An error for each fold of a ``splits_final.json`` that trains on what it must not, and for each entry that is no
    case; the file is its owner's and is not changed.

    Args:
        path: the file, which need not be there.
        kin: which cases show the same.
        cases: the training cases.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return []
    stated = PublishedSplit(tuple(read_split(path)), path.name)
    split, findings = named_split(stated, cases, path)
    for number, (train, val) in enumerate(split.folds):
        equal, same = kin.leaks(train, val)
        found = []
        if equal:
            found.append(f"{len(equal)} that equal one ({some(sorted(equal))})")
        if same:
            found.append(kin.named(same))
        if found:
            findings.append(_leak(path, number, " and ".join(found)))
    return findings


def _leak(path: Path, number: int, found: str) -> Finding:
    return problem(
        "",
        path,
        f"in 'train' of fold {number} no image that is validated or tested on, nor another one of its patient",
        found,
        "take them out of 'train', or delete the file and convert again",
    )
