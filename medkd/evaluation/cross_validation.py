"""The folds of a run put together: every case scored once, by the fold that never saw it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from medkd.core.agreements import AGREEMENT, agreements
from medkd.core.errors import DataError, MedkdError, RunError
from medkd.core.files import read_json
from medkd.core.numbers import whole_number
from medkd.core.postprocessing import POSTPROCESSING_FILE, Postprocessing
from medkd.core.run import CROSS_VALIDATION, RUN_FILE, SPLIT_FILE, VALIDATION_SUMMARY, RunDescription
from medkd.core.serial import load
from medkd.tasks import task_of_run

_UNWANTED = "no_postprocessing"  # in what is written: nobody is to look for any, until it is asked for
_log = logging.getLogger(__name__)

FOLDS = 5

S = TypeVar("S")


class FoldScoring(Protocol[S]):
    """What a task answers about the scores ``S`` of its folds; whether folds fit together is asked here."""

    def load(self, run: Path, fold: int) -> S:
        """The scores of one fold's validation cases."""
        ...

    def check(self, run: Path, fold: int) -> None:
        """See that a fold's scores belong to what is there now, as far as they say what they belong to.

        Raises:
            RunError: they do not.
        """
        ...

    def cases(self, scores: S) -> Sequence[str]:
        """The cases that were scored, with or without their file ending."""
        ...

    def rules(self, scores: S) -> object:
        """What all folds must share: structures or classes, and how they were scored."""
        ...

    def means(self, scores: S) -> dict[str, Any]:
        """The fold's means as JSON values, under ``cases`` how many cases they cover."""
        ...

    def merge(self, run: Path, parts: Mapping[int, S]) -> S:
        """The scores of all folds' cases together; folds and cases were checked."""
        ...

    def with_extra(self, scores: S, extra: Mapping[str, Any]) -> S:
        """The scores with further content of their file."""
        ...

    def save(self, scores: S, folder: Path) -> None:
        """Write ``summary.json``, and what it was computed from where that is merged too."""
        ...

    def text(self, scores: S) -> str:
        """The scores for the terminal."""
        ...


def scoring_of(run: Path) -> FoldScoring[Any]:
    """What scores the folds of this run's task."""
    scoring: FoldScoring[Any] = task_of_run(load(RunDescription, run / RUN_FILE)).column("folds")()
    return scoring


def cross_validate(
    run: Path,
    scoring: FoldScoring[S] | None = None,
    *,
    expected: int = FOLDS,
    only: Sequence[int | str] | None = None,
    postprocessing: bool | None = True,
) -> S:
    """Merge the validation scores of a run's folds and write ``<run>/crossval/summary.json``; for segmentation, find
    the post-processing that helps on all of their predictions as well.

    Args:
        run: a run folder of any task.
        scoring: of the run's task; None asks the run.
        expected: number of folds of the splits; folds that are missing are logged and named in the file.
        only: some folds; the result goes to ``<run>/crossval_0_1``, named by them.
        postprocessing: False looks for none, and removes what was found for these folds before; None does what was
            asked for these folds the last time, at first looks for it.

    Returns:
        The merged scores; their ``extra`` holds ``folds``, ``missing_folds`` and ``fold_means``.

    Raises:
        RunError: not a run folder, no fold (or not one that was asked for) has been validated, scores belong to other
            weights, predictions or references than those that are there, or ``postprocessing`` is False where the task
            has none.
        DataError: a case occurs twice, a fold did not score all of its validation cases, or folds were scored
            differently.
    """
    run = Path(run)
    if not (run / RUN_FILE).exists():
        raise RunError(
            f"{run} is not a medkd run folder (it has no {RUN_FILE}); give a folder <root>/results/DATASET/RUN."
        )
    chosen: FoldScoring[S] = scoring or scoring_of(run)
    _check_choice(run, postprocessing)
    folds = _chosen_folds(run, only)
    folder = cross_validation_folder(run, only)
    look = not _unwanted(run, folds, folder) if postprocessing is None else postprocessing
    missing = [] if only else _missing_folds(run, folds, expected)
    extra = {"missing_folds": missing, **({} if look else {_UNWANTED: True})}
    merged = chosen.with_extra(merge_folds(run, folds, chosen), extra)
    chosen.save(merged, folder)
    if look:
        _find_postprocessing(run, folds, folder)
    else:
        _forget_postprocessing(run, folds, folder)
    return merged


def _missing_folds(run: Path, folds: Sequence[int], expected: int) -> list[int]:
    """Those of the splits that were not validated."""
    missing = [fold for fold in range(expected) if fold not in folds]
    if missing:
        _log.warning(
            "%s: folds %s are not there; the result covers folds %s only.",
            run.name,
            ", ".join(map(str, missing)),
            ", ".join(map(str, folds)),
        )
    return missing


def _check_choice(run: Path, postprocessing: bool | None) -> None:
    task = task_of_run(load(RunDescription, run / RUN_FILE))
    if postprocessing is False and task.postprocess is None:
        raise RunError(
            f"Post-processing is looked for on label maps only, but {run.name} is a run for {task.name}; leave out "
            "--no-postprocessing (in Python postprocessing=False)."
        )


def _forget_postprocessing(run: Path, folds: Sequence[int], folder: Path) -> None:
    for file in {folder / POSTPROCESSING_FILE, *_found_for(run, folds)}:
        file.unlink(missing_ok=True)


