"""Predicting every training case once, so that a distillation step needs no teacher."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import RunError
from medkd.core.labels import LabelSpec
from medkd.core.precision import Precision
from medkd.core.protocol import InferenceRule
from medkd.core.serial import save, to_data
from medkd.distillation.averaging import logits_of, mean_of, probabilities_of
from medkd.inference.predictor import Predictor, Settings
from medkd.models.guard import Teacher
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.store import CaseStore, sample_locations
from medkd.runtime.tiles import tile_starts
from medkd.training.merged import MergedPredictor
from medkd.training.targets import DESCRIPTION, TargetStore, channels, source_of

_GIB = 2**30
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TargetDescription:
    """``targets.json``: what the targets of a folder are, and what they were predicted with.

    Attributes:
        teacher: what the students' ``run.json`` says of the teacher.
        folds: its folds that were averaged.
        weights: hash of each fold's weights.
        patch_size: of the sliding window, the teacher's own.
        mirror_axes: axes whose mirrorings were averaged; none without test-time augmentation.
        step_size: distance of neighbouring tiles as a share of the patch.
        blending: of the tiles.
        precision: of the forwards.
        average: what was averaged over tiles, mirrorings and folds: ``logits`` of a single pass, else
            ``probabilities``.
        outputs: output channels.
        regions: sigmoid regions instead of softmax classes.
    """

    teacher: str
    folds: tuple[str, ...]
    weights: tuple[str, ...]
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    step_size: float
    blending: str
    precision: Precision
    average: str
    outputs: int
    regions: bool
    schema: int = 1

    @property
    def key(self) -> str:
        """Name of the folder: a hash of all that the values depend on; the teacher's name and place do not count."""
        parts = to_data(replace(self, teacher="", folds=()))
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()

    @property
    def passes(self) -> int:
        """Forwards per tile."""
        return 2 ** len(self.mirror_axes) * len(self.weights)


