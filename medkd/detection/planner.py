"""From a fingerprint to a plan: every value with its reason."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any

from medkd.core.errors import PlanError
from medkd.core.protocol import DetectionProtocol
from medkd.core.serial import nearest
from medkd.detection.fingerprint import DetectionFingerprint
from medkd.detection.plan import SIDES, STRIDE, DetectionAugmentation, DetectionPlan
from medkd.detection.sampling import JOIN

LARGEST = 640  # pixels; what the public detectors are trained with
SMALLEST = 320  # below it, the coarsest level of the pyramid has hardly any cells
_BOX_PIXELS = 12  # of the shorter side of a small box: one and a half cells of the finest level (stride 8)
_SCALED_PIXELS = 5  # that random scaling should leave of it
_BATCH = 16
_EPOCHS = (100, 300)
_IMAGES_SHOWN = 60_000  # over the whole training, where the number of epochs allows it
_COMMON = 0.25  # a set of categories that more of the images with boxes than this have is drawn less often
_LEAST_WEIGHT = 0.1
_STRIDE = 8  # of the finest level with anchors
SAID = (
    *("image_size", "batch_size", "epochs", "learning_rate", "final_learning_rate"),
    *("momentum", "weight_decay", "milestones", "warmup", "clip"),
    *SIDES,
)
"""What a protocol may say under the name that the plan has for it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """What the user has set; None leaves it to the planner."""

    image_size: int | None = None
    batch_size: int | None = None


def make_plan(
    dataset: str,
    categories: tuple[str, ...],
    fingerprint: DetectionFingerprint,
    wishes: Wishes | None = None,
    protocol: tuple[str, DetectionProtocol] | None = None,
) -> DetectionPlan:
    """The plan of a detection data set.

    Args:
        dataset: full name.
        categories: in order.
        fingerprint: of its training cases.
        wishes: win over protocol and planner.
        protocol: published settings with their name; they win over the planner.

    Raises:
        PlanError: there is no box to learn from, or a setting makes no sense.
    """
    if not fingerprint.positives:
        raise PlanError(
            f"{dataset} has no box in any of its {fingerprint.negatives} training images, so there is nothing to learn."
        )
    reasons: dict[str, str] = {}
    size, reasons["image_size"] = _image_size(fingerprint)
    batch, reasons["batch_size"] = _batch_size(fingerprint)
    sampling, reasons["sampling"] = _sampling(categories, fingerprint)
    negatives, reasons["negatives"] = _negatives(fingerprint)
    plan = DetectionPlan(
        dataset=dataset,
        categories=categories,
        image_size=size,
        batch_size=batch,
        sampling=sampling,
        negatives=negatives,
    )
    if protocol is not None:
        plan = _follow(plan, *protocol, reasons)
    plan = apply_wishes(replace(plan, reasons=reasons), wishes or Wishes())
    reasons = dict(plan.reasons)
    if protocol is None or protocol[1].epochs is None:
        epochs, reasons["epochs"] = _epochs(plan, fingerprint)
        plan = replace(plan, epochs=epochs)
    if protocol is None or not protocol[1].augmentation:
        augmentation, reasons["augmentation"] = _augmentation(plan.image_size, fingerprint)
        plan = replace(plan, augmentation=augmentation)
    scale, reasons["anchor_scale"] = _anchor_scale(plan.image_size, fingerprint)
    plan = replace(plan, anchor_scale=scale, reasons=reasons)
    plan.check()
    return plan


def apply_wishes(plan: DetectionPlan, wishes: Wishes) -> DetectionPlan:
    """The plan with the user's values in it.

    Raises:
        PlanError: a value cannot be used.
    """
    given = {
        name: value
        for name, value in (("image_size", wishes.image_size), ("batch_size", wishes.batch_size))
        if value is not None
    }
    changed = {name: value for name, value in given.items() if getattr(plan, name) != value}
    if not changed:
        return plan
    filled = plan.filling(changed["image_size"]) if "image_size" in changed else plan
    reasons = {**filled.reasons, **dict.fromkeys(changed, "given by the user")}
    result = replace(filled, **changed, reasons=reasons)  # type: ignore[arg-type]
    result.check("--image-size and --batch-size")
    return result


def _image_size(found: DetectionFingerprint) -> tuple[int, str]:
    """Large enough for the small boxes, and not larger than the images."""
    share = found.box_short_share.p5
    wanted = _round_up(_BOX_PIXELS / share) if share > 0 else LARGEST
    present = _round_up(found.long_side.p75)
    size = max(STRIDE, min(max(wanted, SMALLEST), present, LARGEST))
    pixels = share * size
    limit = {present: "the images are not larger", LARGEST: f"{LARGEST} is the largest that is planned"}
    why = f"a small box (5th percentile of the shorter sides) has {pixels:.1f} px there"
    if size < wanted:
        why += f"; {_BOX_PIXELS} px would take {wanted}, but {limit.get(size, limit[LARGEST])}"
    elif wanted < SMALLEST == size:
        why += f"; {wanted} would do for it, but {SMALLEST} is the smallest that is planned"
    return size, why


def _batch_size(found: DetectionFingerprint) -> tuple[int, str]:
    """At least eight steps per epoch."""
    images = found.positives + found.negatives
    batch = _BATCH
    while batch > 2 and batch * 8 > images:
        batch //= 2
    return batch, "the usual one" if batch == _BATCH else f"so that the {images} images make about eight steps or more"


