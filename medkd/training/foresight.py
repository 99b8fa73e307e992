"""What the training of a segmentation network would refuse whatever its scans are: networks, methods and settings that
cannot be together, and a teacher from elsewhere that means something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.teachers import Untrained
from medkd.distillation import Distiller, build_method
from medkd.distillation.base import Context
from medkd.models.base import open_model
from medkd.models.segmentation import SegmentationFolder
from medkd.networks import NETWORKS, SegmentationNetwork, fit_patch
from medkd.networks.inheritance import check_inheritance
from medkd.networks.reference import CLASSES, build_weightless, reference_spec
from medkd.training.job import method_names
from medkd.training.options import INIT_FROM_TEACHER, STORED_TARGETS, TrainOptions, check_start, refuse_taught
from medkd.training.segmentation_task import averages_targets
from medkd.training.speed import check_compiled_taps


def foresee(
    network: str,
    fold: str,
    options: TrainOptions,
    teacher: str | Untrained | None = None,
    method: str = "none",
    labels: LabelSpec | None = None,
    channels: Sequence[str] | None = None,
) -> None:
    """Refuse what the layers of networks, the settings, and labels and channels as far as they are known rule out.

    Args:
        network: registry name of what is trained.
        fold: 0-4 or ``all``.
        options: of the training.
        teacher: a model's folder, or a network that is trained first; None for a network alone.
        method: with which it teaches.
        labels: of the data set, where they are known.
        channels: likewise.

    Raises:
        NotImplementedError: a configuration's name does not say whether it is 2D or 3D, or several models teach.
        MedkdError: the first thing that cannot be.
    """
    student = _layers(network, options)
    if teacher is None:
        check_start(options.init, None)
        refuse_taught(options)
        return
    averages_targets(options, fold, method)
    above = _teacher(teacher, options, method, labels, channels)
    if above.rank != student.rank:
        raise RunError(
            f"The teacher '{above.spec.name}' sees {above.rank}D images and the student '{student.spec.name}' "
            f"{student.rank}D ones; give both a configuration of as many axes."
        )
    if options.init == INIT_FROM_TEACHER:
        check_inheritance(student, above)
    axes = tuple(range(student.rank))
    context = Context(
        student_taps=student.taps,
        teacher_taps=above.taps,
        num_outputs=CLASSES if labels is None else labels.num_outputs,
        regions=labels is not None and labels.regions,
        spacing=(1.0,) * student.rank,
        patch_size=student.spec.patch_size,
        mirror_axes=axes if options.mirror_axes is None else options.mirror_axes,
    )
    built = build_method(method, context, options.method_parameters)
    check_compiled_taps(options.speed, method, built.needs().student)
    if options.targets in STORED_TARGETS:
        Distiller(None, built, cached=True, confidence=options.confidence)
    else:
        Distiller(above, built, confidence=options.confidence)


def _rank(options: TrainOptions) -> int:
    found = {"2d": 2, "3d": 3}.get(options.configuration[:2])
    if found is None:
        raise NotImplementedError
    return found


def _layers(name: str, options: TrainOptions) -> SegmentationNetwork:
    """A network without weights, at the size at which networks are compared where the settings name none."""
    rank, patch = _rank(options), options.patch_size
    if patch is not None and len(patch) != rank:
        raise RunError(f"--patch-size needs {rank} values for {options.configuration}, found {len(patch)}.")
    entry = NETWORKS[name]
    spec = replace(
        reference_spec(name, rank), width_divisor=options.width_divisor, deep_supervision=entry.deep_supervision
    )
    if patch is not None and not entry.planned:
        spec = replace(spec, patch_size=fit_patch(name, patch))
    return build_weightless(spec)


def _teacher(
    teacher: str | Untrained,
    options: TrainOptions,
    method: str,
    labels: LabelSpec | None,
    channels: Sequence[str] | None,
) -> SegmentationNetwork:
    """The layers of what teaches; one from elsewhere must mean what the data set means."""
    if isinstance(teacher, Untrained):
        return _layers(teacher.network, teacher.options)
    model = open_model(Path(teacher), "segmentation")
    if model.merges or options.teachers or not isinstance(model, SegmentationFolder):
        raise NotImplementedError
    starts_only = options.init == INIT_FROM_TEACHER and method_names(method) == ["none"]
    if labels is not None and not starts_only:
        model.check_labels(labels)
    if channels is not None:
        model.check_channels(channels)
    network: SegmentationNetwork = model.network(model.teaching_folds[0])
    return network
