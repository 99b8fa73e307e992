"""An exported model on disk: a network for an engine, and everything from a scan to the network and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.core.labels import LabelSpec
from medkd.core.plan import Configuration, Plan
from medkd.core.plan_checks import check_preprocessing
from medkd.core.postprocessing import LargestComponent, check_steps
from medkd.core.serial import load, to_data
from medkd.core.timing import MeasuredExport

FILE = "preprocessing.json"
LARGEST_PATCH = 2**28
"""Voxels of a patch."""

NETWORKS = ("model.onnx", "model.xml")
RECORD = "export.json"
"""In every exported folder: its format, what it was made from and has seen, and how it compared."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """``preprocessing.json``: all that prediction needs beside the network.

    Attributes:
        network: file of the network, beside this one.
        digest: sha256 of the network's file (of OpenVINO's ``.bin``), hexadecimal.
        channel_names: of the input channels in order.
        labels: as in ``dataset.json``: name → value, or list of values for regions.
        regions_class_order: the values painted for each region, in order; empty for plain labels.
        plan: transposition, orientation, intensities, and the one configuration with spacing, normalisation,
            resampling and crop; as in a run's ``plans.json``.
        configuration: its name.
        patch_size: voxels per axis, two values for a 2D network.
        mirror_axes: axes of the patch that may be mirrored.
        mirror: whether prediction mirrors by default.
        step_size: distance of neighbouring tiles as a share of the patch.
        blending: ``gaussian`` or ``constant``.
        postprocessing: structures of whose label map the largest connected component alone is kept, in this order.
        made_from: name of the model that was exported, its folds, its weights' digests, versions.
        checksum: sha256 of all the other entries, hexadecimal; empty in older exports.
    """

    network: str
    digest: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, Any]
    regions_class_order: tuple[int, ...]
    plan: Plan
    configuration: str
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    mirror: bool = True
    step_size: float = 0.5
    blending: str = "gaussian"
    postprocessing: tuple[LargestComponent, ...] = ()
    made_from: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""
    schema: int = 2
    oldest: ClassVar[int] = 1

    @property
    def label_spec(self) -> LabelSpec:
        """The labels, checked."""
        return LabelSpec.from_json(self.labels, list(self.regions_class_order) or None, FILE)

    @property
    def folds(self) -> tuple[str, ...]:
        """Names of the folds that were averaged."""
        stated = self.made_from.get("folds", ())
        return tuple(str(fold) for fold in stated) if isinstance(stated, (list, tuple)) else ()

    @property
    def planned(self) -> Configuration:
        """The configuration that the network was trained on."""
        return self.plan.configuration(self.configuration)


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (Path(folder) / FILE).is_file()


def read_exported(folder: Path) -> Exported:
    """Read and check an exported model's description; its network is checked by :func:`check_network`.

    Raises:
        MedkdError: a file is missing or damaged, or the description names a file outside of the folder.
    """
    exported = load(Exported, Path(folder) / FILE)
    if exported.network not in NETWORKS:
        raise RunError(
            f"{Path(folder) / FILE}: 'network' must be {' or '.join(NETWORKS)} in this folder, found "
            f"'{exported.network}'."
        )
    _check(exported, Path(folder) / FILE)
    check_steps(exported.postprocessing, exported.label_spec, f"{Path(folder) / FILE}: 'postprocessing'")
    check_sealed(Path(folder) / FILE)
    return exported


def _check(exported: Exported, path: Path) -> None:
    """Refuse values that no export writes, before memory is taken for them."""
    check_preprocessing(exported.plan, str(path))
    planned, patch = exported.planned, exported.patch_size
    rank, channels, labels = planned.rank, len(planned.normalization), exported.label_spec
    sound_patch = len(patch) == rank and min(patch) > 0 and prod(patch) <= LARGEST_PATCH
    rules = {
        "patch_size": (sound_patch, f"{rank} sides above 0, at most {LARGEST_PATCH} voxels together", list(patch)),
        "mirror_axes": (
            set(exported.mirror_axes) <= set(range(rank))
            and len(set(exported.mirror_axes)) == len(exported.mirror_axes),
            f"axes from 0 to {rank - 1}, each once",
            list(exported.mirror_axes),
        ),
        "step_size": (0.05 <= exported.step_size <= 1, "a share from 0.05 to 1", exported.step_size),
        "blending": (exported.blending in ("gaussian", "constant"), "gaussian or constant", exported.blending),
        "channel_names": (len(exported.channel_names) == channels, f"{channels} names", list(exported.channel_names)),
        "labels": (len(labels.foreground) > 0, "at least one structure", dict(exported.labels)),
        "regions_class_order": (
            labels.regions or not exported.regions_class_order,
            "empty where no label is a region",
            list(exported.regions_class_order),
        ),
    }
    for name, (holds, wanted, found) in rules.items():
        if not holds:
            raise RunError(f"{path}: '{name}' must be {wanted}, found {found!r:.200}; export the model again.")


def check_network(folder: Path, exported: Exported) -> Path:
    """The network's file, if it is the one that was exported.

    Raises:
        RunError: it is missing, or not the one that belongs to the description.
    """
    return check_file_of(folder, exported.network, exported.digest, FILE)


def check_file_of(folder: Path, network: str, digest: str, description: str) -> Path:
    """The network's file in an exported folder, if its hash is the one that the description states.

    Raises:
        RunError: it is missing, or another.
    """
    path = Path(folder) / network
    if not path.is_file():
        raise RunError(f"{folder} has no {network}; copy the whole exported folder.")
    if digest_of(path) != digest:
        raise RunError(
            f"{path} is not the network that {description} describes (it was changed, truncated or replaced); export "
            "the model again."
        )
    return path


def digest_of(network: Path) -> str:
    """sha256 of a network's file, and of the weights that OpenVINO keeps beside it."""
    found = hashlib.sha256()
    for path in (network, network.with_suffix(".bin")):
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(2**20):
                    found.update(block)
    return found.hexdigest()


