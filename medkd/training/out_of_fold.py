"""Targets for a student of all cases: each case as those folds of its teacher see it that were not trained on it.

A fold's outputs on cases that it was trained on are close to their labels, so that they say little of what it is unsure
of. Those of unseen cases are what it says of new ones (cross-fitting: Dao, Kamath, Syrgkanis and Mackey, "Knowledge
distillation as semiparametric inference", ICLR 2021, arXiv:2104.09732).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from medkd.core.errors import RunError
from medkd.core.serial import to_data
from medkd.core.splits import ALL
from medkd.models.base import ModelFolder
from medkd.models.guard import Teacher
from medkd.models.segmentation import TrainedModel
from medkd.training.cached import (
    TargetDescription,
    TargetRequest,
    TargetWork,
    begin,
    describe_targets,
    predict_targets,
    predictor_of,
)
from medkd.training.options import OUT_OF_FOLD
from medkd.training.plausibility import doubt


@dataclass(frozen=True, kw_only=True)
class OutOfFoldDescription:
    """``targets.json`` of such targets.

    Attributes:
        teacher: what the students' ``run.json`` says of the teacher.
        folds: its folds that teach.
        parts: of each fold, the key of the targets that it alone would give.
        outputs: output channels.
        regions: sigmoid regions instead of softmax classes.
        rule: who predicts what.
    """

    teacher: str
    folds: tuple[str, ...]
    parts: tuple[str, ...]
    outputs: int
    regions: bool
    rule: str = "each case by the folds that were not trained on it"
    schema: int = 1

    @property
    def key(self) -> str:
        """Name of the folder: a hash of all that the values depend on but for which fold has seen which case, which
        every case's own record holds.
        """
        parts = to_data(replace(self, teacher="", folds=()))
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def teachers_out_of_fold(
    model: ModelFolder[TrainedModel],
    cases: Sequence[str],
    raw: Path,
    patients: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> list[Teacher[TrainedModel]]:
    """The finished folds that have not seen some of the cases, nor other scans of their patients.

    Where that leaves a case without any fold, since the teacher's splits tear patients apart, cases alone count.

    Args:
        model: the teacher.
        cases: of the student.
        raw: raw data set, which may hold splits.
        patients: case → patient, where known.
        strict: refuse a teacher whose splits tear patients apart.

    Raises:
        RunError: there is none, or a fold does not say what it has seen; with ``strict`` also: patients are torn.
    """
    by_fold = {fold: _seen(model, fold, cases, raw) for fold in sorted(model.teaching_folds)}
    whole = {fold: _with_kin(seen, cases, patients or {}) for fold, seen in by_fold.items()}
    torn = sorted(_seen_by_all(whole, cases) - _seen_by_all(by_fold, cases))
    if torn:
        doubt(
            f"the folds of the teacher {model.name} tear patients apart, so that {len(torn)} cases, for example "
            f"{torn[0]}, are taught by folds that were trained on other scans of their patients; train a teacher whose "
            "splits keep patients together",
            strict=strict,
        )
    chosen = by_fold if torn else whole
    found = [Teacher(model, fold, seen) for fold, seen in chosen.items() if not seen.issuperset(cases)]
    if not found:
        raise RunError(
            f"--targets {OUT_OF_FOLD} needs folds of the teacher {model.name} that were not trained on all cases, "
            f"found the finished folds {', '.join(model.teaching_folds) or 'none'}; train its folds with medkd_train, "
            "or take --targets cached."
        )
    return found


def _seen(model: ModelFolder[TrainedModel], fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
    return frozenset(cases) if fold == ALL else model.seen(fold, cases, raw)


def _with_kin(seen: frozenset[str], cases: Sequence[str], patients: Mapping[str, str]) -> frozenset[str]:
    """Seen cases, and those that show a patient of theirs."""
    known = {patients[case] for case in seen if case in patients}
    return seen | {case for case in cases if patients.get(case) in known}


def _seen_by_all(seen: Mapping[str, frozenset[str]], cases: Sequence[str]) -> frozenset[str]:
    return frozenset(cases).intersection(*seen.values())


def groups_out_of_fold(
    teachers: Sequence[Teacher[TrainedModel]], cases: Sequence[str]
) -> dict[tuple[int, ...], list[str]]:
    """Positions of the teachers that have not seen a case → the cases.

    Raises:
        RunError: every one of them has seen some case.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    lost = []
    for case in cases:
        places = tuple(place for place, teacher in enumerate(teachers) if case not in teacher.seen)
        groups.setdefault(places, []).append(case)
        if not places:
            lost.append(case)
    if lost:
        folds = ", ".join(teacher.fold for teacher in teachers)
        raise RunError(
            f"{len(lost)} of {len(cases)} cases were seen by every finished fold ({folds}) of the teacher "
            f"{teachers[0].model.name}, for example {lost[0]}; finish its other folds, or take --targets cached."
        )
    return groups


def cache_out_of_fold(
    teachers: Sequence[Teacher[TrainedModel]], networks: Sequence[nn.Module], request: TargetRequest
) -> Path:
    """:func:`~medkd.training.cached.cache_targets` with the folds that have not seen a case in the place of all folds;
    where several have not, their probabilities are averaged. The arguments are the same.

    Raises:
        RunError: every fold has seen some case, or the targets would take more than the limit or than the disk has.
    """

    def described(chosen: Sequence[int]) -> TargetDescription:
        some = [teachers[place] for place in chosen], [networks[place] for place in chosen]
        return describe_targets(*some, request)

    groups = groups_out_of_fold(teachers, list(dict.fromkeys([*request.cases, *request.places])))
    parts = {chosen: described(chosen) for chosen in groups}
    whole = _together(teachers, [described([place]) for place in range(len(teachers))])
    work = TargetWork.of(whole, request)
    work = replace(work, sources=_with_folds(work.sources, groups, parts))
    todo = set(begin(work, request.limit))
    for chosen, some in groups.items():
        missing = sorted(todo.intersection(some))
        if missing:
            mine = [networks[place] for place in chosen]
            predictor = predictor_of(parts[chosen], teachers[0].model.describe(), mine, request.device)
            predict_targets(predictor, parts[chosen], request.store, work, missing)
    return work.target.folder


def _together(teachers: Sequence[Teacher[TrainedModel]], single: Sequence[TargetDescription]) -> OutOfFoldDescription:
    """What all folds give, by what each alone would give."""
    return OutOfFoldDescription(
        teacher=teachers[0].model.recorded,
        folds=tuple(teacher.fold for teacher in teachers),
        parts=tuple(sorted(part.key for part in single)),
        outputs=single[0].outputs,
        regions=single[0].regions,
    )


def _with_folds(
    sources: Mapping[str, str],
    groups: Mapping[tuple[int, ...], Sequence[str]],
    parts: Mapping[tuple[int, ...], TargetDescription],
) -> dict[str, str]:
    """What a case's target was made from, with which folds: where other folds have seen it, it is made anew."""
    found = {}
    for chosen, cases in groups.items():
        for case in cases:
            found[case] = f"{sources[case]} {parts[chosen].key}"
    return found
