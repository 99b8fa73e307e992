"""What the label maps of a model mean, and how they are written as DICOM objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.writing.dicom_seg import check_kind, write_dicom_seg
from medkd.io.writing.maker import Maker
from medkd.io.writing.rtstruct import write_rtstruct
from medkd.io.writing.source import SourceSeries, need_dicom_package
from medkd.io.writing.structures import Structure, painted_structures, structures_of
from medkd.io.writing.terms import Terms


@dataclass(frozen=True, kw_only=True)
class LabelMapWriter:
    """Writes the label maps of one model.

    Attributes:
        structures: what is predicted; regions may overlap.
        painted: one structure per value of a label map.
        kind: of DICOM-SEG, ``binary`` or ``labelmap``.
        maker: the model.
    """

    structures: tuple[Structure, ...]
    painted: tuple[Structure, ...]
    kind: str = "binary"
    maker: Maker

    @classmethod
    def of(
        cls, labels: LabelSpec, terms: Terms, *, dataset: str = "", kind: str = "binary", maker: Maker | None = None
    ) -> LabelMapWriter:
        """The writer for label maps with these labels.

        Raises:
            DataError: there is no such kind of DICOM-SEG, or overlapping regions have no place in it.
        """
        structures = structures_of(labels, terms, dataset)
        check_kind(structures, kind)
        painted = painted_structures(labels, terms, dataset)
        return cls(structures=structures, painted=painted, kind=kind, maker=maker or Maker())

    @property
    def untold(self) -> list[str]:
        """Names of the structures whose terms are not known."""
        return [structure.name for structure in self.structures if structure.term is None]

    def write(
        self, path: Path, name: str, array: np.ndarray, geometry: Geometry, source: SourceSeries | None = None
    ) -> None:
        """Write one label map as a DICOM object, atomically.

        Args:
            path: of the file.
            name: of the format.
            array: label map ``(z, y, x)``.
            geometry: where it lies.
            source: the series that DICOM objects refer to.

        Raises:
            DataError: the file cannot be written, or the series is missing or lies elsewhere.
        """
        if source is None:
            raise DataError(f"{path}: a DICOM object needs the series that the scan was read from; give it.")
        need_dicom_package()
        fitted = source.fitted(array, geometry)
        if name == "dicom-seg":
            write_dicom_seg(path, fitted, source, self.structures, kind=self.kind, maker=self.maker)
        else:
            write_rtstruct(path, fitted, source, self.structures, self.maker)