def measured_export(folder: Path, engine: str) -> MeasuredExport:
    """What a report says of an exported model, without times.

    Args:
        folder: an exported model or detector.
        engine: that computes it.

    Raises:
        DataError: its record is damaged.
    """
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    stated = record if isinstance(record, dict) else {}
    made_from = stated.get("made_from")
    name = made_from.get("run", made_from.get("name")) if isinstance(made_from, dict) else None
    networks = [path for path in folder.iterdir() if path.stem == "model" and path.suffix in (".onnx", ".xml", ".bin")]
    return MeasuredExport(
        name=folder.name,
        made_from=str(name or ""),
        engine=engine,
        int8="int8" in stated,
        size=sum(path.stat().st_size for path in networks),
        seconds=(),
    )


def write_exported(folder: Path, exported: Exported) -> None:
    """Write the description; last, since its presence says that the export is finished."""
    write_sealed(Path(folder) / FILE, exported)


def write_sealed(path: Path, described: Any) -> None:
    """Write a description with the checksum of what it says."""
    entries = to_data(described)
    write_json(path, {**entries, "checksum": _checksum(entries)})


def check_sealed(path: Path) -> None:
    """See that a description says what was exported: labels in another order are no less possible than those in theirs.

    Raises:
        RunError: it was changed since.
    """
    entries = read_json(path)
    stated = entries.get("checksum")
    if stated and stated != _checksum(entries):
        raise RunError(
            f"{path} does not say what was exported (it was changed, or is put together from two exports); copy the "
            "exported folder again, or export the model again."
        )


def _checksum(entries: Mapping[str, Any]) -> str:
    """Of everything but the checksum itself, in the order in which it is written: that of regions has a meaning."""
    others = {key: value for key, value in entries.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(others).encode()).hexdigest()
