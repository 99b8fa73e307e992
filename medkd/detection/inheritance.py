"""Starting a small detector from a large one of its kind: channels are chosen, kernels fitted layer by layer, in closed
form.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import scipy.linalg
import torch
from torch import Tensor
from tqdm import tqdm

from medkd.detection.base import Detector
from medkd.detection.inheritance_fit import Batches, Choice, fit_layer, hooked, watch
from medkd.detection.layers import Chart, Layer, Pair, chart_pair
from medkd.networks.ridge import Fit

IMAGES = 32  # on which the kernels are fitted
_BATCH = 8  # images that are in memory at a time


@torch.no_grad()
def inherit(student: Detector, teacher: Detector, images: Tensor, seed: int = 0) -> list[Fit]:
    """Give a small detector weights with which it does, as well as it can, what a large one of its kind does.

    As for segmentation (:func:`medkd.networks.inheritance.inherit`): in every layer of the teacher those channels are
    kept that span the others best, weighted by how much the next layers use them (QR with column pivoting), and kernels
    become the ridge regression of the kept channels onto what the student itself computes up to there. Where the
    student has fewer blocks, one of its stands for the last of as many of the teacher's. The convolution that ends a
    residual block of a ResNet is fitted to the teacher's sum less the student's own shortcut. The statistics of batch
    normalisation are estimated anew from the student's own outputs. Parts without convolutions have equal shapes and
    are taken over. A student of the teacher's shape becomes the teacher.

    Args:
        student: is changed in place.
        teacher: is not changed.
        images: ``(N, 3, S, S)`` in [0, 1], on the detectors' device.
        seed: of the places that are looked at.

    Returns:
        One entry per convolution of the student.

    Raises:
        RunError: see :func:`medkd.detection.layers.chart_pair`.
    """
    pair = chart_pair(student, teacher)
    was_training = student.training
    student.eval()
    teacher.eval()
    batches = Batches(images.split(_BATCH), seed)
    choice = Choice(pair, student, teacher, _choose(pair, student, teacher, batches))
    seen = watch(choice, batches)
    fits = []
    for layer in tqdm(pair.student.layers.values(), unit="layer", desc="weights from the teacher", disable=None):
        fits.append(fit_layer(choice, layer, batches, seen.pop(layer.conv)))
    _take_over_the_rest(student, teacher, pair.student)
    student.train(was_training)
    return fits


def _choose(pair: Pair, student: Detector, teacher: Detector, batches: Batches) -> dict[str, Tensor]:
    """Group of the teacher → the channels that its counterpart in the student stands for, in rising order."""
    theirs = pair.teacher.widths(teacher)
    ours: dict[str, int] = {}
    for layer in pair.student.layers.values():
        conv: Any = student.get_submodule(layer.conv)
        for feature in layer.gives:
            ours[pair.teacher.group(pair.twin(feature))] = conv.out_channels // len(layer.gives)
    narrowed = {group for group, width in ours.items() if width < theirs[group]}
    scatter = _scatter(pair.teacher, teacher, batches, narrowed, theirs)
    kept = {}
    for group, width in ours.items():
        kept[group] = torch.arange(width)
        if group in narrowed:
            values, vectors = torch.linalg.eigh(scatter[group])
            root = values.clamp(min=0).sqrt()[:, None] * vectors.T
            pivots = scipy.linalg.qr(root.numpy(), mode="r", pivoting=True)[1]
            kept[group] = torch.as_tensor(pivots[:width].copy()).long().sort().values
    return kept


def _scatter(
    chart: Chart, teacher: Detector, batches: Batches, groups: set[str], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Group → the scatter ``(C, C)`` of its channels where the next layers take them, each weighted by the square of
    its kernels, summed over these layers.
    """
    found = {group: torch.zeros(widths[group], widths[group], dtype=torch.float64) for group in groups}

    def add(layer: Layer, given: Tensor) -> None:
        conv: Any = teacher.get_submodule(layer.conv)
        use = conv.weight.double().square().sum((0, 2, 3)).sqrt()
        rows = torch.cat(batches.sample(given)).double()
        rows = (rows - rows.mean(0)) * use
        begin = 0
        for feature in layer.takes:
            group = chart.group(feature)
            end = begin + widths[group]
            if group in groups:
                part = rows[:, begin:end]
                found[group] += (part.T @ part).cpu()
            begin = end

    before = {}
    for layer in chart.layers.values():
        if any(chart.group(feature) in groups for feature in layer.takes):
            before[layer.conv] = partial(add, layer)
    with hooked(teacher, before, {}):
        for images in batches.each():
            chart.run(images)
    return found


def _take_over_the_rest(student: Detector, teacher: Detector, chart: Chart) -> None:
    """Everything that is not part of a convolution and its norm: factors, and the fully connected layers behind
    proposals.
    """
    fitted = set()
    for layer in chart.layers.values():
        fitted |= {layer.conv, layer.norm}
    own, given = student.state_dict(), teacher.state_dict()
    for name, value in own.items():
        if name.rpartition(".")[0] not in fitted:
            value.copy_(given[name])
