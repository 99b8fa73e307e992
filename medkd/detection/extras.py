"""What a detection writes for each image beside ``predictions.json``: a picture with the boxes, DICOM objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.detection.detecting import Source
from medkd.detection.pictures import PICTURE_SCORE, drawn_picture, picture_path, write_picture
from medkd.evaluation.detection.predictions import Boxes, ImagePredictions
from medkd.io.dicom_header import is_dicom
from medkd.io.writing.formats import Format
from medkd.io.writing.maker import Maker
from medkd.io.writing.radiograph_objects import FoundBox, write_capture, write_report
from medkd.io.writing.source import need_dicom_package, read_reference
from medkd.io.writing.structures import Structure, structures_of
from medkd.io.writing.terms import Terms

DICOM_FOLDER = "dicom"
"""Below the results: the DICOM objects."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """The further files of the images.

    Attributes:
        outputs: folder of the results.
        structures: the classes in order.
        score: lowest score that is drawn or reported.
        pictures: whether there is a picture of each.
        formats: of the DICOM objects.
        maker: the detector.
    """

    outputs: Path
    structures: tuple[Structure, ...]
    score: float = PICTURE_SCORE
    pictures: bool = False
    formats: tuple[Format, ...] = ()
    maker: Maker

    @classmethod
    def of(
        cls, outputs: Path, categories: Sequence[str], terms: Terms, maker: Maker, *, formats: Sequence[Format] = (),
        pictures: bool = False, score: float = PICTURE_SCORE,
    ) -> Extras:  # fmt: skip
        """The files for detections of these categories.

        Raises:
            DataError: the package that writes DICOM is not installed.
        """
        if formats:
            need_dicom_package()
        structures = structures_of(LabelSpec.from_names(tuple(categories)), terms)
        return cls(
            outputs=outputs,
            structures=structures,
            score=score,
            pictures=pictures,
            formats=tuple(formats),
            maker=maker,
        )

    def check(self, sources: Sequence[Source]) -> None:
        """DICOM objects refer to DICOM images.

        Raises:
            DataError: an image is none.
        """
        for source in sources:
            if self.formats and not is_dicom(Path(source.file)):
                raise DataError(
                    f"--format {self.formats[0].name} refers to the radiograph's DICOM file, but {source.file} is "
                    "none; predict from the DICOM files, or leave out --format."
                )

    def files(self, case: str) -> list[Path]:
        """The files of one image."""
        pictures = [picture_path(self.outputs, case)] if self.pictures else []
        return pictures + [self._object(case, entry) for entry in self.formats]

    def write(self, source: Source, pixels: np.ndarray, image: ImagePredictions) -> None:
        """Write the files of one image, each atomically.

        Raises:
            DataError: a file cannot be written, or the image's header is damaged.
        """
        names = [structure.name for structure in self.structures]
        if self.pictures:
            write_picture(picture_path(self.outputs, source.case), pixels, image.found, names, self.score)
        for entry in self.formats:
            header = read_reference(Path(source.file))
            path = self._object(source.case, entry)
            if entry.name == "dicom-sr":
                write_report(path, header, self._boxes(image.found), self.maker)
            else:
                picture = drawn_picture(pixels, image.found, names, self.score, largest=max(pixels.shape[:2]))
                write_capture(path, header, np.asarray(picture), self.maker)

    def _object(self, case: str, entry: Format) -> Path:
        return self.outputs / DICOM_FOLDER / f"{case}{entry.ending}"

    def _boxes(self, found: Boxes) -> list[FoundBox]:
        """The boxes that are reported."""
        boxes = []
        for box, kind, score in zip(found.boxes.tolist(), found.classes, found.scores, strict=True):
            if score >= self.score:
                boxes.append(FoundBox(tuple(box), self.structures[kind], float(score)))
        return boxes
