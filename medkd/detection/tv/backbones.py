"""Backbones with a feature pyramid, random weights unless a file is given, and the reading of such files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, resnet101, resnext101_64x4d, swin_t
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from medkd.core.errors import RunError
from medkd.core.features import Tap
from medkd.detection.tv.deformable import SelfDeformingConv
from medkd.detection.tv.published_weights import check_units
from medkd.networks.pretrained import read_weights

CHANNELS = 256
"""Channels of every map of the pyramid."""
GROUPS = 32
"""Of group normalisation of such maps."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_BODY, _NECK = "backbone.body.", "backbone.fpn."  # in files of torchvision's detectors
_CAFFE_MEAN = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
_OFFSET = ".offset."  # of deformable convolutions, which start without any
_TENSORFLOW = (0.5, 0.5, 0.5)  # mean and deviation of weights that come from TensorFlow
_log = logging.getLogger(__name__)


class _Body(nn.Module):
    """A backbone: maps of strides 4, 8, 16 and 32; ``body`` has the library's own names, by which weight files are
    read.

    Attributes:
        channels: of each map.
    """

    channels: tuple[int, ...]
    body: Any

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, channels, S/stride, S/stride)`` of each stride."""
        raise NotImplementedError


class _ResNet(_Body):
    """torchvision's ResNet without its classifier; batch statistics are trained, since frozen ones of random weights
    mean nothing.
    """

    def __init__(self, make: Callable[..., nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels
        self.body = IntermediateLayerGetter(make(weights=None), {f"layer{i}": f"c{i + 1}" for i in (1, 2, 3, 4)})

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())


def _early_strides(make: Callable[..., Any], weights: None = None) -> nn.Module:
    """A ResNet that halves its maps in the first convolution of a stage, as Caffe's does, not in the second."""
    network = make(weights=None)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    return network  # type: ignore[no-any-return]


def _deformable_x101(weights: None = None) -> nn.Module:
    """ResNeXt-101 (32x4d) whose 3 × 3 convolutions are deformable from the second stage on."""
    network = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    for stage in (network.layer2, network.layer3, network.layer4):
        for block in stage:
            block.conv2 = SelfDeformingConv(block.conv2)
    return network


