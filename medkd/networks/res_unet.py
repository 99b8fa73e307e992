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
        # the unit after the transposed convolution has an identity shortcut
        units = [f"{self.stage_path(level)}.2.1" for level in self.inner_levels()]
        decoder = self.decoder_taps(WIDTHS[-3::-1], units, finest=1, correction=True)
        self.taps = (*self.down_taps(WIDTHS), *decoder)


NETWORKS.register("res_unet")(NetworkEntry(build=ResUNet, citation=ResUNet.citation, divisor=8))
