"""The convolutions of the planned U-Nets as a student needs them that starts from its teacher: what feeds them, what
shares channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from medkd.core.errors import RunError
from medkd.networks.plain_unet import PlainUNet
from medkd.networks.planned import PlannedUNet
from medkd.networks.resenc_unet import ResEncUNet

HINT = "use --init random"


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
        RunError: they are not two plain or two residual-encoder U-Nets with instance norms, for images of as many axes
            and channels.
    """
    narrow, wide = _of_one_kind(student, teacher)
    _check_norms(narrow, "student")
    _check_norms(wide, "teacher")
    ours, theirs = narrow.spec, wide.spec
    if (narrow.rank, ours.in_channels) != (wide.rank, theirs.in_channels):
        raise RunError(
            f"--init teacher needs a student that sees what its teacher sees, but it takes {ours.in_channels} channels "
            f"in {narrow.rank}D and the teacher {theirs.in_channels} in {wide.rank}D; choose another teacher, or "
            f"{HINT}."
        )
    return narrow, wide


def _check_norms(network: PlannedUNet, role: str) -> None:
    """Refuse other norms than instance norms."""
    for layer in layers(network):
        if layer.norm is None:
            continue
        norm = network.net.get_submodule(layer.norm)
        if not isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d):
            raise RunError(f"--init teacher needs instance norms, but the {role} has others; {HINT}.")


def _of_one_kind(student: nn.Module, teacher: nn.Module) -> tuple[PlannedUNet, PlannedUNet]:
    for kind in (PlainUNet, ResEncUNet):
        if isinstance(student, kind) and isinstance(teacher, kind):
            return student, teacher
    raise RunError(
        "--init teacher needs two networks 'plain_unet' or two 'resenc_unet_*', but the student is a "
        f"{type(student).__name__} and the teacher is a {type(teacher).__name__}; choose another teacher, or {HINT}."
    )
