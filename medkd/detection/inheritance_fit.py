"""What a layer of a teacher gives, and the kernels of a student that give the same from what it has itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medkd.detection.base import Detector
from medkd.detection.layers import Layer, Pair
from medkd.networks.ridge import Fit, Regression, Solution, at, neighbourhoods, unravel

_PLACES = 200  # per image and call of a layer
_LEAST = 1e-6  # of a scale or variance, relative to the largest of its layer: a channel below is dead


@dataclass(frozen=True)
class Seen:
    """One call of a layer of the teacher for one image.

    Attributes:
        places: ``(n, 2)`` cells of the layer's output.
        target: ``(n, C)`` outputs of the convolution; of one that ends a residual block the block's normed sum.
    """

    places: Tensor
    target: Tensor


class _ReachedError(Exception):
    """The layer whose input was wanted has been reached."""


class Batches:
    """The images, batch by batch, and the places that are looked at in each: they follow from seed, image and size of
    the map.
    """

    def __init__(self, images: Sequence[Tensor], seed: int) -> None:
        self._images = images
        self._seed = seed
        self._number = 0
        self._places: dict[tuple[int, ...], list[Tensor]] = {}

    def each(self) -> Iterator[Tensor]:
        """The batches; places are those of the one that was given last."""
        for number, images in enumerate(self._images):
            self._number = number
            yield images

    def places(self, output: Tensor) -> list[Tensor]:
        """``(n, 2)`` cells of a map, for every image of the batch."""
        size = tuple(output.shape[2:])
        key = (self._number, *size)
        if key not in self._places:
            generator = torch.Generator().manual_seed(self._seed + self._number)
            found = []
            for _ in range(len(output)):
                flat = torch.randperm(size[0] * size[1], generator=generator)[:_PLACES]
                found.append(unravel(flat, size).to(output.device))
            self._places[key] = found
        return self._places[key]

    def sample(self, output: Tensor) -> list[Tensor]:
        """``(n, C)`` values at these places."""
        places = self.places(output)
        return [at(values.float(), chosen) for values, chosen in zip(output, places, strict=True)]


@contextmanager
def hooked(network: nn.Module, before: Mapping[str, Callable[..., None]], after: Mapping[str, Any]) -> Iterator[None]:
    """Call ``hook(input)`` before modules and ``hook(output)`` after modules while the block runs."""
    handles = []
    for path, hook in before.items():
        handles.append(network.get_submodule(path).register_forward_pre_hook(partial(_on_input, hook)))
    for path, hook in after.items():
        handles.append(network.get_submodule(path).register_forward_hook(partial(_on_output, hook)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(hook: Callable[..., None], module: nn.Module, given: tuple[Tensor, ...]) -> None:
    hook(given[0])


def _on_output(hook: Callable[..., None], module: nn.Module, given: Any, output: Tensor) -> None:
    hook(output)


@dataclass(frozen=True)
class Choice:
    """Which channels of the teacher the student has.

    Attributes:
        pair: what is known of the layers of both.
        student: the detector that is fitted.
        teacher: what it is fitted to.
        kept: group of the teacher → channels, in rising order.
    """

    pair: Pair
    student: Detector
    teacher: Detector
    kept: Mapping[str, Tensor]

    def twin(self, layer: Layer) -> Layer:
        """The counterpart of a layer of the student."""
        return self.pair.teacher.layers[self.pair.twin(layer.conv)]

    def outputs(self, layer: Layer) -> Tensor:
        """The outputs of the counterpart that the student has."""
        twin = self.twin(layer)
        width = self._conv(twin).out_channels // len(twin.gives)
        found = []
        for number, feature in enumerate(twin.gives):
            found.append(self._kept(feature) + number * width)
        return torch.cat(found)

    def prior(self, layer: Layer) -> Tensor:
        """The counterpart's kernel between the channels that the student has; zero where its inputs, or all of the
        kernel, have none.
        """
        own: Any = self.student.get_submodule(layer.conv)
        twin = self.twin(layer)
        theirs = self._conv(twin).weight.double()[self.outputs(layer)]
        found = torch.zeros_like(own.weight, dtype=torch.float64)
        if own.kernel_size != self._conv(twin).kernel_size:
            return found
        if not layer.takes:
            return theirs.clone()
        begin = 0
        for feature in layer.takes:
            inputs = self._inputs(twin, self.pair.twin(feature))
            width = self._width(feature)
            if inputs is not None:
                found[:, begin : begin + width] = theirs[:, inputs]
            begin += width
        return found

    def _conv(self, layer: Layer) -> Any:
        return self.teacher.get_submodule(layer.conv)

    def _kept(self, feature: str) -> Tensor:
        return self.kept[self.pair.teacher.group(feature)]

    def _width(self, feature: str) -> int:
        return len(self._kept(self.pair.twin(feature)))

    def _inputs(self, twin: Layer, feature: str) -> Tensor | None:
        """Where a layer of the teacher takes the kept channels of a feature, else of one of the same channels."""
        widths = self.pair.teacher.widths(self.teacher)
        begin, found = 0, None
        for taken in twin.takes:
            group = self.pair.teacher.group(taken)
            same = group == self.pair.teacher.group(feature)
            if taken == feature or (same and found is None):
                found = self.kept[group] + begin
            if taken == feature:
                break
            begin += widths[group]
        return found


Calls = list[list[Seen]]
"""Of a layer: per call and image."""


def watch(choice: Choice, batches: Batches) -> dict[str, list[Calls]]:
    """What the teacher gives where the student has a counterpart: per layer of the student and batch."""
    seen: dict[str, list[Calls]] = {path: [] for path in choice.pair.student.layers}
    shortcuts: dict[str, list[Tensor]] = {}

    def keep(layer: Layer, channels: Tensor, output: Tensor) -> None:
        values = batches.sample(output[:, channels])
        found = zip(batches.places(output), values, strict=True)
        seen[layer.conv][-1].append([Seen(places, target) for places, target in found])

    def keep_shortcut(layer: Layer, channels: Tensor, output: Tensor) -> None:
        shortcuts[layer.conv] = batches.sample(output[:, channels])

    before: dict[str, Callable[..., None]] = {}
    after: dict[str, Callable[..., None]] = {}
    for layer in choice.pair.student.layers.values():
        twin, channels = choice.twin(layer), choice.outputs(layer)
        end = twin.norm if layer.block else twin.conv
        after[str(end)] = partial(keep, layer, channels)
        if layer.block and twin.block:
            block: Any = choice.teacher.get_submodule(twin.block)
            place, hooks = (twin.block, before) if block.downsample is None else (f"{twin.block}.downsample", after)
            hooks[place] = partial(keep_shortcut, layer, channels)
    with hooked(choice.teacher, before, after):
        for images in batches.each():
            for calls in seen.values():
                calls.append([])
            choice.pair.teacher.run(images)
            for path, values in shortcuts.items():
                seen[path][-1] = [_sums(seen[path][-1][0], values)]
    return seen


def _sums(branches: Sequence[Seen], shortcuts: Sequence[Tensor]) -> list[Seen]:
    """What residual blocks give before their last activation."""
    pairs = zip(branches, shortcuts, strict=True)
    return [Seen(branch.places, branch.target + shortcut) for branch, shortcut in pairs]


def fit_layer(choice: Choice, layer: Layer, batches: Batches, seen: Sequence[Calls]) -> Fit:
    """Set kernel, bias and norm of one layer of the student."""
    conv: Any = choice.student.get_submodule(layer.conv)
    outputs = choice.outputs(layer)
    norms = _norms(choice, layer)
    intercept = conv.bias is not None or isinstance(norms[0], nn.BatchNorm2d)
    problem = Regression(choice.prior(layer).flatten(1).T, intercept=intercept)
    for images, calls in zip(batches.each(), seen, strict=True):
        given, shortcuts = _inputs(choice, layer, images, len(calls), batches)
        for features, call in zip(given, calls, strict=True):
            for index, one in enumerate(call):
                target = one.target.double()
                if shortcuts:
                    target = _before_norm(target - shortcuts[index].double(), norms[1], outputs)
                problem.add(neighbourhoods(conv, one.places, features[index]), target)
    found = problem.solve()
    conv.weight.copy_(found.weights.T.view(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.copy_(found.bias)
    _set_norm(norms, outputs, found)
    return Fit(layer.conv, 1 - float(found.residual.sum()) / max(float(found.variance.sum()), 1e-12))


def _norms(choice: Choice, layer: Layer) -> tuple[Any, Any]:
    """The norm behind a layer, and the counterpart's; None where there is none."""
    twin = choice.twin(layer)
    if layer.norm is None or twin.norm is None:
        return None, None
    return choice.student.get_submodule(layer.norm), choice.teacher.get_submodule(twin.norm)


