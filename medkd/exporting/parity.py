"""Whether an exported model predicts what the model predicts that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.inference.export import logits_to_labels
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.pipeline import preprocess_case

if TYPE_CHECKING:
    from medkd.exporting.formats import Reopened


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How a scan was predicted by both.

    Attributes:
        case: its name.
        voxels: of the scan.
        differing: voxels with another label.
        foreground: voxels that either calls a structure.
        logits: largest difference of the logits.
        spread: root mean square of their differences, as a share of the standard deviation of an output's logits.
    """

    case: str
    voxels: int
    differing: int
    foreground: int
    logits: float
    spread: float

    def holds(self, tolerance: float, spread: float) -> bool:
        """Whether both are equal up to rounding: this share of the foreground, a hundredth of the scan at least, may
        have other labels, and a single voxel always; the logits must agree, too, since two label maps without a
        structure are always alike.
        """
        few = self.differing <= max(1.0, tolerance * max(self.foreground, self.voxels / 100))
        return few and self.spread <= spread


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
    """The scan that both predict: the given files, or a synthetic one that needs two tiles along its longest side,
    which is what can be afforded where each is computed in eight mirrored copies.

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
    sides = [max(4, side) for side in patch]
    longest = sides.index(max(sides))
    sides[longest] = round(sides[longest] * 1.2)
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
    spread: float,
) -> Parity:
    """Predict one scan with both.

    Args:
        predictor: of the model that was exported.
        exported: the exported one, with the same step size and mirroring.
        image: ``(C, z, y, x)``.
        geometry: its grid.
        case: its name, for the text.
        tolerance: see :meth:`Parity.holds`.
        spread: see :meth:`Parity.holds`.

    Raises:
        RunError: the label maps or the logits differ by more than rounding, or the model's are not finite.
    """
    prepared = preprocess_case(case, image, geometry, predictor.plan, predictor.configuration)
    logits = predictor.predict_preprocessed(prepared.image)
    ours = logits_to_labels(logits, prepared.properties, predictor.plan, predictor.configuration, predictor.labels)
    theirs, answered = exported.answer(prepared)
    apart = logits.numpy() - answered
    found = Parity(
        case=case,
        voxels=ours.size,
        differing=int((ours != theirs).sum()),
        foreground=int(((ours > 0) | (theirs > 0)).sum()),
        logits=float(np.abs(apart).max()),
        spread=float(np.sqrt(np.mean(apart**2) / max(float(logits.flatten(1).var(1).mean()), 1e-24))),
    )
    if not found.holds(tolerance, spread):
        raise RunError(
            f"The exported network predicts {case} otherwise than the model: {found.differing} of {found.voxels} "
            f"voxels have another label, and the logits differ by {100 * found.spread:.2g} % of their spread; nothing "
            "was exported."
        )
    return found
