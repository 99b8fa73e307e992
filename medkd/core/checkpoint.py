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


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; the file can be read with ``weights_only=True``."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything that it may contain.

    Args:
        path: the file.
        allowed: harmless types and functions that the file may name beyond tensors and plain values, as
            :class:`torch.serialization.safe_globals` takes them.

    Raises:
        RunError: the file is missing, truncated, or holds more than tensors and plain values.
    """
    if not Path(path).exists():
        raise RunError(f"There is no checkpoint {path}; train this fold first, or name a fold that was trained.")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"{path} holds objects other than tensors and plain values and is not loaded, since it could run code.") from error
    except (RuntimeError, OSError, EOFError, KeyError) as error:
        raise RunError(f"{path} is damaged or not a checkpoint ({str(error).splitlines()[0]}); train again or restore the file.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a medkd checkpoint: expected a dictionary, found {type(content).__name__}.")
    return content


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A short hash of a network's weights, equal on every device: what was made with them can be told from what others made."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