def _scale(norm: nn.BatchNorm2d, outputs: Tensor) -> Tensor:
    """What batch normalisation multiplies with; a branch that it shuts off is kept a little open."""
    assert norm.running_var is not None  # they are estimated here
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[outputs].double()
    least = _LEAST * scale.abs().max().clamp(min=_LEAST)
    return torch.where(scale.abs() < least, least, scale)


def _before_norm(values: Tensor, norm: nn.BatchNorm2d, outputs: Tensor) -> Tensor:
    """What batch normalisation turns into these values."""
    assert norm.running_mean is not None  # they are estimated here
    shifted = values - norm.bias[outputs].double()
    return shifted / _scale(norm, outputs) + norm.running_mean[outputs].double()


def _set_norm(norms: tuple[Any, Any], outputs: Tensor, found: Solution) -> None:
    """Take over the teacher's norm; the statistics are those of the student's own outputs, corrected by how far the
    teacher's running ones are from what it gives for these images.
    """
    ours, theirs = norms
    if ours is None:
        return
    ours.weight.copy_(theirs.weight[outputs])
    ours.bias.copy_(theirs.bias[outputs])
    if not isinstance(ours, nn.BatchNorm2d):
        return
    dead = found.variance < _LEAST * found.variance.max()
    share = (found.fitted / found.variance.clamp(min=1e-12)).clamp(min=1e-3, max=1)
    share = torch.where(dead, torch.ones_like(share), share)
    drift = theirs.running_mean[outputs].double() - found.mean
    estimates: Any = ours
    estimates.running_mean.copy_(found.mean - found.bias + drift * share.sqrt())
    estimates.running_var.copy_(theirs.running_var[outputs] * share)


def _inputs(
    choice: Choice, layer: Layer, images: Tensor, count: int, batches: Batches
) -> tuple[list[Tensor], list[Tensor]]:
    """What the student's layer gets for a batch in each of ``count`` calls, ``(B, C, rows, columns)``, and where it
    ends a residual block, the shortcut at the places that are looked at.
    """
    got: list[Tensor] = []
    entered: list[Tensor] = []

    def stop(given: Tensor) -> None:
        got.append(given.float())
        if len(got) == count:
            raise _ReachedError

    before: dict[str, Callable[..., None]] = {layer.conv: stop}
    if layer.block:
        before[layer.block] = entered.append
    with hooked(choice.student, before, {}), suppress(_ReachedError):
        choice.pair.student.run(images)
    if not layer.block:
        return got, []
    block: Any = choice.student.get_submodule(layer.block)
    shortcut = entered[0] if block.downsample is None else block.downsample(entered[0])
    return got, batches.sample(shortcut)