class MeanProbabilities(nn.Module):
    """The mean over networks of their probabilities: softmax over classes, or sigmoid per region.

    Args:
        networks: in evaluation mode, of equal outputs.
        regions: sigmoid regions instead of softmax classes.
    """

    def __init__(self, networks: Sequence[nn.Module], regions: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *patch)`` to ``(B, K, *patch)``, float32."""
        return mean_of(probabilities_of(network(x), self.regions) for network in self.networks)


@dataclass(frozen=True, kw_only=True)
class TargetRequest:
    """Which targets are wanted, and how they are to be made.

    Attributes:
        store: the preprocessed cases.
        cases: those whose logits are stored.
        device: where to predict, in half precision on CUDA.
        tta: average over the mirrorings that the teacher was trained with.
        limit: most GiB that the targets of these cases may take on disk.
        places: cases of which it is stored where the teacher sees structures, so that patches can be centred on them
            without labels; they need not be among ``cases``.
        mirrored: axes that the student may mirror; None is all.
    """

    store: CaseStore
    cases: Sequence[str]
    device: torch.device
    tta: bool
    limit: float
    places: Sequence[str] = ()
    mirrored: Sequence[int] | None = None

    @property
    def precision(self) -> Precision:
        """Arithmetic of the forwards."""
        return "fp16" if self.device.type == "cuda" else "fp32"


def cache_targets(
    teachers: Sequence[Teacher[TrainedModel]], networks: Sequence[nn.Module], request: TargetRequest
) -> Path:
    """Predict the cases that have no current target of these teachers yet; interrupted work is continued, finished work
    is reused.

    Args:
        teachers: folds of one teacher, each allowed to teach this student.
        networks: theirs.
        request: what is wanted.

    Returns:
        The folder of a :class:`~medkd.training.targets.TargetStore`, named by what the values depend on.

    Raises:
        RunError: the targets would take more than the limit, or than the disk has.
    """
    described = describe_targets(teachers, networks, request)
    work = TargetWork.of(described, request)
    todo = begin(work, request.limit)
    if todo:
        predictor = predictor_of(described, teachers[0].model.describe(), networks, request.device)
        predict_targets(predictor, described, request.store, work, todo)
    return work.target.folder


def cache_merged(merged: MergedPredictor, request: TargetRequest) -> Path:
    """:func:`cache_targets` for several teachers, who know themselves where and how they predict: on the raw scans.

    Raises:
        DataError: a raw scan is not the one any more that was preprocessed; nothing is predicted then.
        RunError: the targets would take more than the limit, or than the disk has.
    """
    work, store = TargetWork.of(merged.described, request), request.store
    for case in filter(work.lacks, work.shapes):
        merged.check(case, store.record(case))
    todo = begin(work, request.limit)
    for case in tqdm(_own_order(todo), unit="case", desc="targets", disable=None):
        if work.lacks(case):
            work.make(case, lambda case: merged.logits(case, store.record(case)), merged.labels)
    return work.target.folder


def begin(work: TargetWork, limit: float) -> list[str]:
    """The cases of which anything is missing; that there is room for them is known, and what they are is written."""
    folder = work.target.folder
    stored = {case: shape for case, shape in work.shapes.items() if case in work.logits}
    _check_size(work.described, stored, [case for case in stored if work.lacks_logits(case)], folder, limit)
    todo = [case for case in work.shapes if work.lacks(case)]
    if todo:
        save(folder / DESCRIPTION, work.described)
    else:
        _log.info("targets of %d cases are cached in %s", len(work.shapes), folder)
    return todo


class Described(Protocol):
    """What a ``targets.json`` says, whoever predicts."""

    @property
    def key(self) -> str:
        """Name of the folder: a hash of all that the values depend on."""

    @property
    def outputs(self) -> int:
        """Output channels."""

    @property
    def regions(self) -> bool:
        """Sigmoid regions instead of softmax classes."""


@dataclass(frozen=True, kw_only=True)
class TargetWork:
    """What is to be stored, and where.

    Attributes:
        sources: case → hash of the preprocessed case.
        shapes: case → its voxels per axis.
        logits: cases whose logits are stored.
        places: cases of which it is stored where the teacher sees structures.
    """

    described: Described
    target: TargetStore
    sources: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    logits: frozenset[str]
    places: frozenset[str]

    @classmethod
    def of(cls, described: Described, request: TargetRequest) -> TargetWork:
        """What is wanted, of targets that are described."""
        store, cases, places = request.store, request.cases, request.places
        records = {case: store.record(case) for case in dict.fromkeys([*cases, *places])}
        return cls(
            described=described,
            target=TargetStore(store.folder.parent / f"{store.folder.name}_targets" / described.key),
            sources={case: source_of(record) for case, record in records.items()},
            shapes={case: record.properties.shape for case, record in records.items()},
            logits=frozenset(cases),
            places=frozenset(places),
        )

    def lacks(self, case: str) -> bool:
        """Whether anything of the case is missing."""
        return self.lacks_logits(case) or self.lacks_places(case)

    def lacks_logits(self, case: str) -> bool:
        """Whether its logits are wanted and missing."""
        return case in self.logits and not self.target.has(case, self.sources[case])

    def lacks_places(self, case: str) -> bool:
        """Whether its places are wanted and missing."""
        return case in self.places and not self.target.has_places(case, self.sources[case])

    def make(self, case: str, predict: Callable[[str], Tensor], labels: LabelSpec) -> None:
        """Make what is missing, from logits on the student's grid; places follow from logits that are stored."""
        source = self.sources[case]
        if self.target.has(case, source):
            stored = self.target.open(case)
            logits = stored.coding.decode(torch.from_numpy(np.array(stored.codes)))
        else:
            logits = predict(case)
        if self.lacks_logits(case):
            self.target.write(case, source, logits, self.described.regions)
        if self.lacks_places(case):
            seen = sample_locations(labels.decode(logits).cpu().numpy().astype(np.int16), labels)
            self.target.write_places(case, source, seen)


def mirrored_by_both(teacher: Sequence[int], plan: Sequence[int] | None) -> tuple[int, ...]:
    """Axes of a teacher's mirroring that the student's plan lets mirror; None is all.

    >>> mirrored_by_both((0, 1, 2), (0, 1)), mirrored_by_both((0, 2), None)
    ((0, 1), (0, 2))
    """
    return tuple(axis for axis in teacher if plan is None or axis in plan)


