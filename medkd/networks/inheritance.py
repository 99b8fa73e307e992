"""Starting a narrow planned U-Net from a wide one of its plan: channels are chosen, kernels fitted layer by layer, in
closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from medkd.networks.inheritance_hooks import hooked, run_all_layers
from medkd.networks.inheritance_layers import Layer, check_inheritance, layers
from medkd.networks.inheritance_twins import counterparts
from medkd.networks.planned import PlannedUNet
from medkd.networks.ridge import Fit, Regression, at, neighbourhoods, unravel

IMAGES = 16  # patches that the kernels are fitted on
_PLACES = 3000  # voxels per patch and layer


@dataclass(frozen=True)
class _Seen:
    """What a layer of the teacher gave for one image at some places.

    Attributes:
        places: ``(N, n)`` voxels of the layer's output.
        target: ``(N, C)`` outputs of the convolution.
        weight: of the image: the mean over channels of one over their standard deviation where a norm follows, else 1.
    """

    places: Tensor
    target: Tensor
    weight: float


@torch.no_grad()
def inherit(
    student: nn.Module, teacher: nn.Module, images: Sequence[Tensor], seed: int = 0, *, same_labels: bool = True
) -> list[Fit]:
    """Give a narrow plain or residual-encoder U-Net weights with which it does, as well as it can, what a wide one of
    its kind does.

    From the first layer to the last: of the teacher's channels those are kept that span the others best, weighted by
    how much the next layers use them (QR with column pivoting), and where residual blocks add outputs up, the same ones
    in all of them, chosen for the sums; the kernels become the ridge regression, on the given images, of the teacher's
    kept channels onto what the student itself computes up to there, so that later layers make good what earlier ones
    miss. Norms are the teacher's. A student of the teacher's width becomes the teacher. Nothing is trained, and the
    places are drawn from ``seed`` alone. Plans may differ, see
    :func:`medkd.networks.inheritance_twins.counterparts`: layers of the student that have no counterpart keep their
    weights.

    Citation: least-squares reconstruction after the choice of channels: Y. He, X. Zhang, J. Sun, Channel Pruning for
    Accelerating Very Deep Neural Networks, ICCV 2017, arXiv 1707.06168; a larger network's weights as the start of a
    smaller one: Z. Xu et al., Initializing Models with Larger Ones, ICLR 2024, arXiv 2311.18823.

    Args:
        student: is changed in place.
        teacher: is not changed.
        images: ``(1, C, *patch)`` each, on the networks' device.
        seed: of the places.
        same_labels: whether the outputs of both mean the same.

    Returns:
        One entry per layer that has a counterpart, in the order of the layers.

    Raises:
        RunError: see :func:`check_inheritance` and :func:`medkd.networks.inheritance_twins.counterparts`.
    """
    narrow, wide = check_inheritance(student, teacher)
    twins = counterparts(narrow, wide, same_labels=same_labels)
    fitted = {twin.conv for twin in twins.values()}
    seen, roots = _watch(wide, fitted, images, seed)
    kept = _choose(narrow, wide, twins, roots)
    pairs = [_Pair(layer, twins[layer.conv], twins) for layer in layers(narrow) if layer.conv in twins]
    fits = []
    for pair in tqdm(pairs, unit="layer", desc="weights from the teacher", disable=None):
        fits.append(_fit(narrow, wide, pair, kept, seen[pair.twin.conv], images))
    return fits


@dataclass(frozen=True)
class _Pair:
    """A layer of the student, the teacher's that it stands for, and all such pairs by the student's path."""

    own: Layer
    twin: Layer
    twins: Mapping[str, Layer]


def _watch(
    teacher: PlannedUNet, fitted: Collection[str], images: Sequence[Tensor], seed: int
) -> tuple[dict[str, list[_Seen]], dict[str, Tensor]]:
    """What the layers of the teacher that have a counterpart give for every image, and the spread of what the next
    layers get from them and all that are added to them.

    Images whose sides are no multiples of the teacher's stride are filled up with zeros; places lie in the image.

    Returns:
        Per layer the places that are needed, and per layer that has an output a root ``(C, C)`` of that output's
        scatter: the products of its columns are those of the features, centred, in all images.
    """
    watch = _Watch(_together(layers(teacher), fitted), seed)
    convs: dict[str, Callable[..., None]] = {}
    outputs: dict[str, Callable[..., None]] = {}
    for layer in watch.order:
        convs[layer.conv] = partial(watch.after_conv, layer)
        if layer.output and not layer.is_head:
            outputs[layer.output] = partial(watch.after_output, layer)
    with hooked(teacher, convs), hooked(teacher, outputs):
        for image in images:
            filled = _filled_up(image, teacher.strides[-1])
            sides = zip(image.shape[2:], filled.shape[2:], strict=True)
            watch.inside = [own / whole for own, whole in sides]
            run_all_layers(teacher, filled)
    without_ones = {name: root[1:, 1:] for name, root in watch.roots.items()}
    return watch.seen, without_ones


def _together(every: Sequence[Layer], wanted: Collection[str]) -> list[Layer]:
    """The layers that share channels with those that are wanted, these among them."""
    groups = {layer.group for layer in every if layer.conv in wanted}
    return [layer for layer in every if layer.group in groups]


class _Watch:
    """What passes through a teacher.

    Args:
        order: the layers that are looked at.
        seed: of the places.

    Attributes:
        inside: share of a filled-up image that is image, by axis.
    """

    def __init__(self, order: Sequence[Layer], seed: int) -> None:
        self.order = order
        self.inside: list[float] = []
        self.seen: dict[str, list[_Seen]] = {layer.conv: [] for layer in order}
        self.roots: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def after_conv(self, layer: Layer, output: Tensor) -> None:
        """Keep what a convolution gives."""
        size = [round(side * share) for side, share in zip(output.shape[2:], self.inside, strict=True)]
        order_of_places = torch.randperm(prod(size), generator=self._generator)
        places = unravel(order_of_places[:_PLACES].to(output.device), size)
        y = output[0].float()
        weight = 1.0
        if layer.norm:
            variances = y.flatten(1).var(1, correction=0)
            weight = float((variances + 1e-5).rsqrt().mean())
        self.seen[layer.conv].append(_Seen(places, at(y, places), weight))

    def after_output(self, layer: Layer, output: Tensor) -> None:
        """Add up how what the next layers get is spread."""
        places = self.seen[layer.conv][-1].places
        features = at(output[0].float(), places).double()
        self.roots[layer.conv] = _root(self.roots.get(layer.conv), features)


def _root(before: Tensor | None, features: Tensor) -> Tensor:
    """A root of the scatter of columns, the first of them ones, which take the mean away: of ``(N, C)`` further rows
    and those that a root stands for.
    """
    rows = torch.cat([features.new_ones(len(features), 1), features], 1)
    width = rows.shape[1]
    above = rows.new_zeros(width, width) if before is None else before
    return torch.linalg.qr(torch.cat([above, rows]), mode="r").R


def _filled_up(image: Tensor, stride: Sequence[int]) -> Tensor:
    """An image ``(1, C, *size)`` with zeros behind it, so that its sides are multiples of a network's stride, and at
    its lowest resolution there are two voxels, which instance norm needs.
    """
    sides = list(image.shape[2:])
    wanted = [-(-side // step) * step for side, step in zip(sides, stride, strict=True)]
    if wanted == list(stride):
        wanted[0] *= 2
    missing: list[int] = []
    for side, whole in zip(reversed(sides), reversed(wanted), strict=True):
        missing += [0, whole - side]
    return F.pad(image, missing)


def _choose(
    student: PlannedUNet, teacher: PlannedUNet, twins: Mapping[str, Layer], roots: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Which channels of the teacher's layers the student has, in rising order; the same ones throughout a group."""
    every = layers(teacher)
    used = _use(teacher, every)
    widths: dict[str, int] = {}
    heads = set()
    for path, twin in twins.items():
        widths[twin.group] = student.net.get_submodule(path).out_channels
        if twin.is_head:
            heads.add(twin.group)
    chosen = {}
    for group, width in widths.items():
        if group in heads:
            chosen[group] = torch.arange(width)
            continue
        spread = torch.cat([roots[layer.conv] for layer in every if layer.group == group and layer.output])
        weighted = (spread * used[group].sqrt()).cpu().numpy()
        pivots = scipy.linalg.qr(weighted, mode="r", pivoting=True)[1]
        best = torch.as_tensor(pivots[:width].copy())
        chosen[group] = best.long().sort().values
    return {layer.conv: chosen[layer.group] for layer in every if layer.group in chosen}


