"""What a YOLO training leaves behind and goes on from.

ultralytics' own loaders unpickle, and so run whatever a file asks for; they are never called. What is needed to go on
are tensors and plain values in ``state_EPOCH.pt``, read by :func:`medkd.core.checkpoint.load_checkpoint`;
ultralytics' ``last.pt`` and ``best.pt`` are written for other programs only. Trainings of former versions, which kept
their optimiser in a pickled ``last.pt``, are read as data without behaviour.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.checkpoint import Inert, inert_state, load_checkpoint, read_inert
from medkd.core.errors import RunError
from medkd.core.files import atomic_path
from medkd.core.numbers import whole_number

SCHEMA = 2
_LAST = "last.pt"
_HEADER = {
    "license": "AGPL-3.0 License (https://ultralytics.com/license)",
    "docs": "https://docs.ultralytics.com",
}


def state_path(weights: Path, epoch: int) -> Path:
    """Where the state after an epoch stands."""
    return weights / f"state_{epoch}.pt"


def state_files(weights: Path) -> list[Path]:
    """The states that were written, the newest first."""
    numbers = [path.stem.removeprefix("state_") for path in weights.glob("state_*.pt")]
    epochs = [epoch for epoch in map(whole_number, numbers) if epoch is not None]
    return [state_path(weights, epoch) for epoch in sorted(epochs, reverse=True)]


def can_continue(weights: Path) -> bool:
    """Whether there is something to go on from."""
    if state_files(weights):
        return True
    last = weights / _LAST
    return last.exists() and int(read_inert(last).get("epoch", -1)) >= 0


def read_state(weights: Path) -> dict[str, Any]:
    """The state after the last epoch.

    Returns:
        ``epoch``; ``network``, ``helpers`` and ``ema`` (state dicts), ``updates``, ``optimizer``, ``scaler``,
        ``best_fitness`` and ``stopper`` of ultralytics' trainer.

    Raises:
        RunError: a file is missing or damaged, or holds more than a training leaves.
    """
    newest = state_files(weights)[:1]
    if newest:
        content = load_checkpoint(newest[0])
        if content.get("schema") == SCHEMA:
            return content
    return _former_state(weights)


def _former_state(weights: Path) -> dict[str, Any]:
    """The state of a training of a former version: ``last.pt`` with pickled networks, and ``state_EPOCH.pt``."""
    last = weights / _LAST
    content = read_inert(last)
    average = content.get("ema")
    if not isinstance(average, Inert) or not isinstance(content.get("epoch"), int):
        raise RunError(f"{last} is no checkpoint that a training goes on from; train without --continue.")
    parts = vars(average).get("_modules", {})
    if "student_model" in parts:  # ultralytics' own distillation keeps its helpers with the average
        trained = {"network": inert_state(parts["student_model"]), "helpers": inert_state(parts["projector"])}
    else:
        path = state_path(weights, content["epoch"])
        if not path.exists():
            raise RunError(f"{path} is missing, so that training cannot go on; train without --continue.")
        trained = load_checkpoint(path)
    kept = {name: content.get(name) for name in ("epoch", "updates", "optimizer", "scaler", "best_fitness", "stopper")}
    return {**kept, **trained, "ema": _in_float32(inert_state(average))}


def _in_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def write_plain(path: Path, average: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write a trained network as ultralytics' finished files are, so that ``YOLO(path)`` opens it without medkd.

    Args:
        path: ``last.pt`` or ``best.pt``.
        average: the network, or ultralytics' distillation around it; stays as it is.
        facts: further entries of the file.
    """
    copied = copy.deepcopy(average)
    network: Any = getattr(copied, "student_model", copied)
    for module in network.modules():
        module._forward_hooks.clear()  # ultralytics' distillation listens to its student's layers
        vars(module).pop("forward", None)  # of medkd.training.shared_norm
    network.criterion = None
    network.args = dict(network.args)
    network.half().requires_grad_(False)
    for value in network.state_dict().values():
        if value.is_floating_point():
            torch.nan_to_num_(value)
    content = {
        "epoch": -1,
        "model": network,
        **dict.fromkeys(("ema", "updates", "optimizer", "scaler", "best_fitness")),
    }
    date = datetime.now().astimezone().isoformat()
    with atomic_path(path) as temporary:
        torch.save({**_HEADER, "date": date, **content, **facts}, temporary)


def forget_states(weights: Path) -> None:
    """Remove what only continuing needs; can be repeated."""
    for path in state_files(weights):
        path.unlink()
