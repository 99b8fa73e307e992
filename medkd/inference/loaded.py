"""A model for segmentation that is loaded once and used often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from medkd.core.dataset import SEGMENTATION, CaseFiles
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.inference.inputs import find_cases
from medkd.inference.opening import open_predictor
from medkd.inference.outputs import Outputs
from medkd.inference.scan_check import check_scan
from medkd.inference.writers import writer_of
from medkd.io.volumes import read_image
from medkd.io.writing.formats import choose_formats
from medkd.io.writing.label_maps import LabelMapWriter
from medkd.models.base import ModelFolder, open_model
from medkd.models.segmentation import TrainedModel
from medkd.runtime.prediction import CasePredictor, Prediction


@dataclass(frozen=True, kw_only=True)
class SegmentedScan:
    """A label map where its scan lies.

    Attributes:
        case: id of the scan, from its file's name.
        labels: ``(z, y, x)``.
        geometry: of the scan.
        writer: knows the names, colours and terms of the labels.
        images: the scan's files, or the folder of its DICOM series.
    """

    case: str
    labels: np.ndarray
    geometry: Geometry
    writer: LabelMapWriter
    images: tuple[Path, ...]

    def save(self, path: Path | str, format: str | None = None, *, source_series: Path | str | None = None) -> None:
        """Write the label map, atomically.

        Args:
            path: the file.
            format: as for :func:`~medkd.inference.folder.predict_folder`; None goes by the ending: ``.nii.gz``,
                ``.nii``, ``.nrrd``, ``.seg.nrrd``, ``.mha``, ``.dcm`` (DICOM-SEG) or ``.rtstruct.dcm``.
            source_series: of DICOM objects, the series that a scan was converted from.

        Raises:
            DataError: the file cannot be written, or the DICOM series that it must refer to is missing.
        """
        case = CaseFiles(self.case, self.images)
        series = None if source_series is None else Path(source_series)
        formats = choose_formats(format, SEGMENTATION)
        outputs = Outputs.for_file(Path(path), case, formats=formats, writer=self.writer, series=series)
        outputs.write(case, Prediction(self.labels), self.geometry)


class Loaded:
    """Networks that wait for scans.

    Args:
        predictor: networks and all that is needed to predict with them.
        name: of the model; DICOM objects say it.

    Attributes:
        labels: name → value of each structure (or values of each region).
        channels: how many images a scan has.
    """

    task = "segmentation"

    def __init__(self, predictor: CasePredictor, name: str = "medkd") -> None:
        self.predictor, self.name = predictor, name
        self.labels = dict(predictor.labels.entries)
        self.channels = len(predictor.configuration.normalization)

    @classmethod
    def of(cls, model: ModelFolder[TrainedModel], folds: Sequence[int | str] | None = None, **more: Any) -> Loaded:
        """Load the networks of a model; ``folds`` and ``more`` as for
        :func:`~medkd.inference.opening.open_predictor`.
        """
        return cls(open_predictor(model, folds, **more), model.path.resolve().name)

    @cached_property
    def writer(self) -> LabelMapWriter:
        """Writes label maps with names, colours and terms."""
        return writer_of(self.predictor, self.name)

    @overload
    def predict(self, scan: np.ndarray, spacing: Sequence[float], *, strict: bool = False) -> np.ndarray:
        """The label map of an array."""

    @overload
    def predict(self, scan: Path | str | Sequence[Path | str], *, strict: bool = False) -> SegmentedScan:
        """The label map of a file."""

    def predict(
        self,
        scan: np.ndarray | Path | str | Sequence[Path | str],
        spacing: Sequence[float] | None = None,
        *,
        strict: bool = False,
    ) -> np.ndarray | SegmentedScan:
        """Segment one scan; where it does not look like the training cases, a warning is logged.

        Args:
            scan: values ``(z, y, x)`` or ``(C, z, y, x)``, axes and units as the reader of files gives them; or the
                file of the scan, one file per channel, or a folder with one DICOM series.
            spacing: of an array, voxel size in mm along z, y and x.
            strict: refuse scans that do not look like the training cases instead.

        Returns:
            Of an array the label map ``(z, y, x)``; of a file the label map with its geometry.

        Raises:
            DataError: the array, its spacing or the files are not a scan for this model; with ``strict`` also: the scan
                does not look like the training cases.
        """
        if isinstance(scan, np.ndarray):
            return self._array(scan, spacing, strict)
        if spacing is not None:
            raise DataError("A file says its spacing itself; leave out 'spacing', or give the voxels as an array.")
        cases = find_cases(scan, self.channels)
        if len(cases) != 1:
            raise DataError(f"Expected one scan, found {len(cases)} in {scan}; give one file, or use medkd_predict.")
        image, geometry = read_image(cases[0].images, cases[0].case)
        check_scan(self.predictor, cases[0], image, geometry, strict=strict)
        labels = self.predictor.predict_case(image, geometry, cases[0].case)
        return SegmentedScan(
            case=cases[0].case, labels=labels, geometry=geometry, writer=self.writer, images=cases[0].images
        )

    def _array(self, scan: np.ndarray, spacing: Sequence[float] | None, strict: bool) -> np.ndarray:
        image = scan[None] if scan.ndim == 3 else scan
        if image.ndim != 4 or image.shape[0] != self.channels or 0 in image.shape:
            raise DataError(
                f"Expected voxels (z, y, x) of {self.channels} channel(s), (C, z, y, x) for several, found the shape "
                f"{scan.shape}."
            )
        if spacing is None or not _is_voxel_size(spacing):
            raise DataError(f"Expected the voxel size in mm along z, y and x, three positive numbers, found {spacing}.")
        if image.dtype.kind not in "iuf":
            raise DataError(f"Expected finite numbers as voxels, found {image.dtype}; give real ones.")
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite
            voxels = image.astype(np.float32)
        if not np.isfinite(voxels).all():
            raise DataError(f"Expected finite numbers as voxels, found {image.dtype} with values that are none.")
        geometry = Geometry.from_spacing(image.shape[1:], tuple(float(side) for side in spacing))
        check_scan(self.predictor, CaseFiles("array", ()), voxels, geometry, strict=strict)
        return self.predictor.predict_case(voxels, geometry, "array")


def _is_voxel_size(spacing: Any) -> bool:
    """Whether it is three numbers that are finite and positive, in whatever holds them in order."""
    try:
        sides = np.asarray(spacing)
    except ValueError:  # ragged
        return False
    return sides.shape == (3,) and sides.dtype.kind in "iuf" and bool((np.isfinite(sides) & (sides > 0)).all())


def load(path: Path | str, folds: Sequence[int | str] | None = None, **more: Any) -> Loaded:
    """The model for segmentation in a folder, loaded once to be used often.

    Args:
        path: run folder, model folder of nnU-Net v2, MONAI bundle, folder with a ``teacher.json``, or exported model.
        folds: folds to average; None takes every trained one.
        more: ``device``, ``checkpoint``, ``step_size``, ``mirror``, ``precision``, ``postprocessing``, ``engine`` and
            ``threads``, as for :func:`~medkd.inference.opening.open_predictor`.

    Raises:
        RunError: there is no model for segmentation, or it is not trained.
    """
    return Loaded.of(open_model(path, "segmentation"), folds, **more)
