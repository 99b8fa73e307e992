"""Targets in ultralytics' form and in medkd's, and ultralytics' own losses with the labels that they assigned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medkd.detection.parts import whole_annotations
from medkd.training.ranks import Ranks

Seen = tuple[dict[str, Any], dict[str, Tensor]]
"""What a head gives in training, in ultralytics' form, and the features of necks and towers by tap."""


def to_batch(images: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> dict[str, Tensor]:
    """Per-image boxes ``(n, 4)`` in pixels and classes ``(n,)`` as ultralytics batches them: centres and sizes as
    shares of the image.
    """
    height, width = images.shape[-2:]
    every = torch.cat([b.reshape(-1, 4) for b in boxes]).to(images.device, torch.float32)
    scale = every.new_tensor([width, height, width, height])
    centres = torch.cat([(every[:, :2] + every[:, 2:]) / 2, every[:, 2:] - every[:, :2]], 1) / scale
    counts = torch.tensor([len(b) for b in boxes])
    return {
        "img": images,
        "batch_idx": torch.arange(len(boxes)).repeat_interleave(counts).to(images.device, torch.float32),
        "cls": torch.cat([c.reshape(-1, 1) for c in classes]).to(images.device, torch.float32),
        "bboxes": centres,
    }


def from_batch(batch: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per-image boxes in pixels and classes of a batch of ultralytics; the inverse of :func:`to_batch`."""
    height, width = batch["img"].shape[-2:]
    centres = batch["bboxes"]
    half = centres[:, 2:] / 2
    boxes = torch.cat([centres[:, :2] - half, centres[:, :2] + half], 1) * centres.new_tensor(
        [width, height, width, height]
    )
    places = [batch["batch_idx"] == index for index in range(len(batch["img"]))]
    classes = batch["cls"].view(-1).long()
    return tuple(boxes[p] for p in places), tuple(classes[p] for p in places)


def whole_batch(batch: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A batch with the annotations of all processes' images in the place of this process'; of its images only their
    number and size mean something.
    """
    if ranks.alone:
        return batch
    boxes, classes = whole_annotations(*from_batch(batch), ranks)
    return {**batch, **to_batch(batch["img"][:1].expand(len(boxes), -1, -1, -1), boxes, classes)}


def whole_seen(seen: Seen, ranks: Ranks) -> Seen:
    """What the head gives of all processes' images; features stay those of this process' images."""
    return (seen[0] if ranks.alone else _whole(seen[0], ranks)), seen[1]


def _whole(raw: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    found = dict(raw)
    for name, value in raw.items():
        if isinstance(value, dict):
            found[name] = _whole(value, ranks)
        elif isinstance(value, Tensor):  # the list of maps tells the cells, no more
            found[name] = ranks.gathered(value)
    return found


def loss_terms(criterion: Any, raw: dict[str, Any], batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The loss terms of ``v8DetectionLoss`` or ``E2ELoss`` as means over the batch, and the labels that were assigned.

    Args:
        criterion: of the network.
        raw: what its head returns in training.
        batch: in ultralytics' form.

    Returns:
        Name → weighted scalar (an end-to-end head's two losses are summed with its weights); labels ``(B, 1, A)`` of
        the (one-to-many) task-aligned assignment, −1 for background.
    """
    many = getattr(criterion, "one2many", criterion)
    (foreground, chosen, *_), loss, _ = many.get_assigned_targets_and_loss(raw.get("one2many", raw), batch)
    if many is not criterion:
        other = criterion.one2one.get_assigned_targets_and_loss(raw["one2one"], batch)[1]
        loss = loss * criterion.o2m + other * criterion.o2o
    terms = dict(zip(many.loss_names, loss.unbind(), strict=True))
    return terms, _labels(foreground, chosen, from_batch(batch)[1])


def _labels(foreground: Tensor, chosen: Tensor, classes: Sequence[Tensor]) -> Tensor:
    """Class of the box that each anchor was given, from its place ``chosen`` ``(B, A)`` among its image's boxes."""
    padded = torch.nn.utils.rnn.pad_sequence([*classes], batch_first=True, padding_value=-1)
    if padded.shape[1] == 0:
        return foreground.new_full(foreground.shape, -1, dtype=torch.int64)[:, None]
    labels = padded.gather(1, chosen.long().clamp(0, padded.shape[1] - 1))
    return labels.masked_fill(~foreground.bool(), -1)[:, None]
