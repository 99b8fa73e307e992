"""PSPNet on a dilated ResNet, 2D: ``pspnet_r18`` and ``pspnet_r101``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.resnet_d8 import DilatedResNet, conv_bn_relu

_CELLS = (1, 2, 3, 6)  # per axis of each pooled map


class PspNet(DilatedResNet):
    """ResNet-V1c with output stride 8; its last map beside means over 1, 2², 3² and 6² cells of it, joined.

    Zhao, Shi, Qi, Wang, Jia: Pyramid scene parsing network. CVPR 2017, arXiv 1612.01105; configuration
    ``pspnet_r50-d8`` of mmsegmentation.
    """

    citation = "Zhao et al., CVPR 2017, arXiv 1612.01105; mmsegmentation's pspnet_r50-d8"

    def add_head(self) -> None:
        """A convolution per pooled map, and the one that joins."""
        deep, inner = self.widths[3], self.inner
        self.pyramid = nn.ModuleList(conv_bn_relu(deep, inner, 1) for _ in _CELLS)
        self.join = conv_bn_relu(deep + len(_CELLS) * inner, inner)

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Pool, reduce, enlarge, and join with the map itself."""
        size = tuple(x.shape[2:])
        maps = [x]
        for cells, reduce in zip(_CELLS, self.pyramid, strict=True):
            pooled = reduce(functional.adaptive_avg_pool2d(x, cells))
            maps.append(functional.interpolate(pooled, size, mode="bilinear", align_corners=False))
        return self.join(torch.cat(maps, 1))


for _depth in (18, 101):
    NETWORKS.register(f"pspnet_r{_depth}")(
        NetworkEntry(build=PspNet, citation=PspNet.citation, ranks=(2,), divisor=8, deep_supervision=True)
    )
