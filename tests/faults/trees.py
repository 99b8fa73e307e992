"""What a folder holds, without what two equal runs do not share (times, pictures), so that folders can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch

from medkd.core.checkpoint import load_checkpoint
from tests.faults.killing import TEMPORARY

_UNEQUAL = {"progress.png", "training_log.txt", "model.json", "report.html", "contact_sheet.png", "contact_sheet.html"}
_OF_THE_LAST_RUN = {".conversion.jsonl", "conversion_report.json", "conversion_report.txt"}
_TIMED = {"seconds", "memory", "time"}
_PROCESS = re.compile(r"(\.tmp-[0-9a-f]{8}-|medkd-[0-9a-f]{8}-)\d+-\w{8}")


def leftovers(folder: Path) -> list[str]:
    """Temporary files and locks below a folder, and whatever lies among the system's temporary files there.

    The cache folder that PyTorch makes when its compiler is imported is not the command's.
    """
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        is_systems = inside.parts[0] == TEMPORARY and len(inside.parts) > 1
        if _is_temporary(path) or (is_systems and not inside.parts[1].startswith("torchinductor_")):
            found.append(str(inside))
    return sorted(found)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".tmp-") or path.name.endswith((".lock", ".replaced"))


def state(folder: Path) -> str:
    """A digest of all that a command which is run next can find: names and contents, without times and processes."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = _PROCESS.sub(r"\1", str(path.relative_to(folder)))
        timed = path.name in _UNEQUAL or "tfevents" in path.name or path.suffix == ".lock"
        if "tfevents" in name:
            name = str(Path(name).parent / "tfevents")
        content = (
            b"" if timed or not path.is_file() else _content(path) if path.name == "log.jsonl" else path.read_bytes()
        )
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Path below ``folder`` → digest of what it says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        left_out = path.name in _OF_THE_LAST_RUN or _is_temporary(path)
        if left_out or not path.is_file() or "tfevents" in path.name:
            continue
        name = str(path.relative_to(folder))
        found[name] = "is there" if path.name in _UNEQUAL else hashlib.sha256(_content(path)).hexdigest()
    return found


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The first few paths that are not the same in two folders."""
    return [path for path in sorted({*expected, *found}) if expected.get(path) != found.get(path)][:3]


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint of medkd or nnU-Net, or of a network as TorchScript."""
    if path.suffix == ".ts":
        return dict(torch.jit.load(str(path)).state_dict())
    return load_checkpoint(path)["network" if path.suffix == ".pt" else "network_weights"]


def _content(path: Path) -> bytes:
    if path.suffix in (".pt", ".pth", ".ts"):
        network = _weights(path)
        return b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(network.items()))
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return b"".join(name.encode() + archive[name].tobytes() for name in sorted(archive.files))
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if key not in _TIMED} for line in lines]
        return json.dumps(kept).encode()
    if path.name.startswith("made_with"):  # in the order in which predictions were made, which a kill may change
        return b"\n".join(sorted(set(path.read_bytes().splitlines())))
    return path.read_bytes()
