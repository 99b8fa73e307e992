"""A model for segmentation that is loaded once and used often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.inference.inputs import find_cases
from medkd.inference.opening import open_predictor
from medkd.io.volumes import read_image, write_volume
from medkd.models.base import ModelFolder, open_model
from medkd.models.segmentation import TrainedModel
from medkd.runtime.prediction import CasePredictor


@dataclass(frozen=True)
class SegmentedScan:
    """A label map where its scan lies.

    Attributes:
        case: id of the scan, from its file's name.
        labels: ``(z, y, x)``.
        geometry: of the scan.
    """

    case: str
    labels: np.ndarray
    geometry: Geometry

    def save(self, path: Path | str) -> None:
        """Write the label map (``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``), atomically.

        Raises:
            DataError: the file cannot be written.
        """
        write_volume(Path(path), self.labels, self.geometry)


class Loaded:
    """Networks that wait for scans.

    Args:
        predictor: networks and all that is needed to predict with them.

    Attributes:
        labels: name → value of each structure (or values of each region).
        channels: how many images a scan has.
    """

    task = "segmentation"

    def __init__(self, predictor: CasePredictor) -> None:
        self.predictor = predictor
        self.labels = dict(predictor.labels.entries)
        self.channels = len(predictor.configuration.normalization)

    @classmethod
    def of(cls, model: ModelFolder[TrainedModel], folds: Sequence[int | str] | None = None, **more: Any) -> Loaded:
        """Load the networks of a model; ``folds`` and ``more`` as for
        :func:`~medkd.inference.opening.open_predictor`.
        """
        return cls(open_predictor(model, folds, **more))

    @overload
    def predict(self, scan: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """The label map of an array."""

    @overload
    def predict(self, scan: Path | str | Sequence[Path | str]) -> SegmentedScan:
        """The label map of a file."""

    def predict(
        self, scan: np.ndarray | Path | str | Sequence[Path | str], spacing: Sequence[float] | None = None
    ) -> np.ndarray | SegmentedScan:
        """Segment one scan.

        Args:
            scan: values ``(z, y, x)`` or ``(C, z, y, x)``, axes and units as the reader of files gives them; or the
                file of the scan, one file per channel, or a folder with one DICOM series.
            spacing: of an array, voxel size in mm along z, y and x.

        Returns:
            Of an array the label map ``(z, y, x)``; of a file the label map with its geometry.

        Raises:
            DataError: the array, its spacing or the files are not a scan for this model.
        """
        if isinstance(scan, np.ndarray):
            return self._array(scan, spacing)
        if spacing is not None:
            raise DataError("A file says its spacing itself; leave out 'spacing', or give the voxels as an array.")
        cases = find_cases(scan, self.channels)
        if len(cases) != 1:
            raise DataError(f"Expected one scan, found {len(cases)} in {scan}; give one file, or use medkd_predict.")
        image, geometry = read_image(cases[0].images, cases[0].case)
        labels = self.predictor.predict_case(image, geometry, cases[0].case)
        return SegmentedScan(cases[0].case, labels, geometry)

    def _array(self, scan: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
        image = scan[None] if scan.ndim == 3 else scan
        if image.ndim != 4 or image.shape[0] != self.channels or 0 in image.shape:
            raise DataError(
                f"Expected voxels (z, y, x) of {self.channels} channel(s), (C, z, y, x) for several, found the shape "
                f"{scan.shape}."
            )
        if spacing is None or not _is_voxel_size(spacing):
            raise DataError(f"Expected the voxel size in mm along z, y and x, three positive numbers, found {spacing}.")
        if not np.issubdtype(image.dtype, np.number) or not np.isfinite(image).all():
            raise DataError(f"Expected finite numbers as voxels, found {image.dtype} with values that are none.")
        geometry = Geometry.from_spacing(image.shape[1:], tuple(float(side) for side in spacing))
        return self.predictor.predict_case(image.astype(np.float32), geometry, "array")


def _is_voxel_size(spacing: Sequence[float]) -> bool:
    return len(spacing) == 3 and bool(np.isfinite(spacing).all()) and min(spacing) > 0


def load(path: Path | str, folds: Sequence[int | str] | None = None, **more: Any) -> Loaded:
    """The model for segmentation in a folder, loaded once to be used often.

    Args:
        path: run folder, model folder of nnU-Net v2, MONAI bundle, folder with a ``teacher.json``, or exported model.
        folds: folds to average; None takes every trained one.
        more: ``device``, ``checkpoint``, ``step_size``, ``mirror``, ``precision``, and of exported models ``engine``
            and ``threads``, as for :func:`~medkd.inference.opening.open_predictor`.

    Raises:
        RunError: there is no model for segmentation, or it is not trained.
    """
    return Loaded.of(open_model(path, "segmentation"), folds, **more)
