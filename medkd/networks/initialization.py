"""Weight initialisation."""

from __future__ import annotations

from torch import nn

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def kaiming_fan_out(module: nn.Module) -> None:
    """Kaiming-normal weights (``mode="fan_out"``, ReLU gain) and zero bias for every convolution, for
    ``network.apply``.

    He, Zhang, Ren, Sun: Delving deep into rectifiers. ICCV 2015, arXiv 1502.01852. The students and teachers of the
    ACF-BCKD paper start this way, whatever their own papers do.
    """
    if isinstance(module, CONVOLUTIONS):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def kaiming_leaky(module: nn.Module) -> None:
    """Kaiming-normal weights for LeakyReLU with slope 0.01 (``mode="fan_in"``) and zero bias, as nnU-Net starts its
    networks.
    """
    if isinstance(module, CONVOLUTIONS):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
