"""What a user asks of a plan, given to a new one or held against the one that exists."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import PlanError
from medkd.core.plan import Configuration, DataRanges, Plan
from medkd.core.protocol import Protocol
from medkd.io.comparison import twin_groups
from medkd.io.verify import structures_of
from medkd.preprocessing.fingerprint import Fingerprint
from medkd.preprocessing.planner import CONFIGURATIONS, make_plan
from medkd.preprocessing.ranges import ranges_of

READERS: Mapping[str, str | None] = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
    "NaturalImage2DIO": None,
    "Tiff3DIO": None,
}
"""nnU-Net's readers of scans → the axis code that they turn scans to; None for scans as they are stored."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user asks of a plan; None leaves it to the plan.

    Attributes:
        gpu_memory_gb: memory that training may use.
        protocol: a published protocol.
        orientation: axis code that scans are turned to.
        mirror_axes: axes of the 3D network that may be mirrored.
    """

    gpu_memory_gb: float | None = None
    protocol: Protocol | None = None
    orientation: str | None = None
    mirror_axes: tuple[int, ...] | None = None


def check_mirror_axes(axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Sorted axes.

    Raises:
        PlanError: an axis is not 0, 1 or 2.
    """
    if axes is None:
        return None
    if not set(axes) <= {0, 1, 2}:
        listed = " ".join(map(str, axes))
        raise PlanError(f"--mirror-axes expects none, or some of the axes 0, 1 and 2 of the network, found {listed}.")
    return tuple(sorted(set(axes)))


def orientation_of(old: Plan | None, wishes: Wishes, description: DatasetDescription, path: Path) -> str | None:
    """The axis code that scans are turned to.

    Args:
        old: the plan that is kept, if any.
        wishes: what is asked for.
        description: may name one of nnU-Net's readers.
        path: of the plan, for error texts.

    Raises:
        PlanError: the plan that is kept turns scans otherwise, or the reader is none of :data:`READERS`.
    """
    reader = description.extra.get("overwrite_image_reader_writer")
    meant = wishes.orientation or _turned_by(reader)
    if old is None:
        return meant
    if wishes.orientation and wishes.orientation != old.orientation:
        kept = f"turns scans to {old.orientation}" if old.orientation else "takes scans as they are stored"
        raise PlanError(
            f"{path} {kept}, not to {wishes.orientation}; give --overwrite-plan to make it anew, which preprocesses "
            "again."
        )
    if reader is not None and meant != old.orientation:  # who names none leaves it to the plan, which may be a model's
        _log.warning(
            "%s turns scans to %s, but the reader %s of dataset.json means %s; --overwrite-plan follows it",
            path,
            old.orientation or "nothing",
            reader,
            meant or "scans as they are stored",
        )
    return old.orientation


def _turned_by(reader: str | None) -> str | None:
    """The axis code that one of nnU-Net's readers turns scans to."""
    if reader is None:
        return None
    if reader not in READERS:
        raise PlanError(
            f"dataset.json asks for nnU-Net's {reader} (overwrite_image_reader_writer), which medkd has no equal of; "
            f"it reads files as {', '.join(READERS)} do, so convert the scans to NIfTI and name one of these or none."
        )
    return READERS[reader]


def new_plan(
    name: str, fingerprint: Fingerprint, description: DatasetDescription, wishes: Wishes, old: Plan | None
) -> Plan:
    """A plan as :func:`~medkd.preprocessing.planner.make_plan` makes it, with what is asked for; configurations of an
    old one that the planner does not know are kept.
    """
    plan = make_plan(name, fingerprint, description, gpu_memory_gb=wishes.gpu_memory_gb, protocol=wishes.protocol)
    if old is not None and wishes.protocol is None:
        configurations = dict(plan.configurations)
        for key, configuration in old.configurations.items():
            if key not in CONFIGURATIONS:
                configurations[key] = configuration
        plan = replace(plan, configurations=configurations)
    ranges = _ranges(fingerprint, description)
    return _mirrored(replace(plan, orientation=fingerprint.orientation, ranges=ranges), wishes.mirror_axes)


def _ranges(fingerprint: Fingerprint, description: DatasetDescription) -> DataRanges | None:
    facts = fingerprint.facts or [scan.facts for scan in fingerprint.unlabelled]
    names = structures_of(description.labels)
    return ranges_of(facts, description.channel_names, fingerprint.orientation, names)


def keep_plan(old: Plan, wishes: Wishes, path: Path, fingerprint: Fingerprint, description: DatasetDescription) -> Plan:
    """The plan that exists, with other mirror axes where they are asked for, and with what the cases look like where it
    does not say so (plans of models that were trained elsewhere do not).

    Raises:
        PlanError: it does not follow the protocol that is asked for.
    """
    if wishes.protocol is not None and not _prepares_alike(old.protocol, wishes.protocol):
        follows = old.protocol.name if old.protocol else "no protocol"
        raise PlanError(
            f"{path} follows {follows}, not {wishes.protocol.name}; give --overwrite-plan to make it anew, which "
            "preprocesses again."
        )
    _log.info("%s is kept as it is; --overwrite-plan makes a new one", path)
    kept = old if old.ranges is not None else replace(old, ranges=_ranges(fingerprint, description))
    return _mirrored(replace(kept, protocol=wishes.protocol or kept.protocol), wishes.mirror_axes)


def _prepares_alike(old: Protocol | None, new: Protocol) -> bool:
    """Whether two protocols of one name differ in nothing that has been planned or preprocessed, as those of an earlier
    version may.
    """
    if old is None or old.name != new.name or old.preprocessing != new.preprocessing:
        return False
    planned = [(protocol.training.patch_size, protocol.training.batch_size) for protocol in (old, new)]
    return planned[0] == planned[1]


def mirrored_axes(plan: Plan | None) -> tuple[int, ...] | None:
    """The axes that a plan's 3D networks may mirror; None for all of them, and where there is no such plan."""
    if plan is None:
        return None
    for configuration in plan.configurations.values():
        if configuration.rank == 3:
            return configuration.mirror_axes
    return None


def with_twins(description: DatasetDescription, fingerprint: Fingerprint) -> DatasetDescription:
    """The description with the groups of equal scans, which new folds keep together."""
    facts = fingerprint.facts or [scan.facts for scan in fingerprint.unlabelled]  # folds are made of one kind
    twins = [list(cases) for cases in twin_groups(facts)]
    if not twins:
        return description
    own = {**description.extra.get("medkd", {}), "duplicates": twins}
    return replace(description, extra={**description.extra, "medkd": own})


def _mirrored(plan: Plan, axes: tuple[int, ...] | None) -> Plan:
    if axes is None:
        return plan
    changed = {}
    for name, configuration in plan.configurations.items():
        changed[name] = _limited(configuration, axes)
    return replace(plan, configurations=changed)


def _limited(configuration: Configuration, axes: tuple[int, ...]) -> Configuration:
    """A 2D network has the last two axes of the volume."""
    skipped = 3 - configuration.rank
    kept = []
    for axis in axes:
        if axis >= skipped:
            kept.append(axis - skipped)
    return replace(configuration, mirror_axes=tuple(kept))