class _Swin(_Body):
    """torchvision's Swin-T; its maps are channels-last and leave each stage unnormalised."""

    def __init__(self, used: Sequence[int]) -> None:
        super().__init__()
        self.channels = (96, 192, 384, 768)
        self.body = nn.Module()
        self.body.features = swin_t(weights=None).features
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(self.channels[i]) for i in used})

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for index, stage in enumerate(self.body.features):
            x = stage(x)
            if index % 2:  # blocks; even places are the patch embedding and the mergings
                place = str(index // 2)
                maps.append((self.norms[place](x) if place in self.norms else x).permute(0, 3, 1, 2).contiguous())
        return maps


class _Timm(_Body):
    """A backbone of timm, which gives the maps of strides 4, 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        places = (0, 1, 2, 3) if name.startswith("pvt") else (1, 2, 3, 4)
        self.body = timm.create_model(name, pretrained=False, features_only=True, out_indices=places)
        self.channels = tuple(self.body.feature_info.channels())

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images))


_BACKBONES: dict[str, Callable[[Sequence[int]], _Body]] = {
    "r18": lambda used: _ResNet(resnet18, (64, 128, 256, 512)),
    "r50": lambda used: _ResNet(resnet50, (256, 512, 1024, 2048)),
    "r101": lambda used: _ResNet(resnet101, (256, 512, 1024, 2048)),
    "r50_caffe": lambda used: _ResNet(partial(_early_strides, resnet50), (256, 512, 1024, 2048)),
    "r101_caffe": lambda used: _ResNet(partial(_early_strides, resnet101), (256, 512, 1024, 2048)),
    "swin_t": _Swin,
    "x101_64x4d": lambda used: _ResNet(resnext101_64x4d, (256, 512, 1024, 2048)),
    "x101_32x4d": lambda used: _Timm("resnext101_32x4d"),
    "x101_32x4d_dcn": lambda used: _ResNet(_deformable_x101, (256, 512, 1024, 2048)),
    "mobilenet_v2": lambda used: _Timm("mobilenetv2_100"),
    "efficientnet_lite0": lambda used: _Timm("tf_efficientnet_lite0"),
    "efficientnet_es": lambda used: _Timm("efficientnet_es"),
    "resnest50": lambda used: _Timm("resnest50d"),
    "pvt_v2_b2": lambda used: _Timm("pvt_v2_b2"),
    "pvt_v2_b5": lambda used: _Timm("pvt_v2_b5"),
}


@dataclass(frozen=True, kw_only=True)
class PyramidRule:
    """How the pyramid of a dense head differs from torchvision's.

    Attributes:
        from_backbone: ``p6`` is made of the backbone's last map instead of ``p5``.
        relu: ``p7`` is made of the rectified ``p6``.
        norm: group normalisation behind every convolution, which has no bias then.
    """

    from_backbone: bool = False
    relu: bool = True
    norm: bool = False


class _Coarse(ExtraFPNBlock):
    """``p6`` and ``p7`` by strided convolutions, as a rule says.

    Args:
        channels: of the backbone's last map.
        rule: see :class:`PyramidRule`.
    """

    def __init__(self, channels: int, rule: PyramidRule) -> None:
        super().__init__()
        self.rule = rule
        self.p6 = _strided(channels if rule.from_backbone else CHANNELS, rule.norm)
        self.p7 = _strided(CHANNELS, rule.norm)

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(c[-1] if self.rule.from_backbone else p[-1])
        p7 = self.p7(p6.relu() if self.rule.relu else p6)
        return [*p, p6, p7], [*names, "p6", "p7"]


def _strided(channels: int, norm: bool) -> nn.Module:
    conv = nn.Conv2d(channels, CHANNELS, 3, stride=2, padding=1, bias=not norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if norm:
        return nn.Sequential(conv, nn.GroupNorm(GROUPS, CHANNELS))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # the layer has one
    return conv


class Pyramid(nn.Module):
    """Normalisation, backbone and feature pyramid.

    Dense heads get ``p3`` … ``p7`` (strides 8 to 128; ``p6`` and ``p7`` by strided convolutions on ``p5``), two-stage
    detectors ``p2`` … ``p6`` (strides 4 to 64; ``p6`` is every second cell of ``p5``).

    Lin et al., "Feature pyramid networks for object detection", CVPR 2017, arXiv 1612.03144; ``p6`` and ``p7``: Tian et
    al., "FCOS", ICCV 2019, arXiv 1904.01355.

    Args:
        backbone: ``r18``, ``r50``, ``r101``, ``r50_caffe``, ``r101_caffe``, ``x101_64x4d``,
            ``swin_t``, ``x101_32x4d_dcn`` (torchvision),
            ``x101_32x4d``, ``mobilenet_v2``, ``efficientnet_lite0``, ``efficientnet_es``, ``resnest50``,
            ``pvt_v2_b2`` or ``pvt_v2_b5`` (timm).
        first: finest level, 2 or 3.
        rule: of a dense head's pyramid that is not torchvision's.

    Attributes:
        names: of the levels, finest first.
        strides: input pixels per cell of each.
    """

    mean: Tensor
    std: Tensor
    bottom: _Body

    def __init__(self, backbone: str, first: int, rule: PyramidRule | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.first = first
        self.names = tuple(f"p{i}" for i in range(first, first + 5))
        self.strides = tuple(2**i for i in range(first, first + 5))
        used = range(first - 2, 4)
        self.bottom = _BACKBONES[backbone](used)
        widths = [self.bottom.channels[i] for i in used]
        extra: ExtraFPNBlock = LastLevelMaxPool() if first == 2 else LastLevelP6P7(CHANNELS, CHANNELS)
        if rule is not None:
            extra = _Coarse(widths[-1], rule)
        norm = partial(nn.GroupNorm, GROUPS) if rule is not None and rule.norm else None
        self.top = FeaturePyramidNetwork(widths, CHANNELS, extra, norm)
        mean, std = (_TENSORFLOW, _TENSORFLOW) if backbone == "efficientnet_lite0" else (_MEAN, _STD)
        self._blue_first = backbone.endswith("_caffe")
        if self._blue_first:
            mean, std = _CAFFE_MEAN, (1 / 255,) * 3
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Level name → ``(B, 256, rows, columns)`` of images ``(B, 3, S, S)`` in [0, 1]."""
        normed = (images - self.mean) / self.std
        maps = self.bottom(normed.flip(1) if self._blue_first else normed)
        levels = self.top({f"c{i + 2}": maps[i] for i in range(self.first - 2, 4)})
        return dict(zip(self.names, levels.values(), strict=True))

    def taps(self, prefix: str) -> tuple[Tap, ...]:
        """The neck's taps; ``prefix`` is where the pyramid stands in its detector."""
        made = 4 - (self.first - 2)
        modules = [f"{prefix}.top.layer_blocks.{i}" for i in range(made)]
        modules += [f"{prefix}.top.extra_blocks{'' if self.first == 2 else f'.{n}'}" for n in self.names[made:]]
        rows = zip(self.names, self.strides, modules, strict=True)
        return tuple(
            Tap(name=name, channels=CHANNELS, stride=(stride, stride), module=module, stage="neck")
            for name, stride, module in rows
        )


def load_backbone_weights(detector: nn.Module, file: Path, given: Mapping[str, Tensor] | None = None) -> int:
    """Start a detector's backbone from a local file, for example one trained on ImageNet.

    Names are those of the library the backbone is from (torchvision: r18, r50, r101, swin_t; timm: the others); the
    file's classifier is left out, and so are normalisations that the classifier had.

    Args:
        detector: with a :class:`Pyramid` as ``pyramid``.
        file: ``.pt``, ``.pth`` or ``.safetensors``; a dictionary around the weights (``state_dict``, ``model``,
            ``network``) is opened.
        given: its tensors, where they are read already.

    Returns:
        How many tensors were loaded.

    Raises:
        RunError: the file is missing or unreadable, does not hold this backbone, or holds it for images in other units.
    """
    pyramid: Any = getattr(detector, "pyramid", None)
    if not isinstance(pyramid, Pyramid):
        raise RunError(
            f"{type(detector).__name__} has no torchvision backbone to load {file} into; leave the weights out."
        )
    found = _of_detector(pyramid, read_weights(Path(file)) if given is None else given)
    given = {_canonical(name): tensor for name, tensor in found.items()}
    body = pyramid.bottom.body
    state = body.state_dict()
    wanted = list(filter(_is_published, state))
    given = _renamed(given, wanted)
    wrong = [n for n in wanted if _canonical(n) not in given or given[_canonical(n)].shape != state[n].shape]
    if wrong:
        raise RunError(
            f"{file} does not fit the backbone {pyramid.backbone}: {len(wrong)} of {len(wanted)} tensors are missing "
            "or of another shape, "
            f"the first is {wrong[0]}; give a file of this architecture from the library that medkd takes it from."
        )
    check_units(pyramid.backbone, file, found)
    body.load_state_dict({name: given.get(_canonical(name), value) for name, value in state.items()})
    _log.info(
        "backbone %s: %d tensors from %s, %d of the file's not used",
        pyramid.backbone,
        len(wanted),
        file,
        len(given) - len(wanted),
    )
    return len(wanted)


def _is_published(name: str) -> bool:
    """Older files do not have the counters of batch normalisation, and no classifier's file has offsets."""
    return not name.endswith("num_batches_tracked") and _OFFSET not in name


def _renamed(given: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """EfficientNet-Lite0's package has names of its own (``_conv_stem``) for timm's tensors in timm's order."""
    if "_conv_stem_weight" not in given:
        return given
    tensors = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    return dict(zip([_canonical(name) for name in wanted], tensors, strict=False))


def _canonical(name: str) -> str:
    """timm writes ``stages.0.x`` in its files and ``stages_0.x`` in networks that give features only."""
    return name.replace(".", "_")


def _of_detector(pyramid: Pyramid, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The backbone of a file that may be of a whole detector of torchvision, whose pyramid is taken over as well."""
    body = {name.removeprefix(_BODY): value for name, value in given.items() if name.startswith(_BODY)}
    if not body:
        return given
    own = pyramid.top.state_dict()
    necks = {name.removeprefix(_NECK): value for name, value in given.items() if name.startswith(_NECK)}
    fitting = {name: value for name, value in necks.items() if name in own and own[name].shape == value.shape}
    pyramid.top.load_state_dict({**own, **fitting})
    _log.info("pyramid: %d of %d tensors", len(fitting), len(own))
    return body
