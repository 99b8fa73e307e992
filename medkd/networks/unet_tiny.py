"""The small plain U-Net that is taught in the ACF-BCKD paper (1.96 M parameters in 3D)."""

from __future__ import annotations

from medkd.core.features import Tap
from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.monai_unet import MonaiUNet

WIDTHS = (32, 64, 128, 256)


class UNetTiny(MonaiUNet):
    """U-Net of seven convolutions (instance norm, PReLU) without residual units, total stride 8.

    Its decoder stages are single transposed convolutions; ``dec1.conv`` is that convolution's raw output, which the
    ACF-BCKD paper distils, ``dec1`` the stage's output after normalisation and activation.

    Yu, Teng, Zhang, Zheng, Chen: Attention correction feature and boundary constraint knowledge distillation for
    efficient 3D medical image segmentation. Expert Systems with Applications 262, 2025.
    """

    citation = "Yu et al., Expert Systems with Applications 262, 2025"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, WIDTHS, residual_units=0)
        decoder: list[Tap] = []
        for level in self.inner_levels():
            width = WIDTHS[level - 1]
            module = f"{self.stage_path(level)}.2"
            raw = self.tap(f"dec{level}.conv", width, 2**level, f"{module}.conv", raw=True)
            decoder += [raw, self.tap(f"dec{level}", width, 2**level, module)]
        self.taps = (*self.down_taps(WIDTHS), *decoder)


NETWORKS.register("unet_tiny")(NetworkEntry(build=UNetTiny, citation=UNetTiny.citation, divisor=8))
