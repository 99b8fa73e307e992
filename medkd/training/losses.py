"""The supervised loss: soft Dice plus cross-entropy, with deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMOOTH = 1e-5  # nnU-Net's


def soft_dice_loss(
    probabilities: Tensor, target: Tensor, valid: Tensor | None = None, *, batch: bool = False
) -> Tensor:
    """One minus the mean soft Dice.

    ``dice = (2 Σ p·t + s) / (Σ p + Σ t + s)`` per sample and channel, or per channel over the whole batch.

    Args:
        probabilities: ``(B, K, *spatial)``.
        target: one-hot or multi-hot, same shape.
        valid: mask of annotated voxels ``(B, 1, *spatial)``, or None.
        batch: sum over the batch before dividing (nnU-Net's ``batch_dice``).

    References:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv 1606.04797; Drozdzal et al., DLMIA 2016, arXiv 1608.04117.
    """
    if valid is not None:
        probabilities, target = probabilities * valid, target * valid
    axes = [0, *range(2, probabilities.ndim)] if batch else list(range(2, probabilities.ndim))
    overlap = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    return 1 - ((2 * overlap + _SMOOTH) / (total + _SMOOTH).clamp(min=1e-8)).mean()


class SegmentationLoss(nn.Module):
    """Dice + cross-entropy for classes, Dice + binary cross-entropy for regions; all terms in float32.

    Of a network with an auxiliary head, the main output weighs 1 and the other ``auxiliary``.

    Dice leaves out the background of plain labels unless asked for it. With deep supervision, resolution ``i`` weighs
    ``1 / 2^i``, the coarsest nothing, and the weights sum to one; targets are brought to each resolution by nearest
    neighbour.

    Args:
        regions: sigmoid regions instead of softmax classes.
        batch_dice: see :func:`soft_dice_loss`.
        background: Dice includes the background of plain labels.
        cross_entropy: add the cross-entropy; otherwise Dice alone.
        auxiliary: weight of an auxiliary head's output; None where outputs are resolutions.

    References:
        Isensee et al., nnU-Net, Nature Methods 18, 2021, doi 10.1038/s41592-020-01008-z.
    """

    def __init__(
        self,
        *,
        regions: bool,
        batch_dice: bool,
        background: bool = False,
        cross_entropy: bool = True,
        auxiliary: float | None = None,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.batch_dice = batch_dice
        self.background = background
        self.cross_entropy = cross_entropy
        self.auxiliary = auxiliary

    def forward(
        self, logits: Tensor | Sequence[Tensor], target: Tensor, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms ``dice`` and, where asked for, ``ce``.

        Args:
            logits: ``(B, K, *spatial)``, or a list with the full resolution first.
            target: as :meth:`medkd.core.labels.LabelSpec.encode` gives it.
            valid: mask of annotated voxels, or None.
        """
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = scale_weights(len(scales), self.auxiliary)
        total: dict[str, Tensor] = {}
        for weight, scale in zip(weights, scales, strict=True):
            if weight == 0:
                continue
            size = scale.shape[2:]
            terms = self._terms(scale.float(), _nearest(target, size), None if valid is None else _nearest(valid, size))
            for name, term in terms.items():
                total[name] = total.get(name, 0.0) + weight * term
        return total

    def _terms(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        if self.regions:
            voxelwise = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1, keepdim=True)
            probabilities = torch.sigmoid(logits)
        else:
            voxelwise = F.cross_entropy(logits, target[:, 0], reduction="none")[:, None]
            first = 0 if self.background else 1
            probabilities = torch.softmax(logits, 1)[:, first:]
            classes = torch.arange(first, logits.shape[1], device=target.device).view(1, -1, *[1] * (target.ndim - 2))
            target = (target == classes).to(logits.dtype)
        dice = {"dice": soft_dice_loss(probabilities, target, valid, batch=self.batch_dice)}
        if not self.cross_entropy:
            return dice
        return dice | {
            "ce": voxelwise.mean() if valid is None else (voxelwise * valid).sum() / valid.sum().clamp(min=1)
        }


def scale_weights(scales: int, auxiliary: float | None = None) -> list[float]:
    """Weight of each resolution: ``1 / 2^i``, the coarsest 0 where there are several, summing to 1.

    With an auxiliary head the first output weighs 1 and every other as given.

    >>> scale_weights(2), scale_weights(2, 0.5)
    ([1.0, 0.0], [1.0, 0.5])
    """
    if auxiliary is not None:
        return [1.0] + [auxiliary] * (scales - 1)
    raw = [0.5**i for i in range(scales)]
    if scales > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


def _nearest(target: Tensor, size: torch.Size) -> Tensor:
    if target.shape[2:] == size:
        return target
    resized = F.interpolate(target.float(), size=tuple(size), mode="nearest-exact")
    return resized > 0.5 if target.dtype == torch.bool else resized.to(target.dtype)
