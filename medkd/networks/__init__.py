"""Teachers and students of the segmentation branch; importing this package registers all of them.

MONAI and timm, which take seconds to load, are imported when a network of theirs is built.
"""

from medkd.networks import (
    attention_unet,
    deeplabv3,
    espnetv2,
    fcn,
    fcn_d8,
    lcov_net,
    mednext,
    missformer,
    mobile_unet,
    plain_unet,
    pspnet,
    res_unet,
    resenc_unet,
    resnet_unet,
    segresnet,
    swin_unetr,
    transunet,
    transunet_paper,
    unet_d8,
    unet_tiny,
)
from medkd.networks.base import NETWORKS, NetworkEntry, SegmentationNetwork, build_network, fit_patch

__all__ = [
    "NETWORKS",
    "NetworkEntry",
    "SegmentationNetwork",
    "attention_unet",
    "build_network",
    "deeplabv3",
    "espnetv2",
    "fcn",
    "fcn_d8",
    "fit_patch",
    "lcov_net",
    "mednext",
    "missformer",
    "mobile_unet",
    "plain_unet",
    "pspnet",
    "res_unet",
    "resenc_unet",
    "resnet_unet",
    "segresnet",
    "swin_unetr",
    "transunet",
    "transunet_paper",
    "unet_d8",
    "unet_tiny",
]
