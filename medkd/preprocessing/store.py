"""Preprocessed cases on disk: memory-mapped arrays for partial reads, and a record of what they were made from."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.dataset import check_case_name
from medkd.core.errors import DataError
from medkd.core.files import atomic_path, check_file, read_json
from medkd.core.labels import LabelSpec
from medkd.core.made_with import content_digest, known_digest, preprocessing_settings, state_if_there
from medkd.core.plan import Configuration, Plan
from medkd.core.run import UNFINISHED
from medkd.core.serial import load, save, to_data
from medkd.preprocessing.pipeline import Preprocessed
from medkd.preprocessing.properties import CaseProperties

SCHEMA = 1  # raise it when the content of the files changes meaning: every case is then made anew
ANNOTATED = 0  # key of the locations of annotated voxels, present only where the data set has an ``ignore`` label
_MAX_LOCATIONS = 10_000  # nnU-Net: per structure at most so many voxels are remembered,
_MIN_SHARE = 0.01  # but at least this share of them
_SEED = 1234
_UNLABELLED = "unlabelled"  # folder of the scans without labels
_LABELLED_PARTS = ("json", "image.npy", "label.npy", "locations.npz")  # the record first
_UNLABELLED_PARTS = ("json", "image.npy", "mask.npy")


@dataclass(frozen=True)
class SourceFile:
    """A raw file as it was when the case was made: its name, size in bytes, time of change (ns) and BLAKE2b hash."""

    name: str
    size: int
    modified: int
    content: str


@dataclass(frozen=True)
class CaseRecord:
    """``CASE.json``, written last: a case without it does not exist.

    Attributes:
        properties: the way back to the native grid.
        files: the raw files, channels in order, then the label.
        recipe: hash of the parts of plan and label description that the arrays depend on.
    """

    properties: CaseProperties
    files: tuple[SourceFile, ...] = ()
    recipe: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class StoredCase:
    """A preprocessed case; opening is cheap and reads no voxels, so that loaders may keep many open.

    Attributes:
        image: memory-mapped ``(C, z, y, x)`` float32.
        label: memory-mapped ``(z, y, x)`` int16, -1 outside the non-zero mask. Of a scan without labels only this mask
            is known, int8: 0 inside and -1 outside.
        locations: voxels ``(n, 3)`` int32 of each structure, by its 1-based position in ``LabelSpec.foreground``; with
            an ``ignore`` label also, under 0, of all annotated voxels.
        properties: the way back to the native grid.
        labelled: whether there is a label map.
    """

    image: np.ndarray
    label: np.ndarray
    locations: Mapping[int, np.ndarray]
    properties: CaseProperties
    labelled: bool = True


class CaseStore:
    """The preprocessed cases of one configuration: ``CASE.image.npy``, ``.label.npy``, ``.locations.npz`` and
    ``.json``.

    Scans without labels lie in a store of their own below, :attr:`unlabelled`, as ``.image.npy``, ``.mask.npy`` and
    ``.json``; :meth:`open` and :meth:`record` find them, too.

    Args:
        folder: ``<root>/preprocessed/DATASET/CONFIGURATION``.
        labelled: whether its cases have labels.
    """

    def __init__(self, folder: Path, *, labelled: bool = True) -> None:
        self.folder = Path(folder)
        self.labelled = labelled
        self._parts = _LABELLED_PARTS if labelled else _UNLABELLED_PARTS

    @property
    def unlabelled(self) -> CaseStore:
        """The store of the scans without labels."""
        return CaseStore(self.folder / _UNLABELLED, labelled=False)

    @property
    def unfinished(self) -> bool:
        """Whether a preparation makes cases right now, or was killed while it did."""
        return (self.folder / UNFINISHED).exists()

    def has_label(self, case: str) -> bool:
        """Whether a case is one of those with labels."""
        return self.labelled and self._path(case, "json").exists()

    def cases(self) -> list[str]:
        """The ids of all complete cases, sorted."""
        found = []
        for path in self.folder.glob("*.json"):
            if not path.name.startswith("."):
                found.append(path.name.removesuffix(".json"))
        return sorted(found)

    def open(self, case: str) -> StoredCase:
        """Open a case for reading.

        Raises:
            DataError: the case was not preprocessed, or a file of it is missing or damaged.
        """
        if self._is_unlabelled(case):
            return self.unlabelled.open(case)
        record = self.record(case)
        locations: dict[int, np.ndarray] = {}
        try:
            for part in self._parts[1:]:
                if self._path(case, part).exists():
                    check_file(self._path(case, part))
            image = np.load(self._path(case, self._parts[1]), mmap_mode="r")
            label = np.load(self._path(case, self._parts[2]), mmap_mode="r")
            if self.labelled:
                with np.load(self._path(case, "locations.npz")) as stored:
                    locations = {int(key): stored[key] for key in stored.files}
            _check_arrays(image, label, locations)
        except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"Case {case} in {self.folder} is damaged ({error}); delete {case}.json there and preprocess again."
            ) from error
        return StoredCase(image, label, locations, record.properties, self.labelled)

    def state(self, case: str) -> tuple[int, ...]:
        """What changes when a case is made anew; empty where it is not there."""
        return state_if_there(self._path(case, "json"))

    def record(self, case: str) -> CaseRecord:
        """Read what a case was made from.

        Raises:
            DataError: the case was not preprocessed, or by another version of medkd.
        """
        if self._is_unlabelled(case):
            return self.unlabelled.record(case)
        path = self._path(case, "json")
        if not path.exists():
            raise DataError(
                f"Case {case} was not preprocessed in {self.folder}; run medkd_plan_and_preprocess for this "
                "configuration."
            )
        return load(CaseRecord, path)

    def recipe(self, case: str) -> str:
        """How a stored case was made (see :func:`recipe_of`), without a look at the rest of its record, which takes
        longer; empty where it does not say.

        Raises:
            DataError: the record is damaged.
        """
        data = read_json(self._path(case, "json"))
        found = data.get("recipe", "") if isinstance(data, Mapping) else None
        return found if isinstance(found, str) else self.record(case).recipe

    def write(
        self, case: str, content: Preprocessed, labels: LabelSpec, files: Sequence[SourceFile], recipe: str
    ) -> None:
        """Store a case; a reader sees the old case, no case, or the new one, never a mixture.

        In a store of scans without labels, what ``content`` says besides the mask is not kept.

        Raises:
            DataError: the case has no label (or mask), or the folder cannot be written to.
        """
        if content.label is None:
            raise DataError(f"Case {case}: only labelled cases are stored for training; this one has no label map.")
        self.remove(case)
        label = content.label if self.labelled else np.minimum(content.label, 0).astype(np.int8)
        for part, array in zip(self._parts[1:3], (content.image, label), strict=True):
            with atomic_path(self._path(case, part)) as temporary:
                np.save(temporary, array)
        if not self.labelled:
            save(self._path(case, "json"), CaseRecord(content.properties, tuple(files), recipe))
            return
        locations: dict[str, Any] = {}
        for entry, voxels in sample_locations(content.label, labels).items():
            locations[str(entry)] = voxels
        with atomic_path(self._path(case, "locations.npz")) as temporary:
            np.savez(temporary, **locations)
        save(self._path(case, "json"), CaseRecord(content.properties, tuple(files), recipe))

    def remove(self, case: str) -> None:
        """Delete a case, its record first."""
        for part in self._parts:
            self._path(case, part).unlink(missing_ok=True)

    def is_current(self, case: str, paths: Sequence[Path], recipe: str) -> bool:
        """Whether a complete stored case was made from these very files with this recipe.

        Sizes and times of change are compared first; only where a time differs is the content hashed.
        """
        try:
            record = self.record(case)
        except DataError:
            return False
        if record.recipe != recipe or len(record.files) != len(paths) or not self.is_complete(case):
            return False
        return all(map(is_unchanged, record.files, paths))

    def is_complete(self, case: str) -> bool:
        """Whether all files of a case are there."""
        return all(self._path(case, part).exists() for part in self._parts)

    def _is_unlabelled(self, case: str) -> bool:
        """Whether the case lies in the store below."""
        return self.labelled and not self._path(case, "json").exists() and self.unlabelled.is_complete(case)

    def _path(self, case: str, part: str) -> Path:
        check_case_name(case, str(self.folder))
        return self.folder / f"{case}.{part}"


def _check_arrays(image: np.ndarray, label: np.ndarray, locations: Mapping[int, np.ndarray]) -> None:
    """Arrays as :meth:`CaseStore.write` leaves them.

    Raises:
        ValueError: they are of another form.
    """
    if image.ndim != 4 or label.shape != image.shape[1:]:
        raise ValueError(f"image and label map have the shapes {image.shape} and {label.shape}")
    if image.dtype.kind != "f" or label.dtype.kind not in "biu":
        raise ValueError(f"image and label map hold {image.dtype} and {label.dtype}")
    for entry, voxels in locations.items():
        if voxels.ndim != 2 or voxels.shape[1] != 3 or voxels.dtype.kind not in "iu":
            raise ValueError(f"the voxels of structure {entry} have the shape {voxels.shape} and hold {voxels.dtype}")


def describe_source(path: Path) -> SourceFile:
    """Size, time of change and content hash of a raw file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        state = path.stat()
        return SourceFile(path.name, state.st_size, state.st_mtime_ns, content_digest(path))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def recipe_of(plan: Plan, configuration: Configuration, labels: LabelSpec) -> str:
    """Hash of everything besides the raw files that a stored case depends on; patch and network sizes do not count."""
    parts: Any = {"schema": SCHEMA, "labels": labels, **preprocessing_settings(plan, configuration)}
    for name, default in (("crop", "nonzero"), ("orientation", None)):
        if parts[name] == default:  # left out, so that cases stored before the key existed stay valid
            del parts[name]
    text = json.dumps(to_data(parts), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sample_locations(label: np.ndarray, labels: LabelSpec) -> dict[int, np.ndarray]:
    """Voxels of every structure, for sampling patches around them.

    Of each label or region min(10 000, n) voxels, but at least 1 %, are drawn without replacement with a fixed seed.

    Args:
        label: ``(z, y, x)`` preprocessed label map.
        labels: what its values mean.

    Returns:
        1-based position in ``labels.foreground`` → ``(n, 3)`` int32, n = 0 where the structure is absent. With an
        ``ignore`` label also :data:`ANNOTATED` → voxels that are not ignored (nor outside the non-zero mask).
    """
    rng = np.random.default_rng(_SEED)
    flat = np.ascontiguousarray(label).reshape(-1)
    foreground = np.flatnonzero(flat > 0)
    values = flat[foreground]
    found = {}
    for entry, (_, members) in enumerate(labels.foreground, start=1):
        wanted = values == members[0] if len(members) == 1 else np.isin(values, members)
        found[entry] = _draw(foreground[wanted], label.shape, rng)
    if labels.ignore is not None:
        annotated = (flat >= 0) & (flat != labels.ignore)
        found[ANNOTATED] = _draw(np.flatnonzero(annotated), label.shape, rng)
    return found


def _draw(indices: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Some of the flat indices, drawn at random, as voxels ``(n, 3)``."""
    least = ceil(len(indices) * _MIN_SHARE)
    count = max(min(_MAX_LOCATIONS, len(indices)), least)
    if count:
        indices = np.sort(rng.choice(indices, count, replace=False, shuffle=False))
    return np.stack(np.unravel_index(indices, shape), axis=1).astype(np.int32)


def is_unchanged(file: SourceFile, path: Path) -> bool:
    """Whether a raw file is the one that a case was made from: of its size, and of its name and time of change or else
    of its content.
    """
    try:
        state = path.stat()
        if state.st_size != file.size:
            return False
        same = path.name == file.name and state.st_mtime_ns == file.modified
        return same or known_digest(path) == file.content
    except OSError:
        return False
