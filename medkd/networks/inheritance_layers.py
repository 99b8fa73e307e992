"""The convolutions of the planned U-Nets as a student needs them that starts from its teacher: what feeds them, what
shares channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from medkd.core.errors import RunError
from medkd.networks.plain_unet import PlainUNet
from medkd.networks.planned import PlannedUNet
from medkd.networks.resenc_unet import ResEncUNet

_HINT = "use --init random"


@dataclass(frozen=True)
class Layer:
    """A convolution of a planned U-Net.

    Attributes:
        conv: path of its module.
        norm: path of the norm behind it; None where its output goes on as it is.
        sources: paths of the convolutions that its inputs end with, concatenated; none for the image.
        output: path of the module that gives what the next layers take: behind norm and activation, and of a residual
            block behind the addition; None for the projection of a shortcut, which ends in the addition of its block.
        group: layers of one group stand for the same channels, since their outputs are added up.
    """

    conv: str
    norm: str | None
    sources: tuple[str, ...]
    output: str | None
    group: str

    @property
    def is_head(self) -> bool:
        """Whether its outputs are logits, which are all kept."""
        return ".seg_layers." in self.conv


@dataclass(frozen=True)
class Shape:
    """The width of a convolution, and what must be equal in teacher and student."""

    width: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]


Shapes = dict[str, Shape]  # by the path of the convolution


def layers(network: PlannedUNet) -> list[Layer]:
    """Its convolutions, every one after those that feed it."""
    describe = _residual_encoder if isinstance(network, ResEncUNet) else _plain_encoder
    found, skips = describe(network.net.encoder)
    last = skips.pop()
    for s, stage in enumerate(network.net.decoder.stages):
        up = _alone(f"decoder.transpconvs.{s}", (last,))
        sources = (up.conv, skips.pop())
        block = _stack(f"decoder.stages.{s}", len(stage.convs), sources)
        last = block[-1].conv
        found += [up, *block, _alone(f"decoder.seg_layers.{s}", (last,))]
    return found


def _plain_encoder(encoder: Any) -> tuple[list[Layer], list[str]]:
    """Its layers, and per stage the last one's path."""
    found: list[Layer] = []
    skips: list[str] = []
    for i, stage in enumerate(encoder.stages):
        before = tuple(skips[-1:])
        found += _stack(f"encoder.stages.{i}.0", len(stage[0].convs), before)
        skips.append(found[-1].conv)
    return found, skips


def _residual_encoder(encoder: Any) -> tuple[list[Layer], list[str]]:
    """Its layers, and per stage the last one's path.

    A shortcut without a projection hands on its channels, so that stages of one width, between which it only pools,
    share theirs.
    """
    found = _stack("encoder.stem", len(encoder.stem.convs), ())
    skips: list[str] = []
    for i, stage in enumerate(encoder.stages):
        for j, block in enumerate(stage.blocks):
            path = f"encoder.stages.{i}.blocks.{j}"
            found += _residual_block(path, block, found[-1])
        skips.append(found[-1].conv)
    return found, skips


def _residual_block(path: str, block: Any, before: Layer) -> list[Layer]:
    """The projections of its shortcut, and its two convolutions."""
    projections = _projections(path, block)
    group = f"{projections[0]}.conv" if projections else before.group
    found = []
    for way in projections:
        found.append(Layer(f"{way}.conv", f"{way}.norm", (before.conv,), None, group))
    first = _unit(f"{path}.conv1", (before.conv,))
    second = Layer(f"{path}.conv2.conv", f"{path}.conv2.norm", (first.conv,), path, group)
    return [*found, first, second]


def _projections(path: str, block: Any) -> list[str]:
    """Paths of the convolutions, with their norms, in the shortcut of a block."""
    found = []
    if isinstance(block.skip, nn.Sequential):
        for k, module in enumerate(block.skip):
            if hasattr(module, "conv"):
                found.append(f"{path}.skip.{k}")
    return found


def _stack(path: str, count: int, sources: tuple[str, ...]) -> list[Layer]:
    """Convolutions with norm and activation, one behind the other."""
    found: list[Layer] = []
    for j in range(count):
        found.append(_unit(f"{path}.convs.{j}", sources))
        sources = (found[-1].conv,)
    return found


def _unit(path: str, sources: tuple[str, ...]) -> Layer:
    """A convolution with norm and activation."""
    return Layer(f"{path}.conv", f"{path}.norm", sources, path, f"{path}.conv")


def _alone(path: str, sources: tuple[str, ...]) -> Layer:
    """A convolution without norm and activation."""
    return Layer(path, None, sources, path, path)


def check_inheritance(student: nn.Module, teacher: nn.Module) -> tuple[PlannedUNet, PlannedUNet]:
    """Refuse a pair of networks of which the student cannot start from the teacher.

    Returns:
        Student and teacher.

    Raises:
        RunError: they are not two plain or two residual-encoder U-Nets with instance norms, their plans differ, the
            student is wider somewhere, or one has a projection in a shortcut where the other has none.
    """
    narrow, wide = _of_one_kind(student, teacher)
    _check_norms(narrow, "student")
    _check_norms(wide, "teacher")
    _check_shapes(_shapes(narrow), _shapes(wide))
    return narrow, wide


def _check_shapes(ours: Shapes, theirs: Shapes) -> None:
    """Refuse a student of another plan, one that is wider somewhere, and projections in one of the two only."""
    if not _of_one_plan(ours, theirs):
        raise RunError(
            f"--init teacher needs a student of the teacher's plan, but stages, strides or kernels differ; {_HINT}."
        )
    for name in ours:
        if name in theirs and ours[name].width > theirs[name].width:
            raise RunError(
                f"--init teacher needs a student that is nowhere wider than its teacher, but {name} has "
                f"{ours[name].width} channels there and {theirs[name].width} in the teacher; raise --width-divisor, or "
                f"{_HINT}."
            )
    for name in (*ours, *theirs):
        if name not in ours or name not in theirs:
            raise RunError(
                f"--init teacher needs a student whose stages grow where its teacher's do, but {name} is in one of "
                f"the two only; lower --width-divisor, or {_HINT}."
            )


def _of_one_plan(ours: Shapes, theirs: Shapes) -> bool:
    """Whether both have the same layers but for projections in shortcuts, with equal kernels and strides."""
    for name in set(ours) | set(theirs):
        if name not in ours or name not in theirs:
            if ".skip." not in name:
                return False
        elif replace(ours[name], width=0) != replace(theirs[name], width=0):
            return False
    return True


def _check_norms(network: PlannedUNet, role: str) -> None:
    """Refuse other norms than instance norms."""
    for layer in layers(network):
        if layer.norm is None:
            continue
        norm = network.net.get_submodule(layer.norm)
        if not isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d):
            raise RunError(f"--init teacher needs instance norms, but the {role} has others; {_HINT}.")


def _of_one_kind(student: nn.Module, teacher: nn.Module) -> tuple[PlannedUNet, PlannedUNet]:
    for kind in (PlainUNet, ResEncUNet):
        if isinstance(student, kind) and isinstance(teacher, kind):
            return student, teacher
    raise RunError(
        "--init teacher needs two networks 'plain_unet' or two 'resenc_unet_*', but the student is a "
        f"{type(student).__name__} and the teacher is a {type(teacher).__name__}; choose another teacher, or {_HINT}."
    )


def _shapes(network: PlannedUNet) -> Shapes:
    found = {}
    for layer in layers(network):
        conv: Any = network.net.get_submodule(layer.conv)
        found[layer.conv] = Shape(conv.out_channels, conv.kernel_size, conv.stride)
    return found
