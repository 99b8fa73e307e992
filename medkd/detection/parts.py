"""A batch of which several processes have a part each: what all of them know of it, see :mod:`medkd.training.ranks`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medkd.core.errors import RunError
from medkd.detection.base import Detector, DetectorOutputs
from medkd.training.ranks import Ranks, current

_OF_IMAGES = ("boxes", "first_boxes", "distribution", "centerness", "objectness")


def check_shared(detector: Detector, distiller: Any) -> None:
    """See that a detector can be trained, and taught, by as many processes as there are.

    Raises:
        RunError: there are several, and it cannot.
    """
    count = current().count
    if count > 1 and not detector.can_be_shared():
        raise RunError(
            f"{detector.spec.name} has no loss of a batch of which several processes have a part each "
            f"(Detector.supervised), but {count} were started; start the command without torchrun."
        )
    if count > 1 and distiller is not None and getattr(distiller.method, "builtin", False):
        raise RunError(
            f"'ultralytics' is ultralytics' own distillation, which works in one process, but {count} were started; "
            "start the command without torchrun, or choose another method."
        )


def whole_annotations(
    boxes: Sequence[Tensor], classes: Sequence[Tensor], ranks: Ranks
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Boxes and classes of all images of a batch, from those of this process' images."""
    if ranks.alone:
        return tuple(boxes), tuple(classes)
    rows = [torch.cat([b.double(), c.double()[:, None]], 1) for b, c in zip(boxes, classes, strict=True)]
    every = ranks.gathered_lists(rows)
    return tuple(one[:, :4].to(boxes[0].dtype) for one in every), tuple(one[:, 4].to(classes[0].dtype) for one in every)


def whole_outputs(outputs: DetectorOutputs, ranks: Ranks) -> DetectorOutputs:
    """The outputs of a dense head on all images of a batch; features stay those of this process' images."""
    if ranks.alone:
        return outputs
    return replace(outputs, logits=ranks.gathered(outputs.logits), **_of_images(outputs, ranks))


def whole_scores(outputs: DetectorOutputs, proposals: Sequence[Tensor], ranks: Ranks) -> DetectorOutputs:
    """The same of a two-stage detector.

    Args:
        outputs: of this process' images.
        proposals: of all images, in the order of the processes.
        ranks: the processes.
    """
    if ranks.alone:
        return outputs
    size = len(proposals) // ranks.count
    counts = [sum(map(len, proposals[rank * size : (rank + 1) * size])) for rank in range(ranks.count)]
    return replace(
        outputs,
        logits=ranks.gathered_rows(outputs.logits, counts),
        deltas=None if outputs.deltas is None else ranks.gathered_rows(outputs.deltas, counts),
        proposals=tuple(one.detach() for one in proposals),
        **_of_images(outputs, ranks),
    )


def whole_features(outputs: DetectorOutputs, names: Iterable[str], ranks: Ranks) -> DetectorOutputs:
    """Outputs with these features of all images of a batch, and no others."""
    if ranks.alone:
        return outputs
    return replace(outputs, features={name: ranks.gathered(outputs.features[name]) for name in names})


def _of_images(outputs: DetectorOutputs, ranks: Ranks) -> dict[str, Any]:
    """What outputs hold of every image, of all images."""
    found = {name: getattr(outputs, name) for name in _OF_IMAGES}
    return {name: ranks.gathered(value) for name, value in found.items() if value is not None}
