"""The medical 2D library's FCN: ResNet-V1c of stride 8, a head of two convolutions and a join, an auxiliary head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.resnet_d8 import DilatedResNet, conv_bn_relu

_AUXILIARY = 0.5  # weight of the auxiliary head's loss in the medical library


class FcnD8(DilatedResNet):
    """ResNet-V1c with output stride 8; two convolutions, joined with their input by a third, and a classifier.

    Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation. CVPR 2015, arXiv 1411.4038;
    configuration ``fcn_r50-d8`` of mmsegmentation. ``fcn_r18`` and ``fcn_r50`` have the plain stem and one convolution.
    """

    citation = "Long et al., CVPR 2015, arXiv 1411.4038; mmsegmentation's fcn_r50-d8"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.auxiliary_weight = _AUXILIARY

    def add_head(self) -> None:
        """Two convolutions and the one that joins."""
        deep, inner = self.widths[3], self.inner
        self.convs = nn.Sequential(conv_bn_relu(deep, inner), conv_bn_relu(inner, inner))
        self.join = conv_bn_relu(deep + inner, inner)

    def step(self, index: int, x: Tensor, features: list[Tensor]) -> Tensor:
        """Two convolutions, and a third on them and their input."""
        return self.join(torch.cat((x, self.convs(x)), 1))


for _depth in (18, 50):
    NETWORKS.register(f"fcn_r{_depth}_d8")(
        NetworkEntry(build=FcnD8, citation=FcnD8.citation, ranks=(2,), divisor=8, deep_supervision=True)
    )
