"""ultralytics' validation after every epoch, where images have boxes that are to be ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from medkd.detection.store import DetectionStore
from medkd.detection.yolo.library import DetectionValidator
from medkd.evaluation.detection.metrics import average_precision
from medkd.evaluation.detection.predictions import Boxes

AP, AP50 = "metrics/mAP50-95(B)", "metrics/mAP50(B)"
_FITNESS = "fitness"


class StoreValidator(DetectionValidator):
    """ultralytics' validator, which knows of no crowds: where a validation image has some, COCO's average precision
    takes the place of its own, and decides which epoch is the best.
    """

    _found: list[Boxes]
    _drawn: list[Boxes]

    def init_metrics(self, model: Any) -> None:
        """See ultralytics."""
        super().init_metrics(model)
        self._found, self._drawn = [], []
        self._store = DetectionStore(self.dataloader.dataset.store)

    def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        """See ultralytics."""
        for place, found in enumerate(preds):
            image = self._prepare_batch(place, batch)
            scaled = self.scale_preds(found, image)  # to pixels of the stored image
            self._found.append(Boxes.of(scaled["bboxes"], scaled["cls"], scaled["conf"]))
            self._drawn.append(self._store.drawn(Path(image["im_file"]).stem))
        super().update_metrics(preds, batch)

    def get_stats(self) -> dict[str, Any]:
        """See ultralytics."""
        stats: dict[str, Any] = super().get_stats()
        if all(drawn.ignored is None for drawn in self._drawn):
            return stats
        scores = average_precision(self._found, self._drawn, self._store.categories)
        if scores["AP"] == scores["AP"]:  # no NaN: there is a box
            stats |= {AP: scores["AP"], AP50: scores["AP50"], _FITNESS: scores["AP"]}
        return stats