def _use(teacher: PlannedUNet, order: Sequence[Layer]) -> dict[str, Tensor]:
    """How much the next layers use each channel of a group: the sum of the squares of their kernels."""
    groups = {layer.conv: layer.group for layer in order}
    used: dict[str, Tensor] = {}
    for layer in order:
        if not layer.sources:
            continue
        weight = teacher.net.get_submodule(layer.conv).weight.double()
        by_input = weight.square().movedim(_input_axis(teacher, layer), 0).flatten(1).sum(1)
        widths = [teacher.net.get_submodule(source).out_channels for source in layer.sources]
        for source, share in zip(layer.sources, by_input.split(widths), strict=True):
            group = groups[source]
            used[group] = used[group] + share if group in used else share
    return used


class _ReachedError(Exception):
    """The layer whose input was wanted has been reached."""


def _fit(
    student: PlannedUNet,
    teacher: PlannedUNet,
    pair: _Pair,
    kept: Mapping[str, Tensor],
    seen: Sequence[_Seen],
    images: Sequence[Tensor],
) -> Fit:
    """Set kernel, bias and norm of one layer of the student."""
    layer = pair.own
    conv = student.net.get_submodule(layer.conv)
    outputs = kept[pair.twin.conv].to(conv.weight.device)
    kernel = _prior(student, teacher, pair, kept)
    turned = _input_axis(student, layer) == 0
    given = _inputs(student, layer.conv, images)
    problems = _problems(conv, layer, seen, given, kernel, outputs)
    fitted = torch.empty_like(kernel)
    bias = kernel.new_zeros(len(outputs))
    residual = variance = 0.0
    for place, problem in problems.items():
        found = problem.solve()
        index: tuple[Any, ...] = (..., *place)
        fitted[index] = found.weights.T.view(fitted[index].shape)
        bias = bias + found.bias / len(problems)
        residual += problem.count * float(found.residual.sum())
        variance += problem.count * float(found.variance.sum())
    conv.weight.copy_(fitted.transpose(0, 1) if turned else fitted)
    if conv.bias is not None:
        conv.bias.copy_(bias)
    if layer.norm:
        _copy_norm(student.net.get_submodule(layer.norm), teacher.net.get_submodule(str(pair.twin.norm)), outputs)
    return Fit(layer.conv, 1 - residual / max(variance, 1e-12))


