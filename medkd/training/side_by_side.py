"""Several methods of one student side by side: a batch is read once, and goes through the teacher once.

Every training stays what it is alone: its run folder, logs, checkpoints, optimiser, and its own stream of random
numbers, so that its weights are those of the training alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medkd.core.errors import MedkdError, RunError, first_line, ran_out_of_memory
from medkd.distillation import Distiller, Method
from medkd.distillation.shared import SharedDistiller, SharedTeacher
from medkd.models.guard import Teacher
from medkd.models.segmentation import TrainedModel
from medkd.networks import SegmentationNetwork
from medkd.training.hooks import ProgressBar, WriteLog
from medkd.training.loader import Batch
from medkd.training.loading import explained
from medkd.training.segmentation_lesson import SegmentationLesson
from medkd.training.trainer import Trainer

if TYPE_CHECKING:
    from medkd.training.segmentation_task import SegmentationJob

_log = logging.getLogger(__name__)


class Randomness:
    """The state of torch's random numbers that one training has for itself.

    Args:
        device: where it trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own: list[Tensor] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block random numbers go on where the last block ended; outside nothing is noticed."""
        outside = self._read()
        if self._own:
            self._write(self._own)
        try:
            yield
        finally:
            self._own = self._read()
            self._write(outside)

    def _read(self) -> list[Tensor]:
        found = [torch.get_rng_state()]
        return [*found, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else found

    def _write(self, state: Sequence[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for further in state[1:]:
            torch.cuda.set_rng_state(further, self._device)


class Sharing:
    """The teacher's networks, each loaded once for all lessons."""

    def __init__(self) -> None:
        self._teachers: dict[tuple[Path, str], SharedTeacher] = {}

    def network(self, teacher: Teacher[TrainedModel]) -> SegmentationNetwork:
        """A fold's network, loaded when it is first asked for."""
        key = (teacher.model.path, teacher.fold)
        if key not in self._teachers:
            self._teachers[key] = SharedTeacher(teacher.network())
        network: SegmentationNetwork = self._teachers[key].network  # type: ignore[assignment]
        return network

    def distiller(self, network: SegmentationNetwork, method: Method, **more: Any) -> Distiller:
        """A distiller that looks at one of these networks."""
        (shared,) = (known for known in self._teachers.values() if known.network is network)
        return SharedDistiller(shared, method, **more)

    def forget(self) -> None:
        """The next batch is another one."""
        for teacher in self._teachers.values():
            teacher.forget()

    @property
    def seconds(self) -> float:
        """That all teachers' passes took."""
        return sum(teacher.seconds for teacher in self._teachers.values())


@dataclass(eq=False)
class Student:
    """One training among several.

    Attributes:
        job: what is trained.
        trainer: its loop.
        random: its random numbers.
        error: why it ended early.
        seconds: of the current epoch, as it would have taken alone, without its validation.
    """

    job: SegmentationJob
    trainer: Trainer
    random: Randomness
    error: MedkdError | None = None
    seconds: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether it has epochs before it."""
        return self.error is None and self.trainer.epoch < self.trainer.settings.budget.epochs

    @property
    def looks(self) -> bool:
        """Whether the teacher runs for it."""
        distiller = getattr(self.trainer, "distiller", None)
        return distiller is not None and distiller.teacher is not None

    def attempt(self, action: Callable[[], object]) -> None:
        """Do something with its random numbers; what goes wrong ends this training, and no other."""
        if self.error is not None:
            return
        try:
            with self.random():
                action()
        except MedkdError as error:
            self._end(error)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            self._end(
                RunError(f"memory ran out ({first_line(error)}); give --continue with fewer methods, or train it alone")
            )
            torch.cuda.empty_cache()

    def _end(self, error: MedkdError) -> None:
        self.error = error
        _log.error("%s ends here, the others go on: %s", self.job.folder.parent.name, error)


@dataclass(eq=False)
class Feed:
    """The batches of all students that learn from equal data.

    Attributes:
        first: one of them.
        batches: from the step on at which they were first asked for.
        students: those that take part in the current epoch.
    """

    first: Student
    batches: Iterator[Batch]
    students: list[Student] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether anybody is left; else it stands within an epoch, where nobody else begins."""
        return any(student.error is None for student in self.students)

    def fits(self, student: Student) -> bool:
        """Whether a student learns from these batches."""
        mine, theirs = self.first.trainer, student.trainer
        same = getattr(mine, "data", None) == getattr(theirs, "data", None)
        return same and mine.settings.budget == theirs.settings.budget


Step = Callable[["SegmentationJob", SegmentationLesson], None]


