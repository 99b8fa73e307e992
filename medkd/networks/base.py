"""The contract of a segmentation network and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.features import Tap
from medkd.core.registry import Registry
from medkd.core.run import NetworkSpec


class SegmentationNetwork(nn.Module):
    """A network with taps.

    ``forward`` maps ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``; in training mode with :attr:`deep_supervision`
    set it returns a list of logits, full resolution first, each further one coarser.

    Attributes:
        taps: places where features can be read, encoder → bottleneck → decoder, the decoder from coarse to fine.
        deep_supervision: whether training mode returns several resolutions (False where the network offers none).
        deep_supervision_strides: stride of each returned resolution, per axis; empty where it offers none.
        auxiliary_weight: of the second output's loss, where that is an auxiliary head's and no coarser resolution.
        encoder_path: path of an encoder of timm or torchvision, whose names weight files have; empty where it has none.
        encoder_name: its name in timm; empty where timm has no weights of it.
        head_path: path of the convolution of one voxel that gives the logits, where it is the very last layer of one of
            medkd's own networks; empty where more follows or the last layer is another.
        remember: whether a forward pass keeps what :meth:`forward_from` needs (skip features, until the next forward
            pass); off by default, since they take memory and stand in the way of exporters.
    """

    citation: ClassVar[str] = ""
    head_path = ""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.taps: tuple[Tap, ...] = ()
        self.deep_supervision = False
        self.deep_supervision_strides: tuple[tuple[int, ...], ...] = ()
        self.auxiliary_weight: float | None = None
        self.encoder_path = ""
        self.encoder_name = ""
        self.remember = False

    @property
    def rank(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return len(self.spec.patch_size)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits, or in training mode with deep supervision a list of them."""
        raise NotImplementedError

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """Run the rest of the network from a tap, with everything else as in the last ordinary forward pass.

        That pass must have run with :attr:`remember` set.

        Args:
            tap: name of a tap, usually of the decoder.
            feature: what takes the place of the tapped feature map, of the same shape.

        Returns:
            Logits ``(B, K, *spatial)``, full resolution only.

        Raises:
            RunError: the network does not offer this for this tap, or no forward pass was remembered.
        """
        raise RunError(
            f"Network '{self.spec.name}' cannot continue from its tap '{tap}'; choose a method that does not need it."
        )


@dataclass(frozen=True, kw_only=True)
class NetworkEntry:
    """A registered network.

    Attributes:
        build: constructor.
        citation: authors, venue, year, arXiv id or DOI.
        planned: whether it takes its shape from the plan (and understands ``width_divisor``).
        ranks: spatial dimensions it exists in.
        divisor: every axis of the patch must be a multiple of this (planned networks: the plan sees to it).
        deep_supervision: whether it can be trained at several resolutions at once, as its paper does; training then
            asks for it.
    """

    build: Callable[[NetworkSpec], SegmentationNetwork]
    citation: str
    planned: bool = False
    ranks: tuple[int, ...] = (2, 3)
    divisor: int = 1
    deep_supervision: bool = False


NETWORKS: Registry[NetworkEntry] = Registry("network", RunError, "medkd.networks")


def build_network(spec: NetworkSpec) -> SegmentationNetwork:
    """Build a network from its specification, randomly initialised from torch's global generator.

    Raises:
        RunError: the name is unknown, the network does not exist in this rank, needs a planned architecture that is
            missing, does not understand ``width_divisor`` or deep supervision, or the patch is not a multiple of its
            divisor or leaves a single voxel where a norm needs several.
    """
    from medkd.networks.smallest import check_patch

    entry = NETWORKS[spec.name]
    _check_kind(spec, entry)
    if any(p % entry.divisor for p in spec.patch_size):
        raise RunError(
            f"'{spec.name}' needs patch axes that are multiples of {entry.divisor}, found {spec.patch_size}; change "
            "--patch-size."
        )
    network = entry.build(spec)
    check_patch(network, entry.build)
    return network


def _check_kind(spec: NetworkSpec, entry: NetworkEntry) -> None:
    """Refuse what this kind of network does not have."""
    rank = len(spec.patch_size)
    if rank not in entry.ranks:
        ranks = "/".join(f"{r}D" for r in entry.ranks)
        raise RunError(f"Network '{spec.name}' exists in {ranks} only, the configuration is {rank}D.")
    if entry.planned and spec.architecture is None:
        raise RunError(
            f"Network '{spec.name}' takes its shape from the plan, but the plan has no architecture for it; plan again."
        )
    if spec.width_divisor != 1 and not entry.planned:
        raise RunError(f"--width-divisor works for planned networks only, not for '{spec.name}'.")
    if spec.deep_supervision and not entry.deep_supervision:
        raise RunError(
            f"Network '{spec.name}' has no deep supervision, but its specification asks for it; set deep_supervision "
            "to false."
        )


def fit_patch(name: str, patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest patch that holds ``patch_size`` and that the network accepts.

    >>> import medkd.networks
    >>> fit_patch("unet_tiny", (41, 56, 40))
    (48, 56, 40)
    """
    divisor = NETWORKS[name].divisor
    return tuple(-(-p // divisor) * divisor for p in patch_size)
