"""What a folder holds, without what two equal runs do not share (times, pictures), so that folders can be compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from medkd.core.checkpoint import load_checkpoint

_UNEQUAL = {"progress.png", "training_log.txt", "model.json", "report.html", "contact_sheet.png", "contact_sheet.html"}
_OF_THE_LAST_RUN = {".conversion.jsonl", "conversion_report.json", "conversion_report.txt"}
_TIMED = {"seconds", "memory", "time"}
_TEMPORARY = (".tmp-", ".lock")


def leftovers(folder: Path) -> list[str]:
    """Temporary files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(_TEMPORARY))


def digests(folder: Path) -> dict[str, str]:
    """Path below ``folder`` → digest of what it says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        left_out = path.name in _UNEQUAL | _OF_THE_LAST_RUN or path.name.startswith(_TEMPORARY)
        if left_out or not path.is_file() or "tfevents" in path.name:
            continue
        found[str(path.relative_to(folder))] = hashlib.sha256(_content(path)).hexdigest()
    return found


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The first few paths that are not the same in two folders."""
    return [path for path in sorted({*expected, *found}) if expected.get(path) != found.get(path)][:3]


def _content(path: Path) -> bytes:
    if path.suffix == ".pt":
        network = load_checkpoint(path)["network"]
        return b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(network.items()))
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return b"".join(name.encode() + archive[name].tobytes() for name in sorted(archive.files))
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if key not in _TIMED} for line in lines]
        return json.dumps(kept).encode()
    return path.read_bytes()
