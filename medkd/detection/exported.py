"""Exported detectors as models: the engine finds the boxes, without ultralytics' or torchvision's networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from medkd.core.errors import RunError
from medkd.detection.base import Detections, Detector, DetectorSpec
from medkd.detection.models import DetectorFolder, TrainedDetector
from medkd.evaluation.detection.matching import overlaps
from medkd.models.base import Checkpoint
from medkd.runtime.detection import ExportedDetector, check_detector, is_exported_detector, read_detector
from medkd.runtime.engines import open_engine

FOLD = "exported"
"""Name of the one detector of an export."""


class EngineDetector(Detector):
    """A detector in ONNX Runtime; it finds boxes and cannot teach.

    Args:
        described: what the network takes and gives.
        network: its file.
    """

    family = "torchvision"
    taps = ()

    def __init__(self, described: ExportedDetector, network: Path) -> None:
        super().__init__()
        name = str(described.made_from.get("detector", FOLD))
        self.spec = DetectorSpec(name, described.categories, described.image_size, limits=described.limits)
        self._described = described
        self._run = open_engine(network, "onnxruntime", every=True)
        self.overlap = 1.0 if described.overlap is None else described.overlap  # type: ignore[misc]
        digest = np.frombuffer(bytes.fromhex(described.digest), np.uint8)
        self.register_buffer("digest", torch.from_numpy(digest.copy()))  # predictions are known by their weights

    @property
    def end_to_end(self) -> bool:
        """See :attr:`medkd.detection.base.Detector.end_to_end`."""
        return self._described.overlap is None

    def detect(
        self, images: Tensor, score: float = 0.001, overlap: float | None = None, most: int = 300
    ) -> list[Detections]:
        """See :meth:`medkd.detection.base.Detector.detect`.

        The graph's own suppression is used where it keeps enough; another overlap is applied to all its boxes here.
        """
        count = 1 if self._described.single else len(images)
        found: list[Detections] = []
        for start in range(0, len(images), count):
            batch = images[start : start + count].cpu().numpy()
            boxes, scores, selected = self._outputs(batch)
            for index in range(len(batch)):
                triples = selected[selected[:, 0] == index, 1:]
                if not self._is_enough(score, overlap, most):
                    triples = suppress(boxes[index], scores[index], score, overlap or self.overlap, most)
                found.append(self._chosen(boxes[index], scores[index], triples, score, most))
        return [Detections(*(part.to(images.device) for part in vars(one).values())) for one in found]

    def _outputs(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs = self._run(batch)
        shapes = [np.shape(value) for value in outputs]
        classes = len(self.spec.categories)
        sound = (
            len(shapes) == 3 and len(shapes[0]) == 3 and shapes[0][2] == 4 and shapes[1][1:] == (classes, shapes[0][1])
        )
        if not sound or shapes[2][1:] != (3,):
            raise RunError(
                f"The exported network gives outputs of the shapes {shapes}, expected boxes (B, A, 4), scores (B, "
                f"{classes}, A) and selected (n, 3); export the detector again."
            )
        return outputs[0], outputs[1], outputs[2]

    def _is_enough(self, score: float, overlap: float | None, most: int) -> bool:
        """Whether the graph selects all that is asked for."""
        own = self._described
        same = self.end_to_end or overlap is None or overlap == own.overlap
        return same and score >= own.score and most <= own.most

    def _chosen(self, boxes: np.ndarray, scores: np.ndarray, pairs: np.ndarray, score: float, most: int) -> Detections:
        kinds, places = pairs[:, 0], pairs[:, 1]
        values = scores[kinds, places]
        order = np.argsort(-values, kind="stable")
        order = order[values[order] > score][:most]
        inside = boxes[places[order]].clip(0, self.spec.image_size)
        return Detections(*(torch.from_numpy(part) for part in (inside, values[order], kinds[order].astype(np.int64))))


def suppress(boxes: np.ndarray, scores: np.ndarray, score: float, overlap: float, most: int) -> np.ndarray:
    """Non-maximum suppression per class: ``(n, 2)`` class and box of what is kept.

    Args:
        boxes: ``(A, 4)``.
        scores: ``(K, A)``.
        score: lowest score.
        overlap: intersection over union above which the weaker box is dropped.
        most: boxes of a class.
    """
    kept: list[tuple[int, int]] = []
    for kind, values in enumerate(scores):
        order = np.flatnonzero(values > score)
        order = order[np.argsort(-values[order], kind="stable")]
        count = 0
        while len(order) and count < most:
            best, order = order[0], order[1:]
            kept.append((kind, int(best)))
            count += 1
            if len(order):
                order = order[overlaps(boxes[best][None], boxes[order])[0] <= overlap]
    return np.array(kept, np.int64).reshape(-1, 2)


class ExportedDetectorFolder(DetectorFolder):
    """A folder that ``medkd_export`` made of a detector."""

    kind = "exported_detector"
    title = "an exported detector"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a ``detection.json``."""
        return is_exported_detector(path)

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The one detector."""
        return (FOLD,) if checkpoint == "final" else ()

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> NoReturn:
        """An exported detector gives boxes, from which nothing is learnt.

        Raises:
            RunError: always.
        """
        raise RunError(
            f"{self.path} is {self.title}, which gives boxes and no outputs to learn from; teach with the model that "
            "it was made from."
        )

    def weights_file(self, fold: str) -> Path:
        """The network's file."""
        return check_detector(self.path, read_detector(self.path))

    def _describe(self) -> TrainedDetector:
        described = read_detector(self.path)
        name = str(described.made_from.get("detector", FOLD))
        spec = DetectorSpec(name, described.categories, described.image_size, limits=described.limits)
        return TrainedDetector(folds=(FOLD,), spec=spec)

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedDetector:
        if checkpoint != "final" or [str(fold) for fold in folds or [FOLD]] != [FOLD]:
            raise RunError(
                f"{self.path} is {self.title}, whose fold and checkpoint were chosen at export; leave them out."
            )
        network: Any = EngineDetector(read_detector(self.path), self.weights_file(FOLD))
        return replace(self.describe(), networks=[network.eval()])
