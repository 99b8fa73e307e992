"""nnU-Net's plain U-Net."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from medkd.core.errors import RunError
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.initialization import kaiming_leaky
from medkd.networks.planned import PlannedUNet


class PlainUNet(PlannedUNet):
    """U-Net of plain convolution blocks (convolution, instance norm, LeakyReLU), shaped by the plan.

    Isensee, Jaeger, Kohl, Petersen, Maier-Hein: nnU-Net: a self-configuring method for deep learning-based biomedical
    image segmentation. Nature Methods 18, 2021, DOI 10.1038/s41592-020-01008-z.
    """

    citation = "Isensee et al., Nature Methods 2021, 10.1038/s41592-020-01008-z"
    block_path = "0.convs"

    def __init__(self, spec: NetworkSpec) -> None:
        if spec.architecture is None:
            raise RunError("'plain_unet' takes its shape from the plan; give a planned architecture.")
        super().__init__(spec, spec.architecture)

    def build(self, shape: dict[str, Any]) -> nn.Module:
        """The plain U-Net, initialised as nnU-Net does."""
        return PlainConvUNet(n_conv_per_stage=self.architecture.blocks_encoder, **shape).apply(kaiming_leaky)


NETWORKS.register("plain_unet")(
    NetworkEntry(build=PlainUNet, citation=PlainUNet.citation, planned=True, deep_supervision=True)
)
