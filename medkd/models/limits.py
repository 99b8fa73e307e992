"""How large a described network may be: what is larger is refused when it is read, before anything is built.

No published network comes near these limits; a file that exceeds them is damaged or hostile, and building it would take
hours or all of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec

MOST_PARAMETERS = 10**9
MOST_STAGES = 32
MOST_BLOCKS = 128  # in a stage
MOST_CHANNELS = 4096  # of a feature map, an input or an output
MOST_VALUES = 10_000  # that a description may list
LARGEST_KERNEL = 15
LARGEST_PATCH = 2**30  # voxels
LARGEST_IMAGE = 8192  # side of a detector's input in pixels
_COUNTS = ("blocks_down", "blocks_up", "num_res_units", "depths", "num_heads", "num_groups")


def check_spec(spec: NetworkSpec, where: str) -> None:
    """Refuse to build a network of absurd size.

    Args:
        spec: the network.
        where: its file, for the error text.

    Raises:
        RunError: a size is above its limit, or not positive.
    """
    sizes: list[tuple[str, tuple[int, ...], int]] = [
        ("channels", (spec.in_channels, spec.num_outputs), MOST_CHANNELS),
        ("voxels of the patch", (prod(spec.patch_size),), LARGEST_PATCH),
    ]
    shape = spec.architecture
    if shape is not None:
        sizes += [
            ("stages", (len(shape.strides),), MOST_STAGES),
            ("features of a stage", shape.features_per_stage, MOST_CHANNELS),
            ("blocks of a stage", (*shape.blocks_encoder, *shape.blocks_decoder), MOST_BLOCKS),
            ("side of a kernel", _flat(shape.kernel_sizes), LARGEST_KERNEL),
            ("stride", _flat(shape.strides), MOST_BLOCKS),
        ]
    for what, values, most in sizes:
        check_size(what, values, most, where)


def check_size(what: str, values: tuple[int, ...], most: int, where: str) -> None:
    """Refuse values that are not from 1 to ``most``.

    Raises:
        RunError: one is not.
    """
    for value in values:
        if not 1 <= value <= most:
            raise RunError(f"{where}: expected {what} from 1 to {most}, found {value:.4g}; is the file damaged?")


def check_argument(name: str, value: Any, where: str) -> None:
    """Refuse an argument of a network's constructor with absurd numbers.

    Args:
        name: of the argument.
        value: plain data.
        where: the file and the network, for the error text.

    Raises:
        RunError: it holds more than :data:`MOST_VALUES` values, or a number above its limit.
    """
    most = MOST_CHANNELS
    if name in _COUNTS:
        most = MOST_BLOCKS
    elif "kernel" in name:
        most = LARGEST_KERNEL
    for count, leaf in enumerate(leaves(value)):
        if count > MOST_VALUES:
            raise RunError(f"{where}: '{name}' lists more than {MOST_VALUES} values; is the file damaged?")
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool) and not abs(leaf) <= most:
            raise RunError(f"{where}: '{name}' holds {leaf:.4g}, more than the {most} that medkd builds.")
    if isinstance(value, (list, tuple)) and len(value) > MOST_STAGES:
        raise RunError(f"{where}: '{name}' lists {len(value)} values, more than the {MOST_STAGES} that medkd builds.")


def check_parameters(count: float, where: str) -> None:
    """Refuse a network with more than :data:`MOST_PARAMETERS` weights.

    Raises:
        RunError: it has more.
    """
    if count > MOST_PARAMETERS:
        raise RunError(f"{where}: the network has {count:.3g} weights, more than the {MOST_PARAMETERS:.0e} allowed.")


def leaves(value: Any) -> Iterator[Any]:
    """Every value inside lists and mappings, one after the other; whoever counts them can stop."""
    waiting: list[Iterator[Any]] = [iter([value])]
    while waiting:
        for found in waiting[-1]:
            yield found
            if isinstance(found, (Mapping, list, tuple)):
                waiting.append(iter(found.values() if isinstance(found, Mapping) else found))
                break
        else:
            waiting.pop()


def _flat(sizes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    flat: list[int] = []
    for size in sizes:
        flat += size
    return tuple(flat)
