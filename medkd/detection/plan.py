"""The plan of a detection data set: data, written to ``plans.json``, that a user may edit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medkd.core.dataset_keys import are_categories
from medkd.core.errors import DataError, PlanError
from medkd.core.files import read_json
from medkd.core.protocol import ProtocolRow
from medkd.core.run import PLANS_FILE
from medkd.core.serial import load, save

STRIDE = 32
"""The sides of a detector's input are multiples of this."""
DRAWN = ("short_sides", "short_range")
"""What the short side of a training image is drawn from."""
SIDES = ("long_side", "short_side", *DRAWN)
"""How large images are that do not fill the square."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
        sampling: category → how often an image whose boxes are all of this category is drawn, relative to the others (1
            where not named); ``fracture+text`` names the images with boxes of both and of nothing else; empty draws all
            images alike.
        negatives: images without boxes per image with boxes in an epoch, at most; None takes all.
        reasons: field → why it has its value, for people.
        final_learning_rate: at the end of a linear decay; None leaves the schedule to the detector's family.
        momentum: of SGD; None leaves it to the detector's family.
        weight_decay: L2 penalty; None leaves it to the detector's family.
        milestones: epochs after which the learning rate is divided by ten, in place of the decay
            (torchvision's family).
        warmup: steps over which the learning rate rises; None leaves it to the detector's family.
        clip: largest gradient norm, 0 for none; None leaves it to the detector's family.
        long_side: longest long side in pixels of an image on the square; None lets it fill the square.
        short_side: longest short side, given with ``long_side``.
        short_sides: one of these is drawn for every training image in place of ``short_side``.
        short_range: a whole number from the first to the second of these is drawn instead.
        rows: what the protocol sets per method and detector.
        protocol: the published settings that it follows, ``sfd_kd:fracatlas_yolo``; empty for medkd's own.
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
    final_learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    milestones: tuple[int, ...] = ()
    warmup: int | None = None
    clip: float | None = None
    long_side: int | None = None
    short_side: int | None = None
    short_sides: tuple[int, ...] = ()
    short_range: tuple[int, ...] = ()
    rows: tuple[ProtocolRow, ...] = ()
    protocol: str = ""
    task: Literal["detection"] = "detection"
    schema: int = 1

    @property
    def sides(self) -> tuple[int, int] | None:
        """See :class:`~medkd.detection.base.DetectorSpec`."""
        return None if self.long_side is None or self.short_side is None else (self.long_side, self.short_side)

    def filling(self, image_size: int) -> DetectionPlan:
        """The plan for squares of another size, which images fill."""
        reasons = {name: why for name, why in self.reasons.items() if name not in SIDES}
        filled = replace(self, image_size=image_size, long_side=None, short_side=None, reasons=reasons)
        return replace(filled, short_sides=(), short_range=())

    @classmethod
    def load(cls, path: Path) -> DetectionPlan:
        """Read a ``plans.json``; an unknown key is an error that names the nearest known one.

        Raises:
            DataError: the file is missing, of another form, or was made for segmentation.
            PlanError: an edited value makes no sense.
        """
        data = read_json(path)
        if isinstance(data, dict) and data.get("task") != "detection":
            raise DataError(f"{path} is no plan for detection; run medkd_plan_and_preprocess --overwrite-plan.")
        plan = load(cls, path)
        plan.check(str(path))
        return plan

    def check(self, where: str = PLANS_FILE) -> None:
        """See that every value can be used.

        Raises:
            PlanError: the first one that cannot.
        """
        changes = self.augmentation
        shares = ("mosaic", "fliplr", "flipud", "scale", "translate", "brightness")
        allowed = {
            "categories of different names, none of them background or ignore": are_categories(self.categories),
            f"an image_size that is a multiple of {STRIDE} above 0": self.image_size > 0
            and self.image_size % STRIDE == 0,
            "a batch_size and epochs from 1 on": min(self.batch_size, self.epochs) >= 1,
            "a learning_rate and an anchor_scale above 0": self.learning_rate > 0 and self.anchor_scale > 0,
            f"{', '.join(shares)} of the augmentation from 0 to 1": all(
                0 <= getattr(changes, name) <= 1 for name in shares
            ),
            "milestones in rising order, and a warmup and clip from 0 on": self._has_a_schedule(),
            "0 < short_side <= long_side <= image_size, or neither side": self._has_sides(),
            "short_sides above 0, or a short_range of two numbers above 0 in rising order": self._draws_sides(),
            "close_mosaic and degrees of the augmentation from 0 on": min(changes.close_mosaic, changes.degrees) >= 0,
        }
        for what, holds in allowed.items():
            if not holds:
                raise PlanError(f"{where}: expected {what}; correct the plan, or make it anew with --overwrite-plan.")

    def _has_a_schedule(self) -> bool:
        limits = [value for value in (self.warmup, self.clip) if value is not None]
        return list(self.milestones) == sorted(set(self.milestones)) and min(limits, default=0) >= 0

    def _has_sides(self) -> bool:
        if self.sides is None:
            return self.long_side is None and self.short_side is None
        return 0 < self.sides[1] <= self.sides[0] <= self.image_size

    def _draws_sides(self) -> bool:
        low_to_high = list(self.short_range) == sorted(self.short_range)
        known = len(self.short_range) in (0, 2) and low_to_high and not (self.short_sides and self.short_range)
        return known and min((*self.short_sides, *self.short_range), default=1) > 0

    def save(self, path: Path) -> None:
        """Write it atomically."""
        save(path, self)
