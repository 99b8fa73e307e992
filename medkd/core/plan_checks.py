"""A plan that was edited by hand, or that came with somebody else's model, makes sense before anything follows it."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from medkd.core.errors import PlanError
from medkd.core.plan import Architecture, Configuration, Plan

_LONGEST_NAME = 100
_FINEST, _COARSEST = 1e-4, 1e4  # mm
_HIGHEST_ORDER = 5  # of splines


def check_plan(plan: Plan, where: str) -> Plan:
    """The plan, if it makes sense.

    Args:
        plan: as read.
        where: its file, for error texts.

    Raises:
        PlanError: a name would lead out of the folder, or numbers cannot be or contradict each other; it names the
            entry.
    """
    check_preprocessing(plan, where)
    for name, configuration in plan.configurations.items():
        _check_architectures(configuration, f"{where}: configurations.{name[:_LONGEST_NAME]!r}")
    return plan


def check_preprocessing(plan: Plan, where: str) -> None:
    """See that a plan makes sense as far as scans are prepared by it, whatever network follows.

    Raises:
        PlanError: see :func:`check_plan`.
    """
    _check_axes(plan, where)
    for name, configuration in plan.configurations.items():
        place = f"{where}: configurations.{name[:_LONGEST_NAME]!r}"
        _check_name(name, configuration, place)
        _check_spacing(configuration, place)
        _check_lengths(_channels(plan, configuration), configuration, place)
        _check_orders(configuration, place)


_SAME = str.maketrans("LPI", "RAS")


def _check_axes(plan: Plan, where: str) -> None:
    if sorted(plan.transpose) != [0, 1, 2]:
        raise _error(where, "transpose", "the axes 0, 1 and 2 in some order", list(plan.transpose))
    code = plan.orientation
    if code is not None and sorted("RAS".find(letter.translate(_SAME)) for letter in code) != [0, 1, 2]:
        raise _error(where, "orientation", "an axis code as RAS, or null", code)


def _check_architectures(configuration: Configuration, where: str) -> None:
    if "plain_unet" not in configuration.architectures:
        raise _error(where, "architectures", "plain_unet among them", sorted(configuration.architectures))
    for network, architecture in configuration.architectures.items():
        _check_architecture(architecture, configuration.rank, f"{where}.{network}")


def _check_name(name: str, configuration: Configuration, where: str) -> None:
    letters_are_fine = name.isprintable() and not any(letter in name for letter in "/\\:")
    if not name or name.startswith(".") or len(name) > _LONGEST_NAME or not letters_are_fine:
        raise PlanError(f"{where} expects a name that can be that of a folder; rename the configuration.")
    if configuration.name != name:
        raise _error(where, "name", f"'{name}', as it is listed", configuration.name)


def _check_spacing(configuration: Configuration, where: str) -> None:
    spacing = configuration.spacing
    sizes_are_fine = all(isfinite(value) and _FINEST <= value <= _COARSEST for value in spacing)
    if configuration.rank not in (2, 3) or not sizes_are_fine:
        expected = f"2 or 3 voxel sizes in mm from {_FINEST:g} to {_COARSEST:g}"
        raise _error(where, "spacing", expected, list(spacing))


def _channels(plan: Plan, configuration: Configuration) -> int:
    """How many channels a scan has: as many as there are statistics, which the plan of a model from elsewhere may lack
    where no normalisation asks for them.
    """
    if plan.intensities or "ct" in configuration.normalization:
        return len(plan.intensities)
    return len(configuration.normalization)


def _check_lengths(channels: int, configuration: Configuration, where: str) -> None:
    rank = configuration.rank
    for key in ("normalization", "use_mask_for_norm"):
        values = getattr(configuration, key)
        if len(values) != channels:
            raise _error(where, key, f"{channels} values, one per channel", list(values))
    if len(configuration.median_shape) != rank:
        raise _error(where, "median_shape", f"{rank} numbers, as the spacing has", list(configuration.median_shape))
    if any(axis not in range(rank) for axis in configuration.mirrored):
        raise _error(where, "mirror_axes", f"some of the axes 0 to {rank - 1}", list(configuration.mirrored))


def _check_orders(configuration: Configuration, where: str) -> None:
    resampling = configuration.resampling
    for key in ("image_order", "image_order_z", "label_order", "label_order_z", "logits_order", "logits_order_z"):
        if getattr(resampling, key) not in range(_HIGHEST_ORDER + 1):
            raise _error(where, f"resampling.{key}", f"0 to {_HIGHEST_ORDER}", getattr(resampling, key))


def _check_architecture(architecture: Architecture, rank: int, where: str) -> None:
    if architecture.batch_size < 1:
        raise _error(where, "batch_size", "1 or more", architecture.batch_size)
    if not _are_sizes(architecture.patch_size, rank):
        raise _error(where, "patch_size", f"{rank} numbers of at least 1", list(architecture.patch_size))
    stages = len(architecture.features_per_stage)
    for key, values in (("kernel_sizes", architecture.kernel_sizes), ("strides", architecture.strides)):
        if len(values) != stages or not all(_are_sizes(value, rank) for value in values):
            expected = f"{rank} numbers of at least 1 for each of {stages} stages"
            raise _error(where, key, expected, [list(value) for value in values])


def _are_sizes(values: Iterable[int], rank: int) -> bool:
    listed = list(values)
    return len(listed) == rank and min(listed) >= 1


def _error(where: str, key: str, expected: str, found: object) -> PlanError:
    return PlanError(f"{where}: '{key}' expects {expected}, found {found!s:.200}; correct the plan or make it anew.")
