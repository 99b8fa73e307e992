"""Errors that a user can act on: one sentence with what was expected, what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

WARNING = "warning: "
"""Begin of every line that warns, on the terminal and in logs."""


class MedkdError(Exception):
    """Base of every error that is the user's to mend; the command line prints its text and exits with status 1."""


class DataError(MedkdError):
    """A scan, label map, radiograph or data set description is missing, unreadable or inconsistent."""


class PlanError(MedkdError):
    """A plan, fingerprint or configuration is missing or does not fit what is asked of it."""


class RunError(MedkdError):
    """A run folder, checkpoint or network is missing, incomplete or of another kind."""


class OutdatedError(RunError):
    """A fold was made from other weights or data than are there now, so that it is neither done nor to be continued."""


class SomeFailedError(RunError):
    """Some of several trainings ended early; the others are finished.

    Args:
        told: the sentence.
        failed: name of a run → why it ended.
        folders: of those that are finished.
    """

    def __init__(self, told: str, failed: Mapping[str, str], folders: Sequence[Path]) -> None:
        super().__init__(told)
        self.failed = dict(failed)
        self.folders = list(folders)


class DivergedError(RunError):
    """A training whose loss or gradient left all bounds; other settings may train."""


class MethodError(MedkdError):
    """A distillation method is unknown, badly parametrised, or not defined for this student, teacher or data."""


class LeakError(MedkdError):
    """A teacher has seen cases on which the student is going to be judged."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a library says that memory ran out; torch's own error is known by its name, without torch.

    >>> ran_out_of_memory(RuntimeError("NCCL error: Cuda failure 2 'out of memory'")), ran_out_of_memory(KeyError("a"))
    (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def without_frames(error: Exception) -> Exception:
    """The same error without the frames it went through, which keep all that they hold in memory: networks, batches."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if found is not None and not any(found is other for other in seen):
            seen.append(found.with_traceback(None))
            left += [found.__cause__, found.__context__]
    return error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop; its kind where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
