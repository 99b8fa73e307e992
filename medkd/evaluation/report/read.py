"""Reads what a report shows from the files of a data set's runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

from medkd.core.errors import RunError
from medkd.core.made_from import changed_inputs
from medkd.core.numbers import whole_number
from medkd.core.run import RUN_FILE, VALIDATION_SUMMARY, RunDescription
from medkd.core.run_files import COST_FILE, LOG_FILE, chosen_runs, read_cost, read_log
from medkd.core.serial import load
from medkd.core.teachers import Origin, origins
from medkd.core.timing import Timings
from medkd.evaluation.cross_validation import scored_folds
from medkd.evaluation.report.data import MARGIN, ROLES, Report, ReportTask, Role, RunEntry
from medkd.evaluation.report.labels import short_names
from medkd.tasks import task_of_run

_log = logging.getLogger(__name__)


def read_report(
    results: Path,
    fold: int | str | None = None,
    runs: Sequence[str] = (),
    *,
    margin: float = MARGIN,
    raw: Path | None = None,
) -> Report:
    """Read all that a report shows from a data set's results folder; see :func:`gather`."""
    entries = gather(results, fold, runs)
    return Report(
        title=results.name,
        task=task_of(entries[0].run),
        entries=entries,
        margin=margin,
        raw=raw,
        timings=Timings.load(results),
    )


def gather(results: Path, fold: int | str | None = None, runs: Sequence[str] = ()) -> tuple[RunEntry, ...]:
    """Read the runs of a data set, teachers first, then students alone, then distilled ones by falling merit.

    Args:
        results: results folder of the data set.
        fold: the fold to show; None shows the folds that all scored runs have in common.
        runs: names or patterns (``unet_tiny*``) of the runs to show; all where empty.

    Raises:
        RunError: there is no run, none of such a name, or none that has this fold.
        DataError: a run's files are damaged.

    A run whose scores belong to other weights or label maps is left out with a warning; named in ``runs`` it is an
    error.
    """
    every = {path: load(RunDescription, path / RUN_FILE) for path in chosen_runs(results)}
    shown = shown_folds(results, fold, runs)
    entries, refused = _entries(every, {path: folds for path, folds in shown.items() if folds or fold is None})
    _tell_refused(refused, not entries or bool(runs))
    timings = Timings.load(results)
    if timings is not None:
        entries = [replace(entry, time=timings.of(entry.name)) for entry in entries]
    entries.sort(key=lambda entry: (ROLES.index(entry.role), -entry.merit, entry.name))
    _tell_unclear(entries)
    labels = short_names(entries)
    return tuple(replace(entry, label=labels[entry.name]) for entry in entries)


def _entries(
    every: Mapping[Path, RunDescription], shown: Mapping[Path, Sequence[int | str]]
) -> tuple[list[RunEntry], dict[str, RunError]]:
    """The runs that can be shown, and why the others cannot."""
    taught_by = origins(every)
    teachers = {name for origin in taught_by.values() for name in origin.sure}
    entries, refused = [], {}
    for path, folds in shown.items():
        try:
            role = _role(every[path], path.name in teachers)
            entries.append(_entry(path, every[path], role, taught_by[path], folds))
            _tell_outdated(entries[-1])
        except RunError as error:  # its scores are not those of its weights
            refused[path.name] = error
    return entries, refused


def _tell_outdated(entry: RunEntry) -> None:
    """What such a run scored is true of its weights, but is no result of teacher and data as they are now."""
    for fold in entry.folds:
        why = changed_inputs(entry.path / f"fold_{fold}", entry.run.configuration)
        if why is not None:
            _log.warning("%s is on the page as it was, but %s; make it anew.", entry.name, why)


def _tell_unclear(entries: Sequence[RunEntry]) -> None:
    """Students of which nobody knows the teacher, also where the page is about another one."""
    for entry in entries:
        if entry.origin.unclear:
            _log.warning("%s", entry.origin.doubt(entry.name, entry.run.teacher))


def _tell_refused(refused: Mapping[str, RunError], all_are_wanted: bool) -> None:
    """Runs that cannot be shown; the others can, unless somebody asked for these."""
    for name, error in refused.items():
        if all_are_wanted:
            raise error
        _log.warning("%s is not on the page: %s", name, error)


def task_of(run: RunDescription) -> ReportTask:
    """The report's parts for the task of a run."""
    found: ReportTask = task_of_run(run).column("report")
    return found


def _folds(path: Path, fold: int | str | None) -> list[int | str]:
    if fold is not None:
        return [fold] if (path / f"fold_{fold}").is_dir() else []
    names = sorted(folder.name.removeprefix("fold_") for folder in path.glob("fold_*") if folder.is_dir())
    return list(scored_folds(path) or names[:1])


def shown_folds(results: Path, fold: int | str | None, runs: Sequence[str]) -> dict[Path, list[int | str]]:
    """Run → the folds to show of it.

    Raises:
        RunError: there is no run, none of such a name, or none that has this fold.
    """
    shown = {path: _folds(path, fold) for path in chosen_runs(results, runs)}
    if fold is None:
        return _common(shown)
    if not any(shown.values()):
        raise RunError(f"{results}: no run has a fold {fold}; trained folds lie in <run>/fold_K.")
    return shown


def _common(shown: Mapping[Path, list[int | str]]) -> dict[Path, list[int | str]]:
    """The folds that all scored runs have in common; a run without any of them keeps its own."""
    scored = {path: set(scored_folds(path)) for path in shown}
    known = [folds for folds in scored.values() if folds]
    common = sorted(set.intersection(*known)) if known else []
    result: dict[Path, list[int | str]] = {}
    for path, own in shown.items():
        shared: list[int | str] = [fold for fold in common if fold in scored[path]]
        result[path] = shared or own
    return result


def _role(run: RunDescription, teaches: bool) -> Role:
    if run.method not in (None, "none") or run.init != "random":
        return "distilled"
    return "teacher" if teaches else "alone"


def _entry(path: Path, run: RunDescription, role: Role, origin: Origin, folds: Sequence[int | str]) -> RunEntry:
    task = task_of(run)
    first = path / f"fold_{folds[0]}" if folds else path
    scored = []
    for fold in folds:
        number = whole_number(str(fold))
        if number is not None and (path / f"fold_{fold}" / VALIDATION_SUMMARY).exists():
            scored.append(number)
    scores = task.read(path, scored) if scored else None
    merit = scores.value(task.main.key).mean if scores is not None else -1.0
    return RunEntry(
        path=path,
        run=run,
        role=role,
        origin=origin,
        folds=tuple(map(str, folds)),
        scores=scores,
        merit=merit if isfinite(merit) else -1.0,
        cost=read_cost(first / COST_FILE),
        log=read_log(first / LOG_FILE),
    )
