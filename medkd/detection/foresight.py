"""What the training of a detector would refuse whatever its images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.labels import LabelSpec
from medkd.core.teachers import Untrained
from medkd.detection.base import Detector, DetectorSpec
from medkd.detection.joined import check_start_of, joined
from medkd.detection.models import DetectorFolder
from medkd.detection.options import DetectorOptions
from medkd.detection.untrained import layers_of
from medkd.models.base import open_model
from medkd.training.options import check_start, refuse_taught

_SIDE = 640  # of the input, on which nothing here depends
_CLASSES = ("object",)


def foresee(
    network: str,
    fold: str,
    options: DetectorOptions,
    teacher: str | Untrained | None = None,
    method: str = "none",
    labels: LabelSpec | None = None,
    channels: Sequence[str] | None = None,
) -> None:
    """Refuse what the layers of detectors, and the settings, rule out.

    Args:
        network: registry name of what is trained.
        fold: 0-4 or ``all``.
        options: of the training.
        teacher: a model's folder, or a detector that is trained first; None for a detector alone.
        method: with which it teaches.
        labels: of the data set, where they are known.
        channels: likewise.

    Raises:
        MedkdError: the first thing that cannot be.
    """
    spec = DetectorSpec(network, _CLASSES, options.image_size or _SIDE)
    if teacher is None:
        check_start(options.init, None)
        refuse_taught(options)
        layers_of(spec)
        return
    theirs: Detector
    if isinstance(teacher, Untrained):
        theirs = layers_of(DetectorSpec(teacher.network, _CLASSES, teacher.options.image_size or _SIDE))
    else:
        model = open_model(Path(teacher), "detection")
        if labels is not None and isinstance(model, DetectorFolder):
            model.check_categories(tuple(name for name, _ in labels.foreground))
        theirs = model.network(model.teaching_folds[0])
        spec = replace(
            spec, categories=theirs.spec.categories, anchor_scale=theirs.spec.anchor_scale, sides=theirs.spec.sides
        )
    student = layers_of(spec)
    check_start_of(student, theirs, options.init)
    joined(student, theirs, method, options.method_parameters, options.seed)
