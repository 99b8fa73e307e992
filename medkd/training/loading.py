"""One sentence for what goes wrong in the processes that load data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medkd.core.errors import MedkdError, RunError

_CAUGHT = "Caught "  # how torch begins the text of an error that it carries out of a loader process


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say in one sentence that a loader process died, and what an error in one of them was.

    Args:
        folder: fold folder, which is named.

    Raises:
        RunError: a loader process is gone.
        MedkdError: as it was raised in a loader process.
    """
    try:
        yield
    except MedkdError as error:
        text = str(error)
        if not text.startswith(_CAUGHT):
            raise
        last = text.strip().splitlines()[-1]  # of the traceback: medkd.core.errors.DataError: the sentence
        raise type(error)(last.partition(": ")[2]) from None
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" not in text:
            raise
        first = text.strip().splitlines()[0].rstrip(".")
        raise RunError(
            f"A process that loads data for {folder} was stopped ({first}), perhaps because memory ran out; give "
            "--continue to go on from the last checkpoint, with fewer --workers or a smaller --batch-size if it "
            "happens again."
        ) from error
