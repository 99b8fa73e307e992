"""DeepLabV3 on a dilated ResNet, 2D: ``deeplabv3_r18``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.resnet_d8 import DilatedResNet, conv_bn_relu

_DILATIONS = (12, 24, 36)


class DeepLabV3(DilatedResNet):
    """ResNet-V1c with output stride 8; its last map seen by a point-wise and three dilated convolutions and as a mean
    over the whole image, joined.

    Chen, Papandreou, Schroff, Adam: Rethinking atrous convolution for semantic image segmentation. 2017, arXiv
    1706.05587; configuration ``deeplabv3_r50-d8`` of mmsegmentation.
    """

    citation = "Chen et al., 2017, arXiv 1706.05587; mmsegmentation's deeplabv3_r50-d8"

    def add_head(self) -> None:
        """The image's mean, the four convolutions, and the one that joins."""
        deep, inner = self.widths[3], self.inner
        self.image = conv_bn_relu(deep, inner, 1)
        dilated = [conv_bn_relu(deep, inner, 3, dilation) for dilation in _DILATIONS]
        self.pyramid = nn.ModuleList([conv_bn_relu(deep, inner, 1), *dilated])
        self.join = conv_bn_relu((len(dilated) + 2) * inner, inner)

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """All five, joined."""
        mean = self.image(functional.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        return self.join(torch.cat([mean, *(part(x) for part in self.pyramid)], 1))


NETWORKS.register("deeplabv3_r18")(
    NetworkEntry(build=DeepLabV3, citation=DeepLabV3.citation, ranks=(2,), divisor=8, deep_supervision=True)
)
