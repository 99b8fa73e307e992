"""Whether an exported model predicts what the model predicts that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.pipeline import preprocess_case

if TYPE_CHECKING:
    from medkd.exporting.formats import Reopened


@dataclass(frozen=True)
class Parity:
    """How a scan was predicted by both.

    Attributes:
        case: its name.
        voxels: of the scan.
        differing: voxels with another label.
        foreground: voxels that either calls a structure.
        logits: largest difference of the logits.
    """

    case: str
    voxels: int
    differing: int
    foreground: int
    logits: float

    def holds(self, tolerance: float) -> bool:
        """Whether the label maps are equal up to rounding: this share of the foreground, a hundredth of the scan at
        least, may differ, and a single voxel always.
        """
        return self.differing <= max(1.0, tolerance * max(self.foreground, self.voxels / 100))


def synthetic_scan(channels: int, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """A smooth random scan ``(channels, z, y, x)`` float32 with structures of all sizes."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed)
    scan = np.zeros((channels, *shape), np.float32)
    for channel in scan:
        for sigma in (1.0, 3.0, 8.0):
            field = gaussian_filter(noise.standard_normal(shape), sigma)
            channel += (field / field.std()).astype(np.float32)
    return scan * 100


def scan_for(trained: TrainedModel, scan: Sequence[Path] | None) -> tuple[np.ndarray, Geometry, str]:
    """The scan that both predict: the given files, or a synthetic one that needs several tiles.

    Returns:
        Image ``(C, z, y, x)``, its grid, and its name for texts.
    """
    if scan is not None:
        image, geometry = read_image(scan, scan[0].name)
        return image, geometry, scan[0].name
    plan, planned = trained.plan, trained.configuration
    lacking = 3 - planned.rank
    spacing = (planned.spacing[0],) * lacking + tuple(planned.spacing)
    patch = (4,) * lacking + tuple(trained.patch_size)
    sides = [max(4, round(side * 1.2)) for side in patch]
    shape = tuple(sides[axis] for axis in plan.transpose_back)
    native = tuple(spacing[axis] for axis in plan.transpose_back)
    image = synthetic_scan(len(trained.channels), shape)
    return image, Geometry.from_spacing(shape, native), "a synthetic scan"


def compare(
    predictor: Predictor,
    exported: Reopened,
    image: np.ndarray,
    geometry: Geometry,
    case: str,
    *,
    tolerance: float,
) -> Parity:
    """Predict one scan with both.

    Args:
        predictor: of the model that was exported.
        exported: the exported one, with the same step size and mirroring.
        image: ``(C, z, y, x)``.
        geometry: its grid.
        case: its name, for the text.
        tolerance: see :meth:`Parity.holds`.

    Raises:
        RunError: the label maps differ by more than rounding.
    """
    prepared = preprocess_case(case, image, geometry, predictor.plan, predictor.configuration)
    ours, theirs = predictor.predict(prepared).labels, exported.labels_of(prepared)
    logits = predictor.predict_preprocessed(prepared.image).numpy()
    found = Parity(
        case=case,
        voxels=ours.size,
        differing=int((ours != theirs).sum()),
        foreground=int(((ours > 0) | (theirs > 0)).sum()),
        logits=float(np.abs(logits - exported.logits_of(prepared.image)).max()),
    )
    if not found.holds(tolerance):
        raise RunError(
            f"The exported network predicts {case} otherwise than the model: {found.differing} of {found.voxels} "
            f"voxels have another label (logits differ by up to {found.logits:.2g}); nothing was exported."
        )
    return found
