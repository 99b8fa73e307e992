"""Which options of a training ``medkd_compress`` hands over: all but those that it decides itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from medkd.core.errors import RunError
from medkd.core.limits import is_whole
from medkd.training import options
from medkd.training.options import TrainOptions

DECIDED = (
    *("root", "width_divisor", "init", "weights", "configuration", "teachers"),
    *("resume", "overwrite", "validate"),
)
"""Follow from the model and the sizes, or from what is there already."""

TAUGHT = tuple(name for name in options.TAUGHT if name not in DECIDED)
"""Are a teacher's matter: the student alone has none of them."""

HANDED_OVER = tuple(entry.name for entry in fields(TrainOptions) if entry.name not in DECIDED)
"""Fields of :class:`~medkd.training.options.TrainOptions` that every training gets as they were given."""

_FOLDS = ("0", "1", "2", "3", "4")


def check_numbers(sizes: Sequence[int], tolerance: float, fold: int | str) -> None:
    """Refuse sizes, tolerances and folds that are none.

    Raises:
        RunError: the first one.
    """
    whole = all(is_whole(size, 2) for size in sizes)
    if not sizes or not whole or len(set(sizes)) < len(sizes):
        shown = ", ".join(map(str, sizes)) or "none"
        raise RunError(
            f"--sizes expects different whole numbers from 2 on, by which channels are divided, found {shown}; "
            "give for example --sizes 2 4 8."
        )
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise RunError(f"--tolerance expects a number between 0 and 1, a loss of Dice, found {tolerance}.")
    if str(fold) not in _FOLDS:
        raise RunError(
            f"--fold expects 0 to 4, since students are judged on the cases that the fold holds out, found {fold}."
        )
