"""Weights & Biases and MLflow, as :mod:`medkd.training.tracking` speaks to them."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_PATIENCE = 30.0  # seconds that a server has to answer


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a tracker is told of a training at its beginning.

    Attributes:
        project: to which the run belongs.
        group: name of the run folder, which its folds share.
        name: of run folder and fold.
        config: content of ``run.json`` and the fold, without folders of this machine.
        folder: fold folder, for files of the tracker's own.
    """

    project: str
    group: str
    name: str
    config: Mapping[str, Any]
    folder: Path


class Tracker(Protocol):
    """One run of a tracker; any method may raise anything."""

    def open(self, shown: Shown, identity: str | None) -> str:
        """Begin a run, or go on with the one of this identity; returns its identity."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an epoch."""
        ...

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        """Final scores."""
        ...

    def close(self, *, finished: bool) -> None:
        """The end, whether good or not."""
        ...


class WandbTracker:
    """Weights & Biases; ``WANDB_MODE=offline``, ``WANDB_PROJECT``, ``WANDB_DIR`` and all its other variables hold."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, shown: Shown, identity: str | None) -> str:
        """See :class:`Tracker`; nothing about the machine, its load or its code is recorded. A terminal that is asked
        for a key and does not answer is given up after seconds, unless the user says more.
        """
        os.environ.setdefault("WANDB_LOGIN_TIMEOUT", f"{_PATIENCE:.0f}")  # init's own settings do not reach the login
        import wandb

        quiet: dict[str, Any] = {
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
        }
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or shown.project,
            group=shown.group,
            name=shown.name,
            config=dict(shown.config),
            id=identity or uuid.uuid4().hex[:12],
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(shown.folder),
            settings=wandb.Settings(init_timeout=_PATIENCE, **quiet),
        )
        if getattr(self._run, "disabled", False) and os.environ.get("WANDB_MODE") != "disabled":
            raise TimeoutError("nobody gave a key; run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline")
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log(dict(values), step=step)

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.summary.update(dict(values))

    def close(self, *, finished: bool) -> None:
        """See :class:`Tracker`."""
        if self._run is not None:
            self._run.finish(exit_code=0 if finished else 1)


class MlflowTracker:
    """MLflow; ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and all its other variables hold."""

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    def open(self, shown: Shown, identity: str | None) -> str:
        """See :class:`Tracker`; a server that does not answer is given up after seconds, unless the user says more."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{_PATIENCE:.0f}")
        import mlflow

        self._client = mlflow.MlflowClient()
        if identity is not None and self._is_there(identity):
            self._client.update_run(identity, status="RUNNING")
            self._id = identity
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or shown.project
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = self._client.create_run(place, run_name=shown.name, tags={"medkd.run": shown.group})
        self._id = str(run.info.run_id)
        params = [mlflow.entities.Param(key, value) for key, value in _flat(shown.config).items()]
        for start in range(0, len(params), 100):  # as many as MLflow takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])
        return self._id

    def _is_there(self, identity: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(identity).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(key), value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self.log(step, values)

    def close(self, *, finished: bool) -> None:
        """See :class:`Tracker`."""
        if self._id:
            self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


def _allowed(name: str) -> str:
    """A name of a metric or parameter as MLflow takes it.

    >>> _allowed("terms/kd(a)")
    'terms/kd_a_'
    """
    return re.sub(r"[^\w.\-/ ]", "_", name)


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested values by dotted names, as text; what is not set is left out."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif value is not None:
            found[_allowed(f"{before}{name}")[:250]] = str(value)[:500]
    return found
