"""The residual U-Net that teaches in the ACF-BCKD paper (18.99 M parameters in 3D)."""

from __future__ import annotations

from medkd.core.run import NetworkSpec
from medkd.networks.base import NETWORKS, NetworkEntry
from medkd.networks.monai_unet import MonaiUNet

WIDTHS = (64, 128, 256, 512)


class ResUNet(MonaiUNet):
    """U-Net of residual units, total stride 8: two convolutions per unit on the way down, one on the way up.

    Kerfoot, Clough, Oksuz, Lee, King, Schnabel: Left-ventricle quantification using residual U-Net. STACOM 2018, DOI
    10.1007/978-3-030-12029-0_40. Widths as in Yu, Teng, Zhang, Zheng, Chen: ACF-BCKD, Expert Systems with Applications
    262, 2025.
    """

    citation = "Kerfoot et al., STACOM 2018, 10.1007/978-3-030-12029-0_40"

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, WIDTHS, residual_units=2)
        encoder = [self.tap(f"enc{i}", WIDTHS[i], 2 ** (i + 1), f"{self.stage_path(i)}.0") for i in range(self.steps)]
        bottleneck = self.tap("bottleneck", WIDTHS[-1], 2**self.steps, self.stage_path(self.steps))
        # the unit after the transposed convolution has an identity shortcut
        levels = range(self.steps - 1, 0, -1)
        decoder = [
            self.tap(f"dec{i}", WIDTHS[i - 1], 2**i, f"{self.stage_path(i)}.2.1", correction=True) for i in levels
        ]
        self.taps = (*encoder, bottleneck, *decoder)


NETWORKS.register("res_unet")(NetworkEntry(ResUNet, ResUNet.citation, divisor=8))
