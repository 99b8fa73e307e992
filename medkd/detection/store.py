"""Radiographs and boxes, ready for training: 8-bit PNGs, no larger than the plan needs, and their boxes in two forms.

``<folder>/images/CASE.png`` and ``<folder>/labels/CASE.txt`` are what ultralytics reads; ``<folder>/cases.json`` says
the same for everybody else, and what the raw images were.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.core.serial import from_data, load, save
from medkd.detection.stored import StoredCase, StoreIndex
from medkd.evaluation.detection.predictions import Boxes
from medkd.io.radiographs import Scaling, read_radiograph, to_eight_bit, write_png
from medkd.io.verify_detection import pixel_digest

INDEX_FILE = "cases.json"
JOURNAL_FILE = "cases.jsonl"


class DetectionStore:
    """Reads stored cases; the index is read once.

    Args:
        folder: ``<root>/preprocessed/DATASET/detection``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def index(self) -> StoreIndex:
        """What the store holds.

        Raises:
            DataError: there is no index, it is damaged, or pictures may be other ones by now than it says.
        """
        path, command = self.folder / INDEX_FILE, f"run medkd_plan_and_preprocess -d {self.folder.parent.name}"
        if not path.exists():
            raise DataError(f"{self.folder} holds no preprocessed radiographs ({INDEX_FILE} is missing); {command}.")
        if (self.folder / JOURNAL_FILE).exists():
            raise DataError(
                f"{self.folder} holds radiographs of two preparations, since the last one is not finished "
                f"({JOURNAL_FILE} is there); {command}, which goes on with it."
            )
        index = load(StoreIndex, path)
        for case, entry in index.cases.items():
            entry.check(len(index.categories), f"{path}: {case}")
        return index

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return self.index.categories

    def cases(self) -> list[str]:
        """The ids of the annotated cases, sorted."""
        return sorted(case for case, entry in self.index.cases.items() if entry.annotated)

    def unlabelled(self) -> list[str]:
        """The ids of the images without annotation, sorted."""
        return sorted(case for case, entry in self.index.cases.items() if not entry.annotated)

    def entry(self, case: str) -> StoredCase:
        """What the index says of a case.

        Raises:
            DataError: the case is not stored.
        """
        if case not in self.index.cases:
            raise DataError(f"{self.folder} does not hold the case '{case}'; run medkd_plan_and_preprocess again.")
        return self.index.cases[case]

    def image_path(self, case: str) -> Path:
        """The PNG of a case; grey images have one channel."""
        return self.folder / "images" / f"{case}.png"

    def label_path(self, case: str) -> Path:
        """The YOLO text file of a case: ``class cx cy w h`` per line, as shares of the image; empty for a negative."""
        return self.folder / "labels" / f"{case}.txt"

    def image(self, case: str) -> np.ndarray:
        """The image ``(H, W, 3)`` uint8, red, green, blue.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self.image_path(case)
        try:
            with Image.open(path) as image:
                return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"Cannot read the stored image {path} ({error}); delete it and run medkd_plan_and_preprocess again."
            ) from error

    def boxes(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(n, 4)`` float32 as left, top, right, bottom in pixels of the stored image, and their classes
        ``(n,)`` int64.
        """
        entry = self.entry(case)
        return np.array(entry.boxes, np.float32).reshape(-1, 4), np.array(entry.classes, np.int64)

    def drawn(self, case: str) -> Boxes:
        """Boxes and crowds in pixels of the stored image, to judge what is found there."""
        entry = self.entry(case)
        boxes = Boxes.of(entry.boxes, entry.classes)
        return replace(boxes, ignored=Boxes.of(entry.ignored, entry.ignored_classes)) if entry.ignored else boxes

    def names(self, case: str) -> tuple[str, ...]:
        """The category of each box."""
        return tuple(self.categories[i] for i in self.entry(case).classes)

    def annotations(self) -> dict[str, tuple[str, ...]]:
        """Case → category of each of its boxes, of all cases; see :func:`medkd.detection.sampling.draw_epoch`."""
        return {case: self.names(case) for case in self.cases()}

    def shown(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Those of some annotated cases that a training shows: images with boxes, and negatives. One with nothing but
        crowds is neither: all that it shows would be learnt as background.
        """
        return tuple(case for case in cases if self.entry(case).boxes or not self.entry(case).ignored)

    def size(self, case: str) -> tuple[int, int]:
        """(width, height) of the stored image in pixels."""
        entry = self.entry(case)
        return entry.width, entry.height

    def original_size(self, case: str) -> tuple[int, int]:
        """(width, height) of the raw image in pixels."""
        entry = self.entry(case)
        return entry.original_width, entry.original_height


class DetectionStoreWriter:
    """Writes cases, one by one or from several threads; what was written before a kill is not written again.

    Every finished case is a line of ``cases.jsonl``; :meth:`finish` makes ``cases.json`` of them. As long as the former
    is there, pictures may differ from what the latter says, and nobody reads the store.

    Args:
        folder: of the store.
        categories: names of the classes; cases stored with other ones are made anew.
        image_size: longer images are stored with this long side in pixels.
        scaling: of images with more than 8 bits.
    """

    def __init__(
        self, folder: Path, categories: Sequence[str], image_size: int, scaling: Scaling = "percentile"
    ) -> None:
        self.store = DetectionStore(folder)
        self.categories = tuple(categories)
        self.image_size = image_size
        self.scaling: Scaling = scaling
        self._journal = self.store.folder / JOURNAL_FILE
        self._lock = threading.Lock()
        self._begun = False
        journal = self._read_journal()
        self._keeps_index = journal is not None
        self._journalled = journal or {}
        self._known = self._read_index() | self._journalled if self._keeps_index else {}

    def is_current(self, case: str, source: str, size: tuple[int, int], crowds: int = 0) -> bool:
        """Whether a case is stored, made of these raw files, in the size (width, height) that a raw image of ``size``
        should have, with so many crowds, of which stores of older versions know none.
        """
        entry = self._known.get(case)
        if entry is None or entry.source != source or len(entry.ignored) != crowds:
            return False
        if entry.scaling not in ("", self.scaling):
            return False
        if (entry.width, entry.height) != stored_size(size, self.image_size):
            return False
        return self.store.image_path(case).exists() and self.store.label_path(case).exists()

    def known(self, case: str) -> StoredCase | None:
        """A case as it was stored last."""
        return self._known.get(case)

    def is_compared(self, case: str) -> bool:
        """Whether a stored case says what its pixels are, so that equal images can be told."""
        entry = self._known.get(case)
        return entry is not None and bool(entry.pixels)

    def write(self, case: str, image: Path, annotation: BoxAnnotation | None, source: str) -> None:
        """Store one case.

        Args:
            case: its id.
            image: raw radiograph.
            annotation: its boxes, in pixels of the raw image; None where nobody has drawn any.
            source: what the raw files are, to see later whether they changed.

        Raises:
            DataError: the image cannot be read, or has another size than the annotation says.
        """
        radiograph = read_radiograph(image)
        drawn = annotation or BoxAnnotation(width=radiograph.size[0], height=radiograph.size[1])
        if radiograph.size != (drawn.width, drawn.height):
            found = f"{radiograph.size[0]}×{radiograph.size[1]}"
            raise DataError(f"{image}: expected {drawn.width}×{drawn.height} px as in its annotation, found {found}.")
        pixels = _grey_if_grey(to_eight_bit(radiograph.pixels, self.scaling)[0])
        digest = pixel_digest(pixels)
        size = stored_size(radiograph.size, self.image_size)
        if size != radiograph.size:
            pixels = np.asarray(
                Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
            )  # the mean over the area of each new pixel
        entry = _entry(drawn, size, self.categories, source)
        scaling = "" if radiograph.pixels.dtype == np.uint8 else self.scaling
        entry = replace(entry, annotated=annotation is not None, scaling=scaling, pixels=digest)
        self._begin()
        self.store.label_path(case).unlink(missing_ok=True)  # a case without it, its last file, is not stored
        write_png(self.store.image_path(case), pixels)
        with self._lock:
            self._known[case] = entry
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(_journal_line(case, entry))
        write_text(self.store.label_path(case), _yolo_lines(entry))

    def finish(self, cases: Sequence[str]) -> DetectionStore:
        """Write the index of these cases and remove all others; returns the store.

        Raises:
            DataError: one of the cases was never written.
        """
        missing = sorted(set(cases) - set(self._known))
        if missing:
            raise DataError(
                f"{self.store.folder}: {len(missing)} cases were not stored, for example {missing[0]}; run the command "
                "again."
            )
        others = sorted(set(self._known) - set(cases))
        if others:
            self._begin()
        for case in others:
            self.store.image_path(case).unlink(missing_ok=True)
            self.store.label_path(case).unlink(missing_ok=True)
        save(
            self.store.folder / INDEX_FILE,
            StoreIndex(self.categories, {case: self._known[case] for case in sorted(cases)}),
        )
        self._journal.unlink(missing_ok=True)
        return DetectionStore(self.store.folder)

    def _begin(self) -> None:
        """Before the first file is changed: keep the journal of a run that was killed, or begin one."""
        with self._lock:
            if not self._begun:
                if not self._keeps_index:
                    (self.store.folder / INDEX_FILE).unlink(missing_ok=True)
                lines = [self._head(), *(_journal_line(case, entry) for case, entry in self._journalled.items())]
                write_text(self._journal, "".join(lines))
                self._begun = True

    def _head(self) -> str:
        """First line of the journal."""
        return json.dumps({"categories": list(self.categories), "schema": StoreIndex.schema}) + "\n"

    def _read_index(self) -> dict[str, StoredCase]:
        """What the index holds; nothing where it is of other categories or damaged: it costs only time to make them
        anew.
        """
        path = self.store.folder / INDEX_FILE
        try:
            index = load(StoreIndex, path) if path.exists() else StoreIndex(self.categories)
        except DataError:
            return {}
        return dict(index.cases) if index.categories == self.categories else {}

    def _read_journal(self) -> dict[str, StoredCase] | None:
        """What a run that was killed has stored; None where that was with other categories, over any of the files."""
        if not self._journal.exists():
            return {}
        head, *lines = self._journal.read_text(encoding="utf-8", errors="replace").split("\n")
        if f"{head}\n" != self._head():
            return None
        found: dict[str, StoredCase] = {}
        for line in lines[:-1]:  # the last one is empty, or was cut off by a kill
            try:
                data = json.loads(line)
                found[data["case"]] = from_data(StoredCase, data["entry"], JOURNAL_FILE)
            except (ValueError, KeyError, TypeError, DataError):
                break
        return found


def _journal_line(case: str, entry: StoredCase) -> str:
    return json.dumps({"case": case, "entry": asdict(entry)}) + "\n"


def stored_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """(width, height) of the stored image: the long side is ``image_size`` at most, the shape is kept to the nearest
    pixel.
    """
    longest = max(size)
    if longest <= image_size:
        return size
    width, height = (max(1, round(side * image_size / longest)) for side in size)
    return width, height


def source_of_case(*paths: Path) -> str:
    """Sizes and times of change of the raw files of a case: its image, and its label where it has one.

    Raises:
        DataError: one of them is missing.
    """
    try:
        states = [path.stat() for path in paths]
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror}; restore the file or leave the case out."
        ) from error
    return " ".join(f"{path.name}:{s.st_size}:{s.st_mtime_ns}" for path, s in zip(paths, states, strict=True))


def _entry(annotation: BoxAnnotation, size: tuple[int, int], categories: Sequence[str], source: str) -> StoredCase:
    """Boxes scaled to the stored size and clipped to it."""
    entry = StoredCase(
        width=size[0],
        height=size[1],
        original_width=annotation.width,
        original_height=annotation.height,
        source=source,
    )
    factor = np.array([size[0] / annotation.width, size[1] / annotation.height] * 2)

    def scaled(boxes: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        inside = np.clip(np.array(boxes, np.float64).reshape(-1, 4) * factor, 0, np.array([*size, *size]))
        return tuple(map(tuple, inside.round(4).tolist()))

    return replace(
        entry,
        boxes=scaled(annotation.boxes),
        classes=tuple(annotation.indices(categories).tolist()),
        ignored=scaled(annotation.ignored),
        ignored_classes=tuple(annotation.ignored_indices(categories).tolist()),
    )


def _yolo_lines(entry: StoredCase) -> str:
    width, height = entry.width, entry.height
    lines = [
        f"{index} {(a + c) / 2 / width:.8f} {(b + d) / 2 / height:.8f} {(c - a) / width:.8f} {(d - b) / height:.8f}\n"
        for index, (a, b, c, d) in zip(entry.classes, entry.boxes, strict=True)
    ]
    return "".join(lines)


def _grey_if_grey(pixels: np.ndarray) -> np.ndarray:
    """One channel where three are equal, which is smaller and faster to read."""
    if pixels.ndim == 3 and (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels
