"""Which predictions of a folder were made with which weights and settings, of which scans, proven by their content:
times of files prove nothing, since copying, restoring and unpacking set them.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError
from medkd.core.files import read_json_lines, write_text
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.serial import from_data, to_data

MADE_WITH_FILE = "made_with.jsonl"
"""Beside predictions: a line for what made them, then one per prediction."""

_NOTES = "made_with*.jsonl"  # of several machines that predict a part each, one per part
_LISTED = 8  # files of a scan; of more (slices) there is one hash of all
_DETACHED = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class MadeWith:
    """First line of ``made_with.jsonl``.

    Attributes:
        weights: a hash of each network that predicted.
        settings: whatever else all predictions depend on, by name.
    """

    weights: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class MadeFile:
    """A further line of ``made_with.jsonl``.

    Attributes:
        file: name of a prediction beside the file.
        content: a hash of its content.
        source: a hash of what it was predicted from; empty where nobody said.
    """

    file: str
    content: str
    source: str = ""


class KnownPredictions:
    """The predictions of a folder that certain networks made; what is there of others does not count.

    Every prediction is a line at the end of ``made_with.jsonl``, so that noting one costs the same however many there
    are. A line that a kill cut off proves nothing: that prediction is made anew.

    Args:
        folder: of the predictions.
        weights: a hash of each network that predicts now.
        settings: whatever else they depend on, by name.
        part: which part of the predictions is made here, where other machines make the others in the same folder: each
            notes its own in a file of its own, and knows those of all.
    """

    def __init__(
        self, folder: Path, weights: Sequence[str], settings: Mapping[str, str] | None = None, *, part: str = ""
    ) -> None:
        self._path = folder / MADE_WITH_FILE.replace(".", f"{part}.")
        self._made = MadeWith(weights=tuple(weights), settings=dict(settings or {}))
        self._notes = sorted({self._path, *folder.glob(_NOTES)})
        self._outdated: list[Path] = []
        self._foreign: set[str] = set()
        self._own: dict[str, MadeFile] = {}
        self._files: dict[str, set[MadeFile]] = {}
        self.any_noted = any(path.exists() for path in self._notes)
        for path in self._notes:
            self._read(path)
        self._begun = False

    def has(self, file: Path, source: str = "") -> bool:
        """Whether a file is there as these networks made it of this source."""
        known = {entry.content for entry in self._files.get(file.name, ()) if entry.source == source}
        return bool(known) and file.is_file() and content_digest(file) in known

    def foreign(self) -> set[str]:
        """Names of the files in the folder that others are noted to have made."""
        return {name for name in self._foreign - self._files.keys() if (self._path.parent / name).exists()}

    def begin(self) -> None:
        """Note who predicts from now on; what others noted is forgotten.

        Raises:
            DataError: the disk is full or read-only.
        """
        self._begun = True
        write_text(self._path, _line(self._made) + "".join(map(_line, self._own.values())))
        for path in self._outdated:
            if path != self._path:
                path.unlink(missing_ok=True)

    def add(self, file: Path, source: str = "") -> None:
        """Note a file that these networks have just made; it is on disk when this returns.

        Raises:
            DataError: the disk is full or read-only.
        """
        made = MadeFile(file=file.name, content=content_digest(file), source=source)
        self._own[file.name], self._files[file.name] = made, {made}
        if not self._begun:  # what others made, or a kill cut off, goes
            self.begin()
            return
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(_line(made))
        except OSError as error:
            raise DataError(f"Writing {self._path} failed: {error.strerror or error}; make room.") from error

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            first, *others = read_json_lines(path) or [None]
            same = from_data(MadeWith, first, str(path)) == self._made
            if not same:
                self._outdated.append(path)
            for line in others:
                made = from_data(MadeFile, line, str(path))
                if not same:
                    self._foreign.add(made.file)
                    continue
                self._files.setdefault(made.file, set()).add(made)
                if path == self._path:
                    self._own[made.file] = made
        except DataError:  # nothing is proven from there on, and it costs only time to make it anew
            pass


def is_note(path: Path) -> bool:
    """Whether a file beside predictions is one of :class:`KnownPredictions`."""
    return path.match(_NOTES)


def _line(entry: MadeWith | MadeFile) -> str:
    return json.dumps(to_data(entry)) + "\n"


def content_digest(file: Path) -> str:
    """A hash of a file's content."""
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def known_digest(file: Path) -> str:
    """The same of files that several parts of a command ask for (references, raw scans): read once, as long as the
    system says that nobody wrote to them.

    Raises:
        FileNotFoundError: it is not there.
    """
    return _digest_of(file, state_of(file))


def scan_digest(files: Sequence[Path]) -> str:
    """A hash of the files of a raw scan, by what they hold: channels, slices, folders of slices, and headers with the
    voxels in another file.

    Raises:
        OSError: one is not there, or cannot be read.
    """
    found = [_joined([known_digest(part) for part in _parts(Path(file))]) for file in files]
    return " ".join(found) if len(found) <= _LISTED else _joined(found)


def _joined(digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


def _parts(file: Path) -> list[Path]:
    if file.is_dir():
        return sorted(path for path in file.rglob("*") if path.is_file())
    if file.suffix.lower() not in (".mhd", ".nhdr"):
        return [file]
    header = file.read_bytes()[:65536].decode("latin-1")
    named = [file.parent / name for name in _DETACHED.findall(header)]
    beside = [path for path in file.parent.glob(f"{glob.escape(file.stem)}.*") if path != file]
    return [file, *sorted({path for path in (*named, *beside) if path.is_file()})]


def state_of(file: Path) -> tuple[int, ...]:
    """What changes with every write to a file, for the length of a command (not after copying or restoring it)."""
    found = file.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def state_if_there(file: Path) -> tuple[int, ...]:
    """:func:`state_of`, and nothing of a file that is not there."""
    try:
        return state_of(file)
    except OSError:
        return ()


@lru_cache(maxsize=100_000)
def _digest_of(file: Path, state: tuple[int, ...]) -> str:
    return content_digest(file)


def preprocessing_settings(plan: Plan, configuration: Configuration) -> dict[str, Any]:
    """What a preprocessed scan depends on besides the scan, by name; patch and network sizes do not count."""
    return {
        "transpose": plan.transpose,
        "orientation": plan.orientation,
        "intensities": plan.intensities if "ct" in configuration.normalization else None,
        "spacing": configuration.spacing,
        "normalization": configuration.normalization,
        "use_mask_for_norm": configuration.use_mask_for_norm,
        "resampling": configuration.resampling,
        "crop": configuration.crop,
    }


def label_map_settings(
    plan: Plan,
    configuration: Configuration,
    labels: LabelSpec,
    *,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    step_size: float,
    blending: str,
) -> dict[str, str]:
    """What a label map depends on besides scan, weights and arithmetic, by name.

    Args:
        plan: of the networks.
        configuration: theirs.
        labels: what their outputs mean.
        patch_size: of the sliding window.
        mirror_axes: that are mirrored.
        step_size: distance of tiles as a share of the patch.
        blending: of the tiles.
    """
    found: dict[str, Any] = {
        "preprocessing": preprocessing_settings(plan, configuration),
        "labels": labels,
        "patch_size": patch_size,
        "mirror_axes": mirror_axes,
        "step_size": step_size,
        "blending": blending,
    }
    return {name: json.dumps(to_data(value), sort_keys=True) for name, value in found.items()}
