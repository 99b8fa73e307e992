"""The device that networks run on."""

from __future__ import annotations

import torch

from medkd.core.errors import RunError


def pick_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for, else CUDA where present, else the CPU.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; None chooses.

    Raises:
        RunError: the device is of another kind, or is not there.
    """
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": 1 if torch.backends.mps.is_available() else 0,
    }
    if device is None:
        return torch.device("cuda" if there["cuda"] else "cpu")
    if "," in str(device):
        raise RunError(
            f"Expected one device, found '{device}'; give one of them; only trainings use several, by "
            "one process each that torchrun starts (docs/several-gpus.md)."
        )
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise RunError(f"Unknown device '{device}'; use cpu, cuda, cuda:N or mps.") from error
    if found.type not in there:
        raise RunError(f"Networks do not run on the device '{device}'; use cpu, cuda, cuda:N or mps.")
    count = there[found.type]
    if (found.index or 0) >= count:
        raise RunError(
            f"The device '{device}' was asked for, but torch sees {_numbers(found.type, count)} here; use one that is "
            "there, or --device cpu."
        )
    return found


def check_device(device: str) -> None:
    """See that a device is of a kind on which networks run, on this machine or another one.

    Raises:
        RunError: it is not.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not number.isdecimal()):
        raise RunError(f"Unknown device '{device:.60}'; use cpu, cuda, cuda:N or mps.")


def check_device_of_runs(device: str) -> None:
    """See that a device may be that of several runs, each of which is shown a GPU of its own.

    Raises:
        RunError: it is of no known kind, or one GPU among several, which none of them would see by its number.
    """
    check_device(device)
    kind, colon, number = device.partition(":")
    if colon:
        raise RunError(
            f"Expected {kind} as the device, since each run of a recipe is given one of its own, found {device}; name "
            f"those to use by CUDA_VISIBLE_DEVICES={number}."
        )


def _numbers(kind: str, count: int) -> str:
    """Which devices of a kind there are, for an error text."""
    if count == 0:
        return f"no {kind} device"
    if count == 1:
        return f"only {kind}:0"
    return f"only {kind}:0 to {kind}:{count - 1}"
