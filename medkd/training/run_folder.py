"""The folder of a run: its name, when a fold in it may be started or continued, and what is written before training starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.run import DATASET_FILE, FINAL, LATEST, PLANS_FILE, RUN_FILE, RunDescription
from medkd.core.serial import load, save
from medkd.training.guard import write_split
from medkd.training.splits import Split


def run_name(network: str, configuration: str, method: str | None, teacher: str | None, tag: str | None) -> str:
    """``student__configuration``, and ``__method__from_teacher`` where it is distilled, and the user's tag."""
    parts = [network, configuration, *([method, f"from_{teacher}"] if method else [])]
    return "__".join([*parts, *([tag] if tag else [])])


def open_fold(
    path: Path, fold: str, run: RunDescription, *, resume: bool, overwrite: bool, traces: Sequence[str] = (LATEST, FINAL)
) -> Path:
    """The fold folder of a run that may be started or continued; nothing is written yet.

    A run folder holds folds of one and the same run; another network, budget or method needs another name.

    Args:
        path: run folder, which need not exist.
        fold: 0-4 or ``all``.
        run: what is going to be trained.
        resume: an interrupted fold is continued.
        overwrite: what an earlier run left in the fold folder may be thrown away.
        traces: files by which a fold was trained before, whole or in part.

    Raises:
        RunError: the folder holds another run, or this fold was trained before.
    """
    folder = path / f"fold_{fold}"
    trained = [p for p in path.glob("fold_*") if any((p / name).exists() for name in traces)]
    others = [p for p in trained if p != folder or not overwrite]
    if others and (path / RUN_FILE).exists():
        known = load(RunDescription, path / RUN_FILE)
        if known != replace(run, precision=known.precision):
            raise RunError(
                f"{path} holds a run with other settings ({_difference(known, run)}); "
                "give --tag TEXT to keep both, or --overwrite to replace it."
            )
    if folder in others and not resume:
        raise RunError(f"{folder} was trained before; give --continue to go on, --overwrite to start anew, or --tag TEXT to keep both.")
    return folder


def start_fold(
    folder: Path, run: RunDescription, plan: Any, description: DatasetDescription, split: Split, taught_by: frozenset[str], overwrite: bool
) -> None:
    """Write what the run is, once everything about it is known to fit.

    Args:
        folder: fold folder.
        run: ``run.json``.
        plan: ``plans.json``, a dataclass.
        description: ``dataset.json``.
        split: of the fold.
        taught_by: cases that the teacher has seen.
        overwrite: throw away what an earlier run left in the fold folder.
    """
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    save(folder.parent / RUN_FILE, run)
    save(folder.parent / PLANS_FILE, plan)
    description.save(folder.parent / DATASET_FILE)
    write_split(folder, split, taught_by)


def _difference(known: RunDescription, run: RunDescription) -> str:
    for field in (f.name for f in fields(RunDescription) if f.name != "precision"):
        a, b = getattr(known, field), getattr(run, field)
        if a != b:
            return f"{field}: {a} there, {b} now"
    return "precision"
