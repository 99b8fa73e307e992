"""torch's layers by number of spatial dimensions, for networks that exist in 2D and in 3D."""

from __future__ import annotations

from torch import nn


def convolution(rank: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """``Conv2d`` or ``Conv3d``."""
    return nn.Conv3d if rank == 3 else nn.Conv2d


def transposed_convolution(rank: int) -> type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]:
    """``ConvTranspose2d`` or ``ConvTranspose3d``."""
    return nn.ConvTranspose3d if rank == 3 else nn.ConvTranspose2d


def batch_norm(rank: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    """``BatchNorm2d`` or ``BatchNorm3d``."""
    return nn.BatchNorm3d if rank == 3 else nn.BatchNorm2d


def average_pool(rank: int) -> type[nn.AvgPool2d] | type[nn.AvgPool3d]:
    """``AvgPool2d`` or ``AvgPool3d``."""
    return nn.AvgPool3d if rank == 3 else nn.AvgPool2d


def max_pool(rank: int) -> type[nn.MaxPool2d] | type[nn.MaxPool3d]:
    """``MaxPool2d`` or ``MaxPool3d``."""
    return nn.MaxPool3d if rank == 3 else nn.MaxPool2d


def global_average_pool(rank: int) -> nn.Module:
    """The mean over all spatial dimensions, kept with size 1."""
    return nn.AdaptiveAvgPool3d(1) if rank == 3 else nn.AdaptiveAvgPool2d(1)


def linear_mode(rank: int) -> str:
    """Name of linear interpolation for ``torch.nn.functional.interpolate``."""
    return "trilinear" if rank == 3 else "bilinear"
