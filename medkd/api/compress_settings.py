"""Which options of a training ``medkd_compress`` hands over: all but those that it decides itself."""

from __future__ import annotations

from dataclasses import fields

from medkd.training.options import TrainOptions

DECIDED = (
    *("root", "width_divisor", "init", "weights", "configuration", "teachers"),
    *("resume", "overwrite", "validate"),
)
"""Follow from the model and the sizes, or from what is there already."""

TAUGHT = ("method_parameters", "unlabelled_share", "labels", "confidence", "targets", "targets_tta", "targets_limit")
"""Are a teacher's matter: the student alone has none of them."""

HANDED_OVER = tuple(entry.name for entry in fields(TrainOptions) if entry.name not in DECIDED)
"""Fields of :class:`~medkd.training.options.TrainOptions` that every training gets as they were given."""
