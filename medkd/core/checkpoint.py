"""Reading and writing checkpoints that cannot run code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medkd.core.errors import RunError
from medkd.core.files import atomic_path

_WRITER = (
    "inline_container",
    "PytorchStreamWriter",
    "iostream error",
)  # one of them is in the text when torch cannot write on


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; the file can be read with ``weights_only=True``.

    Raises:
        RunError: torch cannot write the file to its end, as on a full disk; an older one stays as it was.
        DataError: the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            if not any(text in str(error) for text in _WRITER):
                raise
            raise RunError(
                f"Writing {path} failed ({_first_line(error)}); is the disk full? What was there before is kept: make "
                "space and continue."
            ) from error


def load_checkpoint(path: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything that it may contain.

    Args:
        path: the file.
        allowed: harmless types and functions that the file may name beyond tensors and plain values, as
            :class:`torch.serialization.safe_globals` takes them.

    Raises:
        RunError: the file is missing, empty, damaged, or holds more than tensors and plain values.
    """
    if not Path(path).exists():
        raise RunError(f"There is no checkpoint {path}; train this fold first, or name a fold that was trained.")
    if not Path(path).is_dir() and Path(path).stat().st_size == 0:
        raise RunError(f"{path} is empty, as a full disk or a crash may leave it; train again or restore the file.")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # no pickle at all
            raise RunError(f"{path} is damaged or not a checkpoint; train again or restore the file.") from error
        raise RunError(
            f"{path} holds objects other than tensors and plain values and is not loaded, since it could run code."
        ) from error
    except Exception as error:  # bytes that were changed make torch raise errors of almost any kind
        raise RunError(
            f"{path} is damaged or not a checkpoint ({_first_line(error)}); train again or restore the file."
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a medkd checkpoint: expected a dictionary, found {type(content).__name__}.")
    return content


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A short hash of a network's weights, equal on every device: what was made with them can be told from what others
    made.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
