"""Teachers and students of the segmentation branch; importing this package registers all of them."""

from medkd.networks import (
    espnetv2,
    lcov_net,
    mobile_unet,
    plain_unet,
    res_unet,
    resenc_unet,
    segresnet,
    unet_tiny,
)
from medkd.networks.base import NETWORKS, NetworkEntry, SegmentationNetwork, build_network, fit_patch

__all__ = [
    "NETWORKS",
    "NetworkEntry",
    "SegmentationNetwork",
    "build_network",
    "espnetv2",
    "fit_patch",
    "lcov_net",
    "mobile_unet",
    "plain_unet",
    "res_unet",
    "resenc_unet",
    "segresnet",
    "unet_tiny",
]