def _sampling(categories: tuple[str, ...], found: DetectionFingerprint) -> tuple[dict[str, float], str]:
    """Sets of categories that dominate are drawn less often; their share then is about :data:`_COMMON` of what there
    was.
    """
    if len(categories) < 2 or len(found.category_sets) < 3:
        return {}, "all images alike: there are not enough different sets of categories to balance"
    shares = {key: count / found.positives for key, count in found.category_sets.items()}
    # a name with + in it would be read as two
    common = {key: share for key, share in shares.items() if share > _COMMON and _unambiguous(key, categories)}
    weights = {key: max(_LEAST_WEIGHT, round(_COMMON / share, 2)) for key, share in common.items()}
    listed = ", ".join(
        f"{share:.0%} of the images with boxes have {key} and nothing else" for key, share in common.items()
    )
    return (
        weights,
        listed or f"all images alike: no set of categories is on more than {_COMMON:.0%} of the images with boxes",
    )


def _unambiguous(key: str, categories: tuple[str, ...]) -> bool:
    return all(part in categories for part in key.split(JOIN))


def _negatives(found: DetectionFingerprint) -> tuple[float | None, str]:
    counts = f"{found.negatives} images without boxes, {found.positives} with"
    if found.negatives <= found.positives:
        return None, f"all: {counts}"
    return 1.0, f"as many as images with boxes in each epoch, other ones each time: {counts}"


def _epochs(plan: DetectionPlan, found: DetectionFingerprint) -> tuple[int, str]:
    shown = found.positives + (
        found.negatives if plan.negatives is None else min(found.negatives, plan.negatives * found.positives)
    )
    epochs = min(max(ceil(_IMAGES_SHOWN / shown), _EPOCHS[0]), _EPOCHS[1])
    return (
        epochs,
        f"about {int(shown)} images per epoch; {_IMAGES_SHOWN} in all within {_EPOCHS[0]} to {_EPOCHS[1]} epochs",
    )


def _augmentation(size: int, found: DetectionFingerprint) -> tuple[DetectionAugmentation, str]:
    pixels = found.box_short_share.p5 * size
    usual = DetectionAugmentation()
    if pixels * (1 - usual.scale) >= _SCALED_PIXELS:
        return usual, "the usual one; no upside-down pictures and no rotation"
    return replace(
        usual, scale=0.25
    ), f"less scaling than usual: small boxes have {pixels:.1f} px; no upside-down pictures and no rotation"


def _anchor_scale(size: int, found: DetectionFingerprint) -> tuple[float, str]:
    """The smallest anchor is as large as the small boxes."""
    pixels = found.box_share.p10 * size
    scale = min(max(round(2 * pixels / _STRIDE) / 2, 1.0), 8.0)
    return scale, f"a tenth of the boxes is smaller than {pixels:.0f} px (square root of the area)"


def follow_training(plan: DetectionPlan, name: str, protocol: DetectionProtocol) -> DetectionPlan:
    """The plan with what a publication says of training; the size of the images stays as they are stored."""
    reasons = dict(plan.reasons)
    kept = {key: getattr(plan, key) for key in ("image_size", "long_side", "short_side")}
    followed = _follow(plan, name, replace(protocol, **kept), reasons)
    return replace(followed, reasons=reasons)


def _follow(plan: DetectionPlan, name: str, protocol: DetectionProtocol, reasons: dict[str, str]) -> DetectionPlan:
    """The plan with what a publication says; the rest stays."""
    protocol = _drawn_as_planned(protocol, name, plan)
    said: dict[str, Any] = {}
    for key in SAID:
        value = getattr(protocol, key)
        if value is not None and value != ():
            said[key] = value
    reasons.update(dict.fromkeys(said, f"protocol {name}"))
    if protocol.short_sides or protocol.short_range:  # which replace each other
        said |= {"short_sides": protocol.short_sides, "short_range": protocol.short_range}
    if protocol.augmentation:
        reasons["augmentation"] = f"protocol {name}"
        said["augmentation"] = _augmentation_of(protocol.augmentation, name)
    sampling = {key: weight for key, weight in protocol.sampling.items() if _unambiguous(key, plan.categories)}
    if sampling:
        said["sampling"], reasons["sampling"] = sampling, f"protocol {name}"
    return replace(plan, **said, rows=protocol.rows, protocol=name)


def _drawn_as_planned(protocol: DetectionProtocol, name: str, plan: DetectionPlan) -> DetectionProtocol:
    """The protocol, without short sides that are drawn where images fill the square."""
    if plan.sides is not None or protocol.long_side is not None:
        return protocol
    if protocol.short_sides or protocol.short_range:
        drawn = " to ".join(map(str, protocol.short_range)) or " or ".join(map(str, protocol.short_sides))
        _log.warning(
            "protocol %s draws the short sides of training images (%s), but here they fill the square: left out",
            name,
            drawn,
        )
    return replace(protocol, short_sides=(), short_range=())


def _augmentation_of(said: object, name: str) -> DetectionAugmentation:
    known = {f.name for f in fields(DetectionAugmentation)}
    values = dict(said)  # type: ignore[call-overload]
    unknown = sorted(set(values) - known)
    if unknown:
        raise PlanError(
            f"Protocol {name}: unknown change '{unknown[0]}' in its augmentation.{nearest(unknown[0], known)}"
        )
    return DetectionAugmentation(**values)


def _round_up(pixels: float) -> int:
    return ceil(pixels / STRIDE) * STRIDE