def fit_together(jobs: Sequence[SegmentationJob], prepare: Step, begin: Step) -> Mapping[str, MedkdError]:
    """Train jobs of one student and teacher, with a method each, to their end.

    Where some were stopped earlier than others, those behind catch up first.

    Args:
        jobs: of one fold and one budget.
        prepare: does all that may be refused, as before a training alone.
        begin: writes what is trained, likewise.

    Returns:
        Run's name → why it ended early; the others were trained to their end.

    Raises:
        MedkdError: one of them cannot begin.
    """
    sharing = Sharing()
    lessons = [_Built(job, sharing) for job in jobs]
    _prepare(lessons, prepare)  # before anything of an earlier run is thrown away
    students = [lesson.student(begin) for lesson in lessons]
    for place, student in enumerate(students):
        _tell_apart(student, bar=place == 0)
    try:
        for student in students:
            with student.random():
                student.trainer.start(resume=student.job.options.resume)
        _train(students, sharing)
    finally:
        for student in students:
            for hook in student.trainer.hooks:
                hook.close()
    return {student.job.folder.parent.name: student.error for student in students if student.error is not None}


def _tell_apart(student: Student, *, bar: bool) -> None:
    """What is said to the user names the method; one of them has the progress bar."""
    for hook in student.trainer.hooks:
        if isinstance(hook, WriteLog):
            hook.label = f"{student.job.run.method}: "
    if not bar:
        student.trainer.hooks = [hook for hook in student.trainer.hooks if not isinstance(hook, ProgressBar)]


class _Built:
    """The lesson of a job, with the random numbers that built it."""

    def __init__(self, job: SegmentationJob, sharing: Sharing) -> None:
        self._job, self._random = job, Randomness(job.device)
        with self._random():
            self.lesson = SegmentationLesson(job, sharing=sharing)

    def prepare(self, action: Step) -> None:
        """What may be refused."""
        with self._random():
            action(self._job, self.lesson)

    def student(self, begin: Step) -> Student:
        """Ready for its first step."""
        with self._random():
            begin(self._job, self.lesson)
            return Student(self._job, self.lesson.ready(), self._random)


def _prepare(lessons: Sequence[_Built], action: Step) -> None:
    for lesson in lessons:
        lesson.lesson.refuse_doubts()  # before any takes long
    for lesson in lessons:
        lesson.prepare(action)


def _train(students: Sequence[Student], sharing: Sharing) -> None:
    feeds: list[Feed] = []
    _finish([student for student in students if not student.waits])  # stopped between the last epoch and the end
    while waiting := [student for student in students if student.waits]:
        active = _those_behind(waiting)
        for feed in feeds:
            feed.students = []
        for student in active:
            _feed_of(student, feeds).students.append(student)
        _one_epoch(active, feeds, sharing)
        feeds = [feed for feed in feeds if feed.goes_on]


def _those_behind(waiting: Sequence[Student]) -> list[Student]:
    """Those that have the fewest epochs behind them: all, unless some were stopped earlier than others."""
    epoch = min(student.trainer.epoch for student in waiting)
    return [student for student in waiting if student.trainer.epoch == epoch]


def _finish(students: Sequence[Student]) -> None:
    for student in students:
        student.attempt(student.trainer.finish)


def _feed_of(student: Student, feeds: list[Feed]) -> Feed:
    for feed in feeds:
        if feed.fits(student):
            return feed
    feeds.append(Feed(student, student.trainer.batches(student.trainer.first_step)))
    return feeds[-1]


def _one_epoch(active: Sequence[Student], feeds: Sequence[Feed], sharing: Sharing) -> None:
    for student in active:
        student.seconds = 0.0
        student.attempt(student.trainer.begin_epoch)
    for _ in range(active[0].trainer.settings.budget.iterations_per_epoch):
        for feed in feeds:
            if any(student.error is None for student in feed.students):
                _one_batch(feed, sharing)
    sharing.forget()
    for student in active:
        student.attempt(lambda student=student: student.trainer.end_epoch(seconds=student.seconds))  # type: ignore[misc]
    _finish([student for student in active if not student.waits])


def _one_batch(feed: Feed, sharing: Sharing) -> None:
    """A step of every student of a feed; each is charged for reading the batch and for the teacher's pass."""
    begun = time.perf_counter()
    with explained(feed.first.job.folder):
        batch = next(feed.batches)
    reading = time.perf_counter() - begun
    sharing.forget()
    looked = sharing.seconds
    for student in feed.students:
        begun, before = time.perf_counter(), sharing.seconds
        student.attempt(lambda student=student: student.trainer.step(batch))  # type: ignore[misc]
        student.seconds += time.perf_counter() - begun - (sharing.seconds - before) + reading
    for student in feed.students:
        student.seconds += (sharing.seconds - looked) if student.looks else 0.0
