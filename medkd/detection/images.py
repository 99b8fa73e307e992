"""What a fold shows to a detector: the images of an epoch, and those without annotation between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkd.detection.methods import DETECTION_METHODS
from medkd.detection.plan import DetectionPlan
from medkd.detection.sampling import UnlabelledSteps, draw_epoch
from medkd.distillation import METHODS
from medkd.training.cases_without_labels import NO_LABELS, share_of, unlabelled_of
from medkd.training.job import method_names

if TYPE_CHECKING:
    from medkd.detection.task import DetectionFold, DetectorJob


def follows_teacher(method: str) -> bool:
    """Whether a method learns from a teacher in medkd's own loop, which knows what to do without annotations.

    ultralytics' own distillation joins the detector's loss, and so needs them.
    """
    kinds = [DETECTION_METHODS[name] if name in DETECTION_METHODS else METHODS[name] for name in method_names(method)]
    return any(kind.needs_teacher and not getattr(kind, "builtin", False) for kind in kinds)


def steps_per_epoch(job: DetectorJob) -> int:
    """The budget's, or one pass over the drawn images, with the steps between that show images without annotation."""
    budget = job.run.budget
    if budget.iterations_per_epoch:
        return budget.iterations_per_epoch
    drawn = [] if job.run.labels == NO_LABELS else drawn_images(job)
    labelled, plain = (-(-len(cases) // budget.batch_size) for cases in (drawn, unlabelled_of(job)))
    return UnlabelledSteps(share_of(job)).steps_of(labelled, plain)


def drawn_images(data: DetectionFold) -> list[str]:
    """The images that the plan draws for the first epoch.

    Raises:
        PlanError: there are none.
    """
    annotations = {case: data.store.names(case) for case in data.store.shown(data.split.train)}
    return draw_epoch(tuple(annotations), annotations, data.plan, data.options.seed, 0)


def size_text(plan: DetectionPlan, size: int) -> str:
    """How large images are on squares of a size, for people.

    >>> plan = DetectionPlan(dataset="D", categories=("a",), image_size=64, batch_size=2, long_side=60, short_side=40)
    >>> size_text(plan, 64)
    'images up to 60 × 40 on squares of 64'
    """
    if plan.sides is None:
        text = f"images of {size} × {size}"
    else:
        text = f"images up to {plan.sides[0]} × {plan.sides[1]} on squares of {size}"
    if plan.short_sides:
        text += f", short sides of {' or '.join(map(str, plan.short_sides))} in training"
    if plan.short_range:
        text += f", short sides of {plan.short_range[0]} to {plan.short_range[1]} in training"
    return text


def images_line(job: DetectorJob) -> str:
    """How many images there are of each kind, for people."""
    annotated, plain = () if job.run.labels == NO_LABELS else job.split.train, len(unlabelled_of(job))
    crowds = len(annotated) - len(job.store.shown(annotated))
    line = f"images     {len(annotated) - crowds} for training, {len(job.split.val)} for validation"
    line += f", {crowds} with crowds alone left out" if crowds else ""
    return f"{line}, {plain} without annotation in {share_of(job):.0%} of the steps" if plain else line
