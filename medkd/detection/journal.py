"""Detections as they come, one line per image, so that killed work can be continued."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.evaluation.detection.predictions import (
    PREDICTIONS_FILE,
    DetectionPredictions,
    ImagePredictions,
    image_from_json,
    image_json,
)

JOURNAL_FILE = "predictions.jsonl"


class Journal:
    """Collects the detections of a folder: ``predictions.jsonl`` while it is worked on, ``predictions.json`` at the
    end.

    Args:
        folder: where the files lie.
        categories: names of the classes.
        settings: what the detections are made with; a journal of other settings is not continued.
        resume: continue what is there, else start anew.
    """

    def __init__(self, folder: Path, categories: Sequence[str], settings: dict[str, Any], *, resume: bool) -> None:
        self.folder, self.categories = Path(folder), tuple(categories)
        self.path = self.folder / JOURNAL_FILE
        self._head = json.dumps({"categories": list(categories), "settings": settings})
        self.images: dict[str, ImagePredictions] = self._read() if resume else {}
        lines = [self._head, *(self._line(case, image) for case, image in self.images.items())]
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def add(self, case: str, image: ImagePredictions) -> None:
        """Note the detections of an image; they are on disk when this returns.

        Raises:
            DataError: the disk is full or read-only.
        """
        self.images[case] = image
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(case, image) + "\n")
        except OSError as error:
            raise DataError(
                f"Writing {self.path} failed: {error.strerror or error}; make room and use --continue."
            ) from error

    def adopt(self, predictions: DetectionPredictions) -> None:
        """Take finished predictions over; what the journal holds already is newer and stays."""
        self.images = {**predictions.images, **self.images}

    def drop(self, cases: Iterable[str]) -> None:
        """Forget what was found in some images."""
        for case in cases:
            self.images.pop(case, None)

    def finish(self, keep: Sequence[str] | None = None) -> DetectionPredictions:
        """Write ``predictions.json`` and COCO's files of these cases, as far as they were predicted, and remove the
        journal; None keeps all.
        """
        kept = self.images if keep is None else {case: self.images[case] for case in keep if case in self.images}
        found = DetectionPredictions(self.categories, dict(sorted(kept.items())))
        found.save(self.folder)
        self.path.unlink(missing_ok=True)
        return found

    def _line(self, case: str, image: ImagePredictions) -> str:
        return json.dumps({"case": case, **image_json(image, self.categories)})

    def _read(self) -> dict[str, ImagePredictions]:
        """The whole lines of a journal that was made with the same settings; the last one may have been cut by a
        kill.
        """
        found: dict[str, ImagePredictions] = {}
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        for line in lines[1:] if lines and lines[0] == self._head else []:
            try:
                entry = json.loads(line)
                found[entry["case"]] = image_from_json(entry, self.categories, str(self.path))
            except (ValueError, KeyError, TypeError, DataError):
                break
        return found


def finished(folder: Path) -> DetectionPredictions | None:
    """The predictions that a folder holds already, or None."""
    return DetectionPredictions.load(folder) if (Path(folder) / PREDICTIONS_FILE).exists() else None
