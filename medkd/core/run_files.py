"""The small files that a run folder grows (size, training log, whose scores lie there), and which runs there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json
from medkd.core.run import FINAL, RUN_FILE
from medkd.core.serial import from_data, load, nearest

SCORED_TEACHER = "scored_teacher.json"
COST_FILE = "model.json"
LOG_FILE = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoredTeacher:
    """``fold_K/scored_teacher.json``: the model, trained elsewhere, whose scores lie in the fold folder.

    Attributes:
        path: its folder, absolute.
        fold: its own fold that predicted.
        weights: a hash of the weights of this fold.
        patch_size: voxels per axis that it predicted with.
        mirror_axes: axes that it mirrored.
        former: folders in which the same weights lay when they were scored before.
    """

    path: str
    fold: str
    weights: str
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    former: tuple[str, ...] = ()
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``fold_K/model.json``; None where it was not measured.

    Attributes:
        parameters: trainable parameters.
        macs: multiply-adds of one patch.
        latency_ms: time of one bare forward of a patch, taken once after training; for what a scan takes, see
            :class:`medkd.core.timing.Timings`.
        patch_size: voxels per axis.
        device: where the latency was measured.
        threads: CPU threads of that measurement.
    """

    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    patch_size: tuple[int, ...] = ()
    device: str = ""
    threads: int = 0


def scored_teachers(run: Path) -> dict[Path, ScoredTeacher]:
    """Fold folder → the model whose scores it holds; empty for a run that medkd trained.

    Raises:
        DataError: a record cannot be read.
    """
    found = {}
    for file in sorted(run.glob(f"fold_*/{SCORED_TEACHER}")):
        found[file.parent] = load(ScoredTeacher, file)
    return found


def chosen_runs(results: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """The run folders of a data set, or those whose names fit one of some patterns (``unet_tiny*``).

    Raises:
        RunError: there is no run, or none fits a pattern.
    """
    names = [path.parent.name for path in sorted(results.glob(f"*/{RUN_FILE}"))]
    if not names:
        raise RunError(f"{results}: found no run; train a network first (medkd_train, medkd_train_distill).")
    chosen = set() if patterns else set(names)
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise RunError(
                f"--runs: no run is called '{pattern}'.{nearest(pattern, names)} There are: {', '.join(names)}."
            )
        chosen.update(fitting)
    return [results / name for name in names if name in chosen]


@dataclass(frozen=True)
class TrainedPlace:
    """Where the weights of a run lie: in its own folder, or in that of a model trained elsewhere.

    Attributes:
        run: name of the run folder.
        model: folder to open.
        fold: that gave the run's scores.
    """

    run: str
    model: Path
    fold: str


def trained_places(results: Path, patterns: Sequence[str] = ()) -> list[TrainedPlace]:
    """The runs of :func:`chosen_runs` that have weights: their first trained fold."""
    found = []
    for run in chosen_runs(results, patterns):
        own = sorted(path.parent.name for path in run.glob(f"fold_*/{FINAL}"))
        if own:
            found.append(TrainedPlace(run.name, run, own[0].removeprefix("fold_")))
            continue
        for record in scored_teachers(run).values():
            if Path(record.path).is_dir():
                found.append(TrainedPlace(run.name, Path(record.path), record.fold))
                break
    return found


def read_cost(path: Path) -> Cost:
    """Read ``model.json``; nothing is known where there is none.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return Cost()
    data = read_json(path)
    if not isinstance(data, Mapping):
        raise DataError(f"{path}: expected an object, found {type(data).__name__}; delete it, or train the fold anew.")
    shown = {}
    for name in Cost.__dataclass_fields__:
        if data.get(name) is not None:
            shown[name] = data[name]
    cost = from_data(Cost, shown, str(path))
    for name in ("parameters", "macs", "latency_ms"):
        value = getattr(cost, name)
        if value is not None and not 0 <= value < 1e30:
            raise DataError(f"{path}: {name}: expected a number of at least 0, found {value}; train the fold anew.")
    return cost


def read_log(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The epochs of ``log.jsonl``; the last line of a run that is being written may be cut short and is left out.

    Raises:
        DataError: another line is damaged, or an entry is no epoch.
    """
    if not path.exists():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not JSON; delete the file, or train the fold anew.") from error
        if not _is_epoch(record):
            raise DataError(
                f"{path}: line {number}: expected an object with a whole number 'epoch' and terms by name; delete the "
                "file, or train the fold anew."
            )
        records.append(record)
    return tuple(records)


def _is_epoch(record: Any) -> bool:
    if not isinstance(record, Mapping):
        return False
    epoch, terms = record.get("epoch"), record.get("terms")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or abs(epoch) >= 1e9:
        return False
    return terms is None or isinstance(terms, Mapping)


def number_of(value: Any) -> float | None:
    """A finite number of a log, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None
