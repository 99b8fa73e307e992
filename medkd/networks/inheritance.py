"""Starting a narrow planned U-Net from a wide one of its plan: channels are chosen, kernels fitted layer by layer, in
closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from medkd.networks.planned import PlannedUNet

IMAGES = 16  # patches that the kernels are fitted on
_PLACES = 3000  # voxels per patch and layer
_RIDGE = 1e-3  # pull towards the teacher's own kernels, relative to the mean square of the inputs


@dataclass(frozen=True)
class Fit:
    """How well a layer of the student repeats the channels of the teacher's that it was given: ``1 − residual /
    variance``.
    """

    layer: str
    explained: float


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
def inherit(student: nn.Module, teacher: nn.Module, images: Sequence[Tensor], seed: int = 0) -> list[Fit]:
    """Give a narrow plain or residual-encoder U-Net weights with which it does, as well as it can, what a wide one of
    the same plan does.

    From the first layer to the last: of the teacher's channels those are kept that span the others best, weighted by
    how much the next layers use them (QR with column pivoting), and where residual blocks add outputs up, the same ones
    in all of them, chosen for the sums; the kernels become the ridge regression, on the given images, of the teacher's
    kept channels onto what the student itself computes up to there, so that later layers make good what earlier ones
    miss. Norms are the teacher's. A student of the teacher's width becomes the teacher. Nothing is trained, and the
    places are drawn from ``seed`` alone.

    Citation: least-squares reconstruction after the choice of channels: Y. He, X. Zhang, J. Sun, Channel Pruning for
    Accelerating Very Deep Neural Networks, ICCV 2017, arXiv 1707.06168; a larger network's weights as the start of a
    smaller one: Z. Xu et al., Initializing Models with Larger Ones, ICLR 2024, arXiv 2311.18823.

    Args:
        student: is changed in place.
        teacher: is not changed.
        images: ``(1, C, *patch)`` each, on the networks' device.
        seed: of the places.

    Returns:
        One entry per layer, in the order of the layers.

    Raises:
        RunError: see :func:`check_inheritance`.
    """
    narrow, wide = check_inheritance(student, teacher)
    order = layers(narrow)
    seen, roots = _watch(wide, order, images, seed)
    kept = _choose(narrow, wide, order, roots)
    bar = tqdm(order, unit="layer", desc="weights from the teacher", disable=None)
    fits = []
    for layer in bar:
        fits.append(_fit(narrow, wide, layer, kept, seen[layer.conv], images))
    return fits


def _watch(
    teacher: PlannedUNet, order: Sequence[Layer], images: Sequence[Tensor], seed: int
) -> tuple[dict[str, list[_Seen]], dict[str, Tensor]]:
    """What every layer of the teacher gives for every image, and the spread of what the next layers get from it.

    Returns:
        Per layer the places that are needed, and per layer that has an output a root ``(C, C)`` of that output's
        scatter: the products of its columns are those of the features, centred, in all images.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, list[_Seen]] = {layer.conv: [] for layer in order}
    roots: dict[str, Tensor] = {}

    def after_conv(layer: Layer, output: Tensor) -> None:
        size = output.shape[2:]
        order_of_places = torch.randperm(prod(size), generator=generator)
        flat = order_of_places[:_PLACES].to(output.device)
        y = output[0].flatten(1).float()
        weight = 1.0
        if layer.norm:
            variances = y.var(1, correction=0)
            weight = float((variances + 1e-5).rsqrt().mean())
        seen[layer.conv].append(_Seen(_unravel(flat, size), y[:, flat].T, weight))

    def after_output(layer: Layer, output: Tensor) -> None:
        places = seen[layer.conv][-1].places
        features = _at(output[0].float(), places).double()
        ones = features.new_ones(len(features), 1)  # they take the mean away
        rows = torch.cat([ones, features], 1)
        if layer.conv in roots:
            rows = torch.cat([roots[layer.conv], rows])
        else:
            width = rows.shape[1]
            rows = torch.cat([rows.new_zeros(width, width), rows])
        roots[layer.conv] = torch.linalg.qr(rows, mode="r").R

    convs: dict[str, Callable[..., None]] = {}
    outputs: dict[str, Callable[..., None]] = {}
    for layer in order:
        convs[layer.conv] = partial(after_conv, layer)
        if layer.output and not layer.is_head:
            outputs[layer.output] = partial(after_output, layer)
    with hooked(teacher, convs), hooked(teacher, outputs):
        for image in images:
            run_all_layers(teacher, image)
    without_ones = {name: root[1:, 1:] for name, root in roots.items()}
    return seen, without_ones


