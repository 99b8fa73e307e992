"""A family of small students of one teacher, by one call: prepare, score, start, train, measure, report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medkd.api.compress_work import Step, Work
from medkd.api.compression import Compression
from medkd.core.errors import MedkdError, SomeFailedError, first_line, ran_out_of_memory, without_frames
from medkd.core.run_files import LOG_FILE, read_log
from medkd.core.timing import readable_seconds
from medkd.training.ranks import refuse_several

SIZES = (2, 4, 8)
TOLERANCE = 0.01
Say = Callable[[str], None]


def compress(
    model: str | Path,
    dataset: str | int,
    *,
    sizes: Sequence[int] = SIZES,
    tolerance: float = TOLERANCE,
    fold: int | str = 0,
    method: str = "none",
    root: str | Path | None = None,
    say: Say | None = None,
    **settings: Any,
) -> Compression:
    """Train students of a U-Net with a fraction of its channels, started from it, and say which one may replace it.

    Does what ``docs/nnunet-teacher.md`` lists: plan and preprocess like the teacher, score the teacher, train one
    student per size with ``init="teacher"``, and one alone, measure all of them in turns on the CPU, write the report.
    What is finished is not done again, so a call that was killed goes on when it is made again, with the same result.
    Students of other sizes that an earlier call trained alike stay in the table.

    Args:
        model: the teacher: a folder, or a run of the data set.
        dataset: number or full name.
        sizes: by what the teacher's channels are divided, from 2 on.
        tolerance: loss of Dice that is accepted; the whole 95 % interval of the difference must lie above minus it.
        fold: 0-4, of teacher and students.
        method: that teaches beside the start, see ``medkd_list methods``.
        root: medkd's folder.
        say: is told what is done, line by line, with the time that is left.
        settings: fields of :class:`medkd.training.options.TrainOptions`, the same for all trainings.

    Returns:
        The table, which also lies in ``results/DATASET/compress_TEACHER[__METHOD][__foldK][_TAG].json``.

    Raises:
        RunError: the model is no plain or residual-encoder U-Net, or a size or setting does not fit.
        SomeFailedError: some trainings failed; the table holds the others.
        LeakError: the teacher has seen the fold's validation cases.
        MedkdError: anything else that does not fit.
    """
    refuse_several("medkd_compress")
    work = Work.of(model, dataset, sizes, tolerance, fold, method, root, settings)
    tell = say or (lambda line: None)
    steps = work.steps()
    failed: dict[str, Exception] = {}
    taken: list[float] = []
    for number, step in enumerate(steps, 1):
        place = f"[{number}/{len(steps)}] {step.text}"
        if step.trains:
            work.check_students()
        elif failed:
            _refuse_nothing(steps, failed)
        if step.done():
            tell(f"{place}: done before")
            continue
        tell(f"{place}{_time_left(steps[number - 1 :], work, taken)}")
        begin = time.monotonic()
        error = _attempt(step, place, tell)
        taken += [time.monotonic() - begin] if step.trains and error is None else []
        if error is not None:
            failed[step.text] = without_frames(error)
            _give_memory_back()
    found = work.result()
    if failed:
        _tell_failures(found, failed, work.finished(), tell)
    return found


def _attempt(step: Step, place: str, tell: Say) -> Exception | None:
    """Do it; of a training that fails the reason is given back, since the others can go on."""
    begin = time.monotonic()
    try:
        step.run()
    except Exception as error:
        if not step.trains or not (isinstance(error, MedkdError) or ran_out_of_memory(error)):
            raise
        tell(f"{place}: failed, the others go on: {first_line(error)}")
        return error
    tell(f"{place}: done in {readable_seconds(time.monotonic() - begin)}")
    return None


def _give_memory_back() -> None:
    """What a failed training held is for the next one, on a GPU, too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _refuse_nothing(steps: Sequence[Step], failed: Mapping[str, Exception]) -> None:
    """Of no student there is nothing to show."""
    if len(failed) == sum(step.trains for step in steps):
        raise next(iter(failed.values()))


def _tell_failures(
    found: Compression, failed: Mapping[str, Exception], finished: Sequence[Path], tell: Say
) -> NoReturn:
    """The table of the others, and what is missing in it."""
    for line in ("", *found.lines(), ""):
        tell(line)
    reasons = {text: first_line(error) for text, error in failed.items()}
    listed = "; ".join(f"{text}: {reason}" for text, reason in reasons.items())
    raise SomeFailedError(
        f"{len(failed)} training{'' if len(failed) == 1 else 's'} failed, and the table in {found.report} is without "
        f"what failed ({listed}); mend that and give the command again, which keeps what is finished.",
        reasons,
        finished,
    )


def compress_plan(
    model: str | Path,
    dataset: str | int,
    *,
    sizes: Sequence[int] = SIZES,
    tolerance: float = TOLERANCE,
    fold: int | str = 0,
    method: str = "none",
    root: str | Path | None = None,
    **settings: Any,
) -> list[str]:
    """What :func:`compress` would do, line by line; nothing is computed, written or started.

    Raises:
        MedkdError: what it would refuse, as far as the data set is prepared.
    """
    work = Work.of(model, dataset, sizes, tolerance, fold, method, root, settings)
    lines = []
    steps = work.steps()
    for number, step in enumerate(steps, 1):
        lines.append(f"[{number}/{len(steps)}] {step.text}: {'done before' if step.done() else 'to do'}")
    if work.is_prepared():
        for student in work.students():
            lines += ["", *work.rehearse(student)]
    return lines


def _time_left(steps: Sequence[Step], work: Work, taken: Sequence[float]) -> str:
    """What trainings that are left may take, from the longest that this call did, with start and scoring, else from the
    epochs of those that are finished.
    """
    left = sum(step.trains and not step.done() for step in steps)
    if taken and left:
        return f" (trainings left: {left}, about {readable_seconds(left * max(taken))} if each takes as long as before)"
    epochs = []
    for options in work.students():
        if work.is_trained(options):
            log = read_log(work.folder(options) / LOG_FILE)
            epochs.append(sum(float(entry.get("seconds", 0.0)) for entry in log))
    if not epochs or not left:
        return ""
    return (
        f" (trainings left: {left}, about {readable_seconds(left * max(epochs))} for their epochs, scoring not counted)"
    )
