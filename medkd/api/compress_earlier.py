"""Students of earlier calls of ``medkd_compress``, which a later call with other sizes keeps in its table."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.api.compression import Compression
from medkd.core.errors import DataError, MedkdError, RunError, first_line
from medkd.core.numbers import whole_number
from medkd.core.run import FINAL
from medkd.core.serial import load
from medkd.training.run_folder import run_name

if TYPE_CHECKING:
    from medkd.api.compress_work import Work
    from medkd.training.options import TrainOptions

_log = logging.getLogger(__name__)


def earlier_students(work: Work) -> tuple[TrainOptions, ...]:
    """The students of other sizes that were trained as this call would train them, by the same teacher, and scored.

    Those that were trained otherwise under the same name are named in a warning.
    """
    asked = {(options.width_divisor, options.init) for options in work.students()}
    found = []
    for size in _sizes(work.results, work.network):
        for options in (work.options(size, start=True), work.options(size, start=False)):
            name = _name(work, options)
            trained = (work.results / name / f"fold_{work.fold}" / FINAL).exists()
            if (size, options.init) in asked or not trained:
                continue
            try:
                if work.is_trained(options):
                    found.append(options)
            except MedkdError as error:
                _log.warning("%s of an earlier call is not in the table: %s", name, first_line(error))
    return tuple(found)


def refuse_other_table(summary: Path, teacher: Path | None) -> None:
    """Refuse to write over the table of another teacher.

    Args:
        summary: where the table is going to be kept.
        teacher: the run folder with the scores of the teacher; None where it has none yet.

    Raises:
        RunError: there is one.
    """
    try:
        first = load(Compression, summary).rows[:1] if summary.exists() and teacher is not None else ()
    except DataError:  # of another version, or damaged
        return
    if first and teacher is not None and first[0].run != teacher.name:
        raise RunError(
            f"{summary} is the table of another teacher of this name, {first[0].run}, expected {teacher.name}; give "
            "--tag TEXT to keep both, or remove it."
        )


def _sizes(results: Path, network: str) -> list[int]:
    """By what the channels of runs of a network are divided."""
    found = set()
    for run in results.glob(f"{network}_w*__*"):
        size = whole_number(run.name.split("__")[0].removeprefix(f"{network}_w"))
        if size is not None and size > 1:
            found.add(size)
    return sorted(found)


def _name(work: Work, options: TrainOptions) -> str:
    label = work.task.network_label(work.network, options)
    return run_name(label, options.configuration, work.method_of(options), work.found.name, options.tag)