def _choose(
    student: PlannedUNet, teacher: PlannedUNet, order: Sequence[Layer], roots: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Which of the teacher's channels each layer of the student stands for, in rising order; the same ones throughout a
    group.
    """
    used = _use(teacher, order)
    groups: dict[str, list[Layer]] = {}
    for layer in order:
        groups.setdefault(layer.group, []).append(layer)
    chosen = {}
    for group, members in groups.items():
        width = student.net.get_submodule(members[0].conv).out_channels
        if members[0].is_head:
            chosen[group] = torch.arange(width)
            continue
        spread = torch.cat([roots[layer.conv] for layer in members if layer.output])
        weighted = (spread * used[group].sqrt()).cpu().numpy()
        pivots = scipy.linalg.qr(weighted, mode="r", pivoting=True)[1]
        best = torch.as_tensor(pivots[:width].copy())
        chosen[group] = best.long().sort().values
    return {layer.conv: chosen[layer.group] for layer in order}


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


class _Regression:
    """Ridge regression from sums alone, so that the inputs of one image are in memory at a time.

    Args:
        prior: ``(P, C)`` weights to stay near to.
    """

    def __init__(self, prior: Tensor) -> None:
        inputs, outputs = prior.shape
        self.prior = prior
        self.count = 0
        self.gram = prior.new_zeros(inputs, inputs)
        self.cross = torch.zeros_like(prior)
        self.sum_x = prior.new_zeros(inputs)
        self.sum_y = prior.new_zeros(outputs)
        self.square = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs ``(N, P)`` and targets ``(N, C)``."""
        self.count += len(x)
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.square += float(y.square().sum())

    def solve(self) -> tuple[Tensor, Tensor, float, float]:
        """Weights ``(P, C)`` and bias ``(C,)``, and the sums of squares of the residual and of the targets around their
        mean.
        """
        count = max(self.count, 1)
        mean_x = self.sum_x / count
        mean_y = self.sum_y / count
        gram = self.gram - torch.outer(self.sum_x, mean_x)
        cross = self.cross - torch.outer(self.sum_x, mean_y)
        pulled = gram.clone()
        ridge = _RIDGE * float(gram.diagonal().mean()) + 1e-9
        pulled.diagonal().add_(ridge)
        weights = self.prior + torch.linalg.solve(pulled, cross - gram @ self.prior)
        variance = self.square - float(self.sum_y @ mean_y)
        explained = float((weights * cross).sum())
        fitted = float((weights * (gram @ weights)).sum())
        residual = variance - 2 * explained + fitted
        bias = mean_y - mean_x @ weights
        return weights, bias, residual, variance


def _fit(
    student: PlannedUNet,
    teacher: PlannedUNet,
    layer: Layer,
    kept: Mapping[str, Tensor],
    seen: Sequence[_Seen],
    images: Sequence[Tensor],
) -> Fit:
    """Set kernel, bias and norm of one layer of the student."""
    conv = student.net.get_submodule(layer.conv)
    kernel = teacher.net.get_submodule(layer.conv).weight.double()
    outputs = kept[layer.conv].to(kernel.device)
    inputs = _kept_inputs(teacher, layer, kept).to(kernel.device)
    turned = _input_axis(teacher, layer) == 0
    if turned:
        kernel = kernel.transpose(0, 1)
    kernel = kernel[outputs][:, inputs]
    given = _inputs(student, layer.conv, images)
    problems = _problems(conv, layer, seen, given, kernel, outputs)
    fitted = torch.empty_like(kernel)
    bias = kernel.new_zeros(len(outputs))
    residual = variance = 0.0
    for place, problem in problems.items():
        weights, own_bias, left, whole = problem.solve()
        index: tuple[Any, ...] = (..., *place)
        fitted[index] = weights.T.view(fitted[index].shape)
        bias = bias + own_bias / len(problems)
        residual += left
        variance += whole
    conv.weight.copy_(fitted.transpose(0, 1) if turned else fitted)
    if conv.bias is not None:
        conv.bias.copy_(bias)
    if layer.norm:
        _copy_norm(student, teacher, layer.norm, outputs)
    return Fit(layer.conv, 1 - residual / max(variance, 1e-12))


def _copy_norm(student: PlannedUNet, teacher: PlannedUNet, path: str, kept: Tensor) -> None:
    ours = student.net.get_submodule(path)
    theirs = teacher.net.get_submodule(path)
    ours.weight.copy_(theirs.weight[kept])
    ours.bias.copy_(theirs.bias[kept])


def _problems(
    conv: Any, layer: Layer, seen: Sequence[_Seen], given: Iterator[Tensor], kernel: Tensor, outputs: Tensor
) -> dict[tuple[int, ...], _Regression]:
    """The regressions of a layer, by place in the kernel, with all images in them."""
    transposed = isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d)
    pairs = _of_transposed if transposed else _of_kernel
    problems: dict[tuple[int, ...], _Regression] = {}
    for one, features in zip(seen, given, strict=True):
        for place, x, y in pairs(conv, one, features):
            if place not in problems:
                index: tuple[Any, ...] = (..., *place)
                problems[place] = _Regression(kernel[index].flatten(1).T)
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
    both_sides: list[int] = []
    for padding in reversed(conv.padding):
        both_sides += [padding, padding]
    padded = F.pad(given, both_sides)
    corner = seen.places * torch.tensor(conv.stride, device=given.device)
    columns = []
    for place in product(*map(range, conv.kernel_size)):
        shift = torch.tensor(place, device=given.device)
        columns.append(_at(padded, corner + shift))
    inputs = torch.stack(columns, 2).flatten(1)
    yield (), inputs.double(), seen.target.double()


def _of_transposed(conv: Any, seen: _Seen, given: Tensor) -> _Pairs:
    """One problem per place in the kernel, which has the stride's size: each output voxel comes from one input
    voxel.
    """
    stride = torch.tensor(conv.stride, device=given.device)
    values = _at(given, seen.places // stride).double()
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


def _kept_inputs(teacher: PlannedUNet, layer: Layer, kept: Mapping[str, Tensor]) -> Tensor:
    """The teacher's input channels of a layer that the student has, too."""
    if not layer.sources:
        return torch.arange(teacher.net.get_submodule(layer.conv).in_channels)
    found = []
    begin = 0
    for source in layer.sources:
        found.append(kept[source] + begin)
        begin += teacher.net.get_submodule(source).out_channels
    return torch.cat(found)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """``(N, C)`` values of a map ``(C, *size)`` at ``(N, n)`` places."""
    index: tuple[Any, ...] = (slice(None), *places.unbind(1))
    return values[index].T


def _unravel(flat: Tensor, size: Sequence[int]) -> Tensor:
    """Flat places to ``(N, n)`` coordinates."""
    return torch.stack(torch.unravel_index(flat, tuple(size)), 1)
