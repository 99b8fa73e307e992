"""Showing a training in Weights & Biases or MLflow. Nothing is sent unless it is asked for, and nothing that a tracker
does stops a training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json
from medkd.core.plugins import Lazy
from medkd.core.run import RUN_FILE, RunDescription
from medkd.core.serial import load, save, to_data
from medkd.evaluation.report.html import without_folders
from medkd.training.logs import read_log, scalars
from medkd.training.plausibility import SUMMARY, Scores
from medkd.training.trackers import Shown, Tracker

if TYPE_CHECKING:
    from medkd.training.job import Job
    from medkd.training.logs import EpochRecord

TRACKING_FILE = "tracking.json"
"""In the fold folder: which run of a tracker shows it."""

_log = logging.getLogger(__name__)


def portable(value: Any) -> Any:
    """A JSON value in which a file or folder of this machine is its last name only.

    >>> portable({"teacher": "/home/me/models/strong", "method": "kd", "c": ["/a/b c"]})
    {'teacher': 'strong', 'method': 'kd', 'c': ['b c']}
    >>> portable("0.5 (/data/protocols/mine.json), https://arxiv.org/abs/1503.02531")
    '0.5 (mine.json), https://arxiv.org/abs/1503.02531'
    """
    if isinstance(value, Mapping):
        return {without_folders(key): portable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return without_folders(value)


@dataclass(frozen=True)
class _Package:
    """Of a tracker: what is imported, what it must have, and what shows a training in it."""

    module: str
    member: str
    make: Callable[[], Tracker]


_TRACKERS = {
    "wandb": _Package("wandb", "init", Lazy("medkd.training.trackers:WandbTracker")),
    "mlflow": _Package("mlflow", "MlflowClient", Lazy("medkd.training.trackers:MlflowTracker")),
}


def check_tracker(name: str | None) -> None:
    """See that a tracker can be used, before anything is computed.

    Raises:
        RunError: its package is not installed.
    """
    if name is None:
        return
    from importlib import import_module

    package = _TRACKERS[name]
    try:
        found = hasattr(import_module(package.module), package.member)  # a folder ./wandb is a module, too
    except ImportError:
        found = False
    if not found:
        raise RunError(
            f"--track {name} needs the package {name}, which is not installed; run pip install 'medkd[{name}]', or "
            "leave the option out."
        )


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """``tracking.json``.

    Attributes:
        tracker: ``wandb`` or ``mlflow``.
        identity: of the tracker's run.
        epochs: that it was told of.
    """

    tracker: str
    identity: str
    epochs: int = 0
    schema: int = 1


class Tracking:
    """Shows one fold in a tracker; without a name it does nothing.

    What a tracker could not be told is told it later, at the latest when the run is continued: all figures are in
    ``log.jsonl``. One warning says that it failed.

    Args:
        name: of the tracker; None for none.
        folder: fold folder.
        dataset: full name, which names the project.
    """

    def __init__(self, name: str | None, folder: Path, dataset: str) -> None:
        self.name = name
        self._folder, self._dataset = folder, dataset
        self._tracker: Tracker | None = None
        self._state: TrackedRun | None = None
        self._run: RunDescription | None = None
        self._warned = False
        self._failures, self._not_before = 0, 0

    def begin(self, run: RunDescription) -> None:
        """Begin, or go on with, the tracker's run.

        Args:
            run: what is trained, as ``run.json`` says.
        """
        if self.name is None or self._run is not None:
            return
        self._run = run
        self._safely(self._opened)

    def epoch(self, record: EpochRecord) -> None:
        """Tell of an epoch that is in the log, and of those before it that could not be told."""
        if self._run is not None and record.epoch >= self._not_before:
            self._safely(lambda: self._tell(record))
            self._not_before = record.epoch + 2**self._failures if self._failures else 0

    def conclude(self, values: Mapping[str, float]) -> None:
        """Tell of the final scores."""
        if self._run is not None:
            self._safely(lambda: self._conclude(values))

    def close(self, *, finished: bool) -> None:
        """The training is over, or was ended."""
        if self._tracker is not None:
            self._safely(lambda: self._opened().close(finished=finished))
        self._tracker, self._run = None, None

    def _safely(self, action: Callable[[], object]) -> None:
        """Do what may fail for reasons that are no concern of the training."""
        try:
            action()
            self._failures = 0
        except Exception as error:  # what trackers raise has no common class
            self._failures = min(self._failures + 1, 6)
            if self._warned:
                return
            self._warned = True
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            _log.warning(
                "%s failed (%.300s); the training goes on, its figures are in log.jsonl, and --continue tells what is "
                "missing",
                self.name,
                reason,
            )

    def _opened(self) -> Tracker:
        if self._tracker is not None:
            return self._tracker
        known = self._known()
        tracker = _TRACKERS[str(self.name)].make()
        identity = tracker.open(self._shown(), known.identity if known else None)
        if known is None or known.identity != identity:
            known = TrackedRun(tracker=str(self.name), identity=identity)
        self._tracker = tracker
        self._keep(known)
        return tracker

    def _known(self) -> TrackedRun | None:
        path = self._folder / TRACKING_FILE
        if not path.exists():
            return None
        try:
            found = load(TrackedRun, path)
        except MedkdError:  # a damaged note costs a second run in the tracker, no more
            return None
        return found if found.tracker == self.name else None

    def _keep(self, state: TrackedRun) -> None:
        self._state = state
        save(self._folder / TRACKING_FILE, state)

    def _shown(self) -> Shown:
        run_folder, fold = self._folder.parent.name, self._folder.name
        config = portable(to_data(self._run))
        return Shown(
            project=f"medkd-{self._dataset}",
            group=run_folder,
            name=f"{run_folder}/{fold}",
            config={**config, "fold": fold.removeprefix("fold_")},
            folder=self._folder,
        )

    def _tell(self, record: EpochRecord | None) -> None:
        tracker = self._opened()
        known = self._state.epochs if self._state else 0
        records = [record] if record is not None and record.epoch == known else read_log(self._folder)
        for entry in records:
            if self._state is not None and entry.epoch >= self._state.epochs:
                tracker.log(entry.epoch, scalars(entry))
                self._keep(replace(self._state, epochs=entry.epoch + 1))

    def _conclude(self, values: Mapping[str, float]) -> None:
        self._tell(None)
        last = self._state.epochs if self._state else 0
        self._opened().conclude(max(last - 1, 0), values)


@contextmanager
def told(task: Scores, job: Job[Any, Any, Any]) -> Iterator[None]:
    """Within this block a tracker, where one is asked for, shows the fold of a job; at the end it gets the scores."""
    tracking = job.tracking
    if tracking is None or tracking.name is None:
        yield
        return
    finished = False
    try:
        yield
        tracking.begin(load(RunDescription, job.folder.parent / RUN_FILE))  # where nothing was left to train
        tracking.conclude(_scores(task, job.folder))
        finished = True
    finally:
        tracking.close(finished=finished)


def _scores(task: Scores, folder: Path) -> dict[str, float]:
    """The scores of a fold's validation by the names that a tracker shows; empty where there was none."""
    path = folder / SUMMARY
    summary = read_json(path) if path.is_file() else None
    if not isinstance(summary, Mapping):
        return {}
    found, whole = {}, task.score(summary)
    if whole is not None:
        found[f"final/{whole[0]}"] = whole[1]
    for part, (name, value, _) in task.part_scores(summary).items():
        found[f"final/{name}/{part}"] = value
    return found