def _copy_norm(ours: Any, theirs: Any, kept: Tensor) -> None:
    ours.weight.copy_(theirs.weight[kept])
    ours.bias.copy_(theirs.bias[kept])


def _problems(
    conv: Any, layer: Layer, seen: Sequence[_Seen], given: Iterator[Tensor], kernel: Tensor, outputs: Tensor
) -> dict[tuple[int, ...], Regression]:
    """The regressions of a layer, by place in the kernel, with all images in them."""
    transposed = isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d)
    pairs = _of_transposed if transposed else _of_kernel
    problems: dict[tuple[int, ...], Regression] = {}
    for one, features in zip(seen, given, strict=True):
        for place, x, y in pairs(conv, one, features):
            if place not in problems:
                index: tuple[Any, ...] = (..., *place)
                problems[place] = Regression(kernel[index].flatten(1).T)
            y = y[:, outputs]
            if layer.norm is not None:
                x, y = _centred(x, y, one.weight)
            problems[place].add(x, y)
    return problems


def _centred(x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """What an instance norm leaves of the image's mean and scale: nothing, so that they shall not steer the fit."""
    centred_x = x - x.mean(0)
    centred_y = y - y.mean(0)
    return centred_x * weight, centred_y * weight


# place in the kernel (() for all of it), inputs (N, P), targets (N, C)
_Pairs = Iterator[tuple[tuple[int, ...], Tensor, Tensor]]


def _of_kernel(conv: Any, seen: _Seen, given: Tensor) -> _Pairs:
    """The neighbourhoods that a convolution sees, ``P`` channels times kernel."""
    yield (), neighbourhoods(conv, seen.places, given), seen.target.double()


def _of_transposed(conv: Any, seen: _Seen, given: Tensor) -> _Pairs:
    """One problem per place in the kernel, which has the stride's size: each output voxel comes from one input
    voxel.
    """
    stride = torch.tensor(conv.stride, device=given.device)
    values = at(given, seen.places // stride).double()
    for place in product(*map(range, conv.stride)):
        shift = torch.tensor(place, device=given.device)
        chosen = (seen.places % stride == shift).all(1)
        yield place, values[chosen], seen.target[chosen].double()


def _inputs(student: PlannedUNet, path: str, images: Sequence[Tensor]) -> Iterator[Tensor]:
    """What the student's layer gets for each image, ``(C, *size)``."""
    got: list[Tensor] = []

    def stop(given: Tensor) -> None:
        got.append(given[0].float())
        raise _ReachedError

    for image in images:
        with hooked(student, {path: stop}, before=True), suppress(_ReachedError):
            run_all_layers(student, image)
        yield got.pop()


def _input_axis(network: PlannedUNet, layer: Layer) -> int:
    """Of the kernel: torch stores those of transposed convolutions the other way round."""
    conv = network.net.get_submodule(layer.conv)
    return 0 if isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d) else 1


def _prior(student: PlannedUNet, teacher: PlannedUNet, pair: _Pair, kept: Mapping[str, Tensor]) -> Tensor:
    """The teacher's kernel between the channels that the student has, outputs first; zero where its inputs, or all of
    it, have no counterpart.
    """
    conv = student.net.get_submodule(pair.own.conv)
    theirs = teacher.net.get_submodule(pair.twin.conv)
    own, kernel = conv.weight.double(), theirs.weight.double()
    if _input_axis(student, pair.own) == 0:
        own, kernel = own.transpose(0, 1), kernel.transpose(0, 1)
    found = torch.zeros_like(own)
    if conv.kernel_size != theirs.kernel_size:
        return found
    kernel = kernel[kept[pair.twin.conv].to(kernel.device)]
    if not pair.own.sources:
        return kernel.clone()
    groups = {layer.conv: layer.group for layer in layers(teacher)}
    begin = their_begin = 0
    for source, their_source in zip(pair.own.sources, pair.twin.sources, strict=True):
        width = student.net.get_submodule(source).out_channels
        twin = pair.twins.get(source)
        if twin is not None and twin.group == groups[their_source]:
            inputs = kept[their_source].to(kernel.device) + their_begin
            found[:, begin : begin + width] = kernel[:, inputs]
        begin += width
        their_begin += teacher.net.get_submodule(their_source).out_channels
    return found