def describe_targets(
    teachers: Sequence[Teacher[TrainedModel]], networks: Sequence[nn.Module], request: TargetRequest
) -> TargetDescription:
    """What the targets of these teachers are; the arguments are those of :func:`cache_targets`."""
    source, model = teachers[0].model, teachers[0].model.describe()
    rule = model.plan.protocol.inference if model.plan.protocol else InferenceRule()
    axes = mirrored_by_both(model.mirror_axes, request.mirrored) if request.tta else ()
    average = "probabilities" if axes or len(networks) > 1 else "logits"
    labels = model.labels
    return TargetDescription(
        teacher=source.recorded,
        folds=tuple(teacher.fold for teacher in teachers),
        weights=tuple(weights_digest(network.state_dict()) for network in networks),
        patch_size=model.patch_size,
        mirror_axes=axes,
        step_size=rule.step_size,
        blending=rule.blending,
        precision=request.precision,
        average=average,
        outputs=labels.num_outputs,
        regions=labels.regions,
    )


def _check_size(
    described: Described,
    shapes: Mapping[str, tuple[int, ...]],
    missing: Sequence[str],
    folder: Path,
    limit: float,
) -> None:
    each = channels(described.outputs, described.regions)
    total, wanted = (sum(each * prod(shapes[case]) for case in some) for some in (shapes, missing))
    if total > limit * _GIB:
        raise RunError(
            f"The cached targets of {len(shapes)} cases would take {total / _GIB:.3g} GiB in {folder}, the limit is "
            f"{limit:g} GiB; "
            "raise it with --targets-limit, or use --targets live."
        )
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise RunError(
            f"The cached targets of {len(missing)} cases take {wanted / _GIB:.3g} GiB, but the disk of {place} has "
            f"{free / _GIB:.3g} GiB "
            "free; make room, or use --targets live."
        )


def predictor_of(
    described: TargetDescription, model: TrainedModel, networks: Sequence[nn.Module], device: torch.device
) -> Predictor:
    """What predicts the targets that are described."""
    averaged = described.average == "probabilities"
    return Predictor(
        [MeanProbabilities(networks, described.regions).eval()] if averaged else networks,
        model.plan,
        model.configuration,
        model.labels,
        described.patch_size,
        mirror_axes=described.mirror_axes,
        device=device,
        settings=Settings(described.step_size, True, described.precision, blending=described.blending),
    )


def predict_targets(
    predictor: Predictor, described: TargetDescription, store: CaseStore, work: TargetWork, todo: Sequence[str]
) -> None:
    """Predict some cases and store them."""
    tiles = {case: _tiles(work.shapes[case], described) for case in todo}
    each = channels(described.outputs, described.regions)
    size = sum(each * prod(work.shapes[case]) for case in todo if case in work.logits)
    seconds = sum(tiles.values()) * _seconds_per_tile(predictor, len(predictor.configuration.normalization))
    what = f"caching targets of {len(todo)} cases, {described.passes} passes per tile"
    _log.info("%s: %.1f MiB, about %s, in %s", what, size / 2**20, _duration(seconds), work.target.folder)

    def logits(case: str) -> Tensor:
        found = predictor.predict_preprocessed(store.open(case).image)
        return logits_of(found[None], described.regions)[0] if described.average == "probabilities" else found

    with tqdm(total=sum(tiles.values()), unit="tile", desc="targets", disable=None) as bar:
        for case in _own_order(todo):
            if work.lacks(case):  # a run beside this one may have made it in the meantime
                work.make(case, logits, predictor.labels)
            bar.update(tiles[case])


def _own_order(cases: Sequence[str]) -> list[str]:
    """Another order in every process, so that runs that start together share the work instead of doing it twice."""
    return random.Random(os.getpid()).sample(cases, len(cases))


def _tiles(shape: Sequence[int], described: TargetDescription) -> int:
    patch = described.patch_size
    per_slice = prod(
        len(tile_starts(max(s, p), p, described.step_size)) for s, p in zip(shape[-len(patch) :], patch, strict=True)
    )
    return per_slice * (shape[0] if len(patch) < len(shape) else 1)


def _seconds_per_tile(predictor: Predictor, in_channels: int) -> float:
    """Seconds of one tile with all its passes, after one that warms up."""
    shape = (in_channels, *(1,) * (3 - len(predictor.patch_size)), *predictor.patch_size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))  # the global generator is left alone
    for _ in range(2):
        begun = time.perf_counter()
        predictor.predict_preprocessed(image).cpu()
    return time.perf_counter() - begun


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
