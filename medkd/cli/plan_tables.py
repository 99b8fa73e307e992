"""Plans as tables, for ``medkd_plan_and_preprocess``, and plans and scores in a few words, for ``medkd_list``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medkd.core.plan import Plan
    from medkd.detection.plan import DetectionPlan


def segmentation_plan(plan: Plan) -> str:
    """A table of the plan: one line per configuration."""
    follows = f", protocol {plan.protocol.name}" if plan.protocol else ""
    lines = [
        f"{plan.dataset}{follows}",
        f"  {'configuration':<14}{'spacing (mm)':<22}{'median case':<18}{'patch':<18}{'batch':<7}stages",
    ]
    for name, configuration in plan.configurations.items():
        shape = configuration.architecture("plain_unet")
        spacing = " × ".join(f"{value:.3g}" for value in configuration.spacing)
        median, patch = (" × ".join(map(str, sizes)) for sizes in (configuration.median_shape, shape.patch_size))
        lines.append(f"  {name:<14}{spacing:<22}{median:<18}{patch:<18}{shape.batch_size:<7}{len(shape.strides)}")
    return "\n".join(lines)


def detection_plan(plan: DetectionPlan) -> str:
    """A table of the plan: what it says, and why."""
    shown = {
        "image_size": f"{plan.image_size} px",
        **_sides(plan),
        "batch_size": str(plan.batch_size),
        "epochs": str(plan.epochs),
        "learning_rate": f"{plan.learning_rate:g}",
        "anchor_scale": f"{plan.anchor_scale:g} strides",
        "augmentation": f"mosaic {plan.augmentation.mosaic:g}, scale ±{plan.augmentation.scale:g}",
        "sampling": ", ".join(f"{key} × {weight:g}" for key, weight in plan.sampling.items()) or "all alike",
        "negatives": "all" if plan.negatives is None else f"{plan.negatives:g} per image with boxes",
    }
    follows = f", protocol {plan.protocol}" if plan.protocol else ""
    lines = [f"{plan.dataset}: {', '.join(plan.categories)}{follows}"]
    for name, value in shown.items():
        lines.append(f"  {name:<15}{value:<28}{plan.reasons.get(name, '')}".rstrip())
    return "\n".join(lines)


def _sides(plan: DetectionPlan) -> dict[str, str]:
    """How large images are where they do not fill the square."""
    shown = {}
    if plan.sides is not None:
        shown["long_side"] = f"{plan.sides[0]} px, short side {plan.sides[1]}"
    if plan.short_sides:
        shown["short_sides"] = " or ".join(map(str, plan.short_sides))
    if plan.short_range:
        shown["short_range"] = " to ".join(map(str, plan.short_range))
    return shown


def segmentation_line(plan: Mapping[str, Any]) -> str:
    """The configurations of a ``plans.json``."""
    return ", ".join(plan["configurations"])


def detection_line(plan: Mapping[str, Any]) -> str:
    """The size of the input of a ``plans.json``."""
    return f"detection, {plan['image_size']} px"


def segmentation_score(scores: Mapping[str, Any]) -> str:
    """The mean foreground Dice of a ``summary.json``."""
    return f"{scores['foreground_mean']['Dice']:.4f}"


def detection_score(scores: Mapping[str, Any]) -> str:
    """The AP of a ``summary.json``."""
    found = scores["mean"]["AP"]["mean"]
    return "no boxes to find" if found is None else f"AP {found:.4f}"
