"""The plan of a detection data set: data, written to ``plans.json``, that a user may edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medkd.core.serial import load, save


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random changes of training images; probabilities and ranges as ultralytics names them.

    Attributes:
        mosaic: probability of putting four images together (ultralytics' detectors only).
        close_mosaic: last epochs without mosaic.
        fliplr: probability of mirroring left and right.
        flipud: probability of mirroring top and bottom.
        scale: images are scaled by a factor in ``1 ± scale``.
        translate: images are moved by up to this share of the size.
        degrees: images are turned by up to this angle.
        brightness: intensities are multiplied by a factor in ``1 ± brightness``.
    """

    mosaic: float = 1.0
    close_mosaic: int = 10
    fliplr: float = 0.5
    flipud: float = 0.0
    scale: float = 0.5
    translate: float = 0.1
    degrees: float = 0.0
    brightness: float = 0.4


@dataclass(frozen=True)
class DetectionPlan:
    """How a detection data set is prepared and trained.

    Attributes:
        dataset: full data set name.
        categories: classes in order.
        image_size: side of the square input in pixels, a multiple of 32.
        batch_size: images per step.
        epochs: passes over the training images.
        learning_rate: initial learning rate of SGD.
        anchor_scale: side of the smallest anchor in strides, for detectors with anchors.
        augmentation: random changes of training images.
        sampling: category → how often an image whose boxes are all of this category is drawn, relative to the others (1 where not named);
            empty draws all images alike.
        negatives: images without boxes per image with boxes in an epoch, at most; None takes all.
        reasons: field → why it has its value, for people.
    """

    dataset: str
    categories: tuple[str, ...]
    image_size: int
    batch_size: int
    epochs: int = 100
    learning_rate: float = 0.01
    anchor_scale: float = 4.0
    augmentation: DetectionAugmentation = field(default_factory=DetectionAugmentation)
    sampling: dict[str, float] = field(default_factory=dict)
    negatives: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    task: Literal["detection"] = "detection"
    schema: int = 1

    @classmethod
    def load(cls, path: Path) -> DetectionPlan:
        """Read a ``plans.json``; an unknown key is an error that names the nearest known one."""
        return load(cls, path)

    def save(self, path: Path) -> None:
        """Write it atomically."""
        save(path, self)