def _unwanted(run: Path, folds: Sequence[int], folder: Path) -> bool:
    """Whether the last that was said about these folds, or of all when there were fewer, is that no post-processing is
    to be looked for.
    """
    files = run.glob(f"{CROSS_VALIDATION}*/{VALIDATION_SUMMARY.name}")
    said = any(_says_unwanted(file, None if file.parent == folder else folds) for file in files)
    if not said or _found_for(run, folds):
        return False
    _log.info("%s: no post-processing is looked for, as was asked before; medkd_cross_validate finds it", run.name)
    return True


def _says_unwanted(file: Path, folds: Sequence[int] | None) -> bool:
    """Of these folds; None asks of any."""
    try:
        content = read_json(file)
    except DataError:  # it is going to be written anew
        return False
    own = content.get("medkd") if isinstance(content, Mapping) else None
    if not isinstance(own, Mapping) or own.get(_UNWANTED) is not True:
        return False
    return folds is None or own.get("folds") == list(folds)


def _found_for(run: Path, folds: Sequence[int]) -> list[Path]:
    """The post-processing of just these folds, whether they were all that there were or asked for by name."""
    found = []
    for file in run.glob(f"{CROSS_VALIDATION}*/{POSTPROCESSING_FILE}"):
        try:
            own = load(Postprocessing, file).folds
        except DataError:  # whoever predicts with it says what is wrong
            continue
        if set(own) == set(map(str, folds)):
            found.append(file)
    return found


def cross_validation_folder(run: Path, only: Sequence[int | str] | None = None) -> Path:
    """Where the scores of all folds go, or of some: ``crossval``, ``crossval_0_1``.

    >>> cross_validation_folder(Path("run"), [1, 0]).name
    'crossval_0_1'
    """
    return run / "_".join([CROSS_VALIDATION, *sorted({str(fold) for fold in only or ()})])


def _chosen_folds(run: Path, only: Sequence[int | str] | None) -> list[int]:
    """The folds that are put together: those that were asked for, else all that were validated."""
    folds = scored_folds(run)
    if not folds:
        refuse_agreement(run)
    if not folds:
        raise RunError(
            f"{run}: no fold_K/{VALIDATION_SUMMARY} found; train at least one fold to its end, which validates it."
        )
    wanted = {str(fold) for fold in only or folds}
    unknown = sorted(wanted - {str(fold) for fold in folds})
    if unknown:
        raise RunError(
            f"{run}: fold {unknown[0]} has no scores ({VALIDATION_SUMMARY}), expected some of the folds "
            f"{', '.join(map(str, folds))}; train it to its end, or leave it out."
        )
    return [fold for fold in folds if str(fold) in wanted]


def refuse_agreement(run: Path) -> None:
    """See that a run without scores is not one that can have none.

    Raises:
        RunError: its folds hold no labelled case out.
    """
    if agreements(run):
        raise RunError(
            f"{run} was trained without any label, so that its folds have an agreement with the teacher "
            f"(fold_K/{AGREEMENT}) and no scores to put together; for scores, add labelled cases and train on these."
        )


def _find_postprocessing(run: Path, folds: Sequence[int], folder: Path) -> None:
    """Where the task has any; the scores stay where it cannot be found."""
    find = task_of_run(load(RunDescription, run / RUN_FILE)).postprocess
    if find is None:
        return
    try:
        find(run, folds, folder)
    except MedkdError as error:
        _log.warning("no post-processing was looked for: %s", error)


def scored_folds(run: Path) -> list[int]:
    """The numbered folds of a run that have a validation summary (``all`` has no validation cases of its own)."""
    names = (path.parents[1].name.removeprefix("fold_") for path in run.glob(f"fold_*/{VALIDATION_SUMMARY}"))
    numbers = map(whole_number, names)
    return sorted(number for number in numbers if number is not None)


def merge_folds(run: Path, folds: Sequence[int], scoring: FoldScoring[S]) -> S:
    """Read and merge the validation scores of some folds, which must belong to what is there now.

    Raises:
        RunError: they do not.
        DataError: see :func:`cross_validate`.
    """
    for fold in folds:
        scoring.check(run, fold)
    parts = {fold: scoring.load(run, fold) for fold in folds}
    rules = scoring.rules(parts[folds[0]])
    owner: dict[str, int] = {}
    for fold, part in parts.items():
        if scoring.rules(part) != rules:
            raise DataError(
                f"{run}: fold {fold} was scored with other structures, classes or definitions than fold {folds[0]}; "
                "validate them anew."
            )
        cases = scoring.cases(part)
        _check_complete(run / f"fold_{fold}", cases)
        for case in cases:
            if case in owner:
                raise DataError(
                    f"{run}: {case} is a validation case of fold {owner[case]} and of fold {fold}; use disjoint splits."
                )
            owner[case] = fold
    means = {str(fold): scoring.means(part) for fold, part in parts.items()}
    return scoring.with_extra(scoring.merge(run, parts), {"folds": list(folds), "fold_means": means})


def _check_complete(fold: Path, scored: Sequence[str]) -> None:
    """Every validation case of the fold's split has a score; names of scored cases may carry a file ending."""
    known = set()
    for name in scored:
        parts = name.split(".")
        known |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    unscored = [case for case in validation_cases(fold) if case not in known]
    if unscored:
        raise DataError(
            f"{fold / VALIDATION_SUMMARY}: validation cases {', '.join(unscored)} have no score; validate "
            f"{fold.name.replace('_', ' ')} anew."
        )


def validation_cases(fold: Path) -> list[str]:
    """The validation cases of a fold's ``split.json``; none where there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    path = fold / SPLIT_FILE
    if not path.exists():
        return []
    data = read_json(path)
    cases = data.get("val", []) if isinstance(data, Mapping) else None
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise DataError(f"{path}: expected an object with a list of case names under 'val'; train this fold anew.")
    return cases
