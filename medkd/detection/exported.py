"""Exported detectors as models: the engine finds the boxes, without ultralytics' or torchvision's networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from medkd.io.radiographs import checked_scaling
from medkd.models.base import Checkpoint
from medkd.runtime.detection import DESCRIPTION, ExportedDetector, check_detector, is_exported_detector, read_detector
from medkd.runtime.engines import open_engine
from medkd.runtime.predictor import refuse_settled

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
        self.spec = DetectorSpec(name, described.categories, described.image_size, sides=described.sides)
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
        found: list[Detections] = []
        for boxes, scores, selected in self._in_turns(images):
            for index in range(len(boxes)):
                triples = selected[selected[:, 0] == index, 1:]
                if not self._is_enough(score, overlap, most):
                    triples = suppress(boxes[index], scores[index], score, overlap or self.overlap, most)
                found.append(self._chosen(boxes[index], scores[index], triples, score, most))
        return [Detections(*(part.to(images.device) for part in vars(one).values())) for one in found]

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`medkd.detection.base.Detector.candidates`; every box of the graph, whatever its score."""
        boxes, scores, _ = (np.concatenate(part) for part in zip(*self._in_turns(images), strict=True))
        return torch.from_numpy(boxes).to(images.device), torch.from_numpy(scores).to(images.device)

    def _in_turns(self, images: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The graph's outputs, for as many images at a time as it takes."""
        count = 1 if self._described.single else len(images)
        for start in range(0, len(images), count):
            yield self._outputs(images[start : start + count].cpu().numpy())

    def _outputs(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes ``(B, A, 4)``, scores ``(B, K, A)`` and what is selected ``(n, 3)``, if they are what is promised."""
        try:
            outputs = [np.asarray(value) for value in self._run(batch)]
        except MemoryError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"The exported network cannot compute images of {self.spec.image_size} pixels ({reason:.200}), so it "
                f"is not the one that {DESCRIPTION} describes; export the detector again."
            ) from error
        _check_shapes([value.shape for value in outputs], len(batch), len(self.spec.categories))
        boxes, scores, selected = outputs
        _check_values(boxes, scores, selected)
        return boxes, scores, selected

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


def _check_shapes(shapes: Sequence[tuple[int, ...]], images: int, classes: int) -> None:
    """Refuse outputs that are not boxes, scores and what is selected of them."""
    count = shapes[0][1] if shapes and len(shapes[0]) == 3 else 0
    if len(shapes) != 3 or list(shapes[:2]) != [(images, count, 4), (images, classes, count)] or shapes[2][1:] != (3,):
        raise RunError(
            f"The exported network gives outputs of the shapes {shapes}, expected boxes (B, A, 4), scores (B, "
            f"{classes}, A) and selected (n, 3); export the detector again."
        )


def _check_values(boxes: np.ndarray, scores: np.ndarray, selected: np.ndarray) -> None:
    """Refuse what no export computes, before it is taken for boxes or for places of boxes."""
    if boxes.dtype.kind != "f" or scores.dtype.kind != "f" or selected.dtype.kind != "i":
        kinds = ", ".join(str(value.dtype) for value in (boxes, scores, selected))
        raise RunError(
            f"The exported network gives values of the types {kinds}, expected boxes and scores as floats and selected "
            "as integers; export the detector again."
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise RunError("The exported network gives values that are not finite; export the detector again.")
    if len(selected) and ((selected < 0).any() or (selected.max(0) >= (*scores.shape[:2], boxes.shape[1])).any()):
        raise RunError("The exported network selects boxes that it does not give; export the detector again.")


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

    def place(self, device: torch.device | str | None) -> torch.device:
        """The CPU, on which the engine computes.

        Raises:
            RunError: another one is asked for.
        """
        refuse_settled(self.path, {"device": None if device is None or str(device) == "cpu" else device})
        return torch.device("cpu")

    def weights_file(self, fold: str) -> Path:
        """The network's file."""
        return check_detector(self.path, read_detector(self.path))

    def _describe(self) -> TrainedDetector:
        described = read_detector(self.path)
        name = str(described.made_from.get("detector", FOLD))
        spec = DetectorSpec(name, described.categories, described.image_size, sides=described.sides)
        scaling = checked_scaling(described.scaling, str(self.path / DESCRIPTION))
        return TrainedDetector(folds=(FOLD,), spec=spec, scaling=scaling)

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedDetector:
        if checkpoint != "final" or [str(fold) for fold in folds or [FOLD]] != [FOLD]:
            raise RunError(
                f"{self.path} is {self.title}, whose fold and checkpoint were chosen at export; leave them out."
            )
        network: Any = EngineDetector(read_detector(self.path), self.weights_file(FOLD))
        return replace(self.describe(), networks=[network.eval()])
