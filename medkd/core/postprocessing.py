"""Post-processing of label maps: of some structures only the largest connected component is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec

POSTPROCESSING_FILE = "postprocessing.json"
EVERYTHING = "all structures together"
"""The name of the step that looks at the union of all structures."""


@dataclass(frozen=True)
class LargestComponent:
    """One step: of a structure, the largest connected component is kept.

    Attributes:
        name: of the structure, or :data:`EVERYTHING`.
        values: its label values.
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """What keeping the largest component of a structure alone would do, out of fold, after the steps before it.

    Attributes:
        name: of the structure, or :data:`EVERYTHING`.
        values: its label values.
        before: mean Dice of the structure (of all structures for :data:`EVERYTHING`); None where it is in no case.
        after: the same with the step.
        kept: whether the step belongs to the post-processing: it raises the mean, and lowers that of no structure.
    """

    name: str
    values: tuple[int, ...]
    before: float | None
    after: float | None
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """``postprocessing.json``: what was found to help on predictions of cases that the networks had not seen.

    Attributes:
        folds: whose validation predictions were looked at together.
        cases: how many there are.
        trials: what was tried, in the order in which the kept ones are applied.
        dice_before: mean foreground Dice of the predictions as they are.
        dice_after: with the post-processing.
        weights: a hash of each network that made the predictions, as far as they are known.
    """

    folds: tuple[str, ...]
    cases: int
    trials: tuple[Trial, ...]
    dice_before: float | None = None
    dice_after: float | None = None
    weights: tuple[str, ...] = ()
    schema: int = 1

    @property
    def steps(self) -> tuple[LargestComponent, ...]:
        """What is applied, in this order."""
        return tuple(LargestComponent(trial.name, trial.values) for trial in self.trials if trial.kept)

    def text(self) -> str:
        """The outcome in a sentence, for people."""
        noun = "case" if self.cases == 1 else "cases"
        over = f"over {self.cases} validation {noun} of fold {', '.join(self.folds)}"
        if not self.steps:
            return f"post-processing: keeping the largest component helps for no structure {over}"
        dice = ""
        if self.dice_before is not None and self.dice_after is not None:
            dice = f": mean Dice {self.dice_before:.4f} → {self.dice_after:.4f} {over}, on which it was chosen"
        return f"post-processing: {steps_text(self.steps)}{dice}"


def steps_text(steps: Sequence[LargestComponent]) -> str:
    """Steps in words, for a log.

    >>> steps_text([LargestComponent("liver", (1,)), LargestComponent("spleen", (2,))])
    'only the largest component is kept of liver, spleen'
    """
    if not steps:
        return "none"
    return f"only the largest component is kept of {', '.join(step.name for step in steps)}"


def check_steps(steps: Sequence[LargestComponent], labels: LabelSpec, where: str) -> None:
    """See to it that steps speak of these labels.

    Raises:
        DataError: one names a structure that they have not, or by other values.
    """
    known = {values: name for name, values in labels.foreground}
    everything = _all_values(labels)
    for step in steps:
        name = EVERYTHING if step.name == EVERYTHING and step.values == everything else known.get(step.values)
        if name is None or name.casefold() != step.name.casefold():
            shown = ", ".join(f"{name} {list(values)}" for values, name in known.items())
            raise DataError(
                f"{where} is about '{step.name}' {list(step.values)}, but the model's structures are {shown:.500}; "
                "take the file that was made for this model."
            )


def candidates(labels: LabelSpec) -> list[list[LargestComponent]]:
    """What may be tried, one list after the other: those of one list do not touch each other's voxels.

    First all structures together, where there are several. Then each: plain labels at once, regions one after another,
    those of the most labels first, since what is taken from a region is taken from the regions inside it as well.
    """
    single = [LargestComponent(name, values) for name, values in labels.foreground]
    if labels.regions:
        rounds = [[step] for step in sorted(single, key=lambda step: -len(step.values))]
    else:
        rounds = [single]
    everything = _all_values(labels)
    if any(step.values == everything for step in single):
        return rounds
    return [[LargestComponent(EVERYTHING, everything)], *rounds]


def keep_largest(array: np.ndarray, steps: Sequence[LargestComponent], labels: LabelSpec) -> np.ndarray:
    """Apply steps to a label map.

    Components touch by faces, edges or corners; of equally large ones the first in the order of the array stays. A
    voxel that is taken from a structure becomes background; one that is taken from a region gets the label of the
    regions that are left to it (what is taken from the core of a tumour remains tumour), background where no label
    means just these.

    Args:
        array: label values ``(z, y, x)``; it is not changed.
        steps: in this order.
        labels: what the values mean.

    Returns:
        A new array, or the same where there is nothing to take away.

    >>> import numpy as np
    >>> labels = LabelSpec.from_names(["liver"])
    >>> keep_largest(np.array([[[1, 1, 0, 1]]]), [LargestComponent("liver", (1,))], labels).tolist()
    [[[1, 1, 0, 0]]]
    """
    boxes = ndimage.find_objects(array, max_label=max(labels.values)) if steps else []
    result = array
    for step in steps:
        box = joined_box([boxes[value - 1] for value in step.values])
        taken = None if box is None else _smaller_components(np.isin(result[box], step.values))
        if taken is None or box is None:
            continue
        result = array.copy() if result is array else result
        part = result[box]
        for value, other in _instead(step.values, labels).items():  # no other is a value of the step
            part[taken & (part == value)] = other
    return result


def joined_box(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    """The box around boxes; None where there is none."""
    present = [box for box in boxes if box is not None]
    if not present:
        return None
    sides = []
    for axis in zip(*present, strict=True):
        sides.append(slice(min(side.start for side in axis), max(side.stop for side in axis)))
    return tuple(sides)


def _smaller_components(inside: np.ndarray) -> np.ndarray | None:
    """Where all but the largest component of a mask lie; None where there is one component at most."""
    components, count = ndimage.label(inside, np.ones((3,) * inside.ndim))
    if count < 2:
        return None
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0
    smaller: np.ndarray = inside & (components != sizes.argmax())
    return smaller


def _instead(values: tuple[int, ...], labels: LabelSpec) -> dict[int, int]:
    """What voxels of a structure become that are taken from it, by their label."""
    if not labels.regions:
        return dict.fromkeys(values, 0)
    left = [part for part in labels.foreground if not set(part[1]) <= set(values)]
    found = {}
    for value in values:
        remaining = _regions_of(value, left)
        same = [other for other in _all_values(labels) if _regions_of(other, labels.foreground) == remaining]
        found[value] = same[0] if remaining and same else 0
    return found


def _regions_of(value: int, regions: Sequence[tuple[str, tuple[int, ...]]]) -> set[str]:
    return {name for name, inside in regions if value in inside}


def _all_values(labels: LabelSpec) -> tuple[int, ...]:
    """Every label of a structure."""
    found: set[int] = set()
    for _, values in labels.foreground:
        found.update(values)
    return tuple(sorted(found))
