"""What a run leaves to look at: one JSON line per epoch, a text log, TensorBoard, and ``progress.png``."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError
from medkd.core.files import atomic_path, read_json_lines
from medkd.core.serial import from_data

LOG_FILE = "log.jsonl"
TEXT_FILE = "training_log.txt"
PICTURE = "progress.png"
_PAUSE = 5.0  # seconds between two drawings: of short epochs, the curves would take longer than the steps
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: 0-based.
        train_loss: mean total loss over the epoch's steps.
        validation_loss: supervised loss on the fixed validation patches.
        validation_dice: mean foreground Dice over all fixed validation patches taken together; None without validation
            cases.
        learning_rate: of this epoch.
        seconds: wall time of the epoch.
        terms: mean of each loss term.
        gradient_norms: L2 norm of each term's gradient for the network's weights at the epoch's first step, where
            measured.
        validation_score: detectors: average precision (0.5:0.95) on the validation images as their own trainer measures
            it.
    """

    epoch: int
    train_loss: float
    validation_loss: float | None
    validation_dice: float | None
    learning_rate: float
    seconds: float
    terms: Mapping[str, float] = field(default_factory=dict)
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    validation_score: float | None = None

    @property
    def score(self) -> float | None:
        """What the validation says of the weights, higher is better; None where nothing was validated."""
        return self.validation_score if self.validation_dice is None else self.validation_dice


class RunLog:
    """The logs of one fold.

    Args:
        folder: fold folder.
        first_epoch: later entries of an interrupted run are dropped, so that a continued run has each epoch once.
        label: stands before what is said to the user, where several train beside each other; the files are without.
    """

    def __init__(self, folder: Path, first_epoch: int, label: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._label = folder, label
        self.records = [r for r in read_log(folder) if r.epoch < first_epoch]
        with atomic_path(folder / LOG_FILE) as temporary:
            temporary.write_text("".join(json.dumps(asdict(r)) + "\n" for r in self.records), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch or None)
        self._drawn = time.monotonic()

    def say(self, text: str, *, warning: bool = False) -> None:
        """Write a line to the text log and to the user."""
        _log.log(logging.WARNING if warning else logging.INFO, f"{self._label}{text}")
        with (self._folder / TEXT_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().isoformat(timespec='seconds')}  {text}\n")

    def add(self, record: EpochRecord) -> None:
        """Append an epoch to all logs."""
        self.records.append(record)
        with (self._folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self.say(_line(record))
        for name, value in scalars(record).items():
            self._board.add_scalar(name, value, record.epoch)

    def draw(self) -> None:
        """Make ``progress.png`` anew."""
        if self.records:
            _draw(self.records, self._folder / PICTURE)
        self._drawn = time.monotonic()

    def draw_meanwhile(self) -> None:
        """Make ``progress.png`` anew unless that was done a moment ago; the last epochs are drawn by :meth:`close`."""
        if time.monotonic() - self._drawn >= _PAUSE:
            self.draw()

    def close(self) -> None:
        """Draw the curves and flush TensorBoard."""
        self.draw()
        self._board.close()


def _finite(data: Any) -> Any:
    """An entry for checking its form: a loss may have been NaN."""
    if not isinstance(data, dict):
        return data
    return {key: 0.0 if isinstance(value, float) and not math.isfinite(value) else value for key, value in data.items()}


def read_log(folder: Path) -> list[EpochRecord]:
    """The epochs logged in a fold folder; a last line cut off by a kill is left out."""
    path = folder / LOG_FILE
    records = []
    for data in read_json_lines(path) if path.exists() else []:
        try:
            from_data(EpochRecord, _finite(data), str(path))
            records.append(EpochRecord(**data))
        except DataError:
            break
    return records


def _line(record: EpochRecord) -> str:
    terms = "  ".join(f"{name} {value:.4f}" for name, value in record.terms.items())
    parts = [f"epoch {record.epoch}: loss {record.train_loss:.4f} ({terms})"]
    if record.validation_dice is not None:
        parts.append(f"validation dice {record.validation_dice:.4f}")
    if record.validation_score is not None:
        parts.append(f"validation AP {record.validation_score:.4f}")
    parts += [f"lr {record.learning_rate:.2e}", f"{record.seconds:.1f} s"]
    if record.gradient_norms:
        norms = "  ".join(f"{name} {value:.3g}" for name, value in record.gradient_norms.items())
        parts.append(f"|gradient|: {norms}")
    return "  ".join(parts)


def scalars(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch by the names that TensorBoard and other trackers show."""
    values: dict[str, Any] = {
        "loss/train": record.train_loss,
        "loss/validation": record.validation_loss,
        "dice/validation": record.validation_dice,
        "ap/validation": record.validation_score,
        "optimiser/learning_rate": record.learning_rate,
        "time/epoch_seconds": record.seconds,
        **{f"terms/{n}": v for n, v in record.terms.items()},
        **{f"gradient_norm/{n}": v for n, v in record.gradient_norms.items()},
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _draw(records: list[EpochRecord], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 10))
    axes: Any = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=0.12, right=0.98, bottom=0.06, top=0.97, hspace=0.1)
    detector = records[-1].validation_score is not None
    curves: list[tuple[str, dict[str, list[float | None]]]] = [
        ("loss", _losses(records)),
        ("AP" if detector else "Dice", _scores(records)),
        ("loss terms", {name: [r.terms.get(name) for r in records] for name in records[-1].terms}),
    ]
    for axis, (title, lines) in zip(axes, curves, strict=True):
        _draw_lines(axis, [r.epoch for r in records], lines)
        axis.set_ylabel(title)
    axes[1].set_ylim(0, 1)
    axes[2].set_xlabel("epoch")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_lines(axis: Any, epochs: list[int], lines: Mapping[str, list[float | None]]) -> None:
    """The lines that have any value."""
    for label, values in lines.items():
        if any(value is not None for value in values):
            axis.plot(epochs, values, label=label)
    if axis.lines:
        axis.legend()
    axis.grid(alpha=0.3)


def _losses(records: list[EpochRecord]) -> dict[str, list[float | None]]:
    return {
        "training loss": [r.train_loss for r in records],
        "validation loss (supervised)": [r.validation_loss for r in records],
    }


def _scores(records: list[EpochRecord]) -> dict[str, list[float | None]]:
    return {
        "validation Dice (fixed patches)": [r.validation_dice for r in records],
        "validation AP": [r.validation_score for r in records],
    }
