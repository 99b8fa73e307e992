"""Loader processes: batches from any step on, and one sentence for what goes wrong in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from medkd.core.errors import MedkdError, RunError, first_line, ran_out_of_memory

_CAUGHT = "Caught "  # how torch begins the text of an error that it carries out of a loader process


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say in one sentence that memory ran out, that a loader process died, and what an error in one of them was.

    Args:
        folder: fold folder, which is named.

    Raises:
        RunError: a loader process is gone, or memory ran out.
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
    except (RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error):
            raise RunError(
                f"Memory ran out while {folder} was trained ({first_line(error)}); give --continue to go on from the "
                "last checkpoint when other programs are closed, or --overwrite with a smaller --batch-size or "
                "--patch-size."
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"A process that loads data for {folder} was stopped ({first_line(error)}), perhaps as memory ran "
            "out; give --continue to go on from the last checkpoint, with fewer --workers or a smaller --batch-size if "
            "it happens again."
        ) from error


def load_batches(batches: Dataset[Any], count: int, first: int, workers: int, *, pin: bool = False) -> Iterator[Any]:
    """Yield the batches from step ``first`` to the end, prefetched by ``workers`` processes (0: in this one).

    The loader has a generator of its own: with the global one, of which it draws when it starts, everything random in
    the network or the method would differ between an unbroken run and a continued one, which starts its loader in a
    later epoch.

    Args:
        batches: the batch of every step.
        count: how many there are.
        first: step to begin with.
        workers: processes.
        pin: put them into memory from which CUDA copies fast.
    """
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, count),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
    )
