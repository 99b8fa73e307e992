"""nnU-Net's U-Net with a residual encoder, in three planned sizes."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.initialization.weight_init import init_last_bn_before_add_to_0
from torch import nn

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.initialization import kaiming_leaky
from medkd.networks.planned import PlannedUNet


class ResEncUNet(PlannedUNet):
    """U-Net with residual blocks in the encoder and one convolution per decoder stage, shaped by the plan.

    Isensee, Wald, Ulrich, Baumgartner, Roy, Maier-Hein, Jaeger: nnU-Net revisited: a call for rigorous validation in 3D
    medical image segmentation. MICCAI 2024, arXiv 2404.09556. M, L and XL differ in the memory target of their plan
    only.
    """

    citation = "Isensee et al., MICCAI 2024, arXiv 2404.09556"
    block_path = "blocks"

    def __init__(self, spec: NetworkSpec) -> None:
        if spec.architecture is None:
            raise RunError(f"'{spec.name}' takes its shape from the plan; give a planned architecture.")
        super().__init__(spec, spec.architecture)

    def build(self, shape: dict[str, Any]) -> nn.Module:
        """The residual-encoder U-Net; every residual branch starts at zero, as nnU-Net does."""
        net = ResidualEncoderUNet(n_blocks_per_stage=self.architecture.blocks_encoder, **shape)
        return net.apply(kaiming_leaky).apply(init_last_bn_before_add_to_0)


for _size in ("m", "l", "xl"):
    NETWORKS.register(f"resenc_unet_{_size}")(
        NetworkEntry(build=ResEncUNet, citation=ResEncUNet.citation, planned=True, deep_supervision=True)
    )
